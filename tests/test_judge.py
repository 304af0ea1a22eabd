"""Whole runs: stopped in every way there is, gone on with, never mixed; and the judge itself under examination."""

import ast
import html
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import httpx
import pytest
from servers import Ollama, free_port, judged, ollama

from llm_literate import judge as judge_module
from llm_literate.asking import JudgeError, OllamaJudge, address, doctor
from llm_literate.cli import main
from llm_literate.judge import CANARIES, canaries, command, examine, read_scores, score

# What somebody said about a real server, before the tests take it away.
HOST, MODEL = (os.environ.get(name, "") for name in ("OLLAMA_HOST", "LLM_LITERATE_JUDGE"))

AGAIN = r"""
import json, os, resource, sys
from llm_literate.judge import command, score
from llm_literate.asking import OllamaJudge
how, host, path, out, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
if how == "command":
    command(path, "fake", host, out)
else:
    report = score(json.load(open(path)), OllamaJudge("fake", host, pause=.001), out, parallel=int(how))
    print(report, flush=True)
"""


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    "Take away what a machine may have set."
    for name in "OLLAMA_HOST", "OLLAMA_API_KEY", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY":
        monkeypatch.delenv(name, raising=False)


def records(n):
    return [
        {"instruction": f"Say the number {i}.", "input": "", "output": str(i), "model_response": f"answer {i}."}
        for i in range(n)
    ]


def number(body):
    "Find which record a question is about."
    return int(body["messages"][1]["content"].split("Say the number ")[1].split(".")[0])


def right(n, body):
    return judged(number(body) % 101)


def judge(fake, **options):
    return OllamaJudge("fake", fake.where, **{"pause": 0.001, "timeout": 5.0, **options})


def run(entries, fake, out, **options):
    return score(entries, judge(fake, **options.pop("judge", {})), out, progress=False, **options)


def lines(out):
    return [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]


