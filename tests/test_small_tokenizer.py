"""The vocabulary that ships: trained on the small world, by one command, and again with the same result."""

import json
import re
from importlib.resources import files

import pytest

from llm_literate.small_world import corpus, instructions, messages, stories
from llm_literate.tokenizer import BPETokenizer, gpt2_tokenizer, small_tokenizer
from llm_literate.valley import PEOPLE, PLACES, WORDS

SHIPPED = files("llm_literate") / "assets" / "small_tokenizer.json"


def test_training_again_gives_the_same_file(tmp_path):
    BPETokenizer.train(corpus(), 2048).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == SHIPPED.read_bytes(), "run `make vocabulary`"


def test_it_is_small_and_plain():
    assert len(SHIPPED.read_bytes()) < 60_000
    json.loads(SHIPPED.read_text("utf-8"))
    assert small_tokenizer().n_vocab == 2048


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_what_the_world_says_comes_back(split):
    tokenizer = small_tokenizer()
    said = stories(100, 9, split) + [m["text"] for m in messages(100, 9, split)]
    said += ["\n".join(e.values()) for e in instructions(100, 9, split)] + [corpus(30, 9, split)]
    for text in said:
        assert tokenizer.decode(tokenizer.encode(text, allowed_special="all")) == text


def test_names_and_places_are_one_token():
    tokenizer = small_tokenizer()
    words = [*PEOPLE, *PLACES, *(w for w in WORDS["names"]), *(w for w in WORDS["looks"])]
    assert not [w for w in words if len(tokenizer.encode(f" {w}")) > 1]


def test_it_is_as_short_as_gpt2_on_this_world():
    text = corpus(200, 1, "test").replace("<|endoftext|>", "\n")
    assert len(small_tokenizer().encode(text)) < 1.05 * len(gpt2_tokenizer().encode(text))
    words = re.findall(r"[A-Za-z]+", text)
    assert len(small_tokenizer().encode(text)) < 1.5 * len(words)
