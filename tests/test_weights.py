"""Saving, loading, refusing: our files bit by bit, and OpenAI's layout through a server that stands for the hub."""

import errno
import hashlib
import http.server
import json
import os
import pickle
import random
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from servers import serving
from torch import nn

from llm_literate import model as model_module
from llm_literate import weights
from llm_literate.data import DataUnavailable
from llm_literate.generate import faster_decoding
from llm_literate.model import CONFIGS, GPTConfig, GPTModel, init_weights
from llm_literate.weights import (
    GPT2_FILES,
    HubFile,
    WeightsError,
    gpt2_names,
    load_gpt2,
    load_model,
    load_pretrained,
    local_gpt2,
    made_once,
    read_about,
    read_gpt2,
    save_model,
)

TINY = GPTConfig(vocab_size=19, context_length=8, emb_dim=8, n_heads=2, n_layers=2, drop_rate=0.1)
IDS = torch.tensor([[1, 2, 3, 4], [18, 0, 18, 0]])


def made(config=TINY, seed=1):
    "Make a model whose every number is random, biases too."
    torch.manual_seed(seed)
    model = init_weights(GPTModel(config), 0.3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def logits(model):
    return model(IDS)


@pytest.fixture
def path(tmp_path):
    return save_model(made(), tmp_path / "tiny.safetensors", about={"by": "a test", "losses": [3, 2.5]})


# Round trips


CONFIGURATIONS = st.builds(
    lambda heads, width, **fields: GPTConfig(n_heads=heads, emb_dim=heads * width, **fields),
    heads=st.integers(1, 3), width=st.integers(1, 4), vocab_size=st.integers(19, 40), context_length=st.integers(4, 9),
    n_layers=st.integers(1, 3), drop_rate=st.sampled_from([0.0, 0.1]), qkv_bias=st.booleans(),
    tie_weights=st.booleans())


@given(config=CONFIGURATIONS, dtype=st.sampled_from([None, torch.float32, torch.float16, torch.bfloat16]),
       by_columns=st.booleans(), classes=st.sampled_from([None, None, 1, 2, 19]), bias=st.booleans())
@settings(max_examples=60)
def test_what_is_saved_comes_back(config, dtype, by_columns, classes, bias):
    model = made(config)
    if classes:
        model.out_head = nn.Linear(config.emb_dim, classes, bias=bias)
    if by_columns:
        faster_decoding(model)
    before = {name: (p.clone(), p.stride()) for name, p in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(model, Path(folder) / "m", dtype, {"note": "é"})
        back = load_model(path)
        assert read_about(path) == {"note": "é"}
    assert {name: (p.stride(), p.equal(before[name][0])) for name, p in model.named_parameters()} == {
        name: (stride, True) for name, (_, stride) in before.items()}  # the model itself is as it was
    assert back.config == config and not back.training
    assert all(not module.training for module in back.modules())
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in model.named_parameters()]
    for name, parameter in back.named_parameters():
        expected = before[name][0].to(dtype or torch.float32).float()
        assert parameter.dtype == torch.float32 and parameter.equal(expected) and parameter.is_contiguous()
        assert parameter.requires_grad and parameter.is_leaf
    assert (back.out_head.weight is back.tok_emb.weight) == (config.tie_weights and not classes)
    if by_columns:  # the same order of additions: a norm of two numbers makes much of a rounding
        faster_decoding(back)
    if dtype in (None, torch.float32):
        torch.testing.assert_close(logits(back), logits(model), rtol=1e-5, atol=1e-5)


def test_a_loaded_model_trains_and_is_its_own(path):
    before = path.read_bytes()
    model = load_model(path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IDS).sum().backward()
    optimizer.step()
    assert path.read_bytes() == before
    path.unlink()
    assert logits(model).isfinite().all()


def test_other_types_and_devices(path):
    half = load_model(path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in load_model(path, device="meta").parameters()} == {"meta"}


def test_a_layer_tied_by_hand_is_tied_when_it_comes_back(tmp_path):
    model = made()
    model.out_head.weight = model.tok_emb.weight
    back = load_model(save_model(model, tmp_path / "m"))
    assert back.config == replace(TINY, tie_weights=True) and back.out_head.weight is back.tok_emb.weight
    assert logits(back).equal(logits(model))


def test_a_tied_output_is_stored_once(tmp_path):
    sizes = {}
    for tied in (False, True):
        path = save_model(made(replace(TINY, tie_weights=tied)), tmp_path / "m")
        with safe_open(path, "pt") as file:
            names = set(file.keys())
        sizes[tied] = path.stat().st_size
        assert ("out_head.weight" in names) != tied
    assert sizes[False] - sizes[True] >= 19 * 8 * 4


def test_half_precision_takes_half_the_room(tmp_path):
    model = made(replace(TINY, emb_dim=64))
    whole, half = (save_model(model, tmp_path / str(dtype), dtype).stat().st_size
                   for dtype in (torch.float32, torch.float16))
    assert 0.5 < half / whole < 0.52


def test_the_same_model_gives_the_same_bytes(path, tmp_path):
    again = save_model(made(), tmp_path / "again", about={"losses": [3, 2.5], "by": "a test"})
    assert again.read_bytes() == path.read_bytes()


def test_the_file_is_plain_safetensors(path):
    tensors = load_file(path)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        name: tuple(p.shape) for name, p in made().named_parameters()}


