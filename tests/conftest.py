"""What all tests share: where things lie, the pages as plain data, one-line failures, and the marker `data`."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars between the dots
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores already

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background deaf to Ctrl-C, and the programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

try:
    from hypothesis import settings
except ModuleNotFoundError:
    pass
else:
    # A busy machine is no failure, and a red run means a change, not bad luck; the nightly workflow looks further.
    settings.register_profile("house", deadline=None, derandomize=True)
    settings.register_profile("explore", deadline=None, print_blob=True)
    settings.load_profile("house")


@dataclass(frozen=True)
class Cell:
    "Hold one cell of a notebook, its directives apart from its text."

    number: int  # position in the notebook, from 1
    kind: str  # "code" or "markdown"
    source: str  # everything that stands in the cell
    directives: tuple[str, ...]  # the `#|` lines without their mark, stripped
    outputs: int  # stored outputs
    executed: bool  # whether an execution count is stored
    tags: tuple[str, ...]  # Jupyter Book's tags

    @property
    def code(self) -> str:  # the cell without directive lines, trimmed
        "Give the cell's text below its directives."
        return "\n".join(line for line in self.source.splitlines() if not line.startswith("#|")).strip()

    @property
    def exported(self) -> bool:  # True if nbdev writes it into a module
        "Tell whether the cell is exported."
        return any(d.split()[0] in ("export", "exporti", "exports") for d in self.directives if d)

    @property
    def shown(self) -> bool:  # True if a reader of the site sees its text
        "Tell whether the cell's input stands on the page."
        gone = {"hide", "echo: false"} & set(self.directives) or {"remove-cell", "remove-input"} & set(self.tags)
        return not gone and not self.module

    @property
    def module(self) -> str:  # the module that the page exports to, or ""
        "Give the target of a default_exp directive."
        return next((d.split()[1] for d in self.directives if d.startswith("default_exp ")), "")


@dataclass(frozen=True)
class Page:
    "Hold one notebook of nbs/ as the tests look at it."

    name: str  # file name without its ending: "02a_tokenizer"
    path: Path  # where it lies
    cells: tuple[Cell, ...]  # its cells in order

    @property
    def file(self) -> str:  # "nbs/02a_tokenizer.ipynb"
        "Name the page as a person would type it."
        return self.path.relative_to(ROOT).as_posix()

    @property
    def module(self) -> str:  # "tokenizer", or "" where the page exports nothing
        "Name the module that the page exports."
        return next((cell.module for cell in self.cells if cell.module), "")


def read_page(path: Path) -> Page:
    "Read a notebook without any notebook library."
    cells = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], start=1):
        source = "".join(cell["source"])
        directives = tuple(line[2:].strip() for line in source.splitlines() if line.startswith("#|"))
        cells.append(Cell(number, cell["cell_type"], source, directives, len(cell.get("outputs", [])),
                          cell.get("execution_count") is not None, tuple(cell["metadata"].get("tags", []))))
    return Page(path.stem, path, tuple(cells))


@pytest.fixture(scope="session")
def root() -> Path:
    "Give the folder that holds pyproject.toml."
    return ROOT


@pytest.fixture(scope="session")
def pages() -> list[Page]:
    "Give every notebook of nbs/, in the order of their names; one that is no JSON is told by a test of its own."
    found = []
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        with suppress(ValueError):
            found.append(read_page(path))
    return found


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    "Give every text file of the project by its path; what git ignores is no part of it."
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        names = listed.stdout.decode().split("\0")
    else:  # an unpacked archive: no git around it
        hidden = {".git", ".venv", "_build", "dist", "build", "__pycache__"}
        names = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")
                 if not {p for p in path.relative_to(ROOT).parts if p in hidden or p.startswith((".pytest", ".ruff"))}]
    found = {}
    for name in sorted(filter(None, names)):
        try:
            found[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):  # a picture, a folder, or a file deleted and not yet committed
            continue
    return found


@pytest.fixture(scope="session")
def lines():
    "Give a function that fails with one line for each complaint, and without a traceback."

    def fail_if_any(complaints):
        complaints = list(complaints)
        if complaints:
            pytest.fail("\n".join(complaints), pytrace=False)

    return fail_if_any


@pytest.fixture(scope="session")
def data_dir() -> Path:
    "Give the folder with the real data sets (only in tests marked `data`)."
    return Path(os.environ["LLM_LITERATE_DATA"])


@pytest.fixture(scope="session")
def in_own_process():
    "Give a function that runs a script in a process of its own, which gives its memory back, and returns its JSON."

    def run(script, gigabytes, what):
        meminfo = Path("/proc/meminfo")
        free = re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text()) if meminfo.exists() else None
        if free and int(free[1]) * 1024 < gigabytes * 1e9:
            pytest.skip(f"{what} takes {gigabytes} GB of memory")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def seed_everything():
    "Start all generators anew, so that a test draws the same numbers whichever tests ran before it."
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    "Seed before a test's fixtures are made."
    seed_everything()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    "Seed before a test itself, because the first test of a file made fixtures that the others find."
    seed_everything()


def pytest_collection_modifyitems(config, items):
    "Skip what needs the real data sets where nobody said where they are."
    if os.environ.get("LLM_LITERATE_DATA"):
        return
    skip = pytest.mark.skip(reason="needs the real data sets: set LLM_LITERATE_DATA to the folder that holds them")
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(skip)
