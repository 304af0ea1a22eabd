"""The assistant: it learns by heart what it is shown, is made once, keeps what fits in view, and can be typed to."""

import io
import itertools
import os
import subprocess
import sys

import pytest
import torch
from fastcore.script import anno_parser
from torch import nn

from llm_literate import assistant
from llm_literate.assistant import (
    ROOM,
    SETTINGS,
    ask,
    by_family,
    chat,
    finetune,
    load_assistant,
    reply,
    tune_small,
)
from llm_literate.cli import COMMANDS, main
from llm_literate.generate import generate
from llm_literate.instruct import format_input, format_response, respond
from llm_literate.model import GPTConfig, GPTModel, init_weights
from llm_literate.small_world import instructions
from llm_literate.tokenizer import gpt2_tokenizer, small_tokenizer
from llm_literate.weights import read_about, save_model

TOKENIZER = small_tokenizer()
END = TOKENIZER.eot_token


def tiny(**fields):
    "Make a small random model of our vocabulary."
    torch.manual_seed(3)
    sizes = {"vocab_size": 2048, "context_length": 128, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0}
    return init_weights(GPTModel(GPTConfig(**sizes | fields)), 0.3).eval()


@pytest.fixture(scope="module")
def pupil():
    "Give a model that has learned six entries by heart, the entries, and what happened."
    entries = instructions(6, 8)
    model = tiny(emb_dim=64, n_layers=2, tie_weights=True)
    history = finetune(model, TOKENIZER, entries, entries[:4], batch_size=3, mask_prompt=True, epochs=40, lr=4e-3,
                       progress=False)
    return model, entries, history


@pytest.fixture
def saved(pupil, tmp_path):
    "Give the path of that model's file."
    return str(save_model(pupil[0], tmp_path / "pupil.safetensors"))


# Fine-tuning


def test_what_was_learned_by_heart_comes_back_to_the_letter(pupil):
    model, entries, history = pupil
    answers = respond(model, TOKENIZER, entries, progress=False)
    assert answers == [entry["output"] for entry in entries]
    assert history.last("loss") < 0.1 < 2 < history.columns["val_loss"][0]
    assert len(history) == 1 + 40 * 2


def test_with_the_request_learned_it_can_write_requests():
    entries, model = instructions(3, 8), tiny(emb_dim=64, n_layers=2, tie_weights=True)
    finetune(model, TOKENIZER, entries, batch_size=3, epochs=80, lr=4e-3, progress=False)
    first = TOKENIZER.encode_ordinary("Below is")
    new = generate(model, torch.tensor([first]), 100, eos_id=END)[0].tolist()
    written = TOKENIZER.decode(new[:new.index(END)])
    assert written in [format_input(e) + format_response(e["output"]) for e in entries]


def test_both_forms_train():
    entries, model = instructions(2, 8), tiny(emb_dim=32, tie_weights=True)
    finetune(model, TOKENIZER, entries, batch_size=2, style="phi3", epochs=60, lr=4e-3, progress=False)
    wanted = [entry["output"] for entry in entries]
    assert respond(model, TOKENIZER, entries, style="phi3", progress=False) == wanted
    assert respond(model, TOKENIZER, entries, progress=False) != wanted


def test_entries_that_do_not_fit_are_refused_before_training():
    model = tiny(context_length=20)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    with pytest.raises(ValueError, match="entry 0: its request alone has .* max_length is 20"):
        finetune(model, TOKENIZER, instructions(8), progress=False)
    with pytest.raises(ValueError, match="entry 1 has no 'input'"):
        finetune(model, TOKENIZER, [instructions(1)[0], {"instruction": "Sing."}], progress=False)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())


@pytest.mark.parametrize("val_entries", [(), instructions(2)])
def test_nothing_to_learn_from_is_refused_whatever_there_is_to_measure_on(val_entries):
    with pytest.raises(ValueError, match="there are no entries to learn from"):
        finetune(tiny(), TOKENIZER, [], val_entries, batch_size=2, progress=False)


