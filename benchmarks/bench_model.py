"""Training steps and generation beside transformers, litgpt, llms-from-scratch and plain code: alternating, as ratios.

    python benchmarks/bench_model.py [--minutes 10] [--rounds 5] [--small] [--record] [--shared]

Every contestant runs in a process of its own, forked from one that has imported everything, so that its peak memory is
its own; what the process held before it built the model is subtracted.
All contestants of a task live at once and take turns, one step or one generation each, in another order each round.
"Untuned" is what a user gets who writes the model, an AdamW and a loop.
"Tuned" adds to training what `llm_literate.speed` describes: OMP_WAIT_POLICY=PASSIVE, `tune_cpu()`, AdamW with
`fused=True`; to generation in float32, `faster_decoding`, and nothing else.
Peers get the same in a second run, so that settings and models can be told apart.
--record writes llm_literate/assets/speed.json, from which the page "How fast is it?" is built.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench_windows import held, peak

RECORD = Path(__file__).parents[1] / "llm_literate" / "assets" / "speed.json"
SIZES = {  # vocabulary, width, heads, layers
    "124M": (50257, 768, 12, 12),
    "small": (2048, 384, 6, 6),
    "tiny": (256, 32, 2, 2),
}
BATCHES = {"124M": (2, 256), "small": (16, 128), "tiny": (2, 16)}  # rows, tokens in a row
PROMPT, NEW = 16, 64  # tokens
UNTUNED = ["nanoGPT-style code", "transformers", "llms-from-scratch", "llms-from-scratch, fast", "litgpt", "ours"]
TUNED = ["nanoGPT-style code", "transformers", "llms-from-scratch, fast", "litgpt", "ours"]
DECODERS = ["nanoGPT-style code", "transformers", "llms-from-scratch", "litgpt", "ours"]
PACKAGES = ["torch", "transformers", "llms-from-scratch", "litgpt", "llm-literate"]


# -- in the process of one contestant ---------------------------------------------------------------------------------

def clock(work) -> dict:  # seconds and bytes
    "Run once: seconds waited, seconds computed by all threads, memory held at most since the last call."
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "memory": peak()}


def contest(pipe, name: str, task: str, size: str, precision: str, tuned: bool) -> None:
    "Build one contestant, then answer every request with one measurement; this is the body of a process."
    import torch
    from contestants import BUILDERS

    from llm_literate.generate import faster_decoding
    from llm_literate.speed import tune_cpu
    base = held()
    if tuned and task == "train":
        tune_cpu()
    vocabulary, width, heads, layers = SIZES[size]
    rows, tokens = BATCHES[size]
    torch.manual_seed(0)
    one = BUILDERS[name][0](vocabulary, tokens if task == "train" else max(tokens, PROMPT + NEW), width, heads, layers)
    n_parameters = sum(p.numel() for p in one.model.parameters())
    if task == "train":
        optimizer = torch.optim.AdamW(one.parameters(), lr=4e-4, weight_decay=0.1, fused=tuned or None)
        ids = torch.randint(vocabulary, (rows, tokens + 1))
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

        def work():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = one.loss(inputs, targets)
            loss.backward()
            optimizer.step()
            assert loss.isfinite()
    else:
        one.model.eval()
        if precision == "bf16":
            one.model.to(torch.bfloat16)
        elif tuned:
            faster_decoding(one.model)
        prompt, new = torch.randint(vocabulary, (1, PROMPT)), 2

        def work():
            assert one.generate[task](prompt, new).shape[1] == PROMPT + new

    first = clock(work)  # not counted: buffers, plans and the optimizer's state are made
    new = NEW
    if task != "train":
        held()  # what building took is not what generating takes
    pipe.send({"parameters": n_parameters, "first": first["wall"]})
    while pipe.recv():
        answer = clock(work)
        answer["memory"] -= base
        pipe.send(answer)


# -- in the process that has imported everything -----------------------------------------------------------------------

def serve() -> None:
    "Fork contestants, pass on requests: a JSON list a line, [key, ...] starts one, [key] lets it run, [] stops all."
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not disturb the answers
    import contestants  # noqa: F401
    import torch._dynamo  # noqa: F401  (the first optimizer would load it)

    import llm_literate.generate
    import llm_literate.speed  # noqa: F401
    for package in "transformers.models.gpt2.modeling_gpt2", "litgpt.generate.base", "llms_from_scratch.ch05":
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    fork, running = multiprocessing.get_context("fork"), {}

    def say(answer):
        print(json.dumps(answer), file=out, flush=True)

    say("ready")
    for line in sys.stdin:
        key, *case = json.loads(line) or [None]
        if key is None:
            for process, pipe in running.values():
                pipe.send(False)
                process.join()
            running.clear()
            say("stopped")
            continue
        if case:
            pipe, other = fork.Pipe()
            process = fork.Process(target=contest, args=(other, *case), daemon=True)
            process.start()
            other.close()
            running[key] = process, pipe
        else:
            _, pipe = running[key]
            pipe.send(True)
        say(pipe.recv())


class Server:
    "A process that starts contestants, tuned by its environment or not."

    def __init__(self, tuned: bool):
        tuning = ("OMP_WAIT_POLICY", "MALLOC_", "GLIBC_TUNABLES", "OMP_NUM_THREADS")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(tuning)}
        environment |= {"OMP_WAIT_POLICY": "PASSIVE"} if tuned else {}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self.process = subprocess.Popen([sys.executable, __file__, "--serve"], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *message):
        "Send one request and wait for its answer."
        if message:
            self.process.stdin.write(json.dumps(message if message != (None,) else []) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a contestant has failed, see above")
        return json.loads(line)


# -- in the process that counts ----------------------------------------------------------------------------------------

def tasks(small: bool) -> list[dict]:
    "List what is compared: contestants (name, tuned), the share of all time, the rounds at most."
    big, little = ("tiny", "tiny") if small else ("124M", "small")
    untuned = [(name, False) for name in UNTUNED] + [("ours", True)]
    tuned = [(name, True) for name in TUNED]
    found = []
    for size, shares in (big, (90, 55, 52, 36)), (little, (38, 30, 20, 15)):
        found += [
            dict(task="train", size=size, precision="fp32", run="untuned", cases=untuned, share=shares[0]),
            dict(task="train", size=size, precision="bf16", run="untuned", cases=untuned, share=shares[1]),
            dict(task="train", size=size, precision="fp32", run="tuned", cases=tuned, share=shares[2]),
            dict(task="train", size=size, precision="bf16", run="tuned", cases=tuned, share=shares[3]),
        ]
    plain = [(name, False) for name in DECODERS]
    cached = [case for case in plain if case[0] in ("transformers", "litgpt", "ours")]
    for precision, shares in ("fp32", (80, 75)), ("bf16", (60, 45)):
        tuned = [("ours", True)] if precision == "fp32" else []  # in 16 bits there is nothing to set
        found += [
            dict(task="cached", size=big, precision=precision, run="untuned", cases=cached + tuned, share=shares[0]),
            dict(task="uncached", size=big, precision=precision, run="untuned", cases=plain, share=shares[1]),
        ]
    found.append(dict(task="cached", size=big, precision="fp32", run="tuned", cases=[(n, True) for n, _ in cached],
                      share=25))
    return found


def race(servers: dict, task: dict, seconds: float, rounds: int) -> list[dict]:
    "Let all contestants of a task take turns, at least twice, as often as the time allows after they are built."
    results, passive = {}, task["task"] == "train"  # waking threads takes longer than one token's products
    for name, tuned in task["cases"]:
        case = name, task["task"], task["size"], task["precision"], tuned
        answer = servers[tuned and passive].ask(f"{name} {tuned}", *case)
        results[name, tuned] = {"contestant": name, "tuned": tuned, "parameters": answer["parameters"],
                                "wall": [], "cpu": [], "memory": 0}
    begun, cases = time.perf_counter(), list(results)
    for k in range(rounds):
        now = time.perf_counter()
        if k > 1 and now + (now - begun) / k / 2 > begun + seconds:
            break
        turn = k * 3 % len(cases)
        for name, tuned in cases[turn:] + cases[:turn]:
            answer = servers[tuned and passive].ask(f"{name} {tuned}")
            result = results[name, tuned]
            result["wall"].append(round(answer["wall"], 4))
            result["cpu"].append(round(answer["cpu"], 4))
            result["memory"] = max(result["memory"], answer["memory"])
    for server in servers.values():
        server.ask(None)
    about = {key: task[key] for key in ("task", "size", "precision", "run")}
    about["tokens"] = BATCHES[task["size"]][0] * BATCHES[task["size"]][1] if task["task"] == "train" else NEW
    return [about | result for result in results.values()]


def table(results: list[dict]) -> None:
    "Print tokens a second, the ratio to ours with all settings, and peak memory."
    about, base = results[0], results[-1]
    print(f"\n{about['task']}, {about['size']}, {about['precision']}, {len(base['wall'])} rounds"
          f"{'  (peers with the same settings)' if about['run'] == 'tuned' else ''}")
    print(f"  {'':<34}{'tok/s':>9}{'ours is':>12}{'CPU s':>9}{'peak, MB':>10}")
    for r in results:
        wall = statistics.median(r["wall"])
        ratio = wall / statistics.median(base["wall"])
        name = r["contestant"] + (", tuned" if r["tuned"] else "")
        print(f"  {name:<34}{r['tokens'] / wall:9.1f}{ratio:10.2f} ×{statistics.median(r['cpu']):9.2f}"
              f"{r['memory'] / 2**20:10.0f}", flush=True)


def machine() -> dict:
    "Describe what this ran on."
    import torch
    with contextlib.suppress(OSError):
        info = Path("/proc/cpuinfo").read_text()
        model = re.search(r"model name\s*:\s*(.*)", info)
        memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) // 2**20
        flags = re.search(r"(?:flags|Features)\s*:\s*(.*)", info)[1].split()
        return {"processor": model[1] if model else platform.machine(), "cores": os.cpu_count(), "memory_GB": memory,
                "bf16": sorted({"avx512_bf16", "amx_bf16", "bf16"} & set(flags)),
                "threads": torch.get_num_threads(), "system": platform.system()}
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}


def installed(package: str) -> str | None:
    "Say which version of a package is installed."
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)


def main() -> None:
    "Run every task, print the tables, and keep the record if asked to."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long to measure in all; building comes on top")
    parser.add_argument("--rounds", type=int, default=9, help="how often a contestant has its turn, at most")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it works")
    parser.add_argument("--only", metavar="TASK,SIZE", help="as train,124M; the rest of a record stays")
    parser.add_argument("--record", nargs="?", type=Path, const=RECORD, help="write what was measured to a file")
    parser.add_argument("--shared", action="store_true", help="note that others used the machine, too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    from contestants import BUILDERS
    missing = {name for name, (_, package) in BUILDERS.items() if not importlib.util.find_spec(package)}
    if missing:
        print(f"not installed, so left out: {', '.join(sorted(missing))}; make peers")
    begun, load = datetime.now(UTC), os.getloadavg()[0]
    record = {"date": begun.isoformat(timespec="minutes"), "machine": machine() | {"shared": options.shared},
              "python": platform.python_version(), "versions": {p: installed(p) for p in PACKAGES}}
    print(json.dumps(record, indent=1))
    servers = {tuned: Server(tuned) for tuned in (False, True)}
    for server in servers.values():
        server.ask()
    todo, results, earlier = tasks(options.small), [], 0
    if options.only:
        todo = [task for task in todo if f"{task['task']},{task['size']}" == options.only]
        if options.record and options.record.exists():
            old = json.loads(options.record.read_text())
            earlier = old["minutes"]
            results = [r for r in old["results"] if f"{r['task']},{r['size']}" != options.only]
    for task in todo:
        task["cases"] = [case for case in task["cases"] if case[0] not in missing]
    per_share = options.minutes * 60 / sum(task["share"] for task in todo)
    for task in todo:
        found = race(servers, task, task["share"] * per_share, options.rounds)
        table(found)
        results += found
    for server in servers.values():
        server.process.stdin.close()
        server.process.wait()
    record |= {"load": [round(load, 1), round(os.getloadavg()[0], 1)],
               "minutes": round(earlier + (datetime.now(UTC) - begun).total_seconds() / 60, 1), "results": results}
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        lines = json.dumps(record, indent=1, ensure_ascii=False)
        options.record.write_text(re.sub(r"\[[\d.,\s]*\]", lambda m: re.sub(r"\s+", " ", m[0]), lines) + "\n")
        print(f"\nrecorded in {options.record}")


if __name__ == "__main__":
    main()
