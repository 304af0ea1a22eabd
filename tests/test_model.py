"""The GPT model: equal to transformers, faithful to the book's names and numbers, plain in what it refuses."""

import copy
import math
import pickle
import shutil
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import gpt2_pair, random_model
from torch import nn

from llm_literate.attention import KVCache
from llm_literate.model import (
    CONFIGS,
    GELU,
    FeedForward,
    GPTConfig,
    GPTModel,
    LayerNorm,
    TransformerBlock,
    check_ids,
    eval_mode,
    init_weights,
    parameter_table,
)

TINY = dict(vocab_size=19, context_length=8, emb_dim=8, n_heads=2, n_layers=2, drop_rate=0.0)


def total(config, **changes):
    "Count the parameters of a configuration without building it in memory."
    return int(parameter_table(replace(config, **changes)).loc["total", "parameters"])


# The configuration


@pytest.mark.parametrize(("field", "value", "right"), [
    *[(name, value, "must be an integer, 1 or more")
      for name in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
      for value in (0, -1, True, 2.0, "12", None)],
    ("emb_dim", 100, "must be a multiple of n_heads, 12"),
    *[("drop_rate", value, r"must be a number in \[0, 1\)")
      for value in (-0.1, 1, 1.5, math.nan, True, "0.1", None)],
    *[(name, value, "must be True or False") for name in ("qkv_bias", "tie_weights") for value in (0, 1, None, "no")],
])
def test_impossible_fields_are_refused_by_name_and_value(field, value, right):
    with pytest.raises(ValueError, match=rf"{field} is {value!r}, .*{right}"):
        GPTConfig(**{field: value})


def test_configurations_are_frozen_and_have_no_other_sizes():
    with pytest.raises(FrozenInstanceError):
        CONFIGS["124M"].emb_dim = 1
    with pytest.raises(ValueError, match="no size '125M', only '124M', '355M', '774M', '1558M', 'small'"):
        CONFIGS["125M"]
    assert "125M" not in CONFIGS and CONFIGS.get("125M") is None
    assert GPTConfig(drop_rate=0).drop_rate == 0


def test_numpys_integers_become_plain_ones():
    config = GPTConfig(**{name: np.int64(size) for name, size in TINY.items() if name != "drop_rate"}, drop_rate=0.0)
    assert config == GPTConfig(**TINY)
    assert all(type(getattr(config, name)) is type(value) for name, value in TINY.items())


def test_a_dict_is_no_configuration():
    with pytest.raises(ValueError, match=r"config is a dict, must be a GPTConfig.*GPTConfig\(\*\*config\)"):
        GPTModel(TINY)


# The parts