def test_settings_that_are_left_out_are_the_usual_ones(monkeypatch):
    told = {}
    monkeypatch.setattr(assistant, "finetune", lambda model, tokenizer, *parts, **more: told.update(more, parts=parts))
    tune_small(tiny(), {"n": 4, "lr": 1e-3})
    assert len(told["parts"][0]) == 4 and told["lr"] == 1e-3 and told["batch_size"] == SETTINGS["batch_size"]


def test_settings_decide_the_result():
    small = SETTINGS | {"n": 16, "epochs": 1, "batch_size": 8}
    made = [tiny() for _ in range(3)]
    for model, settings in zip(made, (small, small, small | {"seed": 2}), strict=True):
        tune_small(model, settings, progress=False)
    one, two, three = (model.trf_blocks[0].att.W_query.weight for model in made)
    assert torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.parametrize("freeze", [True, False])
def test_the_token_embedding_stays_as_it_is_if_it_is_frozen(freeze):
    model = tiny(tie_weights=True)
    before = model.tok_emb.weight.clone()
    tune_small(model, SETTINGS | {"n": 16, "batch_size": 8, "freeze": freeze}, progress=False)
    assert torch.equal(model.tok_emb.weight, before) == freeze
    assert model.tok_emb.weight.requires_grad


# Counting


def test_families_are_counted_to_the_letter():
    entries = [{"output": "It is red.", "family": "colour"}, {"output": "Yes.", "family": "truth"},
               {"output": "It is blue.", "family": "colour"}]
    assert by_family(entries, ["It is red.", "yes.", "It is blue."]) == {"colour": (2, 2), "truth": (0, 1)}
    assert list(by_family(entries[::-1], [""] * 3)) == ["colour", "truth"]
    with pytest.raises(ValueError):
        by_family(entries, ["It is red."])


# Made once


@pytest.fixture
def workshop(monkeypatch, tmp_path):
    "Let the assistant be made from a tiny model; give what it takes and how often it was made."
    made = []

    def base(name):
        made.append(name)
        return tiny()

    monkeypatch.setattr(assistant, "load_pretrained", base)
    return {"cache": tmp_path, "settings": SETTINGS | {"n": 8, "epochs": 1, "batch_size": 8}}, made


def test_it_is_made_at_the_first_call_only(workshop, capsys):
    options, made = workshop
    model, tokenizer = load_assistant(**options)
    assert made == ["small"] and tokenizer.n_vocab == 2048 and not model.training
    out, err = capsys.readouterr()
    assert out == "" and "making the assistant from the small model, once" in err
    again, _ = load_assistant(**options)
    assert made == ["small"] and capsys.readouterr() == ("", "")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    file, = options["cache"].rglob("*.safetensors")
    assert read_about(file) == options["settings"]


def test_a_file_tells_all_settings_even_those_that_were_left_out(workshop):
    options, _ = workshop
    few = {"n": 8, "batch_size": 8}
    load_assistant(cache=options["cache"], settings=few)
    file, = options["cache"].rglob("*.safetensors")
    assert read_about(file) == SETTINGS | few


def test_other_settings_make_another_one(workshop):
    options, made = workshop
    load_assistant(**options)
    load_assistant(**options | {"settings": options["settings"] | {"seed": 9}})
    assert len(made) == len(list(options["cache"].rglob("*.safetensors"))) == 2


def test_a_damaged_file_is_made_again(workshop, capsys):
    options, made = workshop
    load_assistant(**options)
    file, = options["cache"].rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 16
    file.write_bytes(data)
    load_assistant(**options)
    assert len(made) == 2 and "is damaged" in capsys.readouterr().err
    load_assistant(**options)
    assert len(made) == 2


def test_models_from_files(saved, tmp_path):
    model, tokenizer = load_assistant(saved)
    assert tokenizer.n_vocab == 2048
    big = save_model(tiny(vocab_size=50257, context_length=8), tmp_path / "gpt2.safetensors")
    assert load_assistant(str(big))[1].n_vocab == gpt2_tokenizer().n_vocab
    with pytest.raises(ValueError, match="--model is 'nowhere', must be small, or the path"):
        load_assistant("nowhere")
    sorter = tiny()
    sorter.out_head = nn.Linear(16, 2)
    with pytest.raises(ValueError, match="sorts texts into 2 classes and does not write"):
        load_assistant(str(save_model(sorter, tmp_path / "sorter.safetensors")))


