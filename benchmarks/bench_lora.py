"""Fine-tuning with LoRA: ours beside peft, llms-from-scratch and all weights, taking turns in one run, as ratios.

    python benchmarks/bench_lora.py [--rounds 5] [--steps 6] [--size small] [--rank 16] [--threads 1] [--smoke]

All contestants fine-tune the same model of this book with the same batches, loss and fused AdamW; they differ in what
stands beside its linear layers, so the ratios say what the adapters cost and not what the models cost.
peft and llms-from-scratch adapt all linear layers without dropout, as ours does by default; peft has the same factors
and scale as ours, llms-from-scratch a scale of its own, which changes nothing about the work.
Every contestant is a process of its own, all live at once and take turns, in another order each round.
Memory is the peak of a process during its turns above what it held after its imports: weights, factors, gradients, the
optimizer and activations.
"""

import argparse
import json
import os
import statistics
import sys
import time

from turns import Turns

SIZES = {  # vocabulary, context, width, heads, layers; rows and tokens of a batch
    "tiny": ((64, 16, 16, 2, 2), (4, 16)),
    "shipped": ((2048, 128, 256, 8, 4), (16, 48)),  # the model of chapter 6, with messages as long as its own
    "small": ((2048, 128, 384, 6, 6), (16, 128)),
    "124M": ((50257, 1024, 768, 12, 12), (2, 256)),
}
CONTESTANTS = ["ours", "peft", "llms-from-scratch", "all weights"]


# -- in the process of one contestant ---------------------------------------------------------------------------------

def adapt(name, model, rank):
    "Freeze the model and put one library's factors beside all its linear layers."
    if name == "ours":
        from llm_literate.lora import add_lora
        return add_lora(model, rank, rank)
    if name == "peft":
        import peft
        layers = ["W_query", "W_key", "W_value", "out_proj", "layers.0", "layers.2", "out_head"]
        return peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))
    if name == "llms-from-scratch":
        from llms_from_scratch.appendix_e import replace_linear_with_lora
        model.requires_grad_(False)
        replace_linear_with_lora(model, rank, rank)
    return model


def contest(name, size, rank, steps):
    "Build one contestant, take some steps that do not count, then answer each line with the seconds of a turn."
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not disturb the answers
    import torch
    import torch.nn.functional as F
    from bench_windows import held, peak

    from llm_literate.model import GPTConfig, GPTModel
    if name == "peft":
        import peft  # noqa: F401  its import is not its work
    sizes, (rows, tokens) = SIZES[size]
    warm = torch.nn.Linear(4, 4)  # what torch loads at the first step is nobody's memory
    warm(torch.ones(1, 4)).sum().backward()
    torch.optim.AdamW(warm.parameters(), fused=True).step()
    before = held()
    torch.manual_seed(0)
    model = adapt(name, GPTModel(GPTConfig(*sizes, drop_rate=0.0, qkv_bias=True)), rank)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(sizes[0], (rows, tokens + 1))

    def turn():
        for _ in range(steps):
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    turn()
    print(json.dumps(sum(weight.numel() for weight in trained)), file=out, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        turn()
        print(json.dumps([time.perf_counter() - begun, (peak() - before) / 2**20]), file=out, flush=True)


# -- in the process that counts ---------------------------------------------------------------------------------------

class Contestant(Turns):
    "A contestant with what it was measured to take."

    def __init__(self, name, options):
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        super().__init__(__file__, ["--contest", name, "--size", options.size, "--rank", str(options.rank),
                                    "--steps", str(options.steps)], environment)
        self.trained, self.megabytes = self.ready, 0.0

    def turn(self):
        seconds, self.megabytes = super().turn()
        self.seconds.append(seconds)


def installed(name):
    "Say whether a contestant's package is there."
    from importlib.util import find_spec
    package = {"peft": "peft", "llms-from-scratch": "llms_from_scratch"}.get(name, "llm_literate")
    if find_spec(package) is None:
        print(f"{name} is left out: {package} is not installed")
    return find_spec(package) is not None


def main():
    "Let all take turns, print medians and ratios."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each has its turn")
    parser.add_argument("--steps", type=int, default=6, help="training steps in a turn")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="two rounds of a tiny model, to see that it works")
    parser.add_argument("--contest", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.size, options.rounds, options.steps, options.rank = "tiny", 2, 3, 2
    if options.contest:
        contest(options.contest, options.size, options.rank, options.steps)
        return
    import torch
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    _, (rows, tokens) = SIZES[options.size]
    print(f"{options.size}, rank {options.rank}: batches of {rows} x {tokens} tokens, {options.rounds} rounds of "
          f"{options.steps} steps, torch {torch.__version__}, {options.threads} thread(s), load {load:.1f}")
    names = [name for name in CONTESTANTS if installed(name)]
    contestants = {name: Contestant(name, options) for name in names}
    for k in range(options.rounds):
        for name in names[k % len(names):] + names[:k % len(names)]:
            contestants[name].turn()
    for one in contestants.values():
        one.stop()
    print(f"  {'':<20}{'trained':>12}{'steps/s':>9}{'MB':>8}   speed of all weights x")
    for name, one in contestants.items():
        each = [y / x for x, y in zip(one.seconds, contestants["all weights"].seconds, strict=True)]
        print(f"  {name:<20}{one.trained:>12,}{options.steps / statistics.median(one.seconds):9.2f}"
              f"{one.megabytes:8,.0f}   {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")
    for other in [name for name in names[1:] if name != "all weights"]:
        each = [y / x for x, y in zip(contestants["ours"].seconds, contestants[other].seconds, strict=True)]
        print(f"  ours / {other}: {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")


if __name__ == "__main__":
    main()