def test_notes_are_read_without_the_weights(path):
    data = bytearray(path.read_bytes())
    data[-100:] = b"\0" * 100
    path.write_bytes(data)
    assert read_about(path) == {"by": "a test", "losses": [3, 2.5]}
    assert read_about(save_model(made(), path)) == {}


@pytest.mark.parametrize("about", [{"a": {1, 2}}, {"a": float("nan")}, {"a": torch.ones(1)}])
def test_notes_that_json_cannot_hold(tmp_path, about):
    with pytest.raises((TypeError, ValueError), match="JSON"):
        save_model(made(), tmp_path / "m", about=about)
    assert list(tmp_path.iterdir()) == []


# What cannot be saved


def test_numbers_that_a_type_cannot_hold(tmp_path):
    model = made()
    with torch.no_grad():
        model.pos_emb.weight[0, 0] = 1e5
    with pytest.raises(WeightsError, match=r"pos_emb.weight has numbers that torch.float16 cannot hold; take torch"):
        save_model(model, tmp_path / "m", torch.float16)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WeightsError, match=r"pos_emb.weight has numbers that torch.float16 cannot hold; take torch"):
        load_model(save_model(model, tmp_path / "m"), dtype=torch.float16)
    save_file(as_openai(made(replace(TINY, qkv_bias=True))) | {"wpe.weight": model.pos_emb.weight.detach()},
              tmp_path / "theirs")
    with pytest.raises(WeightsError, match=r"wpe.weight has numbers that torch.float16 cannot hold"):
        read_gpt2(tmp_path / "theirs", TINY, dtype=torch.float16)
    save_model(model, tmp_path / "m", torch.bfloat16)
    with torch.no_grad():
        model.pos_emb.weight[0, 0] = float("nan")  # was there before: that is not the type's doing
    assert load_model(save_model(model, tmp_path / "m", torch.float16)).pos_emb.weight[0, 0].isnan()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, "float16"])
def test_types_that_are_none_for_weights(path, tmp_path, dtype):
    told = r"dtype is .*, must be torch.float16, torch.bfloat16, torch.float32, torch.float64"
    with pytest.raises(WeightsError, match=told):
        save_model(made(), tmp_path / "m", dtype)
    assert not (tmp_path / "m").exists()
    with pytest.raises(WeightsError, match=told):
        load_model(path, dtype=dtype)
    save_file(as_openai(made(replace(TINY, qkv_bias=True))), tmp_path / "theirs")
    with pytest.raises(WeightsError, match=told):
        read_gpt2(tmp_path / "theirs", TINY, dtype=dtype)


def test_a_model_with_other_parts_is_refused(tmp_path):
    model = made()
    model.tok_emb.extra = nn.Linear(2, 2)
    model.trf_blocks[0].ff = nn.Identity()
    with pytest.raises(WeightsError, match=r"is missing.* and 3 more: only a plain GPT can be saved; merge or"):
        save_model(model, tmp_path / "m")
    model = made()
    model.out_head = nn.Sequential(nn.Linear(8, 2))
    with pytest.raises(WeightsError, match="out_head.weight is missing; out_head.0.bias is unknown"):
        save_model(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# All or nothing


def test_an_old_file_stays_until_the_new_one_is_whole(path, monkeypatch):
    before = path.read_bytes()

    def fail(tensors, part, metadata):
        Path(part).write_bytes(b"half of a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_model(made(seed=2), path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system cannot limit the size of a file")
def test_a_full_disk(path, tmp_path):
    before = path.read_bytes()
    script = """
import resource, signal, sys
from test_weights import made
from llm_literate.weights import save_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_model(made(seed=2), sys.argv[1])
except OSError as error:
    print(f"refused: {error}")
"""
    done = subprocess.run([sys.executable, "-c", script, path], cwd=Path(__file__).parent, capture_output=True,
                          text=True, check=False)
    assert "refused: " in done.stdout, done.stderr
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_file_may_be_read_by_others(tmp_path):
    old = os.umask(0o022)
    try:
        path = save_model(made(), tmp_path / "m")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_disk_is_asked_to_keep_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    path = save_model(made(), tmp_path / "m")
    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]


def test_a_place_where_no_file_can_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere; make it first"):
        save_model(made(), tmp_path / "nowhere" / "m")
    for path in (tmp_path, ""):
        with pytest.raises(IsADirectoryError, match="is a folder; give the path of a file in it"):
            save_model(made(), path)
    assert list(tmp_path.iterdir()) == []


