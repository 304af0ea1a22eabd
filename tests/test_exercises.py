"""The 25 exercises: every solution of the appendix passes, wrong answers get a hint, and no hint is the answer."""

import json
import math
import re
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from llm_literate import exercises
from llm_literate.attention import MultiHeadAttention
from llm_literate.checkpoints import Checkpoints
from llm_literate.data import TokenWindows, make_loader
from llm_literate.exercises import check, ids
from llm_literate.generate import probabilities
from llm_literate.lora import add_lora
from llm_literate.model import CONFIGS, GPTConfig, GPTModel, TransformerBlock
from llm_literate.small_world import instructions, messages
from llm_literate.tokenizer import gpt2_tokenizer, small_tokenizer
from llm_literate.train import train
from llm_literate.weights import load_pretrained

ALL = ids()
SIZES = ("124M", "355M", "774M", "1558M")


# The appendix: what stands there, and that its solutions pass


@pytest.fixture(scope="module")
def appendix(root):
    "Give the page's text for each exercise, its solution's code, and the page's imports."
    cells = json.loads((root / "nbs" / "C_exercises.ipynb").read_text(encoding="utf-8"))["cells"]
    boxes, code, imports, now = {}, {}, [], None
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if now:
                code.setdefault(now, []).append(text)
            elif "google.colab" not in text and re.search(r"^(import|from) ", text, flags=re.M):
                imports += re.findall(r"^(?:import|from) (?:[^(\n]+|[^(]+\([^)]*\))$", text, flags=re.M)
            continue
        now = None if ":::{solution-end}" in text else now
        if found := re.search(r":::\{exercise\} (\S+) (.+?)\n:label: (\S+)\n:nonumber:\n\n(.+?)\n:::\n\n"
                              r":::\{hint\}\n:class: dropdown\n(.+?)\n:::\n\n:::\{solution-start\} (\S+)\n",
                              text, flags=re.S):
            now = found[1]
            boxes[now] = found.groups()
    return boxes, code, "\n".join(imports)


def test_every_exercise_stands_in_the_appendix(appendix):
    boxes, code, _ = appendix
    assert sorted(boxes) == sorted(code) == sorted(ALL)
    assert len(ALL) == 25
    for id, (number, title, label, statement, hint, solved) in boxes.items():
        assert number == id
        assert label == solved == "c-" + id.replace(".", "-")
        assert title == exercises.exercise(id).title
        assert statement.split() == exercises.statement(id).split()
        assert hint.split() == exercises.hint(id).split()


@pytest.mark.parametrize("id", ALL)
def test_solution_passes(appendix, id):
    _, code, imports = appendix
    verdicts, space = [], {"display": lambda *_: None}
    exec(imports, space)

    def noting(*args):
        verdicts.append(check(*args))
        return verdicts[-1]

    space["check"] = noting
    for cell in code[id]:
        exec(compile(cell, f"C_exercises {id}", "exec"), space)
    assert [verdict.id for verdict in verdicts] == [id], "the solution checks another exercise, or none"
    assert verdicts[0], verdicts[0]
    assert verdicts[0].hint == ""


def test_every_page_links_its_exercises(root):
    silent = []
    for id in ALL:
        page = root / "nbs" / f"{exercises.exercise(id).page}.ipynb"
        if page.exists():
            text = page.read_text(encoding="utf-8")
            if f'exercises.check(\\"{id}\\"' not in text or "C_exercises.ipynb" not in text:
                silent.append(f"{page.name}: exercise {id}")
    assert not silent, f"name the check and link the appendix: {silent}"


# Wrong answers that people give, with a piece of the reply


