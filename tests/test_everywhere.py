"""Measuring and executing pages: high-water marks, limits, failures, foreign kernels; and the program around them."""

import ast
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import run_pages

from llm_literate import everywhere
from llm_literate.everywhere import (
    BUDGET_MEMORY,
    BUDGET_SECONDS,
    KERNEL,
    Guard,
    Peak,
    Run,
    end_family,
    family,
    last_record,
    memory_now,
    peak_memory,
    run_page,
    worked,
)

ROOT = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads what only Linux writes")
MB = 2**20
SLEEP = "import time; time.sleep(60)"


def notebook(folder, *cells, name="page"):
    "Write a notebook; a cell is its source, or its source and its tags."
    parts = [cell if isinstance(cell, tuple) else (cell,) for cell in cells]
    made = [{"cell_type": "code", "id": f"c{n}", "metadata": {"tags": tags}, "source": source,
             "outputs": [], "execution_count": None} for n, (source, *tags) in enumerate(parts)]
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


@pytest.fixture
def child():
    "Start processes that print a line when they are ready, and end them afterwards."
    started = []

    def start(code):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def taking(megabytes, then=SLEEP):
    return f"block = b'.' * ({megabytes} * 2**20); print(flush=True); {then}"


# Measuring


@linux
def test_mark_stays_when_memory_is_given_back(child):
    process = child("block = b'.' * (200 * 2**20); del block; print(flush=True); " + SLEEP)
    assert memory_now(process.pid) < 100 * MB < 200 * MB <= peak_memory(process.pid) < 300 * MB


@linux
def test_peak_of_this_process_knows_its_finished_children():
    code = ("import subprocess, sys; from llm_literate.everywhere import peak_memory; first = peak_memory()\n"
            "subprocess.run([sys.executable, '-c', 'b\".\" * (200 * 2**20)']); print(first, peak_memory())")
    first, then = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                          check=True, cwd=ROOT).stdout.split())
    assert 0 < first < 150 * MB and 200 * MB <= then < 350 * MB


@linux
def test_peak_does_not_count_the_program_that_started_this_one():
    code = "from llm_literate.everywhere import peak_memory; print(peak_memory())"
    large = (f"import subprocess, sys; block = b'.' * (400 * 2**20); "
             f"subprocess.run([sys.executable, '-c', {code!r}], check=True)")
    done = subprocess.run([sys.executable, "-c", large], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 0 < int(done.stdout) < 150 * MB


@linux
def test_family_and_its_memory(child):
    code = (f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {taking(100)!r}], "
            f"stdout=subprocess.PIPE); p.stdout.readline(); print(p.pid, flush=True); {SLEEP}")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        grandchild = int(process.stdout.readline())
        assert family(process.pid) == [process.pid, grandchild]
        assert family(os.getpid())[0] == os.getpid() and grandchild in family(os.getpid())
        assert 100 * MB <= memory_now(process.pid) < 200 * MB
        end_family(process.pid)
        assert process.wait() < 0
    deadline = time.monotonic() + 20
    while Path(f"/proc/{grandchild}/cmdline").exists() and Path(f"/proc/{grandchild}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the grandchild lives"
        time.sleep(0.05)


@linux
def test_work_counts_and_waiting_does_not(child):
    work = "import time\nwhile time.process_time() < 1.5: pass\n"
    children = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])\nprint(flush=True); "
    assert 1.4 <= worked(child(work + "print(flush=True); " + SLEEP).pid) < 15
    assert 1.4 <= worked(child(children + SLEEP).pid) < 15
    assert worked(child("print(flush=True); " + SLEEP).pid) < 1.4


@linux
def test_nobody_takes_nothing():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert peak_memory(gone.pid) == memory_now(gone.pid) == worked(gone.pid) == 0
    assert family(gone.pid) == [gone.pid]
    end_family(gone.pid)  # and ending it is no error


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say")
def test_peak_is_read_off_by_the_build():
    start = time.process_time()
    sum(range(10**6))
    found = re.fullmatch(r'<span data-page-memory="(\d+)" data-page-seconds="([\d.]+)"></span>', Peak()._repr_html_())
    assert int(found[1]) == pytest.approx(peak_memory(), rel=0.05) and int(found[1]) > 5 * MB
    assert float(found[2]) >= start - 0.1
    assert Peak(5, 2.04)._repr_html_() == '<span data-page-memory="5" data-page-seconds="2.0"></span>'
    assert BUDGET_SECONDS == 360 and BUDGET_MEMORY == 1.5e9


# Watching


@linux
def test_guard_ends_whoever_takes_too_much(child):
    process = child(taking(150))
    guard = Guard(process.pid, memory=100 * MB)
    guard.start()
    assert process.wait(30) < 0
    guard.stop()
    assert guard.most >= 150 * MB
    assert guard.reason == f"took {guard.most / 1e9:.2f} GB, at most 0.10"


