"""The loss: equal to torch's and transformers', the same however targets are put into batches, comparable in bits."""

import math
from collections import namedtuple
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peers import gpt2_pair, random_model
from torch import nn

from llm_literate.data import TokenWindows, flat_ids, make_loader
from llm_literate.ledger import check
from llm_literate.loss import (
    bits_per_byte,
    evaluate,
    lm_loss,
    perplexity,
    pick_device,
    text_to_token_ids,
    to_device,
    token_ids_to_text,
)
from llm_literate.model import GPTConfig, GPTModel
from llm_literate.tokenizer import gpt2_tokenizer, small_tokenizer


def noise(seed):
    "Make a generator with its own stream of random numbers."
    return torch.Generator().manual_seed(seed)


def table(v, seed=0, spread=2.0):
    "Make the smallest model there is: random scores for what follows each token."
    return nn.Embedding.from_pretrained(spread * torch.randn(v, v, generator=noise(seed)), freeze=False)


@st.composite
def scored(draw):
    "Draw a model of that kind and a batch for it, some of whose targets do not count."
    b, t, v = draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.integers(1, 20))
    seed = draw(st.integers(0, 2**16))
    inputs = torch.randint(v, (b, t), generator=noise(seed))
    targets = torch.randint(v, (b, t), generator=noise(seed + 1))
    share = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    targets[torch.rand(b, t, generator=noise(seed + 2)) < share] = -100
    return table(v, seed), inputs, targets


# Text and ids


@given(st.text())
def test_text_comes_back(text):
    tokenizer = gpt2_tokenizer()
    ids = text_to_token_ids(text, tokenizer)
    assert ids.dtype == torch.int64
    assert ids.shape == (1, len(tokenizer.encode(text, allowed_special={"<|endoftext|>"})))
    assert token_ids_to_text(ids, tokenizer) == token_ids_to_text(ids[0], tokenizer) == text


def test_special_token_is_one_id():
    assert text_to_token_ids("<|endoftext|>", gpt2_tokenizer()).tolist() == [[50256]]
    small = small_tokenizer()
    assert text_to_token_ids("<|endoftext|>", small).tolist() == [[small.eot_token]]


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (1, 1, 3), ()])
def test_several_rows_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(1, t\) or \(t,\); decode the rows of a batch one by one"):
        token_ids_to_text(torch.zeros(shape, dtype=torch.int64), gpt2_tokenizer())


@pytest.mark.parametrize("wrong", [-100, 99_999, 2**40])
def test_ids_without_a_token_are_refused(wrong):
    with pytest.raises(ValueError, match=f"ids go from {min(wrong, 3)} to {max(wrong, 3)}, and not each of them has"):
        token_ids_to_text(torch.tensor([3, wrong]), gpt2_tokenizer())


def test_a_list_of_ids_is_one_row():
    assert token_ids_to_text(gpt2_tokenizer().encode("A red kite"), gpt2_tokenizer()) == "A red kite"
    assert token_ids_to_text([], gpt2_tokenizer()) == ""


# The loss of a batch


@given(scored())
def test_equals_torch(case):
    model, inputs, targets = case
    loss, n = lm_loss(model, (inputs, targets))
    assert n == (targets != -100).sum()
    ours, = torch.autograd.grad(loss, model.weight)
    if n == 0:  # torch's mean of nothing is NaN
        assert loss == 0 and not ours.any()
        return
    wanted = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    theirs, = torch.autograd.grad(wanted, model.weight)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(ours, theirs)


