"""Tokens a second of `llm_literate.train.train` beside a plain loop around transformers' GPT-2: alternating, as ratios.

    python benchmarks/bench_train.py [--rounds 7] [--steps 12] [--size small] [--record FILE] [--smoke]

The model is CONFIGS["small"] (or another size) with biases for queries, keys and values, which GPT-2 always has, so
that both have the same parameters; dropout is off in both.
The peer is GPT2LMHeadModel with torch's attention in a loop as transformers' Trainer runs it: fused AdamW whose decay
leaves out biases and norms, gradient clipping at 1, a cosine schedule with warm-up, batches from torch's DataLoader.
Ours is one call of `train` for each turn, with the same batches, clipping and schedule, and with its guard and history.

Three comparisons, and each is between neighbours of the same round:
- fp32 against fp32, and bf16 autocast against bf16 autocast, in the same environment: what the code is worth;
- bf16 with all that `llm_literate.speed` recommends against the peer as it comes (fp32): what a reader gets;
- the peer with the same settings and bf16: what of that the settings alone are worth.
Every contestant is a process of its own, all live at once and take turns, in another order each round.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from turns import Turns

CONTESTANTS = {  # name: (who, precision, tuned)
    "ours, fp32": ("ours", "fp32", False),
    "transformers, fp32": ("transformers", "fp32", False),
    "ours, bf16": ("ours", "bf16", False),
    "transformers, bf16": ("transformers", "bf16", False),
    "ours, bf16, tuned": ("ours", "bf16", True),
    "transformers, bf16, tuned": ("transformers", "bf16", True),
}
PAIRS = [  # whose tokens a second are divided by whose
    ("ours, fp32", "transformers, fp32"),
    ("ours, bf16", "transformers, bf16"),
    ("ours, bf16, tuned", "transformers, bf16, tuned"),
    ("ours, bf16, tuned", "transformers, fp32"),
]
BATCHES = {"small": (16, 128), "124M": (2, 256), "tiny": (4, 16)}  # rows, tokens in a row
TOTAL = 1000  # steps of the schedule, of which only some are taken


# -- in the process of one contestant ---------------------------------------------------------------------------------

def configuration(size):
    "Give the sizes that both models get."
    from llm_literate.model import CONFIGS, GPTConfig
    config = GPTConfig(64, 16, 16, 2, 2) if size == "tiny" else CONFIGS[size]
    return replace(config, qkv_bias=True, tie_weights=True, drop_rate=0.0)


def windows(config, size):
    "Cut stories, or for other vocabularies random ids, into windows that do not overlap."
    import torch

    from llm_literate.data import TokenWindows, flat_ids
    from llm_literate.small_world import corpus
    from llm_literate.tokenizer import ENDOFTEXT, small_tokenizer
    tokens = BATCHES[size][1]
    if size == "small":
        return TokenWindows(flat_ids(corpus(1000), small_tokenizer(), [ENDOFTEXT]), tokens, tokens)
    return TokenWindows(torch.randint(config.vocab_size, (200_000,)), tokens, tokens)


def ours(config, data, rows, precision, steps):
    "Make a function that takes some steps with the book's loop."
    import torch

    from llm_literate.data import make_loader
    from llm_literate.model import GPTModel, init_weights
    from llm_literate.train import make_optimizer, train, warmup_cosine
    model = init_weights(GPTModel(config))
    optimizer, loader = make_optimizer(model, 4e-4), make_loader(data, rows)
    taken = 0

    def turn():
        nonlocal taken
        train(model, loader, max_steps=steps, optimizer=optimizer, progress=False,
              autocast=torch.bfloat16 if precision == "bf16" else None,
              schedule=lambda step, total: warmup_cosine((taken + step) % TOTAL, TOTAL))
        taken += steps

    return model, turn


def transformers(config, data, rows, precision, steps):
    "Make a function that takes some steps as transformers' Trainer would."
    import torch
    from torch.utils.data import DataLoader
    from transformers import GPT2Config, GPT2LMHeadModel, get_cosine_schedule_with_warmup
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.emb_dim,
        n_layer=config.n_layers, n_head=config.n_heads, bos_token_id=None, eos_token_id=None,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa")).train()
    groups = [{"params": [w for w in model.parameters() if (w.ndim > 1) == matrix], "weight_decay": decay}
              for matrix, decay in ((True, 0.1), (False, 0.0))]
    optimizer = torch.optim.AdamW(groups, lr=4e-4, betas=(0.9, 0.95), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, 30, TOTAL)
    loader = DataLoader(data, rows, shuffle=True, drop_last=True, collate_fn=tuple)

    def forever():
        while True:
            yield from loader

    batches = forever()

    def turn():
        for _ in range(steps):
            inputs, _ = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(input_ids=inputs, labels=inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            loss.item()  # Trainer sums up the losses and logs them

    return model, turn


def contest(name, size, steps):
    "Build one contestant, take some steps that do not count, then answer each line with the seconds of a turn."
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not disturb the answers
    import torch

    from llm_literate.speed import tune_cpu
    who, precision, tuned = CONTESTANTS[name]
    if tuned:
        tune_cpu()
    torch.manual_seed(0)
    config = configuration(size)
    model, turn = globals()[who](config, windows(config, size), BATCHES[size][0], precision, steps)
    turn()
    print(json.dumps(sum(w.numel() for w in model.parameters())), file=out, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        turn()
        print(json.dumps(time.perf_counter() - begun), file=out, flush=True)


# -- in the process that counts ---------------------------------------------------------------------------------------

class Contestant(Turns):
    "A contestant with the seconds that its turns took."

    def __init__(self, name, size, steps):
        tuned = CONTESTANTS[name][2]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_WAIT_POLICY", "MALLOC_"))}
        environment |= {"OMP_WAIT_POLICY": "PASSIVE"} if tuned else {}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        super().__init__(__file__, ["--contest", name, "--size", size, "--steps", str(steps)], environment)
        self.parameters = self.ready

    def turn(self):
        self.seconds.append(super().turn())


def main():
    "Let all take turns, print medians and ratios, and keep them if asked to."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often each has its turn")
    parser.add_argument("--steps", type=int, default=12, help="training steps in a turn")
    parser.add_argument("--size", choices=BATCHES, default="small")
    parser.add_argument("--record", type=Path, help="write what was measured to a file")
    parser.add_argument("--smoke", action="store_true", help="two rounds of a tiny model, to see that it works")
    parser.add_argument("--contest", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.size, options.rounds, options.steps = "tiny", 2, 3
    if options.contest:
        contest(options.contest, options.size, options.steps)
        return
    import torch
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rows, tokens = BATCHES[options.size]
    print(f"{options.size}: batches of {rows} x {tokens} tokens, {options.rounds} rounds of {options.steps} steps, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {load}")
    contestants = {name: Contestant(name, options.size, options.steps) for name in CONTESTANTS}
    sizes = {one.parameters for one in contestants.values()}
    assert len(sizes) == 1, f"the models differ in size: {sizes}"
    names = list(contestants)
    for k in range(options.rounds):
        turn = 2 * k % len(names)  # pairs stay neighbours
        for name in names[turn:] + names[:turn]:
            contestants[name].turn()
    for one in contestants.values():
        one.stop()
    work = rows * tokens * options.steps
    speeds = {name: statistics.median(work / s for s in one.seconds) for name, one in contestants.items()}
    print(f"{sizes.pop():,} parameters\n  {'':<28}{'tok/s':>9}")
    for name, speed in speeds.items():
        print(f"  {name:<28}{speed:9,.0f}")
    ratios = {}
    for a, b in PAIRS:
        each = [y / x for x, y in zip(contestants[a].seconds, contestants[b].seconds, strict=True)]
        ratios[f"{a} / {b}"] = statistics.median(each)
        print(f"  {a} / {b}: {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")
    if options.record:
        options.record.write_text(json.dumps({
            "size": options.size, "steps": options.steps, "rounds": options.rounds, "load": load,
            "tokens_per_second": speeds, "ratios": ratios,
            "seconds": {name: one.seconds for name, one in contestants.items()}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