@given(st.integers(1, 9), st.integers(1, 33), st.integers(0, 2**32), st.sampled_from([1e-5, 1e-3]))
def test_layer_norm_is_torchs(rows, d, seed, eps):
    torch.manual_seed(seed)
    ours, theirs = LayerNorm(d, eps).double(), nn.LayerNorm(d, eps).double()
    with torch.no_grad():
        for mine, their in ((ours.scale, theirs.weight), (ours.shift, theirs.bias)):
            mine.copy_(their.copy_(torch.randn(d)))
    x = 10 ** torch.empty(()).uniform_(-4, 4) * torch.randn(rows, d, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_gelu_is_gpt2s_formula():
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    formula = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(GELU()(x), formula)


def test_feed_forward_treats_every_token_for_itself():
    ff, x = FeedForward(GPTConfig(**TINY)), torch.randn(2, 5, 8)
    alone = torch.stack([torch.stack([ff(token) for token in row]) for row in x])
    torch.testing.assert_close(ff(x), alone)


def test_block_adds_to_its_input():
    block, x = TransformerBlock(GPTConfig(**TINY)), torch.randn(2, 5, 8)
    for layer in (block.att.out_proj, block.ff.layers[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert block(x).equal(x)


# Equal to transformers


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("sizes", [
    dict(vocab_size=101, context_length=24, emb_dim=32, n_heads=4, n_layers=3),
    dict(vocab_size=64, context_length=16, emb_dim=24, n_heads=1, n_layers=1),
    dict(vocab_size=5003, context_length=64, emb_dim=768, n_heads=12, n_layers=2),
], ids=["tiny", "one-head", "wide-as-124M"])
def test_logits_equal_transformers(sizes, tied):
    ours, theirs = gpt2_pair(tie_weights=tied, emb_std=0.02 if sizes["emb_dim"] > 100 else 0.2, **sizes)
    ids = torch.randint(sizes["vocab_size"], (3, sizes["context_length"]))
    with torch.no_grad():
        mine, their = ours(ids), theirs(ids).logits
        assert their.std() > 0.1 and (mine - their).abs().max() < 1e-4
        assert not tied or ours.out_head.weight is ours.tok_emb.weight
        real = torch.ones_like(ids)  # the same with padding at the end
        real[0, -5:] = real[1, -1:] = 0
        mine, their = ours(ids), theirs(ids, attention_mask=real).logits
        assert (mine - their)[real.bool()].abs().max() < 1e-4


def test_gradients_equal_transformers():
    ours, theirs = (m.double() for m in gpt2_pair(
        tie_weights=True, vocab_size=31, context_length=8, emb_dim=12, n_heads=3, n_layers=2))
    ids = torch.randint(31, (2, 8))
    for logits in (ours(ids), theirs(ids).logits):
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for mine, name in (("tok_emb", "wte"), ("pos_emb", "wpe")):
        torch.testing.assert_close(getattr(ours, mine).weight.grad, getattr(theirs.transformer, name).weight.grad)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ours.parameters())


# Faithful to the book


def book_names(layers):
    "List the parameters of the book's GPTModel, its mask buffers included."
    yield from ("tok_emb.weight", "pos_emb.weight")
    for i in range(layers):
        yield from (f"trf_blocks.{i}.{name}" for name in (
            "att.mask", "att.W_query.weight", "att.W_key.weight", "att.W_value.weight",
            "att.out_proj.weight", "att.out_proj.bias", "ff.layers.0.weight", "ff.layers.0.bias",
            "ff.layers.2.weight", "ff.layers.2.bias", "norm1.scale", "norm1.shift", "norm2.scale", "norm2.shift"))
    yield from ("final_norm.scale", "final_norm.shift", "out_head.weight")


def test_state_dict_with_the_books_names_loads(tmp_path):
    model = random_model(1)
    state = model.state_dict()
    for i in range(2):
        state[f"trf_blocks.{i}.att.mask"] = torch.triu(torch.ones(8, 8), diagonal=1)
    assert set(state) == set(book_names(2))
    torch.save(state, tmp_path / "model.pth")
    other, loaded = random_model(2), torch.load(tmp_path / "model.pth", weights_only=True)
    other.load_state_dict(loaded)  # strict
    assert "trf_blocks.0.att.mask" in loaded  # the caller's own dict is left as it was
    ids = torch.randint(19, (2, 8))
    assert model.eval()(ids).equal(other.eval()(ids))
    del loaded["trf_blocks.1.att.W_key.weight"]
    with pytest.raises(RuntimeError, match="att.W_key.weight"):
        other.load_state_dict(loaded)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_constructor_draws_in_the_books_order(qkv_bias, tied):
    config = GPTConfig(**TINY, qkv_bias=qkv_bias, tie_weights=tied)
    torch.manual_seed(123)
    weights = GPTModel(config).state_dict()
    after = torch.rand(())
    torch.manual_seed(123)
    drawn = {"tok_emb": nn.Embedding(19, 8), "pos_emb": nn.Embedding(8, 8)}
    for i in range(2):
        for name, shape in (("att.W_query", (8, 8)), ("att.W_key", (8, 8)), ("att.W_value", (8, 8)),
                            ("att.out_proj", (8, 8)), ("ff.layers.0", (8, 32)), ("ff.layers.2", (32, 8))):
            drawn[f"trf_blocks.{i}.{name}"] = nn.Linear(*shape, bias=qkv_bias or ".W_" not in name)
    if not tied:  # a tied output layer draws nothing
        drawn["out_head"] = nn.Linear(8, 19, bias=False)
    assert after == torch.rand(())
    for name, module in drawn.items():
        for kind, value in module.state_dict().items():
            assert weights[f"{name}.{kind}"].equal(value), name


COUNTS = {  # size: untied, tied, untied and tied with bias, untied with context 256; book 4.6, exercise 4.2
    "124M": (163_009_536, 124_412_160, 163_037_184, 124_439_808, 162_419_712),
    "355M": (406_212_608, 354_749_440, 406_286_336, 354_823_168, 405_426_176),
    "774M": (838_220_800, 773_891_840, 838_359_040, 774_030_080, 837_237_760),
    "1558M": (1_637_792_000, 1_557_380_800, 1_638_022_400, 1_557_611_200, 1_636_563_200),
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts_of_the_book(size):
    config = CONFIGS[size]
    assert COUNTS[size] == (
        total(config), total(config, tie_weights=True), total(config, qkv_bias=True),
        total(config, qkv_bias=True, tie_weights=True), total(config, context_length=256))


def test_small_size_fits_the_package():
    table = parameter_table(CONFIGS["small"], torch.float16)
    assert table.loc["total", "MB"] * 2**20 < 10e6
    assert CONFIGS["small"].tie_weights and CONFIGS["small"].vocab_size == 2048


# What the model does


@settings(max_examples=150)
@given(st.data())
def test_cache_gives_the_same_logits_in_any_pieces(data):
    model = random_model(data.draw(st.integers(0, 99)), n_layers=data.draw(st.integers(1, 3)),
                         qkv_bias=data.draw(st.booleans()), tie_weights=data.draw(st.booleans())).eval()
    b, t = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8))
    ids = torch.randint(19, (b, t), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    cuts = sorted(data.draw(st.sets(st.integers(1, t - 1)))) if t > 1 else []
    cache = [KVCache(8) for _ in model.trf_blocks]
    with torch.no_grad():
        pieces = [model(ids[:, a:z], cache) for a, z in zip([0, *cuts], [*cuts, t], strict=True)]
        whole = model(ids)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)
    assert all(memory.length == t for memory in cache)


@settings(max_examples=50)
@given(st.integers(0, 99), st.integers(1, 7), st.integers(1, 18))
def test_a_later_token_changes_nothing_before_it(seed, j, shift):
    model, ids = random_model(seed).eval(), torch.randint(19, (2, 8))
    other = ids.clone()
    other[:, j] = (ids[:, j] + shift) % 19
    with torch.no_grad():
        before, after = model(ids), model(other)
    assert before[:, :j].equal(after[:, :j]) and not before[:, j:].equal(after[:, j:])


def test_last_only_is_the_last_position():
    model, ids = random_model(3).eval(), torch.randint(19, (2, 5))
    torch.testing.assert_close(model(ids, last_only=True), model(ids)[:, -1:])


def test_dropout_works_in_training_only():
    model, ids = random_model(4, drop_rate=0.5), torch.randint(19, (2, 5))
    assert not model(ids).equal(model(ids))
    model.eval()
    assert model(ids).equal(model(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_on_a_cpu(dtype):
    model, ids = random_model(5, emb_dim=32).eval(), torch.randint(19, (2, 8))
    with torch.no_grad():
        exact = model(ids)
        half = copy.deepcopy(model).to(dtype)(ids)
        with torch.autocast("cpu", dtype):
            mixed = model(ids)
    for logits in (half, mixed):
        assert logits.dtype == dtype
        assert (logits - exact).abs().max() < 0.1 * exact.abs().max()


def test_compiled_model_gives_the_same_logits():
    if not (shutil.which("gcc") or shutil.which("clang") or shutil.which("c++")):
        pytest.skip("torch.compile needs a C++ compiler, and there is none here")
    model, ids = random_model(6, n_layers=1).eval(), torch.randint(19, (2, 8))
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(ids)
        torch.testing.assert_close(compiled, model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=["deepcopy", "pickle"])
def test_copies_stay_tied(copied):
    model = copied(random_model(7, tie_weights=True))
    assert model.out_head.weight is model.tok_emb.weight
    assert model.config == replace(model.config)


# What it refuses


@pytest.mark.parametrize(("ids", "message"), [
    ([[1, 2]], "ids are a list, must be a tensor"),
    (torch.zeros(1, 2), "ids have type torch.float32, must be torch.int64 or torch.int32"),
    (torch.zeros(1, 2, dtype=torch.bool), "ids have type torch.bool"),
    (torch.zeros(1, 2, dtype=torch.uint16), "ids have type torch.uint16"),
    (torch.zeros(2, dtype=torch.long), r"shape \(2,\), must be \(b, t\).*`ids\[None\]`"),
    (torch.zeros(1, 2, 3, dtype=torch.long), r"shape \(1, 2, 3\)"),
    (torch.zeros(1, 0, dtype=torch.long), r"shape \(1, 0\).*at least one row and one token"),
    (torch.zeros(0, 4, dtype=torch.long), r"shape \(0, 4\)"),
    (torch.zeros(1, 9, dtype=torch.long), "9 tokens are too many, the context takes 8"),
    (torch.tensor([[0, 19, 20]]), "ids hold 19, must be 0 to 18"),
    (torch.tensor([[3, -1]]), "ids hold -1, must be 0 to 18"),
    (torch.tensor([[2**40]]), "ids hold 1099511627776, must be 0 to 18"),
])
def test_what_are_no_ids_is_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        random_model()(ids)


def test_cached_tokens_count_against_the_context():
    model, cache = random_model(), [KVCache(8), KVCache(8)]
    model(torch.zeros(1, 6, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="9 tokens are too many, the context takes 8"):
        model(torch.zeros(1, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match=r"1 .*2 blocks"):
        model(torch.zeros(1, 1, dtype=torch.long), cache[:1])


@pytest.mark.parametrize("count", [2, 3])
def test_each_block_needs_a_cache_of_its_own(count):
    model, cache = random_model().eval(), KVCache(8)
    with pytest.raises(ValueError, match=r"1 caches do not serve 2 blocks; `new_cache\(model, n\)` makes"):
        model(torch.zeros(1, 2, dtype=torch.long), [cache] * count)
    assert cache.length == 0


def test_caches_out_of_step_are_refused_until_they_are_truncated():
    model, ids = random_model().eval(), torch.randint(19, (1, 6))
    cache = [KVCache(8), KVCache(3)]
    with torch.no_grad():
        model(ids[:, :2], cache)
        with pytest.raises(ValueError, match="room for 3"):
            model(ids[:, 2:4], cache)  # the first block has taken them, as when Ctrl-C comes in between
        for _ in range(2):
            with pytest.raises(ValueError, match=r"hold \[4, 2\] tokens, must hold equally many; truncate each to 2"):
                model(ids[:, 2:3], cache)
        for memory in cache:
            memory.truncate(2)
        torch.testing.assert_close(model(ids[:, 2:3], cache), model(ids[:, :3])[:, 2:], atol=1e-5, rtol=1e-5)


def test_int32_ids_are_ids():
    ids = torch.randint(19, (2, 5))
    check_ids(ids.int())
    model = random_model().eval()
    assert model(ids.int()).equal(model(ids))


# Initialisation


def test_init_weights_draws_gpt2s_distributions():
    config = GPTConfig(vocab_size=3000, context_length=200, emb_dim=64, n_heads=4, n_layers=8, qkv_bias=True)
    model = init_weights(GPTModel(config), generator=torch.Generator().manual_seed(1))
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "shift")):
            assert not weight.any(), name
        elif name.endswith("scale"):
            assert weight.eq(1).all(), name
        else:
            expected = 0.02 / 4 if name.endswith(("out_proj.weight", "layers.2.weight")) else 0.02
            assert abs(weight.std() / expected - 1) < 0.05 and abs(weight.mean()) < expected / 10, name


def test_init_weights_is_seeded_and_takes_its_own_scales():
    global_state = torch.get_rng_state()
    one, two = (init_weights(GPTModel(GPTConfig(**TINY)), 0.04, 0.06, 0.1, torch.Generator().manual_seed(9))
                for _ in range(2) if torch.set_rng_state(global_state) is None)
    assert all(a.equal(b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    big = init_weights(GPTModel(replace(CONFIGS["small"], n_layers=1)), 0.04, 0.06, 0.1)
    assert abs(big.tok_emb.weight.std() - 0.06) < 0.001
    assert abs(big.trf_blocks[0].att.W_query.weight.std() - 0.04) < 0.001
    assert abs(big.trf_blocks[0].ff.layers[2].weight.std() - 0.004) < 0.0001


@pytest.mark.parametrize("scales", [dict(residual=-1.0), dict(std=-0.1), dict(emb_std=math.nan), dict(std=math.inf)])
def test_init_weights_leaves_the_weights_if_a_scale_is_impossible(scales):
    model = random_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="std, emb_std and residual are .*, must be finite, 0 or more"):
        init_weights(model, **scales)
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_init_weights_starts_from_an_even_guess(tied):
    model = init_weights(GPTModel(replace(CONFIGS["small"], n_layers=2, tie_weights=tied)))
    ids = torch.randint(2048, (4, 65))
    loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(2048)) < 0.1


# The table


def test_table_names_each_kind_of_part_and_adds_up():
    model = GPTModel(GPTConfig(**TINY))
    table = parameter_table(model)
    assert list(table.index) == ["tok_emb", "pos_emb", "trf_blocks.*.att", "trf_blocks.*.ff", "trf_blocks.*.norm1",
                                 "trf_blocks.*.norm2", "final_norm", "out_head", "total"]
    assert table.equals(parameter_table(model.config))
    for column in table:
        assert math.isclose(table[column][:-1].sum(), table.loc["total", column])
    assert table.loc["total", "parameters"] == sum(p.numel() for p in model.parameters())
    assert table.loc["total", "MB"] == table.loc["total", "parameters"] * 4 / 2**20


def test_table_counts_shared_storage_once():
    tied = GPTModel(GPTConfig(**TINY, tie_weights=True))
    assert parameter_table(tied).loc["out_head"].tolist() == [0, 0, 0]
    assert parameter_table(tied).equals(parameter_table(tied.config))
    views = GPTModel(GPTConfig(**TINY))
    views.out_head.weight = nn.Parameter(views.tok_emb.weight.data)  # two parameters, one memory
    assert parameter_table(views).equals(parameter_table(tied))


def test_table_tells_what_trains_and_what_a_type_weighs():
    model = GPTModel(GPTConfig(**TINY)).bfloat16()
    model.tok_emb.requires_grad_(False)
    table = parameter_table(model)
    assert table.loc["tok_emb"].tolist() == [152, 0, 152 * 2 / 2**20]
    assert parameter_table(model.config, torch.bfloat16)["MB"].equals(table["MB"])
    assert parameter_table(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))).loc["total", "parameters"] == 14


def test_table_of_a_name_is_refused():
    with pytest.raises(ValueError, match="model is '124M', must be a model or a GPTConfig, like those in CONFIGS"):
        parameter_table("124M")


def test_table_of_a_configuration_costs_nothing():
    before = torch.get_rng_state()
    parameter_table(CONFIGS["1558M"])
    assert torch.get_rng_state().equal(before)


# Evaluation for a while


def test_eval_mode_gives_every_part_its_own_mode_back():
    model = random_model().train()
    model.trf_blocks[0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), eval_mode(model) as same:
        assert same is model and not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == before