class V1(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        for name in ("W_query", "W_key", "W_value"):
            setattr(self, name, nn.Parameter(torch.rand(d_in, d_out)))

    def forward(self, x):
        q, k, v = x @ self.W_query, x @ self.W_key, x @ self.W_value
        return (q @ k.T / k.shape[-1] ** 0.5).softmax(-1) @ v


class V2(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        for name in ("W_query", "W_key", "W_value"):
            setattr(self, name, nn.Linear(d_in, d_out, bias=False))

    def forward(self, x):
        q, k, v = self.W_query(x), self.W_key(x), self.W_value(x)
        return (q @ k.T / k.shape[-1] ** 0.5).softmax(-1) @ v


def pair(names=("W_query", "W_key", "W_value"), turned=True, d_out=2):
    v1, v2 = V1(3, d_out), V2(3, d_out)
    for name in names:
        weight = getattr(v2, name).weight.data
        getattr(v1, name).data = weight.T.clone() if turned else weight.clone()
    return v1, v2


def unscaled():
    v1, v2 = pair()
    v2.forward = types.MethodType(lambda self, x: v1(x) * 0, v2)
    v1.forward = types.MethodType(lambda self, x: x[:, :2] * 0, v1)
    return v1, v2


class Heads(nn.Module):
    def __init__(self, widths, causal=True):
        super().__init__()
        self.heads = nn.ModuleList(MultiHeadAttention(3, width, 6, 0.0, 1) if causal else V2(3, width)
                                   for width in widths)

    def forward(self, x):
        if isinstance(self.heads[0], V2):
            return torch.stack([torch.cat([head(row) for head in self.heads], -1) for row in x])
        return torch.cat([head(x) for head in self.heads], -1)


def loader(length, stride, batch_size=2, shuffle=False, text=range(200)):
    return make_loader(TokenWindows(list(text), length, stride), batch_size, shuffle=shuffle)


def counts(**changes):
    return {size: exercises._count(size, **changes) for size in SIZES}


def three(**changes):
    found = counts(**changes)
    del found["124M"]
    return found


def network(inputs=2, outputs=2, bias=True):
    return nn.Sequential(nn.Linear(inputs, 30, bias), nn.ReLU(), nn.Linear(30, 20, bias), nn.ReLU(),
                         nn.Linear(20, outputs, bias))


def rates(emb, att, shortcut, blocks=2):
    model = GPTModel(GPTConfig(64, 16, 32, 4, 2))
    model.drop_emb.p = emb
    for block in list(model.trf_blocks)[:blocks]:
        block.att.dropout.p, block.drop_shortcut.p = att, shortcut
    return model


def going_on(*names, epochs=1, own=False):
    def go_on(model, optimizer, loader, folder):
        parts, state = {"model": model, "optimizer": optimizer}, Checkpoints(folder).load()
        for name in names:
            parts[name].load_state_dict(state[name])
        if epochs:
            train(model, loader, optimizer=None if own else optimizer, epochs=epochs, progress=False)
    return go_on


def losses(change):
    right = exercises._story_losses()
    return {split: change(loss) for split, loss in right.items()}


def padded(front=False, width=None, fill=None):
    words = small_tokenizer()
    rows = [words.encode(message["text"]) for message in messages(8, 0, "test")]
    width = width or CONFIGS["small"].context_length
    fill = words.eot_token if fill is None else fill
    return torch.tensor([[fill] * (width - len(row)) + row if front else row + [fill] * (width - len(row))
                         for row in rows])


def longest():
    return max(len(small_tokenizer().encode(message["text"])) for message in messages(8, 0, "test"))


def classifier(frozen=False, fresh=False, outputs=2):
    model = GPTModel(CONFIGS["small"]) if fresh else load_pretrained("small")
    model.out_head = nn.Linear(256, outputs)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not frozen or name.startswith(("out_head", "final_norm"))
    return model


def prompt(entry):
    request = "\n".join(filter(None, [entry["instruction"], entry["input"]]))
    return f"<|user|>\n{request}\n<|assistant|>\n"


def lora(rank=16, **more):
    return add_lora(load_pretrained("small"), rank=rank, alpha=16, **more)


def unfrozen():
    model = lora()
    for parameter in model.parameters():
        parameter.requires_grad = True
    return model


def versions(**changes):
    from importlib import metadata
    needed = [re.match(r"[\w-]+", need)[0] for need in metadata.requires("llm-literate") if ";" not in need]
    return {name: metadata.version(name) for name in needed} | changes


def dropped(**more):
    found = versions()
    del found["torch"]
    return found


NINE = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])  # the book's nine words
PLAIN = {"temperature": 1.0}
WRONG = {
    "A.1": [(lambda: "3.8.10", "too old"), (lambda: (3, 99), "kernel"), (lambda: sys.version_info[0], "wanted"),
            (lambda: "", "wanted")],
    "A.2": [(dropped, "missing"), (lambda: versions(torch="0.1"), "another version"), (lambda: {}, "missing"),
            (lambda: ["torch"], "wanted")],
    "A.3": [(lambda: 700, "biases"), (lambda: network(bias=False), "biases"), (lambda: 2213, "50 inputs"),
            (lambda: network(50, 3), "raised"), (lambda: 753, "one by one"), (lambda: "752", "wanted")],
    "A.4": [(lambda: {"cpu": 0.0}, "takes time"), (lambda: {"cpu": 1e-12}, "fast"), (lambda: {"cpu": 60.0}, "many"),
            (lambda: {}, "wanted"), (lambda: {"cuda": 1e-5}, "every machine"), (lambda: {"cpu": "fast"}, "wanted")],
    "2.1": [(lambda: gpt2_tokenizer().encode("Akwirwier"), "decode to 'Akwirwier'"),
            (lambda: gpt2_tokenizer().encode("Akwirw ier "), "decode to"),
            (lambda: [gpt2_tokenizer().encode(c)[0] for c in "Akwirw ier"], "merge"),
            (lambda: [10**6], "vocabulary"), (lambda: [], "vocabulary"), (lambda: ["Ak", "w"], "wanted")],
    "2.2": [(lambda: [loader(2, 1), loader(8, 2)], "stride"), (lambda: [loader(2, 2), loader(8, 8)], "stride"),
            (lambda: [loader(8, 2), loader(2, 2)], "shape"),
            (lambda: [loader(2, 2), loader(8, 2, 4, True)], "shuffled"),
            (lambda: [loader(2, 2, 1), loader(8, 2)], "one window"),
            (lambda: [loader(2, 2, text=[7] * 50)] * 2, "text"),
            (lambda: [], "wanted"), (lambda: [[], []], "raised"), (lambda: [range(3), range(3)], "wanted")],
    "3.1": [(lambda: (V1(3, 2), V2(3, 2)), "differ"), (lambda: pair(turned=False, d_out=3), "turned"),
            (lambda: pair(turned=False), "store"), (lambda: pair(["W_query", "W_key"]), "differ"),
            (lambda: pair()[::-1], "wanted"), (lambda: pair()[:1], "wanted"), (unscaled, "no self-attention")],
    "3.2": [(lambda: Heads([2, 2]), "4 numbers"), (lambda: Heads([2]), "two heads"),
            (lambda: Heads([1, 1], causal=False), "mask"), (lambda: nn.Linear(3, 2), "two heads"),
            (lambda: nn.Linear(4, 2), "raised"), (lambda: torch.zeros(2, 6, 2), "wanted")],
    "3.3": [(lambda: MultiHeadAttention(768, 768, 1024, 0.0, 12, qkv_bias=True), "no bias"),
            (lambda: MultiHeadAttention(768, 768, 1024, 0.0, 8), "8 heads"),
            (lambda: MultiHeadAttention(768, 768, 256, 0.0, 12), "256"), (lambda: 4 * 768**2, "one of the four"),
            (lambda: 3 * 768**2, "fourth"), (lambda: MultiHeadAttention(384, 768, 1024, 0.0, 12), "width")],
    "4.1": [(lambda: (8 * 768**2, 4 * 768**2), "biases"), (lambda: (1, 2, 3), "wanted"), (lambda: {}, "wanted"),
            (lambda: (2_360_064, 4_722_432), "exchanged")],
    "4.2": [(lambda: three(tie_weights=True), "is the embedding"), (lambda: three(qkv_bias=True), "biases"),
            (lambda: three(context_length=256), "256"), (lambda: [1, 2, 3], "counted"),
            (lambda: three(qkv_bias=True, tie_weights=True), "both"), (counts, "wanted"), (lambda: [1, 2], "wanted")],
    "4.3": [(lambda: lambda e, a, s: rates(s, a, e), "embeddings"), (lambda: lambda e, a, s: rates(e, e, e), "weights"),
            (lambda: lambda *r: rates(*r, blocks=1), "attention weights"), (lambda: lambda rate: None, "raised"),
            (lambda: lambda *r: None, "GPT"), (lambda: rates(0, 0, 0), "wanted"),
            (lambda: lambda *r: nn.Linear(2, 2), "raised")],
    "5.1": [(lambda: 0.032, "counted"), (lambda: 32, "count"), (lambda: 1 / 9, "divide"),
            (lambda: NINE.softmax(0)[6], "at temperature 1"),
            (lambda: "pizza", "wanted"), (lambda: math.nan, "probability")],
    "5.2": [(lambda: {"answer": PLAIN, "story": PLAIN}, "answer"), (lambda: {"answer": {"temperature": 0},
             "story": {"temperature": 0}}, "the same"), (lambda: {"answer": {"temperature": 0},
             "story": {"temperature": 3.0}}, "unlikely"), (lambda: {"answer": {}, "story": {}}, "wanted"),
            (lambda: {"answer": {"temperature": 0}, "story": {"top_p": 0.9}}, "wanted"),
            (lambda: {"answer": {"temperature": -1}, "story": PLAIN}, "raised")],
    "5.3": [(lambda: [{"temperature": 1.0}, {"temperature": 0.0}], "different"),
            (lambda: [{"temperature": 0.0}], "two"),
            (lambda: [{"temperature": 0.0}, {"temperature": 0.0, "top_k": 5}], "same reason"),
            (lambda: [{}, {"temperature": 0.0}], "argument"), (lambda: [{"top": 1}, {}], "raised"),
            (lambda: [{"temperature": 1.0, "generator": torch.Generator().manual_seed(1)}] * 2, "different"),
            (lambda: {"temperature": 0.0}, "wanted"), (lambda: [], "two")],
    "5.4": [(lambda: going_on("model"), "optimizer"), (lambda: going_on("optimizer"), "not loaded"),
            (lambda: going_on(), "not loaded"), (lambda: going_on("model", "optimizer", epochs=2), "one epoch"),
            (lambda: going_on("model", "optimizer", epochs=0), "nothing"),
            (lambda: going_on("model", "optimizer", own=True), "nothing"), (lambda: lambda: None, "raised"),
            (lambda: 1.5, "wanted")],
    "5.5": [(lambda: losses(math.exp), "perplexity"), (lambda: losses(lambda x: x / math.log(2)), "bits"),
            (lambda: losses(lambda x: 1.2 * x), "the mean"), (lambda: {"train": 1.0}, "wanted")],
    "5.6": [(lambda: {size: n * 4 / 2**20 for size, n in counts(qkv_bias=True).items()}, "once"),
            (lambda: {size: n * 4 / 1e9 for size, n in counts(qkv_bias=True, tie_weights=True).items()}, "gigabytes"),
            (lambda: {size: n / 1e6 for size, n in counts(qkv_bias=True, tie_weights=True).items()}, "bytes"),
            (lambda: [1, 2, 3, 4], "not what"), (lambda: {}, "wanted")],
    "6.1": [(lambda: padded(width=longest()), "longest"), (lambda: padded(front=True), "in front"),
            (lambda: padded(fill=0), "end-of-text"), (lambda: padded(width=200), "shape"),
            (lambda: padded().flip(0), "begin"), (lambda: padded().tolist(), "wanted")],
    "6.2": [(lambda: classifier(frozen=True), "frozen"), (lambda: classifier(fresh=True), "shipped"),
            (lambda: classifier(outputs=3), "shape"), (lambda: load_pretrained("small"), "shape"),
            (lambda: 97.0, "wanted")],
    "6.3": [(lambda: lambda model, ids: model(ids)[:, -1], "last"),
            (lambda: lambda model, ids: model(ids).mean(1), "mean"),
            (lambda: lambda model, ids: model(ids)[:, 1], "first"), (lambda: lambda model, ids: model(ids), "shape"),
            (lambda: lambda model: None, "raised"), (lambda: torch.zeros(2, 2), "wanted")],
    "7.1": [(lambda: lambda e: f"### Instruction:\n{e['instruction']}", "Alpaca"),
            (lambda: lambda e: prompt(e) + e["output"], "answer stands"),
            (lambda: lambda e: "<|user|>\n" + e["instruction"] + "\n<|assistant|>\n", "missing"),
            (lambda: lambda e: prompt(e).replace("\n", " "), "line"),
            (lambda: lambda e: "Hello\n" + prompt(e), "before"),
            (lambda: lambda e: f"<|user|>\n{e['input']}\n{e['instruction']}\n<|assistant|>", "order"),
            (lambda: lambda e: None, "wanted"), (lambda: lambda e: e["text"], "raised"), (lambda: "<|user|>", "wanted"),
            (lambda: lambda e: prompt(e) + "Well,", "follows")],
    "7.2": [(lambda: lambda ids, n: (ids[:-1], ids[1:]), "nothing"),
            (lambda: lambda ids, n: (ids[:-1], [-100] * n + ids[n + 1:]), "answer's first"),
            (lambda: lambda ids, n: (ids[:-1], [-100] * (n - 2) + ids[max(n - 1, 1):]), "last token"),
            (lambda: lambda ids, n: ([-100] * (n - 1) + ids[n - 1:-1], ids[1:]), "inputs"),
            (lambda: lambda ids, n: (ids, [-100] * n + ids[n:]), "as many"), (lambda: lambda ids, n: ids, "wanted"),
            (lambda: lambda ids: ids, "raised"), (lambda: [], "wanted")],
    "7.3": [(lambda: instructions(1000, 0, "train"), "fewer"), (lambda: instructions(2600, 0, "train") * 2, "another"),
            (lambda: instructions(4990, 0, "train") + instructions(10, 0, "test"), "the test"),
            (lambda: [{"instruction": "a"}] * 5000, "entry 0"), (lambda: [], "fewer"), (lambda: 52_000, "wanted"),
            (lambda: [e | {"output": ""} for e in instructions(5000, 0, "train")], "empty")],
    "7.4": [(lambda: lora(8), "rank 8"), (lambda: lora(layers=["W_query", "W_value"]), "every linear layer"),
            (lambda: load_pretrained("small"), "not frozen"), (unfrozen, "not frozen"),
            (lambda: lora(layers=["att", "ff"]), "output layer"),
            (lambda: load_pretrained("small").requires_grad_(False), "nothing trains"),
            (lambda: nn.Linear(2, 2), "raised"), (lambda: 7_898_384, "wanted")],
}


