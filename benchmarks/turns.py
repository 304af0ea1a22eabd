"""A process that works only when it is its turn, so that contestants can alternate within one run."""

import json
import subprocess
import sys


class Turns:
    "Start a script as a contestant; it writes one line of JSON when it is ready, and one after each turn."

    def __init__(self, script, arguments, environment):
        self.seconds = []
        self.process = subprocess.Popen([sys.executable, script, *arguments], env=environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self.read()  # what it says of itself

    def read(self):
        "Wait for its next line."
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a contestant has failed, see above")
        return json.loads(line)

    def turn(self):
        "Let it work once; gives what it says then."
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self):
        "End it."
        self.process.stdin.close()
        self.process.wait()
