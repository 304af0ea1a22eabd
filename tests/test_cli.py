"""The command line, as a shell would see it: what is printed where, when, and with which exit code."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llm_literate import cli, weights
from llm_literate.cli import COMMANDS, main, spoken, strangers
from llm_literate.generate import generate
from llm_literate.model import GPTConfig, GPTModel, init_weights
from llm_literate.tokenizer import gpt2_tokenizer, small_tokenizer
from llm_literate.weights import save_model

PROGRAM = [sys.executable, "-c", "import sys; from llm_literate.cli import main; sys.exit(main())"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and pipes are those of POSIX systems")


def run(*args, **options):
    "Run the command in a process of its own."
    return subprocess.run([*PROGRAM, *map(str, args)], capture_output=True, text=True, check=False, encoding="utf-8",
                          env=os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}, **options)


def tiny(**fields):
    "Make a small random model of our vocabulary."
    torch.manual_seed(1)
    return init_weights(GPTModel(GPTConfig(**{"vocab_size": 2048, "context_length": 16, "emb_dim": 16, "n_heads": 2,
                                              "n_layers": 1, "drop_rate": 0.1} | fields)), 0.3).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Give the path of such a model, and the model."
    model = tiny()
    return save_model(model, tmp_path_factory.mktemp("models") / "random.safetensors"), model


@pytest.fixture
def shell(capsys):
    "Give a function that runs the command in this process: exit code, output, errors."
    def typed(*args):
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err
    return typed


def continued(model, prompt, n, **options):
    "Give what the library itself makes of a prompt."
    words = small_tokenizer()
    ids = torch.tensor([[words.eot_token, *words.encode(prompt)]])
    return words.decode(generate(model, ids, n, eos_id=words.eot_token, **options)[0, 1:].tolist())


# Pieces of text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
       st.sampled_from([small_tokenizer, gpt2_tokenizer]))
def test_pieces_are_the_text_and_never_half_a_character(text, make):
    tokenizer = make()
    pieces = list(spoken(tokenizer.encode_ordinary(text), tokenizer))
    assert "".join(pieces) == text and all(pieces)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.lists(st.integers(0, 2047), max_size=12))
def test_any_tokens_at_all(ids):
    tokenizer = small_tokenizer()
    assert "".join(spoken(iter(ids), tokenizer)) == tokenizer.decode(ids, errors="replace")


def test_a_piece_comes_as_soon_as_it_is_whole():
    tokenizer, heard = small_tokenizer(), []
    ids = tokenizer.encode("a ☕ b")

    def coming():
        for id in ids:
            heard.append(f"<{id}>")
            yield id

    for piece in spoken(coming(), tokenizer):
        heard.append(piece)
    assert heard.index("a") == 1 and heard[-1] == " b"


# Words of the world


def test_what_the_small_world_knows():
    assert strangers("") == strangers("... 42 !?") == []
    assert strangers("Once upon a time there was a fox, and the fox had a red kite.") == []
    assert strangers("A SPACESHIP met Zoë; the spaceship was red") == ["spaceship", "Zoë"]


def test_every_word_of_its_stories_is_known():
    from llm_literate.small_world import stories
    for split in ("train", "val", "test"):
        assert strangers(" ".join(stories(50, seed=9, split=split))) == []


# Help


def test_alone_it_lists_its_commands_without_loading_anything():
    done = subprocess.run([sys.executable, "-c", "import sys; from llm_literate.cli import main; code = main([]); "
                           "assert 'torch' not in sys.modules; sys.exit(code)"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: llm-literate COMMAND")
    for name, (_, what) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", done.stdout, re.M)


def test_threads_wait_quietly_unless_somebody_wants_otherwise():
    script = "import os; from llm_literate.cli import main; main([]); print(os.environ['OMP_WAIT_POLICY'])"
    for own, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | own
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False,
                              env=environment)
        assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(shell, option):
    assert shell(option) == shell()


def test_version(shell):
    from llm_literate import __version__
    assert shell("--version") == (0, f"llm-literate {__version__}\n", "")


def test_help_of_a_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["generate", "--help"])
    told = capsys.readouterr().out
    assert end.value.code == 0 and told.startswith("usage: llm-literate generate ")
    for option in ("prompt", "--tokens", "--temperature", "--top-k", "--top-p", "--seed", "--model"):
        assert option in told
    assert "Continue a text, and print each word as it comes (book 5.3)." in told and "default: small" in told


def test_every_command_is_there():
    for name in COMMANDS:
        assert cli._function(name).__doc__


def test_the_package_installs_it(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"llm-literate": "llm_literate.cli:main"}
    script = Path(sys.executable).with_name("llm-literate")
    if not script.exists():
        pytest.skip("the script llm-literate is not beside this Python: install the package again")
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "generate" in done.stdout


# Generating


def test_greedy_text_is_the_librarys(shell, saved):
    path, model = saved
    code, out, err = shell("generate", "Once upon a time", "--model", path, "--tokens", 30, "--temperature", 0)
    assert (code, err) == (0, "")
    assert out == continued(model, "Once upon a time", 30).removesuffix("<|endoftext|>") + "\n"


def test_sampled_text_is_the_librarys(shell, saved):
    path, model = saved
    options = dict(temperature=0.9, top_k=7, top_p=0.8)
    _, out, _ = shell("generate", "The fox", "--model", path, "--tokens", 30, "--seed", 5, "--temperature", 0.9,
                      "--top_k", 7, "--top-p", 0.8)
    expected = continued(model, "The fox", 30, generator=torch.Generator().manual_seed(5), **options)
    assert out == expected.removesuffix("<|endoftext|>") + "\n"


def test_seeds(shell, saved):
    def told(*seed):
        return shell("generate", "The fox", "--model", saved[0], "--tokens", 20, *seed)[1]

    assert told("--seed", 1) == told("--seed=1") != told("--seed", 2)
    assert told() != told()


def test_both_spellings_and_values_with_underscores(shell, saved, tmp_path):
    path = tmp_path / "my_own--model_file"
    path.write_bytes(saved[0].read_bytes())
    typed = ["generate", "The fox", "--tokens", 5, "--seed", 1]
    one = shell(*typed, f"--model={path}", "--top_k=3")
    assert one[0] == 0 and one == shell(*typed, "--model", path, "--top-k", 3)


def test_prompts_of_every_kind(shell, saved):
    for prompt in ("", " ", "☕☕", "a<|endoftext|>b", "fox " * 100):
        code, out, _ = shell("generate", prompt, "--model", saved[0], "--tokens", 3)
        assert code == 0 and out.startswith(prompt) and out.endswith("\n")
    code, out, _ = shell("generate", "--model", saved[0], "--tokens", 3, "--", "--top_k")
    assert code == 0 and out.startswith("--top_k")


def test_it_stops_where_the_story_ends(shell, tmp_path):
    model, end = tiny(), small_tokenizer().eot_token
    with torch.no_grad():
        model.final_norm.scale.zero_()
        model.final_norm.shift.fill_(1)
        model.out_head.weight.zero_()
        model.out_head.weight[end] = 10
    path = save_model(model, tmp_path / "m")
    assert shell("generate", "The end.", "--model", path, "--tokens", 500) == (0, "The end.\n", "")


def test_words_of_another_world_are_named(shell, saved):
    code, out, err = shell("generate", "The fox in a Spaceship met a robot", "--model", saved[0], "--tokens", 3)
    assert code == 0 and out.startswith("The fox in a Spaceship")
    assert "note: the small world has no “Spaceship”, “robot”" in err and err.count("\n") == 1


def test_gpt2s_vocabulary_has_gpt2s_tokenizer_and_no_note(shell, tmp_path):
    path = save_model(tiny(vocab_size=50257, emb_dim=4), tmp_path / "m", torch.float16)
    code, out, err = shell("generate", "A spaceship", "--model", path, "--tokens", 3, "--seed", 1)
    assert (code, err) == (0, "") and out.startswith("A spaceship")


# Mistakes


@POSIX
def test_closed_input_and_output_are_empty_files():
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&-', "sh", *PROGRAM, "--version"], capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_stream_may_be_closed(monkeypatch):
    for name in "stdin", "stdout", "stderr":
        monkeypatch.setattr(sys, name, None)
    assert main(["genrate"]) == 2
    assert sys.stdin.read() == "" and sys.stdout.write("☕") == sys.stderr.write("☕") == 1
    for name in "stdin", "stdout", "stderr":
        getattr(sys, name).close()


@pytest.mark.parametrize(("args", "match"), [
    (["genrate", "x"], r"^llm-literate: error: there is no command 'genrate'; did you mean generate\? \(commands: gen"),
    (["--tokens", "3"], r"^llm-literate: error: there is no command '--tokens'"),
    (["generate"], r"^llm-literate generate: error: the following arguments are required: prompt \(see llm-lit"),
    (["generate", "fox", "y"], "unrecognized arguments: y"),
    (["generate", "fox", "--wild"], "unrecognized arguments: --wild"),
    (["generate", "fox", "--tokens", "many"], "argument --tokens: invalid int value: 'many'"),
    (["generate", "fox", "--tokens", "0"], "--tokens is 0, must be 1 or more"),
    (["generate", "fox", "--seed", "-1"], "--seed is -1, must be 0 or more"),
    (["generate", "fox", "--temperature", "-1"], "temperature is -1.0, must be finite, 0 or more"),
    (["generate", "fox", "--temperature", "nan"], "temperature is nan, must be finite"),
    (["generate", "fox", "--top_k", "0"], "top_k is 0, must be an integer, 1 or more"),
    (["generate", "fox", "--top_p", "2"], r"top_p is 2.0, must be in \(0, 1\]"),
    (["generate", "fox", "--model", "smal"], "--model is 'smal', must be one of small, 124M, 355M, 774M, 1558M, or"),
])
def test_a_mistake_is_one_line(shell, saved, args, match):
    if "--model" not in args and args[0] == "generate":
        args = [*args, "--model", saved[0]]
    code, out, err = shell(*args)
    assert code == 2 and out == "" and err.count("\n") == 1 and err.endswith("\n")
    assert re.search(match, err)


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    (tmp_path / "m").write_bytes(b"no model")
    done = run("generate", "fox", "--model", tmp_path / "m")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"llm-literate generate: error: .* is no safetensors file; give the path .*\n", done.stderr)


def test_models_that_cannot_write(shell, tmp_path):
    model = tiny()
    model.out_head = nn.Linear(16, 2)
    for made, match in ((model, "sorts texts into 2 classes and does not write"),
                        (tiny(vocab_size=19), "has a vocabulary of 19 tokens; those of 2048")):
        code, out, err = shell("generate", "fox", "--model", save_model(made, tmp_path / "m"))
        assert code == 2 and out == "" and match in err and err.count("\n") == 1


def test_no_network(shell, monkeypatch, tmp_path):
    for name in ("LLM_LITERATE_DATA", "HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, out, err = shell("generate", "fox", "--model", "124M")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "could not be downloaded" in err and "Download it by hand" in err and "LLM_LITERATE_DATA" in err


def test_a_fault_of_the_program_is_not_hidden(monkeypatch, saved):
    monkeypatch.setattr(cli, "spoken", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["generate", "fox", "--model", str(saved[0])])


# Streaming, and quiet endings


def started(saved, **options):
    "Start a long story."
    return subprocess.Popen([*PROGRAM, "generate", "The fox", "--model", str(saved[0]), "--tokens", "1000000"],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


@POSIX
def test_words_come_one_by_one_and_ctrl_c_ends_it_quietly(saved):
    with started(saved, bufsize=0) as process:
        assert process.stdout.read(7) == b"The fox"
        assert process.stdout.read(1) and process.poll() is None  # there is more, and it is not finished
        process.send_signal(signal.SIGINT)
        time.sleep(.05)
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == b"" and rest.endswith(b"\n")


@POSIX
def test_nobody_listens(saved):
    with started(saved) as process:
        assert process.stdout.read(20)
        process.stdout.close()
        assert process.wait(60) == 141 and process.stderr.read() == b""


def test_a_terminal_that_lacks_characters(saved):
    done = subprocess.run([*PROGRAM, "generate", "☕☕", "--model", str(saved[0]), "--tokens", "5", "--seed", "1"],
                          capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.startswith(b"??")


# What ships


def test_the_shipped_model_tells_a_story():
    path = Path(weights.__file__).parent / "assets" / weights.PRETRAINED["small"]
    if not path.exists():
        pytest.skip(f"{path.name} is not there yet: train it")
    done = run("generate", "Once upon a time", "--seed", 1, "--tokens", 150)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Once upon a time ") and len(done.stdout.split()) > 20
    assert len(strangers(done.stdout)) <= len(done.stdout.split()) / 10  # it may spell a word of its own now and then