@pytest.mark.parametrize("id", ALL)
def test_wrong_answers_get_a_hint(id):
    assert len(WRONG[id]) >= 3
    for number, (make, piece) in enumerate(WRONG[id]):
        verdict = check(id, make())
        assert not verdict, f"{id}: wrong answer {number} passes"
        assert piece in verdict.hint, f"{id}: wrong answer {number}: {verdict.hint}"


def right_numbers(id):
    "Give the texts that would give the answer away."
    block = TransformerBlock(CONFIGS["124M"])
    halves = [sum(p.numel() for p in part.parameters()) for part in (block.ff, block.att)]
    numbers = {"A.3": [752], "2.1": gpt2_tokenizer().encode("Akwirw ier"), "3.3": halves[1:], "4.1": halves,
               "4.2": list(three().values()), "7.4": [sum(p.numel() for p in lora().parameters() if p.requires_grad)]}
    texts = [form for n in numbers.get(id, []) if n > 700 for form in (str(n), f"{n:,}")]
    if id == "5.1":
        texts = ["0.042", "0.043"]
    if id == "5.5":
        texts = [f"{loss:.2f}" for loss in exercises._story_losses().values()]
    if id == "5.6":
        texts = [f"{4 * n / mb:,.0f}" for n in counts(qkv_bias=True, tie_weights=True).values() for mb in (2**20, 1e6)]
    return texts