@linux
def test_guard_ends_whoever_takes_too_long(child):
    process = child(taking(1))
    guard = Guard(process.pid, seconds=0.2)
    guard.start()
    assert process.wait(30) < 0
    guard.stop()
    assert guard.reason == "took longer than 0 s"


@linux
def test_guard_leaves_the_modest_alone(child):
    process = child(taking(10))
    guard = Guard(process.pid, memory=500 * MB, seconds=60)
    guard.start()
    guard.stop()
    assert guard.most >= 10 * MB and guard.reason == "" and process.poll() is None
    seen = guard.most, guard.worked
    end_family(process.pid)
    process.wait()
    guard.stop()  # once more: what it saw stays
    assert (guard.most, guard.worked) == seen


# Executing


@pytest.fixture(scope="module")
def jupyter():
    "Skip what executes pages where Jupyter is not installed."
    pytest.importorskip("nbclient", reason="executing pages needs nbclient: run `make setup`")
    pytest.importorskip("ipykernel", reason="executing pages needs ipykernel: run `make setup`")


@linux
def test_run_of_a_page_that_does_well(jupyter, tmp_path):
    path = notebook(tmp_path, "import os; block = b'.' * (150 * 2**20); del block", "#| slow\n1 / 0",
                    ("1 / 0", "raises-exception"), "assert os.path.exists('fine.ipynb')", name="fine")
    run = run_page(path)
    assert run.page == "fine" and run.error == ""
    assert 150 * MB <= run.memory < 350 * MB and 0 < run.seconds < 120 and 0.1 < run.processor < 60
    assert json.loads(path.read_text())["cells"][0]["outputs"] == [], "the notebook's file stays as it was"


def test_run_tells_the_cell_that_failed(jupyter, tmp_path):
    run = run_page(notebook(tmp_path, "x = 1", "raise ValueError('no\\nway')", "raise KeyError"))
    assert run.error == "cell 2: ValueError: no way"


@linux
def test_run_ends_the_greedy_and_the_slow(jupyter, tmp_path):
    greedy = run_page(notebook(tmp_path, "1", taking(300)), memory=200 * MB)
    assert greedy.error.startswith("cell 2: took 0.") and greedy.error.endswith("GB, at most 0.21")
    slow = run_page(notebook(tmp_path, SLEEP), seconds=0.5)
    assert slow.error == "cell 1: took longer than 0 s" and slow.seconds < 50


@linux
def test_memory_of_what_a_page_starts_counts(jupyter, tmp_path):
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {taking(300)!r}], stdout=subprocess.DEVNULL)"
    run = run_page(notebook(tmp_path, code), memory=250 * MB)
    assert re.fullmatch(r"cell 1: took 0\.\d\d GB, at most 0\.26", run.error)


def test_run_survives_a_kernel_that_dies_or_never_lives(jupyter, tmp_path):
    assert run_page(notebook(tmp_path, "1", "import os; os._exit(3)")).error.startswith("cell 2: DeadKernelError")
    never = run_page(notebook(tmp_path, "1"), command=[sys.executable, "-c", "raise SystemExit(1)"])
    assert never.error.startswith("kernel: ") and never.memory == 0


def test_kernel_gets_its_command_folder_and_environment(jupyter, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "WHO": "me"} | (
        {"SYSTEMROOT": os.environ["SYSTEMROOT"]} if sys.platform == "win32" else {})
    cell = ("import os, pathlib, sys; assert os.environ['WHO'] == 'me' and 'LEAK' not in os.environ\n"
            "assert pathlib.Path.cwd().name == 'elsewhere' and 'google.colab' in sys.modules")
    command = [sys.executable, *KERNEL, run_pages.COLAB_KERNEL]
    os.environ["LEAK"] = "1"
    try:
        run = run_page(notebook(tmp_path, cell), command, tmp_path / "elsewhere", env)
    finally:
        del os.environ["LEAK"]
    assert run.error == ""


# The record, and the program that writes it


def test_record_that_ships_is_whole():
    record = last_record()
    assert set(record) == set(run_pages.PLACES)
    for place, part in record.items():
        runs = [Run(**{key: run[key] for key in Run.__dataclass_fields__}) for run in part["runs"]]
        assert 0 < len({run.page for run in runs}) == len(runs)
        assert part["command"] == f"python tests/run_pages.py {place}"
        for run in part["runs"]:
            assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d\+00:00", run["date"])
            assert re.fullmatch(r"[0-9a-f]{10}", run["commit"])
        assert part["shared"] in (True, False)
        assert {"Python", "torch"} <= set(part["versions"]) and part["machine"]["cores"] >= 1
        assert [run.error for run in runs if run.error] == [], "mend the page, then record the run again"
        if place == "binder":
            assert max(run.memory for run in runs) < run_pages.BINDER_MEMORY


