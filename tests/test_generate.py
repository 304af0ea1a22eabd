"""Generation: cached equals uncached, both equal transformers, and rows, modes and mistakes are handled."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from peers import gpt2_pair, random_model

from llm_literate.generate import faster_decoding, generate, new_cache, probabilities, sample, stream


def noise(seed):
    "Make a generator with its own stream of random numbers."
    return torch.Generator().manual_seed(seed)


def prompts(b, t, vocab=19, seed=0):
    "Make random prompts."
    return torch.randint(vocab, (b, t), generator=noise(seed))


class Spy(torch.nn.Module):
    "Count what a model is asked to compute."

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, ids, cache=None, last_only=False):
        self.seen.append(ids.shape[1])
        return self.model(ids, cache, last_only)

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("model", "_modules") else getattr(self.model, name)


# Cached equals uncached


@st.composite
def cases(draw):
    "Draw a model, prompts and options: everything that `generate` takes."
    heads, vocab = draw(st.sampled_from([1, 2, 4])), draw(st.integers(2, 23))
    model = random_model(
        draw(st.integers(0, 999)), std=draw(st.sampled_from([0.1, 0.4])), vocab_size=vocab, n_heads=heads,
        emb_dim=draw(st.sampled_from([8, 12, 16])), n_layers=draw(st.integers(1, 2)),
        context_length=draw(st.integers(1, 24)), drop_rate=draw(st.sampled_from([0.0, 0.5])),
        qkv_bias=draw(st.booleans()), tie_weights=draw(st.booleans()))
    options = dict(
        max_new_tokens=draw(st.integers(0, 16)), temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 3.0])),
        top_k=draw(st.none() | st.integers(1, vocab + 1)),
        top_p=draw(st.none() | st.floats(0.05, 1.0)), eos_id=draw(st.none() | st.integers(0, vocab - 1)))
    ids = prompts(draw(st.integers(1, 4)), draw(st.integers(1, 14)), vocab, draw(st.integers(0, 999)))
    return model.train(draw(st.booleans())), ids, options, draw(st.integers(0, 999))


@settings(max_examples=1000)
@given(cases())
def test_cached_equals_uncached(case):
    model, ids, options, seed = case
    (_, t), size = ids.shape, model.config.context_length
    event("beyond the context" if t + options["max_new_tokens"] > size else "within the context")
    kept = generate(model, ids, **options, generator=noise(seed))
    again = generate(model, ids, **options, generator=noise(seed), use_cache=False)
    assert kept.tolist() == again.tolist()
    assert kept[:, :t].equal(ids) and kept.shape[1] <= t + options["max_new_tokens"]


def test_cache_saves_the_work():
    model, ids = random_model(context_length=8), prompts(2, 3)
    for use_cache, seen in ((True, [3, 1, 1, 1, 1, 1, 8, 8]), (False, [3, 4, 5, 6, 7, 8, 8, 8])):
        spy = Spy(model)
        generate(spy, ids, 8, use_cache=use_cache)
        assert spy.seen == seen


def test_new_cache_serves_each_block():
    model = random_model(n_layers=2)
    assert [memory.capacity for memory in new_cache(model, 5)] == [5, 5]


# Equal to transformers


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request):
    "Give a random model of transformers, and ours with its weights."
    return gpt2_pair(tie_weights=request.param, vocab_size=41, context_length=40,
                     emb_dim=24, n_heads=3, n_layers=2)


OPTIONS = [dict(), dict(temperature=0.7), dict(temperature=1.3, top_k=5), dict(temperature=1.0, top_p=0.8),
           dict(temperature=2.0, top_k=20, top_p=0.6)]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "greedy")
@pytest.mark.parametrize("eos_id", [None, 7])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_generation_equals_transformers(pair, options, eos_id, use_cache):
    ours, theirs = pair
    ids = prompts(5, 6, 41)
    chance = dict(do_sample=True, top_k=0, top_p=1.0) | options if options else dict(do_sample=False)
    for seed in range(4):
        torch.manual_seed(seed)
        mine = generate(ours, ids, 30, **options, eos_id=eos_id, use_cache=use_cache)
        torch.manual_seed(seed)
        their = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30,
                                eos_token_id=eos_id, pad_token_id=eos_id, **chance)
        assert mine.tolist() == their.tolist()


# The choice of a token


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9), st.sampled_from([0.2, 1.0, 3.0]),
       st.none() | st.integers(1, 10), st.none() | st.floats(0.01, 1.0))
def test_probabilities_are_what_the_words_say(scores, temperature, top_k, top_p):
    logits = torch.tensor(scores, dtype=torch.float64) / 4
    weights = [math.exp(score / 4 / temperature) for score in scores]
    ranked = sorted(weights, reverse=True)
    if top_k:  # whatever ties with the k-th stays
        weights = [w if w >= ranked[min(top_k, len(ranked)) - 1] else 0 for w in weights]
    total = sum(weights)
    probs = probabilities(logits, temperature, top_k, None)
    torch.testing.assert_close(probs, torch.tensor([w / total for w in weights]), atol=1e-6, rtol=1e-5)
    if top_p:
        cut = probabilities(logits, temperature, top_k, top_p)
        kept = cut > 0
        assert abs(cut.sum() - 1) < 1e-6
        torch.testing.assert_close(cut[kept], probs[kept] / probs[kept].sum(), atol=1e-6, rtol=1e-5)
        assert probs[kept].sum() >= top_p - 1e-6  # enough …
        assert probs[kept].sum() - probs[kept].min() < top_p + 1e-6  # … and not one token too many
        assert kept.all() or probs[~kept].max() <= probs[kept].min()


@given(st.floats(0, 1e30))
@example(5e-324)
@example(1e-46)
@example(1e-10)
def test_any_temperature_gives_probabilities(temperature):
    probs = probabilities(torch.tensor([[3.0, -math.inf, 2.5, -1e30]]), temperature)
    assert abs(probs.sum() - 1) < 1e-6 and probs[0, 1] == 0 and probs.argmax() == 0
    if temperature < 1e-3:
        assert probs[0, 0] == 1


def test_sample_draws_what_the_probabilities_say():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(20_000, 4)
    drawn = sample(logits, 1.0, top_k=3, generator=noise(1)).bincount(minlength=4) / 20_000
    torch.testing.assert_close(drawn, probabilities(logits[0], 1.0, 3), atol=0.015, rtol=0)
    assert sample(logits[:2]).tolist() == [2, 2]


def test_half_precision_scores_are_chosen_in_float32():
    logits = torch.randn(3, 50, generator=noise(2)).bfloat16()
    assert probabilities(logits).dtype == torch.float32
    assert sample(logits, 1.0, generator=noise(3)).equal(sample(logits.float(), 1.0, generator=noise(3)))


# Rows that end


def ended(row, eos_id, t):
    "Tell what a row looks like once it may not go on after `eos_id`."
    new = row[t:]
    stop = new.index(eos_id) if eos_id in new else len(new)
    return row[:t] + new[:stop] + [eos_id] * (len(new) - stop)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_finished_row_stays_finished_and_disturbs_no_other(temperature, use_cache):
    model, ids = random_model(8), prompts(6, 3)
    options = dict(max_new_tokens=12, temperature=temperature, use_cache=use_cache)
    free = generate(model, ids, generator=noise(0), **options).tolist()
    eos_id = free[0][5]
    rows = generate(model, ids, generator=noise(0), eos_id=eos_id, **options).tolist()
    width = len(rows[0])
    assert rows == [ended(row, eos_id, 3)[:width] for row in free]
    assert any(eos_id not in row[3:] for row in rows) or width < 15


def test_generation_ends_when_all_rows_have():
    model, ids = random_model(8), prompts(1, 3)
    row = generate(model, ids, 12)[0].tolist()
    short = generate(model, ids, 12, eos_id=row[4])[0].tolist()
    assert short == row[:row.index(row[4], 3) + 1]
    both = generate(model, ids.expand(3, -1), 12, eos_id=row[4])
    assert both.tolist() == [short] * 3


def test_end_token_in_the_prompt_ends_nothing():
    model, ids = random_model(8), prompts(2, 3)
    free = generate(model, ids, 5)
    other = next(i for i in range(19) if i not in free[:, 3:])
    ids[:, -1] = other
    assert generate(model, ids, 5, eos_id=other).shape[1] > 3


# Long prompts, dtypes, noise, modes


def test_of_a_long_prompt_the_last_tokens_count():
    model, ids = random_model(9, context_length=6), prompts(2, 15)
    whole = generate(model, ids, 7, temperature=1.0, generator=noise(0))
    last = generate(model, ids[:, -6:], 7, temperature=1.0, generator=noise(0))
    assert whole[:, :15].equal(ids) and whole[:, 9:].equal(last)


def test_greedy_is_the_plain_loop():
    model, ids = random_model(10).eval(), prompts(3, 2)
    plain = ids
    with torch.no_grad():
        for _ in range(12):
            plain = torch.cat([plain, model(plain[:, -8:])[:, -1:].argmax(-1)], 1)
    assert generate(model, ids, 12).equal(plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("use_cache", [True, False])
def test_half_precision_generates_on_a_cpu(dtype, use_cache):
    model, ids = random_model(11, emb_dim=16), prompts(2, 3)
    with torch.autocast("cpu", dtype):
        mixed = generate(model, ids, 9, temperature=1.0, generator=noise(0), use_cache=use_cache)
    half = generate(model.to(dtype), ids, 9, temperature=1.0, generator=noise(0), use_cache=use_cache)
    assert mixed.shape == half.shape == (2, 12)
    assert max(mixed.max(), half.max()) < 19


def test_a_generator_leaves_torchs_own_alone():
    model, ids, before = random_model(12), prompts(2, 3), torch.get_rng_state()
    one = generate(model, ids, 9, temperature=1.0, generator=noise(5))
    assert one.equal(generate(model, ids, 9, temperature=1.0, generator=noise(5)))
    assert torch.get_rng_state().equal(before)
    generate(model, ids, 9, temperature=1.0)
    assert not torch.get_rng_state().equal(before)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored(training):
    model, ids = random_model(13, drop_rate=0.5).train(training), prompts(1, 3)
    model.trf_blocks[0].eval()
    modes = [module.training for module in model.modules()]
    generate(model, ids, 3)
    assert [module.training for module in model.modules()] == modes
    for _ in stream(model, ids, 3):
        break
    assert [module.training for module in model.modules()] == modes
    model.out_head.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        generate(model, ids, 3)
    assert [module.training for module in model.modules()] == modes


def test_streams_side_by_side_keep_their_hands_off_the_mode():
    model, ids = random_model(13, drop_rate=0.5).train(), prompts(1, 3)
    model.trf_blocks[0].eval()
    modes = [module.training for module in model.modules()]
    pairs = []
    for pair in zip(stream(model, ids, 12), stream(model, ids, 12), strict=True):
        assert [module.training for module in model.modules()] == modes
        pairs.append(torch.cat(pair).tolist())
    assert [module.training for module in model.modules()] == modes
    assert pairs == [[token] * 2 for token in generate(model, ids, 12)[0, 3:].tolist()]


def test_room_is_taken_for_tokens_that_came_only():
    model, ids = random_model(8), prompts(1, 3)
    row = generate(model, ids, 12)
    assert generate(model, ids, 10**15, eos_id=row[0, 4].item()).equal(row[:, :row[0].tolist().index(row[0, 4], 3) + 1])


def test_gradients_are_off_inside_only():
    model, ids = random_model(14), prompts(1, 3)
    for token in stream(model, ids, 2):
        assert torch.is_grad_enabled() and not token.is_inference()
    ids = generate(model, ids, 2)
    model(ids).sum().backward()  # what was generated can be trained on
    assert model.tok_emb.weight.grad.any()


def test_stream_gives_each_token_at_once():
    spy, ids = Spy(random_model(15)), prompts(3, 2)
    tokens = stream(spy, ids, 4, temperature=1.0, generator=noise(0))
    assert spy.seen == []
    first = next(tokens)
    assert spy.seen == [2] and first.shape == (3,)
    whole = generate(spy, ids, 4, temperature=1.0, generator=noise(0))
    assert torch.stack([first, *tokens], 1).equal(whole[:, 2:])


def test_ids_keep_their_type_and_the_prompt_its_memory():
    model, ids = random_model(16), prompts(1, 3).int()
    longer = generate(model, ids, 4)
    assert longer.dtype == torch.int32 and longer.equal(generate(model, ids.long(), 4).int())
    unchanged = generate(model, ids, 0)
    assert unchanged.equal(ids)
    unchanged[:] = 0
    assert ids.any()


# What it refuses, when it is called and not later


@pytest.mark.parametrize(("changes", "message"), [
    (dict(ids=[1, 2]), "ids are a list"),
    (dict(ids=torch.zeros(3, dtype=torch.long)), r"shape \(3,\)"),
    (dict(ids=torch.zeros(1, 0, dtype=torch.long)), r"shape \(1, 0\).*at least one row and one token"),
    (dict(ids=torch.zeros(1, 2)), "torch.float32"),
    *[(dict(max_new_tokens=n), f"max_new_tokens is {n!r}, must be an integer, 0 or more")
      for n in (-1, 2.0, None, True)],
    *[(dict(temperature=t), f"temperature is {t!r}, must be finite, 0 or more")
      for t in (-0.1, math.nan, math.inf, None, "0.7")],
    *[(dict(top_k=k), f"top_k is {k!r}, must be an integer, 1 or more, or None") for k in (0, -3, 1.5, True)],
    *[(dict(top_p=p), rf"top_p is {p!r}, must be in \(0, 1\], or None") for p in (0, -0.1, 1.01, math.nan, "0.5")],
    *[(dict(eos_id=i), f"eos_id is {i!r}, must be in the vocabulary, 0 to 18") for i in (-1, 19, 2.5)],
])
@pytest.mark.parametrize("function", [generate, stream])
def test_impossible_arguments_are_refused(function, changes, message):
    arguments = dict(ids=prompts(1, 2), max_new_tokens=2) | changes
    with pytest.raises(ValueError, match=message):
        function(random_model(), arguments.pop("ids"), arguments.pop("max_new_tokens"), **arguments)


def test_unknown_ids_are_refused():
    with pytest.raises(ValueError, match="ids hold 19, must be 0 to 18"):
        generate(random_model(), torch.tensor([[1, 19]]), 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(temperature, wrong):
    model, ids = random_model(8), prompts(2, 3)
    late = next(i for i in generate(model, ids, 12)[0, 3:].tolist() if i not in ids)
    with torch.no_grad():
        model.tok_emb.weight[late] = wrong  # all goes well until a row has this token
    with pytest.raises(ValueError, match="scores are no finite numbers; its weights are damaged"):
        generate(model, torch.full((2, 3), late), 1, temperature)
    seen = []
    with pytest.raises(ValueError, match="scores are no finite numbers"):
        for token in stream(model, ids, 12):
            seen.append(token)
    assert seen and late in seen[-1]


@pytest.mark.parametrize("temperature", [0.5, torch.tensor(0.5), np.float32(0.5)])
def test_numbers_of_other_kinds_are_numbers(temperature):
    logits = torch.tensor([[3.0, 1.0, 2.0]])
    assert probabilities(logits, temperature, top_p=temperature).equal(probabilities(logits, 0.5, top_p=0.5))


@pytest.mark.parametrize("options", [dict(temperature=-1), dict(top_k=0), dict(top_p=2)])
def test_sample_refuses_too(options):
    for choose in (sample, probabilities):
        with pytest.raises(ValueError, match=next(iter(options))):
            choose(torch.zeros(1, 3), **options)


# Weights by columns


@pytest.mark.parametrize("tied", [True, False])
def test_faster_decoding_changes_the_order_in_memory_only(tied):
    model, ids = random_model(17, tie_weights=tied), prompts(2, 3)
    before = copy.deepcopy(model.state_dict())
    tokens = generate(model, ids, 9)
    assert faster_decoding(model) is model
    after = model.state_dict()
    assert list(after) == list(before) and all(after[name].equal(before[name]) for name in before)
    assert not model.out_head.weight.is_contiguous() and model.trf_blocks[0].ff.layers[2].weight.is_contiguous()
    assert (model.out_head.weight is model.tok_emb.weight) == tied
    assert generate(model, ids, 9).equal(tokens)