# A reply


def ids_of(entry, answer=""):
    return TOKENIZER.encode_ordinary(format_input(entry) + format_response(answer))


def test_pieces_are_the_answer(pupil):
    model, entries, _ = pupil
    for entry in entries:
        pieces = list(reply(model, TOKENIZER, entry))
        assert "".join(pieces) == entry["output"] and len(pieces) > 1


def test_pieces_come_one_by_one(pupil, monkeypatch):
    model, entries, _ = pupil
    steps, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **more: (steps.append(1), forward(*args, **more))[1])
    pieces = reply(model, TOKENIZER, entries[0])
    next(pieces)
    assert len(steps) < len(TOKENIZER.encode(entries[0]["output"]))


@pytest.mark.parametrize("n", range(5))
def test_what_was_said_before_is_in_view_as_far_as_it_fits(n):
    model, entries = tiny(context_length=256), instructions(6, 2)
    earlier, entry = [(e, e["output"]) for e in entries[:n]], entries[5]
    parts = [[*ids_of(*exchange), END] for exchange in earlier]
    ids = ids_of(entry)
    while sum(map(len, parts)) + len(ids) + ROOM > 256:
        parts.pop(0)
    shown = [id for part in parts for id in part] + ids
    new = generate(model, torch.tensor([shown]), 9, eos_id=END)[0, len(shown):].tolist()
    new = new[:new.index(END)] if END in new else new
    assert "".join(reply(model, TOKENIZER, entry, earlier, tokens=9)) == TOKENIZER.decode(new)
    assert len(parts) == min(n, 3) or n > 2


def test_a_request_that_does_not_fit_is_refused_at_once():
    with pytest.raises(ValueError, match="the request has .* tokens with its form, and the model takes 128"):
        reply(tiny(), TOKENIZER, {"instruction": "Sing " * 99, "input": ""})
    with pytest.raises(ValueError, match="instruction is empty"):
        reply(tiny(), TOKENIZER, {"instruction": " ", "input": "x"})


# In the terminal


def typed(entry):
    "Write an entry as somebody would type it."
    return " | ".join(filter(None, (entry["instruction"], entry["input"])))


def test_ask_prints_the_answer_and_nothing_else(pupil, saved, capsys):
    for entry in pupil[1][:3]:
        ask(typed(entry), model=saved)
        assert capsys.readouterr() == (entry["output"] + "\n", "")


def test_ask_warns_of_words_that_the_small_world_does_not_have(saved, capsys):
    ask("Give the plural. | Word: spaceship", model=saved, tokens=2)
    out, err = capsys.readouterr()
    assert "note: the small world has no “spaceship”" in err and "note" not in out


def listen(monkeypatch, *lines):
    "Let somebody type these lines."
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_chat_answers_line_by_line(pupil, saved, capsys, monkeypatch):
    entries = pupil[1][:4]
    listen(monkeypatch, typed(entries[0]), "", *map(typed, entries[1:]))
    chat(model=saved)
    assert capsys.readouterr() == ("".join(e["output"] + "\n" for e in entries), "")


def test_chat_goes_on_after_a_request_that_it_cannot_take(pupil, saved, capsys, monkeypatch):
    entry = pupil[1][0]
    listen(monkeypatch, "| only an input", "Sing " * 99, typed(entry))
    chat(model=saved)
    out, err = capsys.readouterr()
    assert out == entry["output"] + "\n"
    assert err.count("note: ") == 2 and "make it shorter" in err and "the request is empty" in err


