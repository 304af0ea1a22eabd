"""Windows over ids: one tensor and views against a list of copied windows, time and memory as ratios, in one run.

    python benchmarks/bench_windows.py [--runs 3]

Every contestant runs in a process of its own, so that its peak memory is its own; what Python, torch and the text
need before it starts is subtracted.
Each makes the windows from the text (encoding included) and reads one shuffled epoch of at most 500 batches.
"""

import argparse
import contextlib
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

TASKS = {  # name: bytes of text, context length, stride, batch size
    "1 MB, stride 1": (1_000_000, 256, 1, 32),
    "20 MB, stride 256": (20_000_000, 256, 256, 32),
}
BATCHES = 500


def held() -> int:  # bytes
    "Say how much memory this process holds, and forget what it held at most before (Linux)."
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:  # bytes
    "Say how much memory this process has held at most."
    try:
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def text_of(size: int, tokenizer) -> str:  # `size` characters, plain ASCII
    "Repeat stories of the small world until they are long enough, and let the tokenizer warm up."
    from llm_literate.small_world import stories
    piece = "\n\n".join(stories(2000))
    tokenizer.encode(piece[:10_000])
    return (piece * (size // len(piece) + 1))[:size]


def list_of_tensors(text, tokenizer, context_length, stride):
    "Encode the text at once and copy every window into two tensors, as tutorials do."
    import torch
    from torch.utils.data import Dataset

    class Windows(Dataset):
        def __init__(self):
            ids = tokenizer.encode(text)
            starts = range(0, len(ids) - context_length, stride)
            self.inputs = [torch.tensor(ids[i:i + context_length]) for i in starts]
            self.targets = [torch.tensor(ids[i + 1:i + context_length + 1]) for i in starts]

        def __len__(self):
            return len(self.inputs)

        def __getitem__(self, i):
            return self.inputs[i], self.targets[i]

    return Windows()


def token_windows(text, tokenizer, context_length, stride):
    "Encode the text in pieces into one compact tensor, and cut windows out of it when they are asked for."
    from llm_literate.data import TokenWindows, flat_ids
    return TokenWindows(flat_ids(text, tokenizer), context_length, stride)


def plain_loader(windows, batch_size):
    "Shuffle with torch's own loader."
    import torch
    from torch.utils.data import DataLoader
    return DataLoader(windows, batch_size, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(1))


def our_loader(windows, batch_size):
    "Shuffle with the loader of the book."
    from llm_literate.data import make_loader
    return make_loader(windows, batch_size)


CONTESTANTS = {"list of tensors": (list_of_tensors, plain_loader), "TokenWindows": (token_windows, our_loader)}


def measure(task: str, contestant: str) -> dict:  # seconds and bytes
    "Run one contestant; this is the body of a process."
    from itertools import islice

    import torch

    from llm_literate import data  # noqa: F401  (imported before the clock starts)
    from llm_literate.tokenizer import gpt2_tokenizer
    torch.set_num_threads(1)
    size, context_length, stride, batch_size = TASKS[task]
    tokenizer = gpt2_tokenizer()
    text = text_of(size, tokenizer)
    make, load = CONTESTANTS[contestant]
    before, start = held(), time.perf_counter()
    windows = make(text, tokenizer, context_length, stride)
    made = time.perf_counter()
    total = sum(int(targets[-1, -1]) for _, targets in islice(load(windows, batch_size), BATCHES))
    done = time.perf_counter()
    assert total > 0
    return {"windows": len(windows), "make": made - start, "read": done - made, "memory": peak() - before}


def main():
    "Measure every contestant at every task, best of some runs, and print a table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1, help="take the best of so many runs")
    parser.add_argument("--one", nargs=2, metavar=("TASK", "CONTESTANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    print("| task | contestant | windows | make, s | read, s | peak extra, MB | time ratio | memory ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for task in TASKS:
        first = None
        for contestant in CONTESTANTS:
            runs = []
            for _ in range(options.runs):
                command = [sys.executable, __file__, "--one", task, contestant]
                runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            best = {key: min(run[key] for run in runs) for key in runs[0]}
            first = first or best
            time_ratio = (best["make"] + best["read"]) / (first["make"] + first["read"])
            print(f"| {task} | {contestant} | {best['windows']:,} | {best['make']:.2f} | {best['read']:.2f} "
                  f"| {best['memory'] / 1e6:.0f} | {time_ratio:.3f} | {best['memory'] / first['memory']:.4f} |",
                  flush=True)


if __name__ == "__main__":
    main()