@pytest.mark.parametrize("id", ["A.3", "2.1", "3.3", "4.1", "4.2", "5.1", "5.5", "5.6", "7.4"])
def test_no_reply_gives_the_number_away(id):
    replies = [check(id, make()).hint for make, _ in WRONG[id]] + [exercises.statement(id), exercises.hint(id)]
    secret = right_numbers(id)
    assert secret
    assert not [(text, reply) for reply in replies for text in secret if text in reply]


def junk():
    yield from (None, ..., "", "abc", "3.", "3.²", 0, 1, -1, 1.5, math.nan, math.inf, 10**400, True)
    yield from ([], {}, (), b"x", object(), set(), [1, 2], [None], {"a": 1}, range(3), iter([]))
    yield from ([[], []], ["", ""], [{}, {}], {1: {}})
    yield from (torch.rand(2, 2), torch.tensor(3.0), torch.tensor([]), np.zeros((2, 3)), np.float64("nan"), np.bool_(1))
    yield from (pd.Series([1.0]), pd.Series({"train": 1.0, "val": "x"}), pd.DataFrame({"a": [1]}), pd.NA)
    yield from (lambda *a: None, lambda *a: a[0] if a else 0, lambda: 1, print, dict, nn.Identity(), nn.Module())
    yield from (nn.Linear(3, 2), [nn.Linear(3, 2)] * 2, nn.Linear)
    yield {"answer": {"temperature": "x"}, "story": {"top_k": 2.5}}
    yield from ([{"temperature": "x"}] * 2, [{"what": 3}] * 2, [{3: 3}] * 2, [torch.zeros(2, 2)] * 2, {"cpu": math.nan})
    yield from ({"feed forward": "1", "attention": None}, dict.fromkeys(SIZES, math.nan))
    yield dict.fromkeys(SIZES[1:], 10**400)


