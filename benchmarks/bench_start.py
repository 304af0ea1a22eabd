"""How long it takes until the library is imported and the command line answers.

    python benchmarks/bench_start.py                          every module, and three commands
    python benchmarks/bench_start.py model tokenizer --rounds 9

Each time is that of a new process. A module is timed from the moment when the parts of torch that it names are loaded,
so that what is left is ours. The contestants take turns, and the median of their rounds is printed, by the clock and
by the processor; where other work uses the machine, the second is the one to compare.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import llm_literate

PACKAGE = Path(llm_literate.__file__).parent
COMMANDS = {"llm-literate --help": ["--help"], "llm-literate --version": ["--version"],
            "llm-literate generate --help": ["generate", "--help"]}
AIMS = {"module": 0.3, "llm-literate --help": 0.5}  # seconds

IMPORT = """
import sys, time
for name in sys.argv[2:]:
    __import__(name)
wall, cpu = time.perf_counter(), time.process_time()
__import__(sys.argv[1])
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
COMMAND = """
import os, subprocess, sys, time
wall, before = time.perf_counter(), os.times()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
after = os.times()
print(time.perf_counter() - wall,
      after.children_user + after.children_system - before.children_user - before.children_system)
"""


def torch_parts(module: str) -> list[str]:
    "Name torch and the parts of it that a module, or one that it imports at once, imports at its top."
    found, todo, seen = {"torch"}, [module], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        path = PACKAGE / f"{name}.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                found |= {a.name for a in node.names if a.name.startswith("torch")}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                found.add(node.module)
            elif isinstance(node, ast.ImportFrom):
                inner = (node.module or "").removeprefix("llm_literate").lstrip(".")
                names = [inner] if inner else [a.name for a in node.names]
                todo += [n for n in names if (PACKAGE / f"{n}.py").exists() and n not in seen]
    return sorted(found)


def contestants(modules: list[str]) -> dict[str, list[str]]:
    "Give the command of each contestant by its name; it prints seconds by the clock and by the processor."
    python = [sys.executable, "-c"]
    program = shutil.which("llm-literate", path=str(Path(sys.executable).parent)) or shutil.which("llm-literate")
    found = {f"import llm_literate.{name}": [*python, IMPORT, f"llm_literate.{name}", *torch_parts(name)]
             for name in modules}
    found["import torch"] = [*python, IMPORT, "torch"]
    if program:
        found |= {name: [*python, COMMAND, program, *args] for name, args in COMMANDS.items()}
    return found


def main() -> None:
    "Time all contestants in turn and print their medians."
    known = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="like model; none means all")
    parser.add_argument("--rounds", type=int, default=5, help="of each contestant (default: 5)")
    chosen = parser.parse_args()
    if strange := set(chosen.modules) - set(known):
        parser.error(f"there is no module {', '.join(sorted(strange))}; there are {', '.join(known)}")
    times = {name: [] for name in contestants(chosen.modules or known)}
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="")
    with TemporaryDirectory() as elsewhere:  # nothing is imported from here by accident
        for number in range(chosen.rounds + 1):
            for name, command in contestants(chosen.modules or known).items():
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=elsewhere)
                if number:  # the first round only fills caches
                    times[name].append(tuple(map(float, done.stdout.split()[-2:])))
    print(f"{'median of ' + str(chosen.rounds) + ' rounds':36}{'clock':>8}{'processor':>11}")
    for name, rounds in times.items():
        wall, cpu = (median(column) for column in zip(*rounds, strict=True))
        aim = AIMS.get(name, AIMS["module"] if "llm_literate" in name else None)
        told = f"   aim {aim} s{'' if wall < aim else ': missed'}" if aim else ""
        print(f"{name:36}{wall:7.3f}s{cpu:10.3f}s{told}")


if __name__ == "__main__":
    main()
