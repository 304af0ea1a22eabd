"""Chapter 3: the attention layer against authorities, a naive loop, its own cache and its own rules."""

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm_literate.attention import KVCache, MultiHeadAttention

EXACT = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Tiny tensors are faster without help."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make(d_in=12, heads=3, head_dim=4, context=16, dropout=0.0, bias=False, dtype=torch.float32):
    layer = MultiHeadAttention(d_in, heads * head_dim, context, dropout, heads, bias)
    return layer.to(dtype).eval()


def naive(layer, x):
    "Attend with loops over rows, heads, queries and keys; nothing but products of vectors."
    q, k, v = (W(x) for W in (layer.W_query, layer.W_key, layer.W_value))
    rows = []
    for b in range(len(x)):
        tokens = []
        for i in range(x.shape[1]):
            parts = []
            for h in range(layer.num_heads):
                at = slice(h * layer.head_dim, (h + 1) * layer.head_dim)
                scores = [q[b, i, at] @ k[b, j, at] / math.sqrt(layer.head_dim) for j in range(i + 1)]
                top = max(s.item() for s in scores)
                weights = [(s - top).exp() for s in scores]
                total = sum(weights)
                parts.append(sum(w / total * v[b, j, at] for j, w in enumerate(weights)))
            tokens.append(torch.cat(parts))
        rows.append(torch.stack(tokens))
    return layer.out_proj(torch.stack(rows))


shapes = st.fixed_dictionaries(dict(
    d_in=st.integers(1, 9), heads=st.integers(1, 4), head_dim=st.integers(1, 8), bias=st.booleans()))


# Authorities

@settings(max_examples=60)
@given(shapes, st.integers(1, 3), st.integers(1, 7), st.integers(0, 99))
def test_equals_a_naive_loop(shape, b, t, seed):
    torch.manual_seed(seed)
    layer = make(**shape)
    x = torch.randn(b, t, shape["d_in"])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), naive(layer, x), rtol=1e-5, atol=1e-5)


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 8), st.booleans(), st.integers(1, 4), st.integers(1, 16),
       st.integers(0, 99))