@given(scored())
def test_equals_the_six_steps(case):
    model, inputs, targets = case
    counts = targets != -100
    probs = model(inputs).softmax(-1)
    picked = probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0][counts]
    loss, n = lm_loss(model, (inputs, targets))
    torch.testing.assert_close(loss, -picked.log().sum() / max(int(n), 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [0, 3, 11])
def test_equals_transformers(masked):
    ours, theirs = gpt2_pair(vocab_size=23, context_length=16, emb_dim=16, n_heads=2, n_layers=2)
    ids = torch.randint(23, (3, 16), generator=noise(1))
    labels = ids.clone()
    labels[0, :masked], labels[1, 16 - masked:] = -100, -100  # theirs moves them by one itself
    with torch.no_grad():
        loss, n = lm_loss(ours, (ids[:, :-1], labels[:, 1:]))
        wanted = theirs(ids, labels=labels).loss
    assert n == 3 * 15 - max(0, masked - 1) - masked
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)


def test_knowing_nothing_costs_the_logarithm_of_the_vocabulary():
    for v in (1, 2, 256, 50257):
        scores = nn.Embedding.from_pretrained(torch.full((1, v), 3.0))
        loss, _ = lm_loss(scores, (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64)))
        assert loss.item() == pytest.approx(math.log(v), abs=1e-5)


def test_sure_and_wrong_is_finite():
    scores = nn.Embedding.from_pretrained(torch.tensor([[1000.0, 0.0]]))
    zero, one = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64)
    assert lm_loss(scores, (zero, one))[0] == 1000
    assert lm_loss(scores, (zero, zero))[0] == 0


@pytest.mark.parametrize(("targets", "says"), [
    (torch.ones(4, 2).long(), r"shape \(4, 2\) and type torch.int64, must be ids of shape \(2, 4\)"),
    (torch.ones(8).long(), r"shape \(8,\)"), (torch.ones(2, 4), "type torch.float32")])
def test_targets_that_are_not_the_inputs_fellows_are_refused(targets, says):
    with pytest.raises(ValueError, match=f"targets have .*{says}"):
        lm_loss(table(5), (torch.ones(2, 4).long(), targets))