@pytest.mark.parametrize("id", ALL)
def test_junk_neither_passes_nor_raises(id, capsys):
    for answer in junk():
        verdict = check(id, answer)
        assert not verdict, f"{answer!r} passes"
        assert verdict.hint
    assert not verdict and "not yet" in repr(verdict)


# The same answer in other clothes is right, too


SAME = {
    "A.1": [lambda: sys.version, lambda: "{}.{}.{}".format(*sys.version_info), lambda: sys.version_info[:2]],
    "A.2": [lambda: pd.Series(versions()), lambda: {name.upper(): v for name, v in versions(other="1").items()}],
    "A.3": [lambda: 752, lambda: np.int64(752), lambda: torch.tensor(752), lambda: 752.0, network],
    "A.4": [lambda: {"cpu": 2e-4}, lambda: {"cpu": torch.tensor(0.01), "mps": 1e-6}],
    "2.1": [lambda: torch.tensor(gpt2_tokenizer().encode("Akwirw ier")),
            lambda: np.array(gpt2_tokenizer().encode("Akwirw ier")),
            lambda: tuple(gpt2_tokenizer().encode("Akwirw ier"))],
    "2.2": [lambda: (loader(2, 2), loader(8, 2, 7)),
            lambda: [torch.utils.data.DataLoader([window for window in TokenWindows(range(99), n, 2)], 3)
                     for n in (2, 8)]],
    "3.1": [pair, lambda: list(pair(d_out=3))],
    "3.2": [lambda: Heads([1, 1]).train()],
    "3.3": [lambda: 2_360_064, lambda: np.int32(2_360_064)],
    "4.1": [lambda: (4_722_432, 2_360_064), lambda: pd.Series({"attention": 2_360_064, "feed forward": 4_722_432})],
    "4.2": [lambda: list(three().values()), lambda: pd.Series(three())],
    "5.1": [lambda: probabilities(NINE, 5.0)[6]],
    "5.2": [lambda: {"answer": {"top_k": 1, "temperature": 1.0}, "story": {"temperature": 0.8}},
            lambda: {"answer": {"temperature": 0.1}, "story": PLAIN}],
    "5.3": [lambda: ({"temperature": 2.0, "top_k": 1}, {"temperature": 2.0, "top_p": 1e-9}),
            lambda: [{"temperature": 0}, {"temperature": 1.0, "top_p": 1e-6}, {"temperature": 3.0, "top_k": 1}]],
    "5.5": [lambda: pd.Series(losses(lambda x: x)), lambda: list(losses(lambda x: round(x, 2)).values())],
    "5.6": [lambda: [4 * n / 1e6 for n in counts(qkv_bias=True, tie_weights=True).values()]],
    "6.1": [lambda: padded().to(torch.int32)],
    "6.2": [lambda: classifier().double().float().train()],
    "7.1": [lambda: lambda e: prompt(e).replace("<|assistant|>", "<|assistant|>:"),
            lambda: lambda e: prompt(e).strip().replace("\n<|assistant|>", "<|end|>\n<|assistant|>")],
    "7.2": [lambda: lambda ids, n: (torch.tensor(ids[:-1]), torch.tensor([-100] * (n - 1) + ids[n:]))],
    "7.3": [lambda: tuple(instructions(5200, "mine", "val"))],
}