# Faults of a file


def refused(path, match):
    with pytest.raises(WeightsError, match=match) as caught:
        load_model(path)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said and isinstance(caught.value, ValueError)
    return said


@pytest.fixture(scope="module")
def whole():
    with tempfile.TemporaryDirectory() as folder:
        small = replace(TINY, n_layers=1, vocab_size=2, emb_dim=2, n_heads=1, context_length=4)
        yield save_model(made(small), Path(folder) / "m", about={"k": [1, "x"]}).read_bytes()


def test_every_byte_of_the_header_counts(whole, tmp_path):
    path, end = tmp_path / "m", 8 + int.from_bytes(whole[:8], "little")
    accepted = []
    for place in range(end):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            load_model(path)
        except WeightsError:
            continue
        accepted.append(place)
    assert accepted == []


@given(place=st.integers(0), bit=st.integers(0, 7))
@settings(max_examples=200)
def test_any_bit_of_the_header_counts(whole, place, bit):
    data = bytearray(whole)
    data[place % (8 + int.from_bytes(whole[:8], "little"))] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "m").write_bytes(data)
        refused(Path(folder) / "m", ".")


@given(place=st.integers(0), bit=st.integers(0, 7))
@settings(max_examples=300)
def test_any_bit_of_the_numbers_counts(whole, place, bit):
    start = 8 + int.from_bytes(whole[:8], "little")
    data = bytearray(whole)
    data[start + place % (len(data) - start)] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "m").write_bytes(data)
        refused(Path(folder) / "m", r"is damaged: its sha256 is [0-9a-f]{64}, must be [0-9a-f]{64}; copy it or")


def test_every_length_is_refused_but_the_whole(whole, tmp_path):
    path = tmp_path / "m"
    start = 8 + int.from_bytes(whole[:8], "little")
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        said = refused(path, "cut off|is no safetensors file|is damaged")
        if n >= start:
            assert f"is cut off: it has {n:,} of {len(whole):,} bytes; copy it or download it again" in said
    path.write_bytes(whole + b"!")
    refused(path, "is damaged")


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 100, b"<html>not found</html>", b"{}",
                                     random.Random(0).randbytes(1000), b"\x80" + b"m" * 999, b"\x80",
                                     (2**62).to_bytes(8, "little") + b"{}" * 100])