@given(scored())
def test_ids_of_four_bytes_are_targets_too(case):
    model, inputs, targets = case
    assert lm_loss(model, (inputs.int(), targets.int())) == lm_loss(model, (inputs, targets))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_full(dtype):
    "A sum of 30,000 costs overflows float16 and has three digits in bfloat16."
    model = table(300, spread=1.0).to(dtype)
    ids = torch.randint(300, (30, 1001), generator=noise(1))
    with torch.no_grad():
        loss, _ = lm_loss(model, (ids[:, :-1], ids[:, 1:]))
        wanted, _ = lm_loss(model.float(), (ids[:, :-1], ids[:, 1:]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted)


# The loss over a loader


@given(scored(), st.data())
def test_batches_do_not_matter(case, data):
    model, inputs, targets = case
    cuts = data.draw(st.sets(st.integers(1, max(1, len(inputs) - 1)))) | {0, len(inputs)}
    parts = [(inputs[a:b], targets[a:b]) for a, b in pairwise(sorted(cuts))]
    if (targets == -100).all():
        with pytest.raises(ValueError, match="gave no target to score"):
            evaluate(model, parts)
        return
    found = evaluate(model, parts)
    assert isinstance(found, float)
    assert found == pytest.approx(lm_loss(model, (inputs, targets))[0].item(), rel=1e-5, abs=1e-6)


def test_means_of_batches_would_be_wrong():
    model = table(19, spread=3.0)
    inputs, targets = torch.randint(19, (2, 4, 8), generator=noise(1))
    targets[3, 1:] = -100
    parts = [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]
    of_means = sum(lm_loss(model, part)[0].item() for part in parts) / 2
    together = lm_loss(model, (inputs, targets))[0].item()
    assert abs(of_means - together) > 0.1
    assert evaluate(model, parts) == pytest.approx(together)


def test_first_batches_only():
    drawn = []

    def batches():
        for i in range(9):
            drawn.append(i)
            yield torch.tensor([[i]]), torch.tensor([[0]])

    def cost(model, batch):
        return batch[0].float().mean(), 1

    model = table(2)
    assert evaluate(model, batches(), cost, max_batches=3) == 1.0
    assert drawn == [0, 1, 2]
    assert evaluate(model, batches(), cost, max_batches=30) == evaluate(model, batches(), cost) == 4.0


@pytest.mark.parametrize("wrong", [0, -1])
def test_no_batches_are_refused(wrong):
    with pytest.raises(ValueError, match=f"max_batches is {wrong}, must be 1 or more, or None"):
        evaluate(table(2), [], max_batches=wrong)


@pytest.mark.parametrize("loader", [[], [(torch.zeros(1, 2, dtype=torch.int64), torch.full((1, 2), -100))]])
def test_nothing_to_average_is_refused(loader):
    with pytest.raises(ValueError, match="no batch, or all its targets are -100"):
        evaluate(table(2), loader)


def test_a_mean_of_nothing_is_left_out():
    costs = [(torch.tensor(2.0), torch.tensor(3)), (torch.tensor(math.nan), torch.tensor(0)), (5.0, 1)]
    assert evaluate(table(2), costs, lambda model, batch: batch) == (2 * 3 + 5) / 4


def test_a_diverged_model_is_not_hidden():
    assert math.isnan(evaluate(table(2), [(math.nan, 2), (1.0, 2)], lambda model, batch: batch))


def modes(model):
    "Tell for each part whether it is in training."
    return [module.training for module in model.modules()]


def test_mode_comes_back_part_by_part():
    model = random_model(drop_rate=0.5)
    model.train()
    model.trf_blocks[1].eval()  # as when a part is frozen
    before, seen = modes(model), []
    assert len(set(before)) == 2
    ids = torch.randint(19, (2, 9), generator=noise(1))

    def spy(model, batch):
        seen.extend(modes(model))
        return lm_loss(model, batch)

    losses = {evaluate(model, [(ids[:, :-1], ids[:, 1:])], spy) for _ in range(3)}
    assert len(losses) == 1  # no dropout
    assert not any(seen)
    assert modes(model) == before


@pytest.mark.parametrize("broken", ["loss", "loader", "nothing"])
def test_mode_comes_back_after_a_failure(broken):
    model = random_model(drop_rate=0.5).train()
    model.trf_blocks[0].eval()
    before = modes(model)

    def batches():
        if broken == "loader":
            raise RuntimeError("broken")
        yield from [] if broken == "nothing" else [1]

    def fails(model, batch):
        raise RuntimeError("broken")

    with pytest.raises((RuntimeError, ValueError), match="broken|no target"):
        evaluate(model, batches(), fails)
    assert modes(model) == before


def test_no_gradients_are_recorded():
    model = random_model()
    ids = torch.randint(19, (2, 9), generator=noise(1))

    def spy(model, batch):
        loss, n = lm_loss(model, batch)
        assert not loss.requires_grad
        return loss, n

    evaluate(model, [(ids[:, :-1], ids[:, 1:])], spy)
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.is_grad_enabled()


def test_the_fastest_device_there_is(monkeypatch):
    for cuda, mps, best in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert pick_device() == torch.device(best)
        assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="there is no 'cuda' here, only cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0").index == 0
    with pytest.raises(ValueError, match="'cuda:3'"):
        pick_device("cuda:3")


@pytest.mark.parametrize("wanted", ["gpu", "CPU", "cuda:-1", "cuda:", 2.5])
def test_what_is_no_device_is_refused(wanted):
    with pytest.raises(ValueError, match=f"there is no {wanted!r} here, only .*cpu"):
        pick_device(wanted)


# Devices; torch's device “meta” has shapes only, and stands for a GPU