@pytest.mark.parametrize("id", SAME)
def test_right_answers_in_any_form(id):
    for number, make in enumerate(SAME[id]):
        verdict = check(id, make())
        assert verdict, f"right answer {number}: {verdict}"


def test_a_trained_answer_is_right_too():
    model, ids = lora(), torch.randint(2048, (2, 9))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(ids).square().mean().backward()
    optimizer.step()
    assert check("7.4", model)


# What a check leaves as it was


def test_nothing_is_left_behind():
    model, layer, data = classifier().train(), Heads([1, 1]).train(), [loader(2, 2), loader(8, 2)]
    state = torch.get_rng_state()
    for id, answer in [("6.2", model), ("3.2", layer), ("2.2", data), ("5.4", going_on("model")), ("6.3", len)]:
        check(id, answer)
        assert torch.equal(torch.get_rng_state(), state), id
    assert model.training and layer.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert check("2.2", data), "a loader cannot be checked twice"


def test_what_a_reader_stops_is_stopped():
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("7.2", stop)


# Numbers and verdicts


@pytest.mark.parametrize(("asked", "near"), [("4.7", "4.1, 4.2, 4.3"), ("A.9", "A.1, A.2, A.3, A.4"), (3.9, "3.1"),
                                             ("", "A.1"), ("x", "7.4"), (None, "2.1"), ("44.1", "4.1")])
def test_unknown_numbers_name_their_neighbours(asked, near):
    for function in (exercises.statement, exercises.hint, exercises.exercise, lambda id: check(id, 0)):
        with pytest.raises(ValueError, match=re.escape(near)):
            function(asked)


def test_numbers_as_people_write_them():
    assert check(" a.3 ", 752) and check(4.1, (4_722_432, 2_360_064))


def test_verdicts_count_as_true_or_false():
    right, wrong = check("A.3", 752), check("A.3", 700)
    assert right and not wrong
    assert repr(right) == "A.3 ✓ right"
    assert repr(wrong).startswith("A.3 not yet: ")
