"""Decoding: what is drawn, token by token and text by text, is what the exact probabilities say."""

from itertools import product

import pytest
import torch
from peers import random_model

from llm_literate.generate import generate, probabilities, sample

SETTINGS = [dict(temperature=1.0), dict(temperature=0.4), dict(temperature=3.0), dict(temperature=1.0, top_k=3),
            dict(temperature=1.5, top_p=0.8), dict(temperature=2.0, top_k=4, top_p=0.7)]


def noise(seed):
    "Make a generator with its own stream of random numbers."
    return torch.Generator().manual_seed(seed)


def name(options):
    "Name a setting."
    return "-".join(f"{key}={value}" for key, value in options.items())


def assert_drawn_from(counts, exact):
    "Compare counts with probabilities by a chi-square test; a fair draw fails once in a million."
    assert counts[exact == 0].sum() == 0, "something was drawn that cannot come"
    expected = counts.sum() * exact.double()
    rare = expected < 8  # too few for the test: they count as one
    counts, expected = ([*kept[~rare], kept[rare].sum()] for kept in (counts.double(), expected))
    pairs = [(c, e) for c, e in zip(counts, expected, strict=True) if e > 0]
    square = sum((c - e) ** 2 / e for c, e in pairs)
    free = max(1, len(pairs) - 1)
    # Wilson and Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal
    bound = free * (1 - 2 / (9 * free) + 4.75 * (2 / (9 * free)) ** 0.5) ** 3
    assert square < bound, f"chi-square is {square:.1f} with {free} degrees of freedom, must be below {bound:.1f}"


def exact_texts(model, prompt, n, eos_id=None, **options):
    "Multiply out the probability of every text of n tokens that can follow a prompt."
    vocab = model.config.vocab_size
    found = torch.zeros([vocab] * n, dtype=torch.float64)
    with torch.no_grad():
        for text in product(range(vocab), repeat=n):
            share, row = 1.0, prompt.tolist()
            for i, token in enumerate(text):
                if eos_id in text[:i]:
                    share *= token == eos_id
                else:
                    logits = model(torch.tensor([row]))[0, -1]
                    share *= probabilities(logits, **options)[token].item()
                row.append(token)
                if not share:
                    break
            found[text] = share
    return found.flatten()


@pytest.mark.parametrize("options", SETTINGS, ids=name)
def test_tokens_are_drawn_by_their_probability(options):
    logits = 2 * torch.randn(40, generator=noise(3))
    drawn = sample(logits.expand(50_000, -1), **options, generator=noise(4))
    assert_drawn_from(drawn.bincount(minlength=40), probabilities(logits, **options))


@pytest.mark.parametrize("options", SETTINGS, ids=name)
@pytest.mark.parametrize("eos_id", [None, 2])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_texts_are_drawn_by_their_probability(options, eos_id, use_cache):
    model = random_model(5, std=0.4, vocab_size=5, emb_dim=8).eval()
    prompt, n = torch.tensor([1, 3]), 3
    exact = exact_texts(model, prompt, n, eos_id, **options)
    assert abs(exact.sum() - 1) < 1e-5
    rows = generate(model, prompt.expand(20_000, -1), n, **options, eos_id=eos_id, use_cache=use_cache,
                    generator=noise(6))[:, 2:]
    places = (rows * torch.tensor([25, 5, 1])).sum(1)
    assert_drawn_from(places.bincount(minlength=5**n), exact)


@pytest.mark.parametrize("apart", [1, 2])
def test_rows_of_a_batch_are_independent(apart):
    logits = torch.tensor([1.0, 0.0, -0.5, 0.3])
    drawn = sample(logits.expand(40_000, -1), 1.0, generator=noise(7))
    pairs = 4 * drawn[:-apart] + drawn[apart:]
    exact = probabilities(logits)
    # neighbours overlap, so every other pair is taken
    pairs = pairs[::2 * apart]
    assert_drawn_from(pairs.bincount(minlength=16), torch.outer(exact, exact).flatten())


def test_the_test_would_notice():
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5])
    drawn = sample(logits.expand(50_000, -1), 1.1, generator=noise(8)).bincount(minlength=4)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(drawn, probabilities(logits, 1.0))
    with pytest.raises(AssertionError, match="cannot come"):
        assert_drawn_from(drawn, probabilities(logits, 1.0, top_k=3))


@pytest.mark.parametrize("end", [dict(temperature=1e-6), dict(temperature=5.0, top_k=1),
                                 dict(temperature=5.0, top_p=1e-6)], ids=name)
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_every_setting_ends_at_greedy(end, use_cache):
    model, ids = random_model(9), torch.randint(19, (6, 3), generator=noise(0))
    greedy = generate(model, ids, 12, use_cache=use_cache)
    assert generate(model, ids, 12, **end, use_cache=use_cache).equal(greedy)


def test_temperature_comes_before_top_p():
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    kept = [(probabilities(logits, T, top_p=0.9) > 0).sum().item() for T in (0.2, 1.0, 3.0, 30.0)]
    assert kept == sorted(kept) and kept[0] == 1 and kept[-1] == 5
    assert [(probabilities(logits, T, top_k=2) > 0).sum().item() for T in (0.2, 1.0, 30.0)] == [2, 2, 2]


def test_row_has_other_luck_in_other_company():
    model, ids = random_model(10), torch.randint(19, (3, 3), generator=noise(0))
    alone = generate(model, ids[:1], 12, temperature=1.0, generator=noise(1))
    together = generate(model, ids, 12, temperature=1.0, generator=noise(1))
    assert not alone[0].equal(together[0])