@pytest.mark.parametrize("wrong, why", [
    ({"tokens": 0}, "--tokens is 0, must be 1 or more"), ({"tokens": -3}, "--tokens is -3"),
    ({"temperature": -1.0}, "temperature is -1.0"), ({"temperature": float("nan")}, "temperature is nan"),
])
def test_what_was_typed_is_looked_at_before_a_model_is_made(wrong, why, monkeypatch):
    monkeypatch.setattr(assistant, "load_assistant", lambda name: pytest.fail("a model was made"))
    for command in (lambda **options: ask("Sing.", **options)), chat:
        with pytest.raises(ValueError, match=why):
            command(**wrong)
    for request in "", " | only an input":
        with pytest.raises(ValueError, match="the request is empty"):
            ask(request)


def test_a_wrong_byte_does_not_end_a_chat(pupil, saved, capsys, monkeypatch):
    entry = pupil[1][0]
    typed_in = io.BytesIO(b"Say h\xe9\n" + typed(entry).encode() + b"\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed_in, encoding="utf-8"))
    chat(model=saved, tokens=40)
    assert capsys.readouterr().out.splitlines()[1:] == [entry["output"]]


def test_no_prompt_goes_into_a_pipe_even_if_somebody_types_at_a_terminal(pupil, saved):
    pty = pytest.importorskip("pty", reason="there are no such terminals on Windows")
    terminal, end = pty.openpty()
    entry = pupil[1][0]
    code = "import sys; from llm_literate.assistant import chat; assert sys.stdin.isatty(); chat(model=sys.argv[1])"
    try:
        os.write(terminal, f"{typed(entry)}\n\x04".encode())
        done = subprocess.run([sys.executable, "-c", code, saved], stdin=end, capture_output=True, text=True,
                              encoding="utf-8", check=False)
    finally:
        os.close(terminal)
        os.close(end)
    assert (done.stdout, done.returncode) == (entry["output"] + "\n", 0), done.stderr


@pytest.mark.parametrize("memory", [0, 1, 3])
def test_chat_shows_the_model_what_memory_says(monkeypatch, pupil, saved, memory, capsys):
    seen = []

    def spy(model, tokenizer, entry, earlier=(), *args, **options):
        seen.append([said for _, said in earlier])  # now: the list goes on
        return iter([f"answer {len(seen)}"])

    monkeypatch.setattr(assistant, "reply", spy)
    listen(monkeypatch, *["Give the plural."] * 4)
    chat(model=saved, memory=memory)
    all_said = [f"answer {i}" for i in (1, 2, 3)]
    assert seen == [all_said[max(0, i - memory):i] for i in range(4)]


def test_ctrl_c_ends_an_answer_and_not_the_chat(monkeypatch, pupil, saved, capsys):
    turns = itertools.count()

    def spy(*args, **options):
        if next(turns) == 0:
            yield "Blah"
            raise KeyboardInterrupt
        yield "Done."

    monkeypatch.setattr(assistant, "reply", spy)
    listen(monkeypatch, "Give the plural.", "Give the plural.")
    chat(model=saved)
    assert capsys.readouterr().out == "Blah\nDone.\n"


def test_chat_with_the_small_model_says_what_it_can_do(monkeypatch, workshop, capsys):
    model = tiny(), TOKENIZER
    monkeypatch.setattr(assistant, "load_assistant", lambda name: model)
    listen(monkeypatch)
    chat()
    out, err = capsys.readouterr()
    assert out == "" and "small model" in err and "Ctrl-D" in err
    with pytest.raises(ValueError, match="--memory is -1"):
        chat(memory=-1)


@pytest.mark.parametrize("command", [ask, chat])
def test_commands_can_be_typed(command, capsys):
    with pytest.raises(SystemExit):
        anno_parser(command).parse_args(["--help"])
    assert "--temperature" in capsys.readouterr().out


@pytest.mark.skipif("ask" not in COMMANDS, reason="the command line does not have it")
def test_the_command_line_has_them(pupil, saved, capsys):
    entry = pupil[1][0]
    assert main(["ask", typed(entry), "--model", saved]) == 0
    assert capsys.readouterr().out == entry["output"] + "\n"
    assert main(["ask", "", "--model", saved]) == 2
    assert "the request is empty" in capsys.readouterr().err