def test_what_is_no_such_file(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    refused(tmp_path / "m", "is no safetensors file; give the path of one that save_model or|is cut off")


def test_a_pickle_is_never_opened(tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "boom").touch, ()

    torch.save(made().state_dict(), tmp_path / "new.pt")
    torch.save(made().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in ("new.pt", "old.pt", "bomb.pkl"):
        refused(tmp_path / name, r"is a pickle, .* can run any program; if you trust its author, .* save_model")
        with pytest.raises(WeightsError, match="is a pickle"):
            read_gpt2(tmp_path / name, TINY)
        with pytest.raises(WeightsError, match="is a pickle"):
            read_about(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_no_file_at_all(tmp_path):
    for load in (load_model, read_about):
        with pytest.raises(FileNotFoundError, match="m.safetensors"):
            load(tmp_path / "m.safetensors")


def test_a_folder_and_a_file_that_cannot_be_opened(tmp_path):
    loop = tmp_path / "m"
    loop.symlink_to(loop)  # it is there, but no path leads to an end
    for load in (load_model, read_about, lambda path: load_gpt2("124M", path)):
        with pytest.raises(WeightsError, match="is a folder; give the path of a file in it"):
            load(tmp_path)
        with pytest.raises(OSError) as caught:
            load(loop)
        assert caught.value.errno == errno.ELOOP


def rewritten(path, change=lambda card: None, tensors=lambda tensors: None, seal=True):
    "Write the file anew with another card or other tensors, its fingerprint made to fit."
    with safe_open(path, "pt") as file:
        note = file.metadata()["llm_literate"]
    named, card = load_file(path), json.loads(note.partition(" ")[2])
    change(card)
    tensors(named)
    text = json.dumps(card, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for name in sorted(named):
        digest.update(weights._label(name, named[name].dtype, named[name].shape))
        digest.update(weights._bytes(named[name]))
    save_file(named, path, {"llm_literate": f"{digest.hexdigest() if seal else note.partition(' ')[0]} {text}"})
    return path


def test_the_rewriting_of_these_tests_is_right(path):
    before = path.read_bytes()
    assert rewritten(path).read_bytes() == before


@pytest.mark.parametrize(("config", "match"), [
    ({"n_heads": 3}, r"has a wrong configuration \(emb_dim is 8, must be a multiple of n_heads, 3"),
    ({"n_heads": "2"}, r"has a wrong configuration \(n_heads is '2'"),
    ({"width": 3}, r"has a wrong configuration \(.*unexpected keyword argument 'width'"),
    ({"vocab_size": 20}, r"tok_emb.weight has shape \(19, 8\), must have \(20, 8\)"),
    ({"context_length": 7}, r"pos_emb.weight has shape \(8, 8\), must have \(7, 8\).*copy it or download it again"),
    ({"n_layers": 3}, r"is damaged: 2 blocks, but n_layers is 3"),
    ({"n_layers": 10**12}, r"is damaged: 2 blocks, but n_layers is 1000000000000"),
    ({"qkv_bias": True}, r"trf_blocks.0.att.W_key.bias is missing; .* and 3 more"),
])
def test_a_wrong_configuration(path, config, match):
    refused(rewritten(path, lambda card: card["config"].update(config)), match)


def test_a_configuration_that_fits_but_is_not_the_models(path):
    refused(rewritten(path, lambda card: card["config"].update(n_heads=4), seal=False), "its sha256 is")
    assert load_model(rewritten(path, lambda card: card["config"].update(n_heads=4))).config.n_heads == 4


@pytest.mark.parametrize(("change", "match"), [
    (lambda card: card.pop("config"), r"wrong configuration \('config'\)"),
    (lambda card: card.update(config=None), "wrong configuration"),
    (lambda card: card.pop("version"), "wrong configuration"),
    (lambda card: card.update(version=2), r"is of version 2, this library reads 1; install a newer llm-literate"),
])
def test_a_wrong_card(path, change, match):
    refused(rewritten(path, change), match)


@pytest.mark.parametrize("note", ["", "abc", "abc [1]", "abc {", "abc null", 'abc "version"', "abc 3"])
def test_a_note_that_is_no_card(path, note):
    save_file(load_file(path), path, {"llm_literate": note})
    refused(path, "has a wrong configuration")


def test_a_file_of_somebody_else(path):
    save_file(load_file(path), path, {"format": "pt"})
    refused(path, r"holds no configuration, so save_model did not write it; a file in OpenAI's layout is read by")
    save_file(load_file(path), path)
    refused(path, "holds no configuration")
    with pytest.raises(WeightsError, match="holds no configuration"):
        read_about(path)
    save_file(load_file(path), path, {"llm_literate_lora": "an adapter"})
    refused(path, r"holds no configuration, so .*; load_lora\(model, path\) reads it")


@pytest.mark.parametrize(("change", "match"), [
    (lambda t: t.pop("pos_emb.weight"), "pos_emb.weight is missing"),
    (lambda t: t.pop("out_head.weight"), "out_head.weight is missing"),
    (lambda t: t.update(more=torch.ones(1)), "more is unknown"),
    (lambda t: t.update({"pos_emb.weight": torch.ones(8)}), r"pos_emb.weight has shape \(8,\), must have \(8, 8\)"),
    (lambda t: t.update({"out_head.weight": torch.ones(3, 7)}), r"has shape \(3, 7\), must have \(3, 8\)"),
    (lambda t: t.update({"out_head.weight": torch.ones(3)}), r"out_head.weight has shape \(3,\), must have \(19, 8\)"),
    (lambda t: t.update({"out_head.bias": torch.ones(3)}), r"out_head.bias has shape \(3,\), must have \(19,\)"),
])
def test_missing_extra_and_misshapen_tensors(path, change, match):
    refused(rewritten(path, tensors=change), match)


# OpenAI's layout


@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers", reason="parity with transformers needs it: run `make setup`")
    module.logging.set_verbosity_error()
    return module


@pytest.fixture(scope="module")
def gpt2(transformers):
    "Give a tiny GPT-2 of transformers with random weights, biases too."
    torch.manual_seed(7)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=19, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def checkpoint(gpt2, tmp_path_factory):
    "Give the bytes of that model as transformers saves it."
    folder = tmp_path_factory.mktemp("hub")
    gpt2.save_pretrained(folder)
    return (folder / "model.safetensors").read_bytes()


@torch.no_grad()
def equal(ours, theirs):
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)
    return True


def test_a_checkpoint_of_transformers_is_the_same_model(gpt2, checkpoint, tmp_path):
    (tmp_path / "m").write_bytes(checkpoint)
    model = read_gpt2(tmp_path / "m", TINY)
    assert equal(model, gpt2) and not model.training
    assert model.config == replace(TINY, qkv_bias=True, tie_weights=True, drop_rate=0.0)
    assert model.out_head.weight is model.tok_emb.weight
    assert all(p.is_contiguous() for p in model.parameters())
    assert load_model(save_model(model, tmp_path / "ours"))(IDS).equal(model(IDS))


def test_the_layout_of_the_hub_without_prefix_and_with_masks(gpt2, checkpoint, tmp_path):
    from safetensors.torch import load
    named = {name.removeprefix("transformer."): tensor for name, tensor in load(checkpoint).items()}
    for i in range(2):
        named[f"h.{i}.attn.bias"] = torch.ones(8, 8).tril().view(1, 1, 8, 8)
        named[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(named, tmp_path / "m", {"format": "pt"})
    assert equal(read_gpt2(tmp_path / "m", TINY), gpt2)


def test_an_output_layer_of_its_own(transformers, tmp_path):
    torch.manual_seed(8)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=19, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=False)).eval()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" in file.keys()  # noqa: SIM118
    ours = read_gpt2(tmp_path / "model.safetensors", TINY)
    assert equal(ours, model) and not ours.config.tie_weights


def test_half_precision_in_the_file_and_in_the_model(gpt2, checkpoint, tmp_path):
    from safetensors.torch import load
    save_file({name: tensor.half() for name, tensor in load(checkpoint).items()}, tmp_path / "m")
    model = read_gpt2(tmp_path / "m", TINY)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(IDS), gpt2(IDS).logits, rtol=0, atol=0.05)
    assert {p.dtype for p in read_gpt2(tmp_path / "m", TINY, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_every_name_of_the_real_files_is_known():
    theirs = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]
    for i in range(12):
        theirs += [f"h.{i}.{part}.{kind}" for kind in ("weight", "bias")
                   for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")]
        theirs += [f"h.{i}.attn.bias"]
    assert len(theirs) == 160  # so many tensors has the file of the 124M
    with torch.device("meta"):
        model = GPTModel(replace(CONFIGS["124M"], qkv_bias=True, tie_weights=True))
    ours = [name for their in theirs for name in gpt2_names(their)]
    assert sorted(ours) == sorted(name for name, _ in model.named_parameters())
    assert ours == [name for their in theirs for name in gpt2_names(f"transformer.{their}")]


@pytest.mark.parametrize(("change", "match"), [
    (lambda t: t.pop("transformer.wpe.weight"), "pos_emb.weight is missing"),
    (lambda t: t.update(more=torch.ones(1)), "more is unknown: .* is no GPT-2 with 2 layers of width 8; is it an"),
    (lambda t: t.update({"transformer.h.0.wte.weight": torch.ones(1)}), "trf_blocks.0.tok_emb.weight is unknown"),
    (lambda t: t.update({"transformer.ln_f.weight": torch.ones(9)}), r"final_norm.scale has shape \(9,\), must have"),
    (lambda t: t.update({"transformer.h.1.attn.c_attn.weight": torch.ones(8, 25)}), r"\(25, 8\), must have \(8, 8\)"),
    (lambda t: t.update({"transformer.h.1.mlp.c_fc.weight": torch.ones(32, 8)}), r"\(8, 32\), must have \(32, 8\)"),
])
def test_a_checkpoint_that_does_not_fit(checkpoint, tmp_path, change, match):
    from safetensors.torch import load
    named = load(checkpoint)
    change(named)
    save_file(named, tmp_path / "m")
    with pytest.raises(WeightsError, match=match):
        read_gpt2(tmp_path / "m", TINY)


def test_matrices_that_are_read_in_several_blocks(tmp_path):
    config = GPTConfig(vocab_size=9001, context_length=4, emb_dim=1028, n_heads=2, n_layers=1, qkv_bias=True)
    model = init_weights(GPTModel(config))  # 4 x 1028 rows: more than one block has
    save_file(as_openai(model) | {"lm_head.weight": model.out_head.weight.detach()}, tmp_path / "m")
    back = [read_gpt2(tmp_path / "m", config), load_model(save_model(model, tmp_path / "ours"))]
    for other in back:
        assert all(p.equal(q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_of_another_size(checkpoint, tmp_path):
    (tmp_path / "m").write_bytes(checkpoint)
    for changes in ({"n_layers": 1}, {"n_layers": 3}, {"emb_dim": 16}, {"vocab_size": 20}):
        with pytest.raises(WeightsError, match="is it another size"):
            read_gpt2(tmp_path / "m", replace(TINY, **changes))


# The hub, played by a server on this machine


class Hub(http.server.BaseHTTPRequestHandler):
    "Serve one file at one address, with ranges, redirected as the hub does, and play faults by name."

    body = b""
    fault = ""
    asked: list = []
    over = threading.Event()  # set when nobody waits any more

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        if self.path == "/owner/tiny/resolve/" + "a" * 40 + "/model.safetensors":
            self.send_response(302)
            self.send_header("Location", "/blob")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path != "/blob" or self.fault == "gone":
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if self.fault == "no ranges":
            start = 0
        if start >= len(self.body):
            self.send_error(416)
            return
        body = self.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.fault in ("cut", "no ranges"):
            body = body[:200_000]
        elif self.fault == "stall":
            self.wfile.write(b"" if start else body[:100_000])
            self.wfile.flush()
            self.over.wait(60)
            return
        elif self.fault == "drip":
            with_pauses = (body[i:i + 10] for i in range(0, 500, 10))
            for piece in with_pauses:
                try:
                    self.wfile.write(piece)
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(.05)
            return
        try:
            self.wfile.write(body)
        except OSError:
            return

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    with serving(Hub) as server:
        yield f"http://{server.where}"
        Hub.over.set()


@pytest.fixture
def hub(address, checkpoint, tmp_path, monkeypatch):
    "Register the tiny checkpoint, padded to half a megabyte, as size “tiny”; gives the empty folder for downloads."
    for name in ("LLM_LITERATE_DATA", "HF_HUB_CACHE", "HF_HOME", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HF_ENDPOINT", address)
    body = padded(checkpoint)
    file = HubFile("owner/tiny", "a" * 40, hashlib.sha256(body).hexdigest(), 0.0005)
    monkeypatch.setattr(weights, "GPT2_FILES", {"tiny": file})
    monkeypatch.setitem(model_module.CONFIGS, "tiny", TINY)
    Hub.body, Hub.fault, Hub.asked = body, "", []
    return tmp_path / "cache"


def padded(checkpoint):
    "Make a checkpoint longer than a piece of a download, by masks as the real files have them."
    from safetensors.torch import load
    named = load(checkpoint)
    for i in range(2):
        named[f"transformer.h.{i}.attn.bias"] = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(i))
    return save(named, {"format": "pt"})


def left_behind(folder):
    return sorted(path.name for path in folder.glob("**/*")) if folder.exists() else []


def test_a_download_is_checked_and_kept(hub, gpt2, capfd):
    assert local_gpt2("tiny", hub) is None
    assert equal(load_gpt2("tiny", cache=hub), gpt2)
    assert left_behind(hub) == ["gpt2-tiny.safetensors"]
    asked = len(Hub.asked)
    assert equal(load_gpt2("tiny", cache=hub), gpt2) and len(Hub.asked) == asked == 2
    assert local_gpt2("tiny", str(hub)) == hub / "gpt2-tiny.safetensors"
    assert capfd.readouterr() == ("", "")


def test_a_line_that_breaks_is_taken_up_again(hub, gpt2):
    Hub.fault = "cut"
    assert equal(load_gpt2("tiny", cache=hub), gpt2)
    starts = [int(asked[6:-1]) if asked else 0 for path, asked in Hub.asked if path == "/blob"]
    assert len(starts) >= 3 and starts[0] == 0 and starts == sorted(starts) and len(set(starts)) == len(starts)
    assert left_behind(hub) == ["gpt2-tiny.safetensors"]


def test_what_arrived_is_kept_for_the_next_call(hub, gpt2, monkeypatch):
    monkeypatch.setattr(weights, "PATIENCE", 2)
    monkeypatch.setattr(weights, "SLOWEST", 40_000)
    Hub.fault = "stall"
    with pytest.raises(DataUnavailable):
        load_gpt2("tiny", cache=hub)
    assert left_behind(hub) == [".gpt2-tiny.safetensors.part"]
    kept = (hub / ".gpt2-tiny.safetensors.part").read_bytes()
    assert Hub.body.startswith(kept) and len(kept) > 50_000
    Hub.fault, Hub.asked = "", []
    assert equal(load_gpt2("tiny", cache=hub), gpt2)
    assert Hub.asked[0][1] == f"bytes={len(kept)}-"
    assert left_behind(hub) == ["gpt2-tiny.safetensors"]


def test_a_server_without_ranges_that_breaks_off(hub):
    Hub.fault = "no ranges"
    with pytest.raises(DataUnavailable, match="IncompleteRead|Connection broken"):
        load_gpt2("tiny", cache=hub)
    assert len(Hub.asked) == 4  # a second attempt brought nothing new, so there is no third


def test_a_tampered_file_is_deleted(hub):
    Hub.body = Hub.body[:-1] + bytes([Hub.body[-1] ^ 1])
    sent = hashlib.sha256(Hub.body).hexdigest()
    with pytest.raises(WeightsError, match=f"sha256 {sent}, must have .*; it was deleted") as told:
        load_gpt2("tiny", cache=hub)
    assert weights.GPT2_FILES["tiny"].url in str(told.value)
    assert left_behind(hub) == []


@pytest.mark.parametrize("old", [b"something else", b"!" * 10**6])
def test_a_spoilt_beginning_costs_one_more_attempt(hub, gpt2, old):
    hub.mkdir()
    (hub / ".gpt2-tiny.safetensors.part").write_bytes(old)
    assert equal(load_gpt2("tiny", cache=hub), gpt2)
    assert left_behind(hub) == ["gpt2-tiny.safetensors"]


def unavailable(hub, match):
    with pytest.raises(DataUnavailable, match=match) as caught:
        load_gpt2("tiny", cache=hub)
    file, said = weights.GPT2_FILES["tiny"], str(caught.value)
    assert file.url in said and file.sha256 in said and str(hub / "gpt2-tiny.safetensors") in said
    assert "Download it by hand" in said and "LLM_LITERATE_DATA" in said


def test_a_file_that_is_not_there(hub):
    Hub.fault = "gone"
    unavailable(hub, "404")


def test_nobody_is_there(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    unavailable(hub, "refused")


def test_a_name_that_cannot_be_resolved(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-name.invalid")
    unavailable(hub, "(?i)resol|name|known|no answer within")


def test_a_name_that_hangs(hub, monkeypatch):
    monkeypatch.setattr(weights, "PATIENCE", .5)
    monkeypatch.setenv("HF_ENDPOINT", "http://a-name-that-hangs.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))  # then it fails in another way
    unavailable(hub, "no answer within")


def test_a_server_that_never_answers(hub, monkeypatch):
    assert weights.PATIENCE <= 8  # an error within ten seconds; here a tenth of it
    monkeypatch.setattr(weights, "PATIENCE", .8)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        unavailable(hub, "no answer within|timed out")


def test_a_server_that_drips(hub, monkeypatch):
    monkeypatch.setattr(weights, "PATIENCE", .5)
    Hub.fault = "drip"
    unavailable(hub, "no answer within")


def test_a_folder_that_cannot_be_written(hub, tmp_path):
    hub.write_text("a file where the folder should be")
    with pytest.raises(DataUnavailable, match="gpt2-tiny.safetensors"):
        load_gpt2("tiny", cache=hub)


def test_a_file_put_there_by_hand(hub, gpt2, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_LITERATE_DATA", str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "gpt2-tiny.safetensors"
    mine.write_bytes(Hub.body)
    assert local_gpt2("tiny", hub) == mine and equal(load_gpt2("tiny", cache=hub), gpt2)
    assert Hub.asked == [] and not hub.exists()
    mine.write_bytes(b"other")
    for find in (local_gpt2, load_gpt2):
        with pytest.raises(WeightsError, match=hashlib.sha256(b"other").hexdigest()):
            find("tiny", cache=hub)
    assert mine.read_bytes() == b"other" and Hub.asked == []


def test_any_file_by_its_path(hub, gpt2, checkpoint, tmp_path):
    (tmp_path / "mine").write_bytes(checkpoint)
    assert equal(load_gpt2("tiny", tmp_path / "mine"), gpt2) and Hub.asked == []


@pytest.mark.parametrize(("variable", "inside"), [
    ("HF_HUB_CACHE", ""), ("HF_HOME", "hub/"), ("XDG_CACHE_HOME", "huggingface/hub/")])
@pytest.mark.parametrize("repo", ["models--owner--tiny", "models--tiny"])
def test_what_other_libraries_downloaded_is_found(hub, tmp_path, monkeypatch, variable, inside, repo):
    monkeypatch.setenv(variable, str(tmp_path / "theirs"))
    path = tmp_path / "theirs" / inside / repo / "snapshots" / ("a" * 40) / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(Hub.body)
    assert local_gpt2("tiny", hub) == path
    path.write_bytes(b"half")
    assert local_gpt2("tiny", hub) is None and path.read_bytes() == b"half"


def test_a_spoilt_file_in_the_cache_is_downloaded_again(hub, gpt2):
    hub.mkdir()
    (hub / "gpt2-tiny.safetensors").write_bytes(b"half")
    assert local_gpt2("tiny", hub) is None
    assert equal(load_gpt2("tiny", cache=hub), gpt2)


def test_the_address_of_the_hub_is_read_when_it_is_needed(monkeypatch):
    file = GPT2_FILES["124M"]
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert file.url == f"https://mirror.example/openai-community/gpt2/resolve/{file.revision}/model.safetensors"
    monkeypatch.delenv("HF_ENDPOINT")
    assert file.url == f"https://huggingface.co/openai-community/gpt2/resolve/{file.revision}/model.safetensors"


def test_all_sizes_are_pinned():
    assert list(GPT2_FILES) == ["124M", "355M", "774M", "1558M"]
    for size, file in GPT2_FILES.items():
        assert re.fullmatch("[0-9a-f]{40}", file.revision) and re.fullmatch("[0-9a-f]{64}", file.sha256)
        with torch.device("meta"):
            model = GPTModel(replace(CONFIGS[size], qkv_bias=True, tie_weights=True))
        masks = CONFIGS[size].n_layers * 1024**2
        assert file.gigabytes == pytest.approx((sum(p.numel() for p in model.parameters()) + masks) * 4e-9, rel=2e-3)


def test_unknown_sizes():
    for load in (load_gpt2, local_gpt2):
        with pytest.raises(ValueError, match=r"no GPT-2 of size 'small', only 124M, 355M, 774M, 1558M; ours: load"):
            load("small")


# What ships


def test_an_unknown_pretrained_model():
    with pytest.raises(ValueError, match=r"no model '124M' comes with this package, only small; OpenAI's are load"):
        load_pretrained("124M")


def shipped():
    path = Path(weights.__file__).parent / "assets" / weights.PRETRAINED["small"]
    if not path.exists():
        pytest.skip(f"{path.name} is not there yet: train it")
    return path


def test_the_shipped_model_is_whole_and_small():
    path, model = shipped(), load_pretrained("small")
    assert path.stat().st_size <= 10e6
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    from llm_literate.tokenizer import small_tokenizer
    assert model.config.vocab_size == small_tokenizer().n_vocab


# Memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_reading_holds_one_copy_of_the_model(tmp_path, kind):
    config = GPTConfig(vocab_size=8192, context_length=64, emb_dim=768, n_heads=12, n_layers=6, qkv_bias=True,
                       tie_weights=True)
    model = GPTModel(config)
    size = sum(p.nbytes for p in model.parameters())
    path = tmp_path / "m"
    if kind == "ours":
        save_model(model, path)
    else:
        save_file(as_openai(model), path)
    del model
    script = f"""
import re, sys
import torch
from llm_literate import weights
from llm_literate.model import GPTConfig, GPTModel
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
torch.set_num_threads(1)
warm = weights.save_model(GPTModel(GPTConfig(9, 4, 8, 2, 1)), sys.argv[1] + ".warm")
weights.load_model(warm)
before = peak()
config = GPTConfig(**{vars(config)})
model = weights.load_model(sys.argv[1]) if {kind == "ours"} else weights.read_gpt2(sys.argv[1], config)
assert sum(p.double().sum() for p in model.parameters()).isfinite()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout) / size
    assert 0.9 < grown < 1.4, f"the peak grew by {grown:.2f} times the model"


def as_openai(model):
    "Write our weights in OpenAI's layout."
    ours, theirs = dict(model.named_parameters()), {}
    parts = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]
    parts += [f"h.{i}.{part}.{kind}" for i in range(model.config.n_layers) for kind in ("weight", "bias")
              for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")]
    for name in parts:
        tensor = torch.cat([ours[our].detach() for our in gpt2_names(name)])
        theirs[name] = (tensor.T if ".c_" in name and tensor.ndim == 2 else tensor).contiguous()
    return theirs


def test_a_model_is_made_once_and_again_if_its_file_is_damaged(tmp_path, capsys):
    def make():
        torch.manual_seed(len(calls))
        calls.append(1)
        return GPTModel(GPTConfig(9, 8, 4, 2, 1)).train()

    calls = []
    first = made_once("toy", make, {"steps": 1}, tmp_path)
    assert not first.training and "making the toy" in capsys.readouterr().err
    again = made_once("toy", make, {"steps": 1}, tmp_path)
    assert len(calls) == 1 and capsys.readouterr().err == ""
    assert torch.equal(first.out_head.weight, again.out_head.weight)
    made_once("toy", make, {"steps": 2}, tmp_path)
    assert len(calls) == 2 and len(list(tmp_path.glob("models/toy-*.safetensors"))) == 2
    for path in tmp_path.glob("models/*"):
        path.write_bytes(path.read_bytes()[:-1])
    made_once("toy", make, {"steps": 1}, tmp_path)
    assert len(calls) == 3 and "making it again" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_told_and_no_failure(tmp_path, capsys):
    (tmp_path / "models").write_text("a file where the folder should be")
    told = []

    def make():
        told.append(capsys.readouterr().err)  # before the work begins
        return GPTModel(GPTConfig(9, 8, 4, 2, 1))

    assert isinstance(made_once("toy", make, {}, tmp_path), GPTModel)
    assert "it cannot be kept: " in told[0] and capsys.readouterr().err == ""


def test_a_model_that_cannot_be_kept_is_given_all_the_same(tmp_path, capsys):
    model = GPTModel(GPTConfig(9, 8, 4, 2, 1))
    model.extra = nn.Linear(2, 2)
    assert made_once("toy", lambda: model, {}, tmp_path) is model
    assert "could not be kept: extra.bias is unknown" in capsys.readouterr().err


def test_a_recipe_that_cannot_be_kept_is_refused_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        made_once("toy", lambda: pytest.fail("made in vain"), {"a": float("nan")}, tmp_path)


def test_a_kept_model_that_cannot_be_opened_is_made_again(tmp_path, capsys, monkeypatch):
    def make():
        return GPTModel(GPTConfig(9, 8, 4, 2, 1))

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    made_once("toy", make, {}, tmp_path)
    monkeypatch.setattr(weights, "load_model", refuse)
    assert isinstance(made_once("toy", make, {}, tmp_path), GPTModel)
    assert "Permission denied; making it again" in capsys.readouterr().err
