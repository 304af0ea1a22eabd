"""Loading GPT-2: `load_gpt2` beside transformers' `from_pretrained`, one 124M checkpoint, memory and time in one run.

    python benchmarks/bench_weights.py [--rounds 5] [--threads 1] [--small]

The checkpoint has random numbers and the layout of the hub's file; transformers writes it into a temporary folder.
Every load happens in a process of its own, the contestants in turns, in another order each round.
transformers maps the file and reads a weight when it is first used, so its numbers after the call alone say little;
what counts is the state after a first forward pass over eight tokens.
Seconds are counted from the call, imports excluded: to its end, and to the first scores.
Memory is the peak (VmHWM, else ru_maxrss) above what the process held after the imports, at these two moments; the
last column is the peak of the whole process, Python, torch and imports included.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_windows import held, peak

SIZES = {  # vocabulary, context, width, heads, layers
    "124M": (50257, 1024, 768, 12, 12),
    "small": (2048, 128, 128, 4, 4),
}


def write(folder: Path, size: str) -> int:  # bytes of the weights
    "Write a random checkpoint as the hub has it, masks included."
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    v, t, d, h, n = SIZES[size]
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=v, n_positions=t, n_embd=d, n_head=h, n_layer=n,
                                     bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor.clone() for name, tensor in load_file(path).items()}
    tensors |= {f"h.{i}.attn.bias": torch.ones(t, t).tril().view(1, 1, t, t) for i in range(n)}
    save_file(tensors, path, {"format": "pt"})
    return sum(p.nbytes for p in model.parameters())


def load(name: str, folder: Path, size: str) -> dict:
    "Load the checkpoint in this process and use it once: this is the body of a process."
    import torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if name == "ours":
        from llm_literate.model import CONFIGS, GPTConfig
        from llm_literate.weights import load_gpt2, read_gpt2
        v, t, d, h, n = SIZES[size]
        config = GPTConfig(v, t, d, h, n)

        def work():
            path = folder / "model.safetensors"
            return load_gpt2(size, path) if size in CONFIGS and size != "small" else read_gpt2(path, config)
    else:
        from transformers import GPT2LMHeadModel, logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()

        def work():
            return GPT2LMHeadModel.from_pretrained(folder).eval()

    base, start = held(), time.perf_counter()
    model = work()
    seconds, loaded = time.perf_counter() - start, peak() - base
    with torch.no_grad():
        out = model(torch.arange(8)[None])
    logits = out if name == "ours" else out.logits
    first, used = time.perf_counter() - start, peak()
    return {"call": seconds, "first": first, "loaded": loaded, "used": used - base, "whole": used,
            "sum": logits.double().sum().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a tiny checkpoint, to try the script")
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        name, folder, size = options.load
        print(json.dumps(load(name, Path(folder), size)))
        return
    size, names, found = "small" if options.small else "124M", ["transformers", "ours"], {}
    with tempfile.TemporaryDirectory() as folder:
        weights = write(Path(folder), size)
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
        for turn in range(options.rounds + 1):
            for name in random.Random(turn).sample(names, len(names)):
                done = subprocess.run([sys.executable, __file__, "--load", name, folder, size], check=True,
                                      stdout=subprocess.PIPE, env=environment, text=True)
                if turn:  # the first round only brings the file into the system's cache
                    found.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    sums = [run["sum"] for runs in found.values() for run in runs]
    assert max(sums) - min(sums) < 1e-3 * max(map(abs, sums)) + 1, "the models differ"
    print(f"{weights / 2**20:,.0f} MB of weights; medians of {options.rounds} rounds, {options.threads} threads")
    heads = {"loaded": "MB, loaded", "used": "MB, used", "whole": "MB, whole", "call": "s, call", "first": "s, used"}
    print(f"{'':14}" + "".join(f"{head:>12}" for head in heads.values()))
    medians = {name: {key: statistics.median(run[key] for run in runs) for key in heads}
               for name, runs in found.items()}
    for name in names:
        line = (f"{v / 2**20:12,.0f}" if heads[key][:2] == "MB" else f"{v:12.2f}" for key, v in medians[name].items())
        print(f"{name:14}" + "".join(line))
    ours, theirs = medians["ours"], medians["transformers"]
    print(f"{'ours/theirs':14}" + "".join(f"{ours[key] / theirs[key]:12.2f}" for key in heads))


if __name__ == "__main__":
    main()