def test_equals_torchs_own_layer(heads, head_dim, bias, b, t, seed):
    torch.manual_seed(seed)
    width = heads * head_dim
    layer = make(width, heads, head_dim, bias=bias)
    theirs = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    three = (layer.W_query, layer.W_key, layer.W_value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([W.weight for W in three]))
        theirs.in_proj_bias.copy_(torch.cat([W.bias for W in three]) if bias else torch.zeros(3 * width))
        theirs.out_proj.load_state_dict(layer.out_proj.state_dict())
        x = torch.randn(b, t, width)
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        expected, _ = theirs(x, x, x, attn_mask=future, need_weights=False)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_the_naive_ones():
    layer = make(bias=True, dtype=torch.float64).train()
    x = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(2, 6, 12, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad((layer(x) * wanted).sum(), inputs)
    theirs = torch.autograd.grad((naive(layer, x) * wanted).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    layer = make(2, 2, 1, context=3, bias=True, dtype=torch.float64).train()
    x = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


# Properties

@settings(max_examples=60)
@given(shapes, st.integers(2, 16), st.data())
def test_a_later_token_changes_nothing_before_it(shape, t, data):
    j = data.draw(st.integers(1, t - 1))
    layer = make(**shape)
    x = torch.randn(2, t, shape["d_in"])
    changed = x.clone()
    changed[:, j:] = torch.randn(2, t - j, shape["d_in"]) * 100
    with torch.no_grad():
        assert torch.equal(layer(x)[:, :j], layer(changed)[:, :j])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nor_does_it_in_16_bit(dtype):
    layer = make(dtype=dtype)
    x = torch.randn(2, 9, 12).to(dtype)
    changed = x.clone()
    changed[:, 5:] += 3
    with torch.no_grad():
        assert torch.equal(layer(x)[:, :5], layer(changed)[:, :5])
        assert not torch.equal(layer(x)[:, 5:], layer(changed)[:, 5:])


def test_padding_at_the_end_is_harmless():
    layer = make()
    x = torch.randn(2, 10, 12)
    padded = torch.cat([x[:1, :4], torch.full((1, 6, 12), 7.0)], 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(padded)[:, :4], layer(x[:1, :4]), rtol=1e-5, atol=1e-6)


@settings(max_examples=30)
@given(st.permutations(range(4)), st.booleans())
def test_permuting_the_heads_changes_nothing(order, bias):
    layer = make(heads=4, bias=bias)
    other = copy.deepcopy(layer)
    rows = torch.arange(16).view(4, 4)[list(order)].flatten()
    with torch.no_grad():
        for W in (other.W_query, other.W_key, other.W_value):
            W.weight.copy_(W.weight[rows].clone())
            if bias:
                W.bias.copy_(W.bias[rows].clone())
        other.out_proj.weight.copy_(other.out_proj.weight[:, rows].clone())
        x = torch.randn(2, 9, 12)
        torch.testing.assert_close(layer(x), other(x), rtol=1e-5, atol=1e-6)


def test_rows_of_a_batch_do_not_meet():
    layer = make()
    x = torch.randn(4, 8, 12)
    with torch.no_grad():
        alone = torch.cat([layer(row[None]) for row in x])
        torch.testing.assert_close(layer(x), alone, rtol=1e-5, atol=1e-6)


def test_large_scores_stay_finite():
    layer = make()
    with torch.no_grad():
        out = layer(torch.randn(1, 16, 12) * 1e4)
    assert out.isfinite().all()


def test_any_length_up_to_the_context():
    layer = make(context=16)
    with torch.no_grad():
        for t in range(17):
            assert layer(torch.randn(2, t, 12)).shape == (2, t, 12)


# The cache

@settings(max_examples=80)
@given(shapes, st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 3), st.integers(0, 99))
def test_any_pieces_equal_the_whole(shape, pieces, b, seed):
    torch.manual_seed(seed)
    t = sum(pieces)
    layer = make(**shape, context=t)
    x = torch.randn(b, t, shape["d_in"])
    cache = KVCache(t)
    with torch.no_grad():
        out = torch.cat([layer(piece, cache) for piece in x.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-5)
    assert cache.length == t


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pieces_in_other_types(dtype):
    layer = make(dtype=dtype, bias=True)
    x = torch.randn(2, 12, 12).to(dtype)
    cache = KVCache(16)
    with torch.no_grad():
        out = torch.cat([layer(piece, cache) for piece in x.split([5, 1, 1, 3, 2], dim=1)], dim=1)
        whole = layer(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, whole, rtol=EXACT[dtype], atol=EXACT[dtype])


def test_truncate_goes_back():
    layer = make()
    x, other = torch.randn(2, 2, 10, 12)
    cache = KVCache(16)
    with torch.no_grad():
        layer(x, cache)
        cache.truncate(6)
        out = layer(other[:, :3], cache)
        expected = layer(torch.cat([x[:, :6], other[:, :3]], 1))[:, 6:]
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
        cache.truncate(0)
        torch.testing.assert_close(layer(other, cache), layer(other), rtol=0, atol=0)


def test_the_cache_writes_in_place():
    layer = make()
    cache = KVCache(16)
    with torch.inference_mode():
        keys, _ = cache.append(torch.ones(1, 3, 2, 4), torch.ones(1, 3, 2, 4))
        more, _ = cache.append(torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 4))
        assert keys.data_ptr() == more.data_ptr() and more.shape == (1, 3, 3, 4)
        cache.truncate(0)
        layer(torch.randn(1, 4, 12), cache)
    assert cache.length == 4


def test_gradients_flow_through_a_cache():
    layer = make(dtype=torch.float64)
    x = torch.randn(1, 4, 12, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(1, 1, 12, dtype=torch.float64)
    a, = torch.autograd.grad((layer(x)[:, -1:] * wanted).sum(), x)
    cache = KVCache(4)
    layer(x[:, :3], cache)
    b, = torch.autograd.grad((layer(x[:, 3:], cache) * wanted).sum(), x)
    torch.testing.assert_close(a, b)


# Refusals

@pytest.mark.parametrize("arguments, message", [
    *[({name: value}, f"{name} is {value!r}, must be an integer, 1 or more")
      for name, value in [("d_in", 0), ("d_in", "4"), ("d_in", 4.0), ("d_out", -4), ("d_out", None),
                          ("context_length", 0), ("context_length", 2.5), ("num_heads", 0), ("num_heads", 2.0)]],
    (dict(d_out=10, num_heads=4), "d_out is 10, must be a multiple of num_heads, 4"),
    *[(dict(dropout=rate), rf"dropout is {rate!r}, must be a number in \[0, 1\)")
      for rate in (1.0, -0.1, math.nan, None, "0.1")],
])
def test_impossible_sizes_are_refused(arguments, message):
    good = dict(d_in=8, d_out=8, context_length=4, dropout=0.0, num_heads=2)
    MultiHeadAttention(**good)
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**good | arguments)


def test_too_many_tokens_are_refused_with_both_numbers():
    layer, cache = make(context=8), KVCache(8)
    with pytest.raises(ValueError, match="9 tokens are more than the context length, 8"):
        layer(torch.randn(1, 9, 12))
    with torch.no_grad():
        layer(torch.randn(1, 6, 12), cache)
        with pytest.raises(ValueError, match="9 tokens are more than the context length, 8"):
            layer(torch.randn(1, 3, 12), cache)
        assert cache.length == 6
        layer(torch.randn(1, 2, 12), cache)


@pytest.mark.parametrize("shape", [(12,), (4, 12), (1, 4, 11), (1, 1, 4, 12)])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(b, t, 12\)"):
        make()(torch.randn(shape))


def test_the_cache_refuses():
    for capacity in (0, 4.5, "4", None):
        with pytest.raises(ValueError, match=f"capacity is {capacity!r}, must be an integer, 1 or more"):
            KVCache(capacity)
    layer, cache = make(), KVCache(5)
    with torch.no_grad():
        layer(torch.randn(2, 4, 12), cache)
        with pytest.raises(ValueError, match="4 cached tokens and 2 new ones are 6, but .* room for 5"):
            layer(torch.randn(2, 2, 12), cache)
        with pytest.raises(ValueError, match="the batch has 3 rows, the cache was filled with 2"):
            layer(torch.randn(3, 1, 12), cache)
        for length in (-1, 5, 0.0, "2", None):
            with pytest.raises(ValueError, match=f"cannot keep {length!r} tokens of a cache that holds 4"):
                cache.truncate(length)


# Dropout

def test_dropout_only_in_training():
    layer = make(dropout=0.5, context=64)
    x = torch.randn(1, 64, 12)
    plain = make(context=64)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x)) and torch.equal(layer(x), plain(x))
        layer.train()
        assert not torch.equal(layer(x), layer(x))
        torch.manual_seed(1)
        mean = torch.stack([layer(x) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, plain(x), rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_changes_weights_and_not_sums(dtype):
    layer = make(1, 1, 1, dropout=0.25, context=400, dtype=dtype).train()
    with torch.no_grad():
        for W in (layer.W_query, layer.W_key):
            W.weight.zero_()
        layer.W_value.weight.fill_(1)
        layer.out_proj.weight.fill_(1)
        layer.out_proj.bias.zero_()
        kept = layer(torch.ones(1, 400, 1, dtype=dtype)).float()[0, 200:, 0] # each near 1
        first = layer(torch.ones(500, 1, 1, dtype=dtype)).float().flatten() # one weight only
    assert abs(kept.mean().item() - 1) < 0.05
    assert {round(v, 1) for v in first.tolist()} == {0.0, 1.3}
    assert 0.17 < (first == 0).float().mean().item() < 0.33


# Types, devices, files

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("t", [1, 2, 16, 600]) # the last is long enough for the fused kernel
def test_16_bit_on_a_cpu(dtype, t):
    layer = make(16, 2, 8, context=600)
    x = torch.randn(2, t, 16)
    with torch.no_grad():
        exact = layer(x)
        out = layer.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, rtol=EXACT[dtype], atol=EXACT[dtype])


def test_autocast():
    layer = make(16, 2, 8).train()
    x = torch.randn(2, 16, 16)
    exact = layer(x)
    exact.sum().backward()
    wanted = layer.W_query.weight.grad.clone()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    torch.testing.assert_close(out.float(), exact, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(layer.W_query.weight.grad, wanted, rtol=0.1, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        cache = KVCache(16)
        pieces = torch.cat([layer(p, cache) for p in x.split([14, 1, 1], 1)], 1)
    torch.testing.assert_close(pieces.float(), exact, rtol=3e-2, atol=3e-2)


def test_names_in_the_state_dict():
    names = [f"{part}.weight" for part in ("W_query", "W_key", "W_value", "out_proj")]
    assert set(make().state_dict()) == {*names, "out_proj.bias"}
    biases = [name.replace("weight", "bias") for name in names]
    assert set(make(bias=True).state_dict()) == {*names, *biases}


def test_a_state_dict_with_the_books_mask_loads():
    state = make().state_dict()
    state["mask"] = torch.ones(16, 16).triu(1)
    layer = make()
    layer.load_state_dict(state)
    assert "mask" in state and torch.equal(layer.W_key.weight, state["W_key.weight"])
    model = nn.ModuleDict({"att": make()})
    model.load_state_dict({f"att.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(RuntimeError, match="Unexpected"):
        make().load_state_dict(state | {"musk": state["mask"]})


def test_survives_copies_and_pickle():
    layer = make(bias=True)
    x = torch.randn(1, 5, 12)
    with torch.no_grad():
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x), layer(x))


def test_moves_to_the_meta_device():
    layer = make().to("meta")
    assert layer(torch.empty(2, 7, 12, device="meta")).shape == (2, 7, 12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    layer = make(64, 4, 16, context=40)
    x = torch.randn(3, 40, 64)
    with torch.no_grad():
        exact = layer(x)
        layer, x, cache = layer.to("cuda", dtype), x.to("cuda", dtype), KVCache(40)
        pieces = torch.cat([layer(p, cache) for p in x.split([20, 1, 1, 9, 9], 1)], 1)
        for out in (layer(x), pieces):
            torch.testing.assert_close(out.float().cpu(), exact, rtol=3e-2, atol=3e-2)


def test_compiles_to_the_same_numbers():
    layer = make()
    x = torch.randn(2, 9, 12)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-6)


# The book

def test_the_books_numbers():
    inputs = torch.tensor([[.43, .15, .89], [.55, .87, .66], [.57, .85, .64],
                           [.22, .58, .33], [.77, .25, .10], [.05, .80, .55]])
    torch.manual_seed(123)
    layer = MultiHeadAttention(3, 2, 6, 0.0, 2)
    row = layer(torch.stack([inputs, inputs]))[0, 0]
    torch.testing.assert_close(row, torch.tensor([.3190, .4858]), rtol=0, atol=5e-5)
    gpt2 = MultiHeadAttention(768, 768, 1024, 0.1, 12)
    assert sum(p.numel() for p in gpt2.parameters()) == 2_360_064


def test_drawn_in_the_books_order():
    torch.manual_seed(5)
    layer = MultiHeadAttention(6, 4, 3, 0.0, 2, qkv_bias=True)
    torch.manual_seed(5)
    for W in (layer.W_query, layer.W_key, layer.W_value):
        assert torch.equal(W.weight, nn.Linear(6, 4).weight)
    assert torch.equal(layer.out_proj.weight, nn.Linear(4, 4).weight)


def test_the_rule_that_makes_the_cache_right():
    "torch's flag puts the triangle top left, which is why the layer needs a mask of its own here."
    q, k = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 5, 4)
    flag = F.scaled_dot_product_attention(q, k, k, is_causal=True)
    mask = torch.ones(2, 5, dtype=torch.bool).tril(3)
    assert not torch.allclose(flag, F.scaled_dot_product_attention(q, k, k, mask))
