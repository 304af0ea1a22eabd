"""LoRA: what it computes, what it counts, merging, adapter files, refusals, and parity with peft."""

import copy
import json
import math
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from llm_literate.classify import classify
from llm_literate.generate import generate
from llm_literate.lora import LinearWithLoRA, LoRALayer, add_lora, load_lora, merge_lora, save_lora
from llm_literate.model import CONFIGS, GPTConfig, GPTModel, init_weights
from llm_literate.tokenizer import small_tokenizer
from llm_literate.train import make_optimizer, train
from llm_literate.weights import WeightsError, load_model, save_model

TINY = GPTConfig(vocab_size=23, context_length=12, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.0)
IDS = torch.tensor([[1, 2, 3, 4, 5], [22, 0, 22, 0, 7]])


def tiny(seed=0, **changes):
    "Build a small model with numbers large enough to matter."
    torch.manual_seed(seed)
    return init_weights(GPTModel(replace(TINY, **changes)), 0.3).eval()


def learn(model, seed=1):
    "Give every B some numbers, as if it had learned."
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("lora.B"):
            nn.init.normal_(weight, std=0.3)
    return model


def trainable(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def state(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The layer


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.floats(0.1, 64), st.integers(0, 3))
def test_layer_is_the_scaled_product(n_in, n_out, rank, alpha, dims):
    torch.manual_seed(0)
    layer = LoRALayer(n_in, n_out, rank, alpha)
    nn.init.normal_(layer.B)
    x = torch.randn(*[2] * dims, n_in)
    expected = x @ (alpha / rank * layer.B @ layer.A).T
    assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    base = torch.randn(*[2] * dims, n_out)
    assert_close(layer(x, base), base + expected, rtol=1e-4, atol=1e-4)


def test_adding_in_one_operation_has_the_same_gradients():
    torch.manual_seed(0)
    layer, grads = LoRALayer(6, 5, 3, 7).double(), []
    nn.init.normal_(layer.B)
    x, base = (torch.randn(4, 2, n, dtype=torch.double, requires_grad=True) for n in (6, 5))
    goal = torch.randn(4, 2, 5, dtype=torch.double)
    for out in (layer(x, base), base + layer(x)):
        loss = ((out - goal) ** 2).sum()
        grads.append(torch.autograd.grad(loss, [x, base, layer.A, layer.B]))
    assert_close(grads[0], grads[1])


@pytest.mark.parametrize("n_in, rank", [(768, 16), (768, 1), (50, 8)])
def test_first_numbers_are_those_of_the_papers_code(n_in, rank):
    torch.manual_seed(0)
    layer = LoRALayer(n_in, 10, rank, 1)
    assert not layer.B.any()
    bound = 1 / math.sqrt(n_in)
    assert 0.9 * bound < layer.A.abs().max() <= bound
    if n_in * rank > 500:
        assert_close(layer.A.std().item(), bound / math.sqrt(3), rtol=0.1, atol=0)


def test_linear_with_lora_keeps_mode_and_type():
    linear = nn.Linear(4, 3).bfloat16().eval()
    both = LinearWithLoRA(linear, 2, 2)
    assert not both.training and not both.lora.training
    assert both.lora.A.dtype == torch.float32  # small steps survive
    out = both(torch.randn(5, 4, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert both.lora.B.grad.dtype == torch.float32 and both.lora.B.grad.any()
    assert LinearWithLoRA(nn.Linear(4, 3).double(), 2, 2).lora.A.dtype == torch.float64
    assert both.merged().dtype == torch.bfloat16


def test_autocast_gives_the_same_as_two_steps():
    torch.manual_seed(0)
    both = LinearWithLoRA(nn.Linear(32, 16), 4, 4)
    nn.init.normal_(both.lora.B)
    x = torch.randn(8, 32)
    with torch.autocast("cpu", torch.bfloat16):
        got = both(x)
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), both(x), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("sizes, told", [
    ((0, 3, 1, 1), "in_dim is 0"), ((3, 0, 1, 1), "out_dim is 0"), ((3, 3, 0, 1), "rank is 0"),
    ((3, 3, 1.5, 1), "rank is 1.5"), ((3, 3, True, 1), "rank is True"), ((3, 3, 1, 0), "alpha is 0"),
    ((3, 3, 1, -1), "alpha is -1"), ((3, 3, 1, "x"), "alpha is 'x'"), ((3, 3, 1, None), "alpha is None"),
    ((3, 3, 1, math.inf), "alpha is inf"), ((3, 3, 1, math.nan), "alpha is nan")])
def test_impossible_layers_are_refused(sizes, told):
    with pytest.raises(ValueError, match=told):
        LoRALayer(*sizes)


def test_it_has_the_sizes_of_a_linear_layer():
    both = LinearWithLoRA(nn.Linear(4, 3), 2, 2)
    assert (both.in_features, both.out_features) == (4, 3)


# In a model


@pytest.mark.parametrize("tied", [False, True])
def test_nothing_changes_until_something_is_learned(tied):
    plain = tiny(tie_weights=tied)
    model = add_lora(copy.deepcopy(plain), 3, 6)
    assert torch.equal(model(IDS), plain(IDS))
    assert not torch.equal(learn(model)(IDS), plain(IDS))


def test_only_the_factors_train():
    model = tiny()
    frozen = state(model)
    assert add_lora(model, 3, 6) is model
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".lora." in name}
    assert len(trainable(model)) == 2 * (2 * 6 + 1)
    history = train(model, [(IDS[:, :-1], IDS[:, 1:])] * 30, lr=3e-2, progress=False)
    losses = history.frame["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0] / 2
    now = {name.replace(".linear.", "."): weight for name, weight in state(model).items() if ".lora." not in name}
    assert same(now, frozen)
    assert all(part.lora.B.any() for part in model.modules() if isinstance(part, LinearWithLoRA))


def test_optimizer_holds_only_the_factors():
    model = add_lora(tiny(), 2, 2)
    optimizer = make_optimizer(model, 1e-3)
    held = sum(w.numel() for group in optimizer.param_groups for w in group["params"])
    assert held == sum(w.numel() for name, w in model.named_parameters() if ".lora." in name)


def test_counts_of_the_book():
    def count():
        return sum(w.numel() for w in model.parameters() if w.requires_grad)

    with torch.device("meta"):
        model = GPTModel(replace(CONFIGS["124M"], qkv_bias=True))
        model.out_head = nn.Linear(768, 2)
        counts = [count()]
        model.requires_grad_(False)
        counts.append(count())
        add_lora(model, 16, 16)
        counts.append(count())
        assert counts == [124_441_346, 0, 2_666_528]
        model = add_lora(GPTModel(replace(CONFIGS["355M"], qkv_bias=True)), 16, 16)
        assert count() == 7_898_384  # exercise 7.4


@pytest.mark.parametrize("layers, chosen", [
    (None, 13), (["att"], 8), ("att", 8), (["W_query", "W_value"], 4), (["trf_blocks.1"], 6), (["out_head"], 1),
    (["trf_blocks.0.ff.layers.2", "trf_blocks.0.ff"], 2), (["trf_blocks"], 12), (["layers.0"], 2)])
def test_layers_are_chosen_by_parts_of_their_names(layers, chosen):
    model = add_lora(tiny(), 2, 2, layers)
    assert sum(isinstance(part, LinearWithLoRA) for part in model.modules()) == chosen
    assert len(trainable(model)) == 2 * chosen


@pytest.mark.parametrize("arguments, told", [
    ((2, 2, ["W_quer"]), "no linear layer is called 'W_quer'; there are W_query"),
    ((2, 2, ["att", "norm1"]), "called 'norm1'"), ((2, 2, []), "no linear layer that could"), ((0, 2), "rank is 0"),
    ((2, 0), "alpha is 0")])
def test_a_refusal_changes_nothing(arguments, told):
    model = tiny()
    before = state(model)
    with pytest.raises(ValueError, match=told):
        add_lora(model, *arguments)
    assert same(state(model), before) and trainable(model) == set(before)


def test_a_classifier_with_lora_sorts():
    tokenizer = small_tokenizer()
    model = tiny(vocab_size=tokenizer.n_vocab)
    model.out_head = nn.Linear(16, 2)
    plain = classify("hello", model, tokenizer)
    assert classify("hello", add_lora(model, 2, 2), tokenizer) == plain


def test_adding_twice_is_refused():
    model = add_lora(tiny(), 2, 2, ["att"])
    before = state(model)
    with pytest.raises(ValueError, match="has LoRA already"):
        add_lora(model, 2, 2, ["ff"])
    assert same(state(model), before)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        add_lora(nn.Sequential(nn.Embedding(3, 2)), 1, 1)


# Merging


@pytest.mark.parametrize("tied", [False, True])
def test_merged_equals_unmerged(tied):
    plain = tiny(tie_weights=tied)
    model = learn(add_lora(copy.deepcopy(plain), 3, 6))
    scores = model(IDS)
    written = generate(model, IDS, 6)
    assert merge_lora(model) is model
    assert_close(model(IDS), scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(generate(model, IDS, 6), written)
    assert (model(IDS) - plain(IDS)).abs().max() > 0.1
    assert not any(isinstance(part, LoRALayer | LinearWithLoRA) for part in model.modules())
    assert torch.equal(model.tok_emb.weight, plain.tok_emb.weight)
    assert all(layer.bias is None or torch.equal(layer.bias, plain.get_submodule(name).bias)
               for name, layer in model.named_modules() if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_model_can_be_saved_and_loaded(tmp_path, tied):
    model = learn(add_lora(tiny(tie_weights=tied), 3, 6))
    with pytest.raises(WeightsError, match="merge"):
        save_model(model, tmp_path / "model.safetensors")
    path = save_model(merge_lora(model), tmp_path / "model.safetensors")
    assert torch.equal(load_model(path)(IDS), model(IDS))
    assert not model.config.tie_weights and load_model(path).config == model.config


def test_a_tied_head_without_lora_stays_tied():
    model = merge_lora(learn(add_lora(tiny(tie_weights=True), 3, 6, ["trf_blocks"])))
    assert model.out_head.weight is model.tok_emb.weight and model.config.tie_weights


def test_merging_keeps_types_and_what_is_frozen():
    model = learn(add_lora(tiny().bfloat16(), 3, 6))
    exact = model.out_head.linear.weight.float() + 2 * model.out_head.lora.B @ model.out_head.lora.A
    merge_lora(model)
    assert not trainable(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.out_head.weight, exact.bfloat16())


def test_merging_nothing_is_refused():
    with pytest.raises(ValueError, match="no layer of the model has LoRA"):
        merge_lora(tiny())


def test_after_merging_lora_can_be_added_again():
    model = merge_lora(learn(add_lora(tiny(), 2, 2)))
    scores = model(IDS)
    assert torch.equal(add_lora(model, 1, 1)(IDS), scores)


# Adapters in files


def saved(tmp_path, model=None, **changes):
    model = model or learn(add_lora(tiny(**changes), 3, 6))
    return model, save_lora(model, tmp_path / "adapter.safetensors")


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_comes_back_bit_for_bit(tmp_path, tied):
    model, path = saved(tmp_path, tie_weights=tied)
    again = load_lora(tiny(tie_weights=tied), path)
    assert torch.equal(again(IDS), model(IDS))
    assert same(state(again), state(model)) and trainable(again) == trainable(model)
    into = load_lora(add_lora(tiny(tie_weights=tied), 3, 6), path)  # one that has LoRA already
    assert torch.equal(into(IDS), model(IDS))


def test_the_file_holds_only_what_was_learned(tmp_path):
    model, path = saved(tmp_path)
    held = load_file(path)
    assert held.keys() == trainable(model)
    assert path.stat().st_size < sum(w.nbytes for w in held.values()) + 6000
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]  # and no half file beside it


def test_some_layers_only(tmp_path):
    model, path = saved(tmp_path, learn(add_lora(tiny(), 2, 5.5, ["W_query", "trf_blocks.1.ff"])))
    again = load_lora(tiny(), path)
    assert torch.equal(again(IDS), model(IDS)) and trainable(again) == trainable(model)
    with pytest.raises(WeightsError, match="stands only in one of the two"):
        load_lora(add_lora(tiny(), 2, 5.5), path)


def test_an_unfrozen_head_travels_with_the_adapter(tmp_path):
    def classifier(seed):
        model = tiny()
        torch.manual_seed(seed)
        model.out_head = nn.Linear(16, 2)
        return model

    model = learn(add_lora(classifier(3), 2, 2, ["trf_blocks"]))
    model.out_head.requires_grad_(True)
    model.trf_blocks[0].att.out_proj.linear.bias.requires_grad_(True)
    with torch.no_grad():
        model.trf_blocks[0].att.out_proj.linear.bias.add_(1)
    _, path = saved(tmp_path, model)
    again = load_lora(classifier(4), path)  # the new head was drawn otherwise
    assert torch.equal(again(IDS), model(IDS)) and trainable(again) == trainable(model)


def test_other_weights_are_refused(tmp_path):
    model, path = saved(tmp_path)
    other = tiny(seed=5)
    before = state(other)
    with pytest.raises(WeightsError, match="beside other weights"):
        load_lora(other, path)
    assert same(state(other), before) and trainable(other) == set(before)
    one = tiny()
    with torch.no_grad():
        one.final_norm.shift[3] += 1e-3
    with pytest.raises(WeightsError, match="beside other weights"):
        load_lora(one, path)
    assert torch.isfinite(load_lora(one, path, any_base=True)(IDS)).all()


@pytest.mark.parametrize("make, told", [
    (lambda: tiny(emb_dim=32), "has shape"), (lambda: tiny(n_layers=1), "stands only in one"),
    (lambda: add_lora(tiny(), 2, 6), "has rank 3, .* has 2"), (lambda: add_lora(tiny(), 3, 5), "has alpha 6, .* has 5"),
    (lambda: nn.Sequential(nn.Linear(3, 3)), "stands only in one")])
@pytest.mark.parametrize("any_base", [False, True])
def test_what_does_not_fit_is_refused(tmp_path, make, told, any_base):
    _, path = saved(tmp_path)
    model = make()
    before, trains = state(model), trainable(model)
    with pytest.raises(WeightsError, match=told):
        load_lora(model, path, any_base)
    assert same(state(model), before) and trainable(model) == trains


def test_every_damage_is_refused(tmp_path):
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    model, rng = tiny(), torch.Generator().manual_seed(0)
    before = state(model)
    places = torch.randint(len(whole), (60,), generator=rng).tolist()
    for place in [0, 8, 40, *places, len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(WeightsError):
            load_lora(model, path)
    for end in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError):
            load_lora(model, path)
    assert same(state(model), before)


def test_other_files_are_refused(tmp_path):
    path = save_model(tiny(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="load_model"):
        load_lora(tiny(), path)
    with pytest.raises(FileNotFoundError):
        load_lora(tiny(), tmp_path / "nowhere.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        load_lora(tiny(), tmp_path)
    torch.save(tiny().state_dict(), tmp_path / "p.pt")
    with pytest.raises(WeightsError, match="is a pickle"):
        load_lora(tiny(), tmp_path / "p.pt")
    with pytest.raises(WeightsError, match="save_model"):
        save_lora(tiny(), tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()


def test_several_ranks_in_one_file_are_refused(tmp_path):
    model = add_lora(tiny(), 2, 2, ["att"])
    model.out_head = LinearWithLoRA(model.out_head, 3, 2)
    with pytest.raises(WeightsError, match="several ranks"):
        save_lora(model, tmp_path / "no.safetensors")


def test_another_version_is_refused(tmp_path, monkeypatch):
    import llm_literate.lora as module
    real = json.dumps
    monkeypatch.setattr(module.json, "dumps", lambda card: real(card | {"version": 2}))
    _, path = saved(tmp_path)
    monkeypatch.undo()
    with pytest.raises(WeightsError, match="version 2"):
        load_lora(tiny(), path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    model, path = saved(tmp_path)
    before = path.read_bytes()

    def full(number):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_lora(learn(model, 9), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# The authority


PEFT = ["W_query", "W_key", "W_value", "out_proj", "layers.0", "layers.2", "out_head"]  # as peft names all of them


@pytest.mark.parametrize("rank, alpha", [(1, 1), (4, 16), (16, 16)])
@pytest.mark.parametrize("layers", [None, ["W_query", "W_value"]])
def test_parity_with_peft(rank, alpha, layers):
    peft = pytest.importorskip("peft")
    ours = learn(add_lora(tiny(), rank, alpha, layers))
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers or PEFT, lora_dropout=0.0, bias="none")
    theirs = peft.get_peft_model(tiny(), config)
    inner, factors = theirs.base_model.model, 0
    for name, part in ours.named_modules():
        if isinstance(part, LinearWithLoRA):
            there = inner.get_submodule(name)
            assert there.lora_A["default"].weight.shape == part.lora.A.shape
            bound = there.lora_A["default"].weight.abs().max()  # drawn as ours is
            assert bound <= part.lora.A.shape[1] ** -0.5
            with torch.no_grad():
                there.lora_A["default"].weight.copy_(part.lora.A)
                there.lora_B["default"].weight.copy_(part.lora.B)
            factors += part.lora.A.numel() + part.lora.B.numel()
    assert factors == theirs.get_nb_trainable_parameters()[0]
    assert_close(inner(IDS), ours(IDS), rtol=1e-5, atol=1e-5)
    losses = [F.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten()) for model in (ours, inner)]
    for loss in losses:
        loss.backward()
    for name, part in ours.named_modules():
        if isinstance(part, LinearWithLoRA):
            there = inner.get_submodule(name)
            assert_close(part.lora.A.grad, there.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-6)
            assert_close(part.lora.B.grad, there.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-6)
    assert_close(merge_lora(ours)(IDS), theirs.merge_and_unload()(IDS), rtol=1e-4, atol=1e-5)
