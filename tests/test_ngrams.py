"""N-grams: the numbers that neighbours become, the bits they give, and ids that would give wrong ones."""

import numpy as np
import pytest

from llm_literate.ngrams import grams, ngram_bits

IDS = np.array([1, 2, 3, 1, 2])


def test_by_hand():
    assert grams(IDS, 2, 10).tolist() == [12, 23, 31, 12]
    (bits,) = ngram_bits(IDS, np.array([2, 0]), 1, 4)  # 5 tokens of 3 kinds, and a quarter below
    assert np.allclose(bits, -np.log2([(2 + 3 / 4) / 8, (3 / 4) / 8]))
    assert [b.tolist() for b in ngram_bits(IDS, IDS[:0], 2)] == [[], []]


@pytest.mark.parametrize("train, test, most, v, message", [
    (IDS, IDS, 2, 2, "ids are 1 to 3, must be 0 to 1"),
    (IDS, IDS + 3, 2, 4, "ids are 4 to 6, must be 0 to 3"),
    (IDS - 2, IDS, 2, 4, "ids are -1 to 1, must be 0 to 3"),
    (IDS[:0], IDS, 2, 4, "train holds no ids"),
    (IDS, IDS, 0, 4, "0 neighbours are asked for, must be 1 or more"),
    (IDS, IDS, 6, 2048, "6 ids out of 2048 do not fit into 63 bits"),
    (IDS, IDS, 6, np.int64(2048), "do not fit into 63 bits"),  # NumPy says that this power is 0
])
def test_what_would_give_wrong_bits(train, test, most, v, message):
    with pytest.raises(ValueError, match=message):
        ngram_bits(train, test, most, v)


def test_neighbours_that_are_no_number():
    for n, v in ((5, 2**20), (0, 10)):
        with pytest.raises(ValueError, match=r"do not fit|1 or more"):
            grams(IDS, n, v)
