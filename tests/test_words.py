"""Words and marks: every mark comes back in its place, and no word is dropped without being asked to."""

import os
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_literate.words import ENDOFTEXT, UNKNOWN, SimpleTokenizer, join_words, split_words

quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def verdict():
    folder = os.environ.get("LLM_LITERATE_DATA")
    if not folder or not Path(folder, "the-verdict.txt").is_file():
        pytest.skip("LLM_LITERATE_DATA names no folder with the-verdict.txt")
    return Path(folder, "the-verdict.txt").read_text(encoding="utf-8")


PRINTED = [
    "One, two; three: four. Five! Six?",
    "He said: \"Come in.\" She said, \"No--never!\"",
    "A well-known man (with a hat) [and a stick] {and a dog}.",
    "“Curly,” she said, ‘and don’t forget’—then left…",
    "«Oui», dit-il. ¿Qué? ¡No!",
    "I don't, you can't, we'll, they've, you're, I'm, he'd, it's o'clock: five o'clock.",
    "The girls' boat sank. The 'Gull' did, 'tis true. It was 'their' boat. We saw 'twas gone!",
    "\"The 'Gull' is the girls' boat,\" he said. \"'Tis true.\"",
    "It was _very_ late in snake_case and the _New York Times_.",
    "Pi is 3.14, the time 10:30, the price 1,000.50 and 50% of $3 & more.",
    "Use e.g. U.S. mail, i.e. a/b @home #1 *now* ~5 `code` a+b=c <b> ^2 |x| \\n.",
    "\"Who asked, 'Why?'\" said he.",
    "Wait... what?! Yes!!!",
    f"The end. {ENDOFTEXT} The start.",
]


@pytest.mark.parametrize("text", PRINTED)
def test_printed_text_comes_back(text):
    assert join_words(split_words(text)) == text
    simple = SimpleTokenizer.train(text, unknowns=True)
    assert simple.decode(simple.encode(text)) == text


@pytest.mark.parametrize("mark", string.punctuation + "“”‘’„«»‹›…—–¿¡")
def test_every_mark_comes_back(mark):
    opening, closing, paired = "([{“‘„«‹¿¡", ")]}”’»›,.:;?!…", "\"'_`*~|"
    if mark in opening:
        text = f"one {mark}two three"
    elif mark in closing:
        text = f"one two{mark} three"
    elif mark in paired:
        text = f"one {mark}two three{mark} four"
    elif mark == "—":
        text = f"one{mark}two"
    else:
        text = f"one {mark} two {mark}three"
    assert join_words(split_words(text)) == text


def test_plain_split():
    assert split_words("Hello, world. Is this-- a test?") == [
        "Hello", ",", "world", ".", "Is", "this", "--", "a", "test", "?"]
    assert split_words("") == split_words(" \n\t ") == []


@quick
@given(st.text())
def test_split_loses_only_white_space(text):
    assert "".join(split_words(text)) == "".join(text.split())


@quick
@given(st.lists(st.sampled_from(["on", "it", "s", "t", *",.:;?!()[]\"'_", "--", "—", "3", "e.g.", ENDOFTEXT])))
def test_join_keeps_the_words_apart(words):
    text = join_words(words)
    assert text.replace(" ", "") == "".join(words)
    assert text == text.strip() and "  " not in text


def test_unknown_words():
    strict = SimpleTokenizer.train("the cat sat.")
    with pytest.raises(ValueError, match="'dog' is not in the vocabulary"):
        strict.encode("the dog sat.")
    lenient = SimpleTokenizer.train("the cat sat.", unknowns=True)
    assert (lenient.vocab[ENDOFTEXT], lenient.vocab[UNKNOWN]) == (4, 5)
    ids = lenient.encode(f"the dog sat. {ENDOFTEXT} the cat")
    assert lenient.decode(ids) == f"the {UNKNOWN} sat. {ENDOFTEXT} the cat"


@pytest.mark.parametrize("text", [None, 3, b"the", ["the"]])
def test_simple_refuses_what_is_no_text(text):
    with pytest.raises(ValueError, match="text must be a str"):
        SimpleTokenizer.train("the").encode(text)


def test_simple_refuses_wrong_ids():
    simple = SimpleTokenizer.train("the cat")
    for ids in ([7], [-1], [0.5], None, [[0]], [True, False], np.array([True])):
        with pytest.raises(ValueError):
            simple.decode(ids)
    with pytest.raises(ValueError, match="share an id"):
        SimpleTokenizer({"a": 0, "b": 0})
    assert simple.decode(np.array([1, 0])) == "the cat" and simple.decode([]) == ""


def test_a_wrong_batch_is_not_printed_whole():
    with pytest.raises(ValueError, match="one row of integers") as refused:
        SimpleTokenizer.train("the cat").decode(np.ones((8, 1024), int))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("vocab", [["ab", "cd"], ["a", "b"], "the cat", None])
def test_a_list_of_words_is_no_vocabulary(vocab):
    with pytest.raises(ValueError, match=r"must be a dict, not (list|str|NoneType); SimpleTokenizer\.train"):
        SimpleTokenizer(vocab)


@pytest.mark.data
def test_the_verdict(verdict):
    assert len(verdict) == 20479 and len(split_words(verdict)) == 4690
    assert len(SimpleTokenizer.train(verdict).vocab) == 1130
    simple = SimpleTokenizer.train(verdict, unknowns=True)
    assert (len(simple.vocab), simple.vocab[ENDOFTEXT], simple.vocab[UNKNOWN]) == (1132, 1130, 1131)
    assert simple.encode("Hello, do you like tea?")[:4] == [1131, 5, 355, 1126]


@pytest.mark.data
def test_the_verdict_comes_back(verdict):
    """Paragraph by paragraph, for a quotation may run on into the next one without being closed."""
    for paragraph in verdict.replace(". . . .", "....").split("\n\n"):
        printed = " ".join(paragraph.split())
        assert join_words(split_words(printed)) == printed
