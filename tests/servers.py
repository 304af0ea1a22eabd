"""Servers that stand in for real ones, on this machine, for as long as a test needs them."""

import http.server
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress


@contextmanager
def serving(handler, port=0):
    "Serve on this machine; gives the server, whose address is `server.where`."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.where = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def free_port():
    "Find a port on which nobody listens."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def judged(score, reason="as written down", **more):
    "Write a reply that follows the schema."
    return json.dumps({"reason": reason, "score": score, **more})


class Ollama:
    """Speak Ollama's protocol with replies that a test writes down; no model is behind it.

    `reply(number, body)` gives what to answer to the n-th question (from 0): a text, or one of `http`, `lines`, `drop`,
    `drip`, `hang` below.
    """

    def __init__(
        self,
        reply=lambda number, body: judged(50),
        models=("fake:latest",),
        digest="a" * 64,
        template="{{ .P }}",
        context=8192,
        **tags,
    ):
        self.reply, self.digest, self.template, self.context, self.tags = reply, digest, template, context, tags
        self.models, self.loaded = models, None
        self.asked, self.paths, self.headers, self.lock = [], [], [], threading.Lock()
        self.busy = self.most = 0  # questions under way now, and at most

    @staticmethod
    def http(code, error):
        return ("http", code, {"error": error})

    @staticmethod
    def lines(*lines):
        "Send these lines as they are and end."
        return ("lines", [line if isinstance(line, str) else json.dumps(line) for line in lines])

    @staticmethod
    def drop():
        "Begin a reply and close the connection in the middle."
        return ("drop",)

    @staticmethod
    def drip(seconds):
        "Send one byte every now and then, and never a whole line."
        return ("drip", seconds)

    @staticmethod
    def hang(seconds):
        "Say nothing at all."
        return ("hang", seconds)

    def handler(self):
        "Make the class that a server needs."
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each small piece waits 40 ms for the other side

            def log_message(self, *args):
                pass

            def send(self, body, code=200):
                body = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def chunk(self, data):
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

            def do_GET(self):
                fake.paths.append(self.path)
                if self.path == "/api/version":
                    self.send({"version": "0.33.0"})
                elif self.path == "/api/tags":
                    self.send(
                        {
                            "models": [
                                {
                                    "name": name,
                                    "model": name,
                                    "size": 4_700_000_000,
                                    "digest": fake.digest,
                                    "details": {},
                                    **fake.tags,
                                }
                                for name in fake.models
                            ]
                        }
                    )
                elif self.path == "/api/ps":
                    self.send(
                        {"models": [{"name": fake.models[0], "context_length": fake.loaded}] if fake.loaded else []}
                    )
                else:
                    self.send({"error": "not found"}, 404)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.paths.append(self.path)
                names = {*fake.models, *(name.removesuffix(":latest") for name in fake.models)}
                if body.get("model") not in names:
                    self.send({"error": f"model '{body.get('model')}' not found"}, 404)
                elif self.path == "/api/show":
                    self.send(
                        {
                            "template": fake.template,
                            "parameters": "",
                            "details": {},
                            "model_info": {"llama.context_length": fake.context},
                        }
                    )
                elif self.path == "/api/chat":
                    with suppress(BrokenPipeError, ConnectionResetError):
                        self.chat(body)
                else:
                    self.send({"error": "not found"}, 404)

            def chat(self, body):
                with fake.lock:
                    number = len(fake.asked)
                    fake.asked.append(body)
                    fake.headers.append(dict(self.headers))
                    fake.busy += 1
                    fake.most = max(fake.most, fake.busy)
                try:
                    what = fake.reply(number, body)
                finally:
                    with fake.lock:
                        fake.busy -= 1
                if isinstance(what, tuple) and what[0] == "http":
                    return self.send(what[2], what[1])
                if isinstance(what, tuple) and what[0] == "hang":
                    time.sleep(what[1])
                    self.close_connection = True
                    return None
                self.send_response(200)
                self.send_header("Content-Type", "application/x-ndjson")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if isinstance(what, str):
                    what = fake.lines(*stream(body["model"], what))
                kind, *rest = what
                if kind == "drop":
                    self.chunk(json.dumps(stream(body["model"], "half")[0]).encode()[:20])
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif kind == "drip":
                    for _ in range(2000):
                        self.chunk(b" ")
                        time.sleep(rest[0])
                else:
                    for line in rest[0]:
                        self.chunk(line.encode() + b"\n")
                    self.wfile.write(b"0\r\n\r\n")
                return None

        return Handler


def stream(model, text, done=True, reason="stop"):
    "Cut a reply into lines as the real server sends them."
    base = {"model": model, "created_at": "2026-01-01T00:00:00Z"}
    pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
    lines = [{**base, "message": {"role": "assistant", "content": piece}, "done": False} for piece in pieces]
    if done:
        lines.append(
            {
                **base,
                "message": {"role": "assistant", "content": ""},
                "done": True,
                "done_reason": reason,
                "total_duration": 1,
                "load_duration": 1,
                "prompt_eval_count": 10,
                "eval_count": len(pieces),
            }
        )
    return lines


@contextmanager
def ollama(*args, port=0, **options):
    "Serve a stand-in for Ollama; gives it, with its address as `where`."
    fake = Ollama(*args, **options)
    with serving(fake.handler(), port) as server:
        fake.where, fake.server = server.where, server
        yield fake