def test_everything_is_moved():
    Pair = namedtuple("Pair", "inputs targets")
    one = torch.zeros(2, 3)
    batch = {"pair": Pair(one, one), "list": [one, (one, "text")], "number": 3, "none": None}
    moved = to_device(batch, "meta")
    assert list(moved) == list(batch)
    assert type(moved["pair"]) is Pair and type(moved["list"]) is list and type(moved["list"][1]) is tuple
    tensors = [*moved["pair"], moved["list"][0], moved["list"][1][0]]
    assert all(tensor.device.type == "meta" and tensor.shape == (2, 3) for tensor in tensors)
    assert moved["list"][1][1] == "text" and moved["number"] == 3 and moved["none"] is None
    assert batch["pair"].inputs.device.type == "cpu"
    assert to_device(one, "cpu") is one


def test_batches_follow_the_model():
    seen = []

    def spy(model, batch):
        seen.append(batch[0].device.type)
        return 1.0, 2

    batches = [(torch.zeros(1, 2), torch.zeros(1, 2))]
    assert evaluate(nn.Linear(2, 2, device="meta"), batches, spy) == 1.0
    assert evaluate(nn.Identity(), batches, spy) == 1.0  # without parameters: where the batch lies, the CPU
    assert seen == ["meta", "cpu"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_loss_on_a_gpu():
    model = random_model()
    ids = torch.randint(19, (4, 9), generator=noise(1))
    batches = [(ids[:3, :-1], ids[:3, 1:]), (ids[3:, :-1], ids[3:, 1:])]
    wanted = evaluate(model, batches)
    assert evaluate(model.to("cuda"), batches) == pytest.approx(wanted, rel=1e-4)


# Perplexity and bits per byte


@given(st.floats(1, 1e6))
def test_perplexity_counts_choices(choices):
    assert perplexity(math.log(choices)) == pytest.approx(choices)


def test_perplexity_without_bounds():
    assert perplexity(0) == 1
    assert perplexity(1e4) == perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))


def bits_with(shares, pieces, text):
    "Score a text cut into pieces by a model that knows only how frequent each byte is."
    costs = [-sum(math.log(shares[byte]) for byte in piece) for piece in pieces]
    return bits_per_byte(sum(costs) / len(costs), len(costs), text)


@given(st.text(min_size=1), st.data())
def test_bits_do_not_depend_on_the_tokens(text, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)))) | {0, len(raw)})
    ways = [[raw], [raw[i:i + 1] for i in range(len(raw))], [raw[a:b] for a, b in pairwise(cuts)]]
    for tokenizer in gpt2_tokenizer(), small_tokenizer():
        ways.append([tokenizer.decode_single_token_bytes(id) for id in tokenizer.encode(text, disallowed_special=())])
    even = [1 / 256] * 256
    uneven = torch.rand(256, generator=noise(1)).add(0.01)
    uneven = (uneven / uneven.sum()).tolist()
    for pieces in ways:
        assert b"".join(pieces) == raw
        assert bits_with(even, pieces, text) == pytest.approx(8)
        assert bits_with(uneven, pieces, text) == pytest.approx(bits_with(uneven, ways[0], text))


def test_bytes_are_counted_and_not_characters():
    assert bits_per_byte(math.log(2), 6, "abcdef") == 1
    assert bits_per_byte(math.log(2), 6, "äöü") == 1
    assert bits_per_byte(math.log(2), 4, "🐑") == 1


def test_an_empty_text_has_no_bytes():
    with pytest.raises(ValueError, match="the text is empty"):
        bits_per_byte(1.0, 0, "")


# The book's numbers


@pytest.mark.data
def test_first_losses_of_the_book(data_dir):
    text = (data_dir / "the-verdict.txt").read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    loaders = [make_loader(TokenWindows(flat_ids(part, gpt2_tokenizer()), 256, 256), 2, shuffle=False)
               for part in (text[:cut], text[cut:])]
    check("5.1.3-batches", [len(loader) for loader in loaders])
    check("5.1.3-tokens", [sum(targets.numel() for _, targets in loader) for loader in loaders])
    torch.manual_seed(123)
    model = GPTModel(GPTConfig(context_length=256))
    check("5.1.3-losses", [evaluate(model, loader) for loader in loaders])
