"""The editor's loop, on a copy of the project that is broken on purpose: each fault is one line that says what to do.

`make` is called as an editor calls it. Nothing here builds the book or needs the network.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FORM = "tests/test_house.py"
SLOW = "not importing_draws and not schema"  # what no fault below is about
IDENTITY = ["-c", "user.name=An Editor", "-c", "user.email=editor@example.com"]


def code(source, **more):
    "Give a code cell."
    return {"cell_type": "code", "id": f"c{abs(hash(source)) % 10**7}", "metadata": {}, "source": source,
            "outputs": [], "execution_count": None} | more


def page(title, *cells):
    "Give a notebook that begins as the house wants it, as text."
    first = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {title}\n\n> One line."}
    start = ['#| hide\nimport sys\nif "google.colab" in sys.modules:\n    %pip install -q llm-literate',
             "#| hide\nfrom llm_literate import figures\nfigures.setup()"]
    module = [cell for cell in cells if "default_exp" in cell["source"]]
    rest = [cell for cell in cells if cell not in module]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": [first, *module, *map(code, start), *rest], "metadata": kernel,
                       "nbformat": 4, "nbformat_minor": 5})


class Copy:
    "Hold a copy of the project, with its own library and the environment of these tests."

    def __init__(self, folder, texts):
        self.folder = folder
        for name, text in texts.items():
            self.write(name, text)
        (folder / ".venv").symlink_to(sys.prefix)

    def write(self, name, text):
        "Write a file of the copy."
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")

    def change(self, name, change):
        "Change the cells of a notebook by a function."
        notebook = json.loads((self.folder / name).read_text(encoding="utf-8"))
        change(notebook["cells"])
        self.write(name, json.dumps(notebook))

    def run(self, *command):
        "Run a command in the copy, and give its exit status and all that it printed."
        ours = ("GIT_", "PYTEST_", "MAKE")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        done = subprocess.run([*command], cwd=self.folder, env=environment | {"PYTHONPATH": str(self.folder)},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300)
        return done.returncode, done.stdout

    def house(self):
        "Run what `make test` runs first."
        return self.run(sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider", "-k", SLOW, FORM)


def needs(*names):
    "Skip where a command is missing, or where the environment is not made as `make setup` makes it."
    for name in names:
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
    if not (Path(sys.prefix) / "bin" / "nbdev-export").exists():
        pytest.skip("nbdev is not installed beside this Python: run `make setup`")


@pytest.fixture
def copy(tmp_path, texts):
    "Give a copy of the project."
    return Copy(tmp_path, texts)


@pytest.fixture(scope="module")
def told(tmp_path_factory, texts):
    "Break a copy in every way at once, and give what the first tests say."
    broken = Copy(tmp_path_factory.mktemp("broken"), texts)
    broken.write("llm_literate/loss.py", texts["llm_literate/loss.py"] + "\n# typed here by hand\n")
    broken.change("nbs/04b_model.ipynb", lambda cells: cells[1].update(
        outputs=[{"output_type": "stream", "name": "stdout", "text": ["seen"]}], execution_count=1))
    broken.write("nbs/98_draft.ipynb", page("A draft", code("#| default_exp draft"), code(
        "#| export\ndef halve(x):\n    return x / 2")))
    broken.write("llm_literate/draft.py", '__all__ = ["halve"]\n\ndef halve(x):\n    return x / 2\n')
    broken.write("nbs/99_other.ipynb", page("Another", code("#| default_exp loss")))
    broken.write("nbs/_static/gpt.mjs", texts["nbs/_static/gpt.mjs"] + "// typed here by hand\n")
    status, out = broken.house()
    assert status == 1, out
    return out


@pytest.mark.parametrize("line", [
    "llm_literate/loss.py: is not what the notebooks say; make export",
    "nbs/04b_model.ipynb: cell 2 holds outputs or an execution count; make export",
    "nbs/98_draft.ipynb: not in the contents; add `- file: nbs/98_draft` to _toc.yml, then make book",
    "llm_literate/draft.py: has no page; write nbs/api/draft.md like its neighbours and add it to _toc.yml, "
    "then make book",
    "llm_literate/draft.py: halve: no docstring; mend it on its page, then make export (nbs/98_draft.ipynb)",
    "llm_literate/draft.py: halve: no docment for 'x'; mend it on its page, then make export (nbs/98_draft.ipynb)",
    "nbs/99_other.ipynb: exports to 'loss', as nbs/05a0_loss.ipynb does; give it a module of its own, then make export",
    "nbs/_static/gpt.mjs: is not what its page says; make export",
])
def test_each_fault_is_one_line_with_its_file_and_its_cure(told, line):
    assert told.splitlines().count(line) == 1, told


def test_a_cell_that_is_no_python_and_a_file_that_is_no_notebook(copy):
    copy.write("nbs/98_draft.ipynb", page("A draft", code("x = 1\ndef halve(x:\n    return x")))
    copy.write("nbs/99_other.ipynb", '{"cells": [\n<<<<<<< HEAD\n')
    status, out = copy.run(sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider",
                           "-k", "json or python", FORM)
    assert status == 1
    assert "nbs/98_draft.ipynb: cell 4, line 2: '(' was never closed in “def halve(x:”; mend it, " \
           "then make page PAGE=98_draft" in out.splitlines()
    assert [line for line in out.splitlines() if line.startswith("nbs/99_other.ipynb: is no notebook (")
            and line.endswith("or after a merge: .venv/bin/nbdev-fix nbs/99_other.ipynb")], out


def test_form_comes_before_everything_slow(copy):
    needs("make")
    status, out = copy.run("make", "-n", "test")
    places = [out.index(step) for step in ("tests/test_house.py", "ruff check", "== building the book", "== tests")]
    assert status == 0 and places == sorted(places), out


@pytest.mark.parametrize(("wanted", "near"), [
    ("03_attention", "make page PAGE=03a_self_attention"),
    ("glosary", "make page PAGE=glossary"),
    ("", "make page PAGE=02a_tokenizer"),
])
def test_a_wrong_name_is_answered_with_the_near_ones(copy, wanted, near):
    needs("make")
    status, out = copy.run("make", "-s", "page", f"PAGE={wanted}")
    assert status != 0 and f"  {near}" in out.splitlines(), out


def test_a_failing_cell_is_shown_and_mended(copy):
    needs("make")
    copy.write("nbs/98_draft.ipynb", page("A draft", code("half = 1 / 2\nhalfs + 1")))
    status, out = copy.run("make", "-s", "page", "PAGE=98_draft")
    assert status != 0
    assert "halfs + 1" in out and "name 'halfs' is not defined" in out
    assert "nbs/98_draft.ipynb: the cell above fails. Next: mend it, then make page PAGE=98_draft" in out.splitlines()
    copy.write("nbs/98_draft.ipynb", page("A draft", code("half = 1 / 2\nhalf + 1")))
    status, out = copy.run("make", "-s", "page", "PAGE=98_draft")
    built = copy.folder / "_build/page/_build/html/nbs/98_draft.html"
    assert status == 0 and "1.5" in built.read_text(encoding="utf-8")
    assert f"The page lies in {built.relative_to(copy.folder)}. Next: look at it, then make test" in out.splitlines()


def test_the_hook_exports_before_a_commit(copy):
    needs("make", "git")
    copy.run("git", "init", "-q")
    copy.run("git", "add", "-A")
    copy.run("git", *IDENTITY, "commit", "-qm", "first")
    assert copy.run("make", "-s", "hook")[0] == 0
    old, new = "Ask whether the processor multiplies", "Find out whether the processor multiplies"
    for name in ("nbs/Zd_speed.ipynb", "llm_literate/speed.py"):
        assert old in (copy.folder / name).read_text(encoding="utf-8")
    copy.write("nbs/Zd_speed.ipynb", (copy.folder / "nbs/Zd_speed.ipynb").read_text(encoding="utf-8").replace(old, new))
    status, out = copy.run("git", *IDENTITY, "commit", "-qam", "second")
    assert status != 0
    line = next(line for line in out.splitlines() if line.startswith("Not committed"))
    assert line.endswith("Next: git add llm_literate/speed.py && git commit"), out
    copy.run("git", "add", "llm_literate/speed.py")
    status, out = copy.run("git", *IDENTITY, "commit", "-qm", "second")
    assert status == 0, out
    assert new in copy.run("git", "show", "HEAD:llm_literate/speed.py")[1]