def start(fake, tmp_path, how="1", limit=0):
    "Begin a run in another process."
    path = tmp_path / "responses.json"
    if not path.exists():
        path.write_text(json.dumps(records(30)))
    return subprocess.Popen(
        [sys.executable, "-c", AGAIN, how, fake.where, str(path), str(tmp_path / "scores.jsonl"), str(limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1", "NO_PROXY": "*"},
    )


# In order, one result each


@pytest.mark.parametrize("parallel", [1, 4])
def test_one_result_for_each_entry_in_order(tmp_path, parallel):
    def reply(n, body):
        time.sleep(random.random() / 100)
        i = number(body)
        return "85/100" if i in (0, 7) else Ollama.http(400, "no") if i == 11 else right(n, body)

    with ollama(reply) as fake:
        report = run(records(20), fake, tmp_path / "s.jsonl", parallel=parallel)
        assert report.scores == [None if i in (0, 7, 11) else i for i in range(20)]
        assert report.failures == {"unreadable": 2, "failed": 1} and not report.partial
        assert report.results[7]["reply"] == "85/100"
        assert fake.most <= parallel
        total = sum(i for i in range(20) if i not in (0, 7, 11))
        assert report.bounds == (total / 20, (total + 300) / 20)


def test_parallel_questions_are_under_way_together(tmp_path):
    gate = threading.Barrier(3, timeout=20)

    def reply(n, body):
        gate.wait()
        return right(n, body)

    with ollama(reply) as fake:
        assert run(records(6), fake, tmp_path / "s.jsonl", parallel=3).scores == list(range(6))


def test_duplicates_and_odd_characters_keep_their_rows(tmp_path):
    odd = ["same", "same", "ü 漢字 🦊 \u202e", "\0", "\ud800", "a\r\nb\u2028c", "", '"}\n{"run": 1}', "\x1b[31m"]
    entries = [{"instruction": "i", "input": "", "output": "o", "model_response": text} for text in odd]
    with ollama() as fake:
        report = run(entries, fake, tmp_path / "s.jsonl")
        texts = [body["messages"][1]["content"] for body in fake.asked]
    assert report.scores == [50] * len(odd)
    assert [entry["response"] for entry in report.entries] == odd
    assert all(text in sent for text, sent in zip(odd, texts, strict=True) if text not in ("\0", "\ud800"))
    again = read_scores(entries, tmp_path / "s.jsonl")
    assert again.results == report.results and again.entries == report.entries
    for name in "r.html", "r.md", "r.json":
        report.save(tmp_path / name)


def test_too_long_answers_are_left_out(tmp_path):
    entries = records(3)
    entries[1]["model_response"] = "long " * 2000
    with ollama(right) as fake:
        report = run(entries, fake, tmp_path / "s.jsonl")
        assert report.scores == [0, None, 2] and report.failures == {"too_long": 1}
        assert [number(body) for body in fake.asked] == [0, 2]


# Every result is kept, and only what is missing is asked


@pytest.mark.parametrize(
    "kill, how",
    [
        (signal.SIGKILL, "1"),
        (signal.SIGKILL, "3"),
        (signal.SIGTERM, "1"),
        (signal.SIGTERM, "command"),
        (signal.SIGINT, "1"),
        (signal.SIGINT, "command"),
    ],
)
def test_a_killed_run_goes_on(tmp_path, kill, how):
    out, seed = tmp_path / "scores.jsonl", random.Random(f"{kill}{how}")
    moment, reached = seed.randrange(3, 25), threading.Event()

    def reply(n, body):
        if n >= moment:
            reached.set()
        time.sleep(0.004)
        return right(n, body)

    with ollama(reply) as fake:
        process = start(fake, tmp_path, how)
        assert reached.wait(60), process.communicate(timeout=5)
        time.sleep(seed.random() / 60)
        process.send_signal(kill)
        said, errors = process.communicate(timeout=30)
        if kill == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        elif kill == signal.SIGINT or how == "command":
            assert "PARTIAL" in said and "stopped by hand" in said
        asked = len(fake.asked)
        kept = [
            line["entry"]
            for line in (json.loads(line) for line in out.read_bytes().split(b"\n")[:-1])
            if "entry" in line
        ]
        assert len(kept) >= min(asked, 30) - (3 if how == "3" else 1)  # all but what was under way
        partial = read_scores(records(30), out)
        assert partial.partial == (len(kept) < 30)
        assert {i: s for i, s in enumerate(partial.scores) if s is not None} == {i: i for i in kept}
        report = run(records(30), fake, out)
        assert report.scores == list(range(30)) and not report.partial and report.about["runs"] == 2
        assert sorted(number(body) for body in fake.asked[asked:]) == sorted(set(range(30)) - set(kept))


def test_a_full_disk_keeps_whole_lines(tmp_path):
    out = tmp_path / "scores.jsonl"
    with ollama(right) as fake:
        process = start(fake, tmp_path, limit=2600)
        said, errors = process.communicate(timeout=60)
        assert "PARTIAL" in said and "could not be kept" in said, errors
        text = out.read_bytes()
        assert text.endswith(b"\n") and 0 < len(text) <= 2600
        kept = sum("entry" in line for line in lines(out))
        assert 0 < kept < 30
        asked = len(fake.asked)
        assert run(records(30), fake, out).scores == list(range(30))
        assert len(fake.asked) - asked == 30 - kept


def test_each_result_is_on_the_disk_before_the_next_question(tmp_path, monkeypatch):
    order, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (sync(file), order.append("kept")))

    def reply(n, body):
        order.append("asked")
        return right(n, body)

    with ollama(reply) as fake:
        run(records(3), fake, tmp_path / "s.jsonl")
    assert order[order.index("asked") :] == ["asked", "kept"] * 3 + ["kept"]  # the last is how it ended


def test_no_room_at_all_is_told_before_asking(tmp_path):
    with ollama(right) as fake:
        said, errors = start(fake, tmp_path, limit=100).communicate(timeout=60)
        assert "could not be kept" in said and fake.asked == []


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_line_is_taken_away(tmp_path, cut):
    out = tmp_path / "s.jsonl"
    with ollama(right) as fake:
        whole = run(records(4), fake, out)
        text = out.read_bytes()
        end = text.rindex(b'{"entry": 3')
        out.write_bytes(text[: end + cut])
        assert read_scores(records(4), out).scores == [0, 1, 2, None]
        assert run(records(4), fake, out).scores == whole.scores and len(fake.asked) == 5


@pytest.mark.parametrize("cut", [0, 1, 5, 7, 40])
def test_a_torn_first_line_is_taken_away(tmp_path, cut):
    out = tmp_path / "s.jsonl"
    with ollama(right) as fake:
        run(records(2), fake, out)
        out.write_bytes(out.read_bytes()[:cut])
        assert run(records(2), fake, out).scores == [0, 1]


def test_failures_are_asked_again_and_final_results_are_not(tmp_path):
    ill = {"now": True}

    def reply(n, body):
        return {1: Ollama.http(503, "busy") if ill["now"] else right(n, body), 2: "no number"}.get(
            number(body)
        ) or right(n, body)

    with ollama(reply) as fake:
        first = run(records(4), fake, tmp_path / "s.jsonl", judge={"tries": 2})
        assert first.failures == {"failed": 1, "unreadable": 1}
        ill["now"], asked = False, len(fake.asked)
        again = run(records(4), fake, tmp_path / "s.jsonl")
        assert again.scores == [0, 1, None, 3]
        assert [number(body) for body in fake.asked[asked:]] == [1]


def test_a_server_that_dies_leaves_a_partial_report(tmp_path):
    port, out = free_port(), tmp_path / "s.jsonl"
    with ollama(lambda n, body: Ollama.drop() if n >= 5 else right(n, body), port=port) as fake:

        def last(n, body):
            if n == 5:
                threading.Thread(target=fake.server.shutdown).start()
                fake.server.socket.close()
            return Ollama.drop() if n >= 5 else right(n, body)

        fake.reply = last
        report = run(records(12), fake, out)
        assert report.partial and report.found == [0, 1, 2, 3, 4]
        assert "no Ollama answers" in report.about["stopped"] and "PARTIAL" in repr(report)
    with ollama(right, port=port) as fake:
        assert run(records(12), fake, out).scores == list(range(12))
        assert len(fake.asked) == 7


def test_five_failures_in_a_row_end_it(tmp_path):
    with ollama(lambda n, body: right(n, body) if number(body) < 3 else Ollama.http(503, "busy")) as fake:
        report = run(records(20), fake, tmp_path / "s.jsonl", judge={"tries": 1})
        assert report.failures == {"failed": 5, "missing": 12} and report.partial
        assert "five failures in a row" in report.about["stopped"]


def test_a_bug_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(OllamaJudge, "ask", lambda self, entry, room: 1 / 0)
    with ollama() as fake, pytest.raises(ZeroDivisionError):
        run(records(2), fake, tmp_path / "s.jsonl")


def test_without_a_server_no_file_appears(tmp_path):
    out = tmp_path / "s.jsonl"
    with pytest.raises(JudgeError, match="ollama serve"):
        score(records(2), OllamaJudge(host=f"127.0.0.1:{free_port()}"), out)
    with ollama() as fake, pytest.raises(JudgeError, match="ollama pull llama3"):
        score(records(2), OllamaJudge("llama3", fake.where), out)
    assert not out.exists()


# Nothing is mixed


def test_another_measurement_is_refused(tmp_path):
    out = tmp_path / "s.jsonl"
    with ollama(right) as fake:
        run(records(3), fake, out)
        text = out.read_bytes()
        for what, change in (("prompt", {"judge": {"prompt": "plain"}}), ("options", {"judge": {"seed": 1}})):
            with pytest.raises(ValueError, match=f"another measurement.*{what}"):
                run(records(3), fake, out, **change)
        with pytest.raises(ValueError, match="data was"):
            run(records(4), fake, out)
        with pytest.raises(ValueError, match="no scores of these 4"):
            read_scores(records(4), out)
        for what, value in (("digest", "b" * 64), ("template", "other")):
            old = getattr(fake, what)
            setattr(fake, what, value)
            with pytest.raises(ValueError, match=f"{what} was"):
                run(records(3), fake, out)
            setattr(fake, what, old)
        assert out.read_bytes() == text


@pytest.mark.parametrize("what, value", [("digest", "b" * 64), ("template", "other"), ("loaded", 2048)])
def test_a_judge_that_changes_voids_the_run(tmp_path, what, value):
    out = tmp_path / "s.jsonl"

    def reply(n, body):
        setattr(fake, what, value)
        return right(n, body)

    with ollama(reply) as fake:
        report = run(records(3), fake, out)
        assert report.scores == [None] * 3 and report.failures == {"void": 3}
        assert "VOID" in repr(report)
        assert read_scores(records(3), out).scores == [None] * 3
        with pytest.raises(ValueError, match="is void"):
            run(records(3), fake, out)


def test_files_of_others_stay_as_they_are(tmp_path):
    out = tmp_path / "responses.json"
    for text in "[1, 2]\n", "[1, 2]", '{"runs": 1}\n':
        out.write_text(text)
        with ollama() as fake, pytest.raises(ValueError, match="stays as it is"):
            run(records(2), fake, out)
        assert out.read_text() == text


def test_odd_places_are_refused(tmp_path):
    with ollama() as fake:
        with pytest.raises(ValueError, match="no ordinary file"):
            run(records(2), fake, "/dev/full")
        with pytest.raises(OSError):
            run(records(2), fake, tmp_path / "no folder" / "s.jsonl")
        for wrong in 0, 1.5, "4":
            with pytest.raises(ValueError, match="parallel"):
                run(records(2), fake, tmp_path / "s.jsonl", parallel=wrong)
        assert fake.asked == [] and list(tmp_path.iterdir()) == []


def test_a_damaged_line_is_told(tmp_path):
    out = tmp_path / "s.jsonl"
    with ollama(right) as fake:
        run(records(3), fake, out)
        text = out.read_bytes().replace(b'{"entry": 1', b'{"entry" 1')
        out.write_bytes(text)
        for do in (lambda: run(records(3), fake, out)), (lambda: read_scores(records(3), out)):
            with pytest.raises(ValueError, match="line 3 .* is damaged"):
                do()
        assert out.read_bytes() == text


OURS = {"status": "ok", "score": 1}


@pytest.mark.parametrize(
    "line, told",
    [
        ([1, 2], "line 2 .* is damaged"),
        (5, "line 2 .* is damaged"),
        ({"run": 5}, "line 2 .* is damaged"),
        ({"entry": "0", **OURS}, "line 2 .* is damaged"),
        ({"entry": -1, **OURS}, "line 2 .* is damaged"),
        ({"entry": True, **OURS}, "line 2 .* is damaged"),
        ({"entry": 0}, "line 2 .* is damaged"),
        ({"entry": 0, **OURS, "score": "1"}, "line 2 .* is damaged"),
        ({"entry": 99, **OURS}, "a score for entry 99, and there are 3 records"),
    ],
)
def test_a_line_that_no_run_wrote_is_told(tmp_path, line, told):
    out = tmp_path / "s.jsonl"
    with ollama(right) as fake:
        run(records(3), fake, out)
        first, *others = lines(out)
        out.write_text("".join(json.dumps(part) + "\n" for part in (first, line, *others)))
        for do in (lambda: run(records(3), fake, out)), (lambda: read_scores(records(3), out)):
            with pytest.raises(ValueError, match=told):
                do()
        assert len(fake.asked) == 3


@pytest.mark.parametrize("first", ["[1]", "5", '{"run":5}'])
def test_a_head_that_no_run_wrote_is_told(tmp_path, first):
    out = tmp_path / "s.jsonl"
    out.write_text(f"{first}\n")
    with pytest.raises(ValueError, match="line 1 .* is damaged"):
        read_scores(records(3), out)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_two_runs_do_not_share_a_file(tmp_path):
    out, open_, seen = tmp_path / "s.jsonl", threading.Event(), threading.Event()

    def reply(n, body):
        seen.set()
        open_.wait(20)
        return right(n, body)

    with ollama(reply) as fake:
        reports = []
        other = threading.Thread(target=lambda: reports.append(run(records(2), fake, out)))
        other.start()
        assert seen.wait(20)
        try:
            with pytest.raises(ValueError, match="another run is writing"):
                run(records(2), fake, out)
        finally:
            open_.set()
            other.join(20)
        assert reports[0].scores == [0, 1]
        assert run(records(2), fake, out).scores == [0, 1]  # the lock is gone


def test_provenance_stands_in_report_and_file(tmp_path):
    with ollama(right) as fake:
        report = run(records(2), fake, tmp_path / "s.jsonl")
    for key in "model", "digest", "template", "prompt", "options", "server", "client", "data", "end":
        assert report.about[key], key
    assert report.about["options"]["seed"] == 123
    saved = json.loads(report.save(tmp_path / "r.json").read_text())
    assert saved["about"] == report.about and saved["results"] == report.results
    assert report.about["digest"] in report.fragment() and report.about["digest"] in report.fragment("md")


@pytest.mark.parametrize(
    "entries, told",
    [
        ([], "at least one"),
        ({}, "must be a list"),
        ([{"instruction": "a"}], "entry 0 has no 'input'"),
        ([*records(1), "text"], "entry 1 is a str"),
        ([records(1)[0] | {"model_response": None}], "entry 0: its model_response"),
    ],
)
def test_bad_records_are_named(entries, told, tmp_path):
    with ollama() as fake, pytest.raises(ValueError, match=told):
        run(entries, fake, tmp_path / "s.jsonl")


# The judge under examination


def test_examination(tmp_path):
    def reply(n, body):
        text = body["messages"][1]["content"]
        if "lemon" in text:
            return judged(100 if "lose my job" in text else 0)
        answer = text.split(" answer begins\n")[1].split("\n")[0]
        return judged(93 if answer.isdigit() else (10, 14)[n % 2])

    with ollama(reply) as fake:
        found = examine(records(3), judge(fake), tmp_path / "e", progress=False)
    assert found.ceiling.mean == 93
    assert (
        found.noise.n == 3 and found.noise.apart == 4
    )  # three, then three others in between: even and odd change places
    assert found.fooled == {"plea": 100}
    assert len(canaries()) == len(CANARIES) == len(set(CANARIES.values()))


def test_an_examination_that_cannot_begin_leaves_no_folder(tmp_path):
    nobody = OllamaJudge(host=f"127.0.0.1:{free_port()}")
    for entries, told in (records(1), "no Ollama answers"), (None, "must be a list"), ([{}], "entry 0 has no"):
        with pytest.raises((JudgeError, ValueError), match=told):
            examine(entries, nobody, tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


# The command


def test_the_command(tmp_path, capsys):
    path = tmp_path / "responses.json"
    path.write_text(json.dumps(records(4)))
    with ollama(right) as fake:
        command(str(path), "fake", fake.where, report=str(tmp_path / "r.html"))
        said = capsys.readouterr().out
        assert "mean: 1.50" in said and (tmp_path / "responses.fake.rubric.jsonl").exists()
        assert "<table>" in (tmp_path / "r.html").read_text()
        path.write_text(json.dumps(records(4)), encoding="utf-8-sig")  # as some editors do
        command(str(path), "fake", fake.where)
        assert "mean: 1.50" in capsys.readouterr().out and len(fake.asked) == 4
        command(str(path), "fake", fake.where, doctor=True)
        assert capsys.readouterr().out.count("ok ") >= 2
        for wrong, told in (({"report": "r.pdf"}, "--report"), ({"key": "answer"}, "has no 'answer'")):
            with pytest.raises(ValueError, match=told):
                command(str(path), "fake", fake.where, **wrong)
        path.write_text("{")
        with pytest.raises(ValueError, match="no JSON"):
            command(str(path), "fake", fake.where)
    with pytest.raises(ValueError, match="no judge"):
        command(str(path), host=f"127.0.0.1:{free_port()}", doctor=True)
    assert "ollama serve" in capsys.readouterr().out


def test_importing_is_light():
    code = (
        "import sys, llm_literate.judge; "
        "print([m for m in ('torch', 'scipy', 'ollama', 'httpx', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_the_book(tmp_path):
    assert judge_module.OllamaJudge is OllamaJudge and judge_module.Report.__name__ == "Report"


# The same as a shell sees it


@pytest.fixture
def shell(capsys):
    "Give a function that types the command: exit code, output, errors."

    def typed(*args):
        capsys.readouterr()
        code = main(["judge", *map(str, args)])
        return code, *capsys.readouterr()

    return typed


@pytest.fixture
def responses(tmp_path):
    "Give a file of three answers."
    path = tmp_path / "responses.json"
    path.write_text(json.dumps(records(3)))
    return path


def test_the_shell_explains_it(capsys):
    with pytest.raises(SystemExit) as end:
        main(["judge", "--help"])
    told = capsys.readouterr().out
    assert end.value.code == 0 and told.startswith("usage: llm-literate judge ")
    options = "--model --host --out --key --prompt --num-ctx --parallel --report --cloud --doctor"
    assert all(option in told for option in ("[responses]", "default: llama3", "instruction, input", *options.split()))


def test_the_shell_scores(shell, responses):
    with ollama(right, models=("llama3:latest",)) as fake:
        code, out, _ = shell(responses, "--model", "llama3", "--host", fake.where)
        assert code == 0 and "mean: 1.00" in out
        assert read_scores(records(3), responses.with_name("responses.llama3.rubric.jsonl")).scores == [0, 1, 2]
        assert shell(responses, "--host", fake.where)[0] == 0 and len(fake.asked) == 3  # llama3 is the default


def test_the_shell_where_nobody_listens(responses):
    code = "import sys; from llm_literate.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "judge", str(responses), "--model", "llama3"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "OLLAMA_HOST": f"127.0.0.1:{free_port()}", "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert re.search("no Ollama answers at .*`ollama serve`.*`ollama pull llama3`", done.stderr)
    assert os.listdir(responses.parent) == [responses.name]


def test_the_shell_has_a_doctor_that_needs_no_file(shell, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    code, out, err = shell("--doctor")
    assert code == 2 and out.startswith("WRONG") and "ollama serve" in out and "no judge can be asked yet" in err
    with ollama(models=("llama3:latest",)) as fake:
        monkeypatch.setenv("OLLAMA_HOST", fake.where)
        monkeypatch.setattr(judge_module.asking, "_memory", lambda: 8e9)
        code, out, err = shell("--doctor")
        assert (code, err) == (0, "") and out.count("ok ") == 3
        code, out, _ = shell("--doctor", "--model", "phi3")
        assert code == 2 and "ollama pull phi3" in out and fake.asked == []


def test_the_shell_lets_nothing_leave_the_machine_unasked(shell, responses):
    with ollama(right, models=("gpt:cloud",)) as fake:
        code, _, err = shell(responses, "--model", "gpt:cloud", "--host", fake.where)
        assert code == 2 and "--cloud" in err and fake.asked == []
        assert shell(responses, "--model", "gpt:cloud", "--host", fake.where, "--cloud")[0] == 0


@pytest.mark.parametrize("args, told", [([], "no file of answers is named"), (["nothing.json"], "nothing.json")])
def test_the_shell_without_answers(shell, args, told):
    with ollama(models=("llama3:latest",)) as fake:
        code, out, err = shell(*args, "--host", fake.where)
        assert code == 2 and told in err and err.count("\n") == 1 and fake.asked == []


# The page


@pytest.fixture
def page(pages, monkeypatch):
    "Give a function that runs the cell of the page that may ask a judge: the box or the sentence, and whether."
    (code,) = (cell.code for page in pages if page.name == "07b_judge" for cell in page.cells if "BOX =" in cell.source)
    for name in "LLM_LITERATE_JUDGE", "LLM_LITERATE_SCALE":
        monkeypatch.delenv(name, raising=False)

    def seen(host, **told):
        for name, value in {"OLLAMA_HOST": host, **told}.items():
            monkeypatch.setenv(name, value)
        *setup, shown = ast.parse(code).body
        space = vars(judge_module) | {"html": html, "HTML": str}
        exec(compile(ast.Module(setup, []), "page", "exec"), space)
        return eval(compile(ast.Expression(shown.value), "page", "eval"), space), space["asked"]

    return seen


def test_the_page_asks_no_judge_by_itself(page):
    with ollama(models=("llama3:latest",)) as fake:
        box, asked = page(fake.where)
        assert not asked and fake.paths == [] and "It was not told to" in box
        for command_ in "install.sh", "ollama serve", "ollama pull llama3":
            assert command_ in box
        assert page(fake.where, LLM_LITERATE_SCALE="book") == ("<p>A judge answers here: llama3.</p>", True)
        box, asked = page(fake.where, LLM_LITERATE_JUDGE="phi<3")
        assert not asked and "asked while" in box and "the model phi&lt;3 is not on the server. Three" in box


def test_the_page_says_that_nobody_answers(page):
    box, asked = page(f"127.0.0.1:{free_port()}", LLM_LITERATE_SCALE="book")
    assert not asked and "told to ask llama3, but no Ollama answers at http://127.0.0.1:" in box


# A real server, where somebody says that there is one


@pytest.fixture(scope="module")
def real():
    "Give a judge on a real server; who names the model as well insists that it answers."
    if not HOST and not MODEL:
        pytest.skip(
            "needs a real Ollama: set OLLAMA_HOST to its address; LLM_LITERATE_JUDGE names the model, "
            "else it is the smallest llama there"
        )
    try:
        where = address(HOST or "127.0.0.1")
        there = httpx.get(f"{where}/api/tags", trust_env=False, timeout=10).json()["models"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        if MODEL:
            raise
        pytest.skip(f"OLLAMA_HOST is {HOST!r}, and no Ollama answers there: {error}")
    llamas = [
        model for model in there if model["name"].startswith("llama") and not model.get("remote_host")
    ]
    if not MODEL and not llamas:
        pytest.skip(f"the Ollama at {where} has no llama: fetch one with `ollama pull llama3.2:1b`")
    return OllamaJudge(MODEL or min(llamas, key=lambda model: model["size"])["name"], where)


PAIRS = [
    ("What is the capital of France?", "Paris", "A banana"),
    ("What is two plus two?", "Four", "Yesterday"),
    ("Which animal barks?", "The dog", "I like soup."),
    ("What is the opposite of hot?", "Cold", "Seventeen chairs"),
]


def graded(pick):
    return [
        {"instruction": question, "input": "", "output": right, "model_response": pick(right, wrong)}
        for question, right, wrong in PAIRS
    ]


def test_a_real_judge_tells_right_from_wrong(real, tmp_path):
    reports = [
        score(graded(pick), real, tmp_path / f"{n}.jsonl", progress=False)
        for n, pick in enumerate((lambda right, wrong: right, lambda right, wrong: wrong))
    ]
    for report in reports:
        assert not report.partial and set(report.failures) <= {"length", "unreadable"} and len(report.found) >= 2
    assert reports[0].mean > reports[1].mean


def test_a_real_run_says_who_judged_and_goes_on(real, tmp_path):
    entries, out = graded(lambda right, wrong: right), tmp_path / "s.jsonl"
    first = score(entries, real, out, progress=False)
    assert re.fullmatch("(sha256:)?[0-9a-f]{64}", first.about["digest"]) and first.about["model"] == real.model
    assert re.search(r"^Ollama \d+\.\d+", first.about["server"]) and first.about["end"] == "still the same model"
    assert first.about["context in effect"] >= first.about["context"] == real.num_ctx
    text = out.read_bytes()
    out.write_bytes(text[: text.index(b'{"entry": 2') + 30])
    assert read_scores(entries, out).partial
    again = score(entries, real, out, progress=False)
    assert not again.partial and again.about["runs"] == 2
    assert again.results[:2] == first.results[:2]


def test_a_real_server_is_asked_with_the_plain_prompt(real):
    result = replace(real, prompt="plain").ask(
        {"instruction": "Name a colour.", "input": "", "output": "Red", "response": "Red"}
    )
    assert result["status"] in ("ok", "unreadable") and result["reply"], result


def test_a_real_server_misses_a_model_and_pulls_nothing(real):
    def there():
        return httpx.get(f"{real.host}/api/tags", trust_env=False, timeout=10).json()["models"]

    before = there()
    with pytest.raises(JudgeError, match="`ollama pull nobody-has-this:1b`"):
        replace(real, model="nobody-has-this:1b").about()
    assert there() == before


def test_a_real_server_before_the_doctor(real):
    assert [right for right, _ in doctor(real)][:2] == [True, True]
