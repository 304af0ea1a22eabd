"""The Sphinx extension: its text processing, and a small book built with it from end to end."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_cache import get_cache
from sphinx.util.parallel import make_chunks

from llm_literate import book, notebooks
from llm_literate.ledger import Record

ROOT = Path(__file__).parent.parent


def cell(source, kind="code"):
    base = {"cell_type": kind, "id": f"c{abs(hash(source)) % 10**6}", "metadata": {}, "source": source}
    return base | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def notebook(*cells):
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    return json.dumps({"cells": list(cells), "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


@pytest.mark.parametrize(
    ("source", "found", "rest"),
    [
        ("x = 1", {}, "x = 1"),
        ("#| export\nx = 1", {"export": ""}, "x = 1"),
        ("#|echo: false\n\n#| label: fig-a\nx", {"echo": "false", "label": "fig-a"}, "x"),
        ("# a comment\n#| export", {}, "# a comment\n#| export"),
        ("#| fig-alt: An arrow: up", {"fig-alt": "An arrow: up"}, ""),
    ],
)
def test_directives_are_read_off_the_top(source, found, rest):
    assert notebooks.directives(source) == (found, rest)


@pytest.mark.parametrize(
    ("found", "tags"),
    [
        ({"hide": ""}, ["remove-cell"]),
        ({"default_exp": "data"}, ["remove-cell"]),
        ({"echo": "false", "output": "false"}, ["remove-input", "remove-output"]),
        ({"echo": "true", "eval": "true"}, []),
        ({"net": ""}, ["skip-execution"]),
    ],
)
def test_directives_become_tags(found, tags):
    assert notebooks.cell_tags(found) == tags


@pytest.mark.parametrize(
    ("line", "modules"),
    [
        ("from llm_literate.ledger import check", {"ledger"}),
        ("from llm_literate import ledger, figures", {"ledger", "figures"}),
        ("from llm_literate import ledger as book", {"ledger"}),
        ("import llm_literate.figures as f", {"figures"}),
        ("from .ledger import check", {"ledger"}),
        ("    from llm_literate.book import mathml", {"book"}),
        ("import ledger", set()),
    ],
)
def test_imports_of_the_package_are_found(line, modules):
    assert notebooks.imported(line, ROOT / "llm_literate") == modules


def two_records(first, second):
    return f'[[record]]\nid = "1-x"\nvalue = {first}\n[[record]]\nid = "2-y"\nvalue = {second}\n'


@pytest.fixture
def package(tmp_path):
    """A package of three modules, of which `b` imports `a`, and an asset that `a` reads."""
    folder = tmp_path / "llm_literate"
    (folder / "assets").mkdir(parents=True)
    (folder / "a.py").write_text("read('words.json')")
    (folder / "b.py").write_text("from .a import x")
    (folder / "c.py").write_text("")
    (folder / "assets" / "words.json").write_text("{}")
    (folder / "assets" / "ledger.toml").write_text(two_records(1, 2))
    return folder


@pytest.mark.parametrize(
    ("path", "text", "changes"),
    [
        ("a.py", "read('words.json'); x = 2", True),
        ("b.py", "from .a import y", True),
        ("c.py", "x = 1", False),
        ("assets/words.json", "[]", True),
        ("assets/ledger.toml", two_records(3, 2), True),
        ("assets/ledger.toml", two_records(1, 5), False),
    ],
)
def test_a_page_digest_follows_what_the_page_stands_on(package, path, text, changes):
    source = 'from llm_literate.b import x\ncheck("1-x", 1)'
    before = notebooks.page_digest(source, package)
    (package / path).write_text(text)
    assert (notebooks.page_digest(source, package) != before) == changes


def test_surroundings_follow_pins_scale_and_data(tmp_path):
    seen = {notebooks.surroundings(tmp_path, {}), notebooks.surroundings(tmp_path, {"LLM_LITERATE_SCALE": "book"})}
    (tmp_path / "constraints.txt").write_text("torch==2")
    seen.add(notebooks.surroundings(tmp_path, {}))
    seen.add(notebooks.surroundings(tmp_path, {"LLM_LITERATE_DATA": str(tmp_path)}))
    seen.add(notebooks.surroundings(tmp_path, {"LLM_LITERATE_JUDGE": "llama3"}))
    assert len(seen) == 5
    assert notebooks.surroundings(tmp_path, {"LLM_LITERATE_TIMED": "1"}) in seen


def test_prepare_keeps_typesetting_out_of_the_executed_page():
    first = notebook(cell("#| export\n#| fig-cap: one\ndef f(): ..."), cell("1"))
    second = notebook(cell("#| export\n#| fig-cap: two\ndef f(): ..."), cell("1"))
    (page, aside), (other, _) = notebooks.prepare(first, "d"), notebooks.prepare(second, "d")
    assert [c["source"] for c in json.loads(page)["cells"]] == [c["source"] for c in json.loads(other)["cells"]]
    assert aside[0]["names"] == ["f"] and aside[0]["fig-cap"] == "one"
    assert json.loads(page)["cells"][0]["metadata"]["digest"] == "d"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(): ...\nclass A: ...\ndef _g(): ...\nB = 1", ["f", "A"]),
        ("@patch\ndef save(self: A, path): ...", ["A.save"]),
        ("@patch(cls_method=True)\ndef load(cls: A): ...", ["A.load"]),
        ("@patch\ndef _hidden(self: A): ...\n@cache\ndef f(x): ...", ["f"]),
    ],
)
def test_what_a_cell_defines(source, names):
    assert notebooks.defined(source) == names


@given(st.lists(st.integers(0, 99), min_size=1, max_size=60), st.integers(1, 4))
def test_dealing_keeps_every_page_and_reads_the_long_ones_first(seconds, at_once):
    work = {f"p{i}": second for i, second in enumerate(seconds)}
    room = [len(piece) for piece in make_chunks(list(work), at_once)]
    order = book.deal(list(work), work, room, at_once)
    assert sorted(order) == sorted(work)
    early = sum(room[:at_once])
    assert min(work[name] for name in order[:early]) >= max((work[name] for name in order[early:]), default=0)


def test_two_long_pages_are_not_read_one_after_the_other():
    work = dict.fromkeys("abcdefgh", 1) | {"c": 50, "d": 60}
    order = book.deal(list("abcdefgh"), work, [4, 4], at_once=2)
    assert order.index("d") < 4 <= order.index("c")


def test_a_role_is_mended_in_the_bibliography_and_not_in_a_listing():
    listing = "<pre>role=&quot;x&quot; 'role=\"doc-biblioentry\"'</pre>"
    entry = '<div class="citation" id="id1" role="{}"><span>Brown</span></div>'
    context = {"script_files": [], "body": listing + entry.format("doc-biblioentry")}
    book._mend_page(None, "nbs/B_references", "page.html", context, None)
    assert context["body"] == listing + entry.format("listitem")


@pytest.mark.parametrize("before", ["no folder", "an empty file", "a full cache"])
def test_the_cache_stands_before_two_processes_read_it(tmp_path, before):
    folder = tmp_path / "cache"
    if before == "an empty file":  # what a build that was killed at the wrong moment leaves
        folder.mkdir()
        (folder / "global.db").touch()
    elif before == "a full cache":
        get_cache(folder).change_cache_limit(7)
    env = SimpleNamespace(mystnb_config=SimpleNamespace(execution_cache_path=str(folder)), doc2path=lambda name: name)
    book._queue(SimpleNamespace(parallel=2), env, ["a.md"])
    tables = {row[0] for row in sqlite3.connect(folder / "global.db").execute("SELECT name FROM sqlite_master")}
    assert {"settings", "nbproject", "nbcache"} <= tables
    assert get_cache(folder).get_cache_limit() == (7 if before == "a full cache" else 1000)


@pytest.mark.parametrize(
    ("deaths", "word", "calls"),
    [(0, "", 1), (2, "Kernel died before replying to kernel_info", 3), (3, "Kernel died before replying", 3),
     (1, "Kernel died", 1)],
)
def test_a_kernel_that_dies_before_it_begins_is_started_again(deaths, word, calls):
    called = []

    def execute(nb, cwd):
        called.append((nb, cwd))
        if len(called) <= deaths:
            raise RuntimeError(word)
        return "done"

    if deaths in (1, 3):
        with pytest.raises(RuntimeError, match=word):
            book.started_again(execute)("page", cwd=".")
    else:
        assert book.started_again(execute)("page", cwd=".") == "done"
    assert called == [("page", ".")] * calls


@pytest.mark.parametrize(
    ("text", "rst"),
    [
        ("`x` is a*b", "``x`` is a\\*b"),
        ("<|endoftext|>", "<\\|endoftext\\|>"),
        ("W_query_", "W\\_query\\_"),
        ("a ` b", "a \\` b"),
    ],
)
def test_plain_text_becomes_rst(text, rst):
    assert book.as_rst(text) == rst


def test_formulas_are_mathml():
    assert book.mathml("x^2", "inline").startswith("<math") and "<msup>" in book.mathml("x^2", "block")


def test_ledger_rows_tell_what_was_seen():
    kinds = {"a": "reproduced", "b": "reproduced", "c": "quoted", "d": "reproduced", "e": "erratum", "f": "quoted"}
    needs = {"b": ["f.txt", "X=y"], "e": ["f.txt"]}
    records = {id: Record(id, "1", "x", 1, status, needs=needs.get(id, [])) for id, status in kinds.items()}
    marks = {"c": ("page", ""), "d": ("page", "1"), "e": ("page", "2")}
    states = [state for _, _, _, state in book.ledger_rows(records, marks, {"f.txt"})]
    assert states == ["never checked", "not checked in this build: needs f.txt and X=y", "quoted from the book",
                      "computed in this build", "corrected in this build", "never quoted"]
    marks.pop("e")
    assert book.ledger_rows(records, marks, {"f.txt"})[4][3] == "never checked"


@pytest.mark.parametrize(
    ("memory", "seconds", "told"),
    [
        (1.5e9, 360.0, []),
        (1.4e9, 361.0, ["takes 361 s of processor time, at most 360"]),
        (1.71e9, 0.0, ["needs 1.7 GB of memory, at most 1.5"]),
        (2e9, 500.0, ["takes 500 s of processor time, at most 360", "needs 2.0 GB of memory, at most 1.5"]),
    ],
)
def test_a_page_over_its_budget_is_told_in_one_line(memory, seconds, told):
    mend = "make it smaller, then make page PAGE=06b_spam_filter"
    assert book.over_budget("nbs/06b_spam_filter", memory, seconds) == [
        f"nbs/06b_spam_filter.ipynb: {what}; {mend}" for what in told]


class Project:
    """A small book with two pages, built by the real configuration."""

    def __init__(self, root):
        self.root = root
        (root / "nbs").mkdir()
        shutil.copytree(ROOT / "llm_literate", root / "llm_literate", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "nbs" / "_static", root / "nbs" / "_static")
        for name in ("_config.yml", "references.bib", "constraints.txt"):
            shutil.copy(ROOT / name, root)
        (root / "_toc.yml").write_text("format: jb-book\nroot: nbs/index\nchapters:\n- file: nbs/one\n- file: nbs/two\n"
                                       "- file: nbs/Za_ledger\n- file: nbs/api\n")
        (root / "nbs" / "api.md").write_text(
            "# one\n\n```{eval-rst}\n.. automodule:: llm_literate.one\n   :members:\n```\n")
        (root / "nbs" / "index.md").write_text("# A small book\n")
        (root / "llm_literate" / "assets" / "ledger.toml").write_text(
            '[[record]]\nid = "1-x"\nsection = "1"\nwhat = "an answer"\nvalue = 42\nstatus = "reproduced"\n')
        (root / "llm_literate" / "one.py").write_text('def answer():\n    "Return it."\n    return 42\n')
        (root / "nbs" / "Za_ledger.ipynb").write_text(notebook(cell("# Ledger\n\n:::{ledger-table}\n:::", "markdown")))
        self.pages()

    def pages(self, sentence="A sentence.", code="answer()", check="check('1-x', answer())"):
        (self.root / "nbs" / "one.ipynb").write_text(notebook(
            cell(f"# One\n\n{sentence} The formula $x^2$ stands here.", "markdown"),
            cell("#| hide\nfrom llm_literate.one import answer\nfrom llm_literate.ledger import check"),
            cell(code), cell(check.replace("'", '"'))))
        (self.root / "nbs" / "two.ipynb").write_text(notebook(
            cell("# Two\n\nAnother page.", "markdown"), cell("#| code-fold: true\n1 + 1")))

    def build(self):
        """Build, and return the exit status, what was printed, and the pages that were executed."""
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", "."]
        done = subprocess.run(
            [*command, "-W", "--keep-going"],
            cwd=self.root, env=environment, capture_output=True, text=True, timeout=300)
        out = done.stdout + done.stderr
        executed = sorted(page for page in ("one", "two") if f"nbs/{page}: executed in" in out)
        return done.returncode, out, executed

    def html(self, page):
        return (self.root / "_build" / "html" / "nbs" / f"{page}.html").read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("book"))


def test_a_small_book_is_rebuilt_only_where_it_changed(project):
    status, out, executed = project.build()
    assert status == 0, out
    assert executed == ["one", "two"]
    assert "<math" in project.html("one") and "42 (as in the book, 1)" in project.html("one")
    assert "computed in this build" in project.html("Za_ledger")
    tree = project.root / "_build" / ".doctrees" / "nbs" / "api.doctree"
    assert tree.stat().st_size < 50_000, "a page of the library keeps more than itself"
    assert "thebe" not in project.html("one").split("</head>")[0].replace("sphinx-thebe.css", "")

    assert project.build()[2] == [], "nothing changed, nothing is executed"

    project.pages(sentence="Another sentence.")
    status, out, executed = project.build()
    assert (status, executed) == (0, []), out
    assert "Another sentence." in project.html("one")

    project.pages(sentence="Another sentence.", code="answer() + 1")
    assert project.build()[2] == ["one"]

    (project.root / "llm_literate" / "one.py").write_text('def answer():\n    "Return it."\n    return 40 + 2\n')
    assert project.build()[2] == ["one"], "a changed library function executes the page that imports it"


def test_a_drifted_number_stops_the_build_with_its_traceback(project):
    (project.root / "llm_literate" / "one.py").write_text('def answer():\n    "Return it."\n    return 41\n')
    status, out, _ = project.build()
    assert status != 0
    report = (project.root / "_build" / "html" / "reports" / "nbs" / "one.err.log").read_text()
    assert "computed 41, the record says 42" in report


def test_a_record_that_no_page_checks_stops_the_build(project):
    (project.root / "llm_literate" / "one.py").write_text('def answer():\n    "Return it."\n    return 42\n')
    project.pages(check="1")
    status, out, _ = project.build()
    assert status != 0 and "was never checked on any page" in out


def test_a_page_over_its_budget_stops_the_build(project):
    code = project.root / "llm_literate" / "everywhere.py"
    text = code.read_text()
    tight = re.sub(r"^BUDGET_MEMORY = .*$", "BUDGET_MEMORY = 10_000_000", text, flags=re.M)
    assert tight != text
    code.write_text(tight)
    project.pages(sentence="It holds more than ten million bytes.")
    status, out, _ = project.build()
    lines = re.findall(r"nbs/one\.ipynb: needs [\d.]+ GB of memory, at most 0\.0; "
                       r"make it smaller, then make page PAGE=one", out)
    assert status != 0 and len(set(lines)) == 1, out
    code.write_text(text)
    project.pages()
    status, out, executed = project.build()
    assert (status, executed) == (0, []), out