def test_all_notebooks_are_in_the_run():
    assert set(run_pages.all_pages()) == {path.stem for path in (ROOT / "nbs").glob("*.ipynb")}


def test_pages_import_only_what_the_places_have():
    "A page may import what the package needs, what every notebook server has, and what .binder/postBuild adds."
    from importlib.metadata import packages_distributions

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[^\w-]", entry)[0].lower().replace("_", "-") for entry in project["dependencies"]}
    added = (ROOT / ".binder" / "postBuild").read_text(encoding="utf-8").split("--editable .")[1].split()
    assert added and set(added) <= set(run_pages.ON_COLAB), "tests/run_pages.py: Colab has no " + " ".join(added)
    servers = {"ipython", "nbformat", "nbclient", "jupyter-client"}
    owners, told = packages_distributions(), []
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], start=1):
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or "%pip" in source or "#| eval: false" in source:
                continue
            for node in ast.parse("\n".join(line for line in source.splitlines() if line[:1] not in "%!")).body:
                names = [a.name for a in getattr(node, "names", [])] if isinstance(node, ast.Import) else (
                    [node.module] if isinstance(node, ast.ImportFrom) else [])
                for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"llm_literate"}:
                    whose = {owner.lower().replace("_", "-") for owner in owners.get(name, [name])}
                    if not whose & (needed | servers | set(added)):
                        told.append(f"{path.name}: cell {number} imports {name}, which Binder lacks; "
                                    "add it to .binder/postBuild, or import it where it is missed without harm")
    assert not told, "\n".join(told)


class Stub:
    "Stand for a place, and run nothing."

    python = Path(sys.executable)

    def __init__(self, folder, book):
        assert folder.is_dir() and (book / ".binder" / "postBuild").is_file()

    def run(self, page):
        return Run(page, 1.5, 1.0, 10**8, "cell 3: ValueError: no" if page == "04b_model" else "")


def test_program_writes_what_it_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run_pages.PLACES, "binder", Stub)
    monkeypatch.setitem(run_pages.PLACES, "colab", Stub)
    monkeypatch.setattr(run_pages, "machine", lambda: {"cores": 1})
    monkeypatch.setattr(run_pages, "versions", lambda python: {"Python": "3"})
    out = tmp_path / "deep" / "pages.json"
    assert run_pages.main(["binder", "03a_self_attention", "--out", str(out)]) == 0
    assert run_pages.main(["colab", "04b_model", "02a_tokenizer", "--out", str(out)]) == 1
    assert not list(out.parent.glob("*.new"))
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [run["page"] for run in record["binder"]["runs"]] == ["03a_self_attention"]
    assert [run["error"] for run in record["colab"]["runs"]] == ["", "cell 3: ValueError: no"], "in the book's order"
    assert "1 pages ran, 1 failed: 04b_model" in capsys.readouterr().out
    assert run_pages.main(["binder", "02a_tokenizer", "--out", str(out), "--shared"]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [run["page"] for run in record["binder"]["runs"]] == ["02a_tokenizer", "03a_self_attention"], "one is added"
    assert record["binder"]["shared"] and not record["colab"]["shared"]
    assert run_pages.main(["binder", "--out", str(out)]) == 1, "no page named means all"
    record = json.loads(out.read_text(encoding="utf-8"))
    assert len(record["binder"]["runs"]) > 30 and not record["binder"]["shared"], "all are new"
    assert len(record["colab"]["runs"]) == 2


@pytest.mark.parametrize("args", [["nowhere"], ["binder", "no_such_page"], []])
def test_program_refuses_what_is_not_there(args, capsys):
    with pytest.raises(SystemExit) as stop:
        run_pages.main(args)
    assert stop.value.code == 2
    assert args[-1:] == [] or args[-1] in capsys.readouterr().err


def test_place_sees_nothing_of_the_machine_around_it(tmp_path, monkeypatch):
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "LLM_LITERATE_DATA", "LLM_LITERATE_SCALE", "JUPYTER_PATH"):
        monkeypatch.setenv(name, "leak")
    monkeypatch.setenv("PIP_FIND_LINKS", "wheels")
    env = run_pages.surroundings(tmp_path, tmp_path / "bin" / "python")
    assert "leak" not in env.values() and env["PIP_FIND_LINKS"] == "wheels"
    assert env["HOME"] == str(tmp_path) and env["PATH"].startswith(str(tmp_path / "bin"))


def test_failed_command_stops_with_its_last_lines():
    with pytest.raises(SystemExit, match=r"(?s)failed with exit code 3:\nwhy"):
        run_pages.call(sys.executable, "-c", "import sys; print('why'); sys.exit(3)")


def test_module_is_light_where_it_only_measures():
    code = "import sys, llm_literate.everywhere; print([m for m in ('torch', 'nbclient', 'zmq') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    assert everywhere.__all__
