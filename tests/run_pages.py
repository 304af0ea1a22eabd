"""Execute the pages as Binder and as Colab would, one after the other, and write down what each took.

    python tests/run_pages.py binder                          all pages, in an environment made from .binder/ alone
    python tests/run_pages.py colab 03a_self_attention        one page, with the package installed by its first cell
    python tests/run_pages.py binder --record                 writes the record that the site shows; with pages named,
                                                              only theirs is replaced

Linux only: the limit on memory is kept by looking into /proc. It needs what pip needs, and no other network.
nbs/Zi_everywhere.ipynb explains how it works.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

from llm_literate.everywhere import KERNEL, Run, run_page

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "llm_literate" / "assets" / "pages.json"
BINDER_MEMORY = 2 * 2**30  # bytes that a container on Binder gets
# What Colab brings along, as far as the pages need it; the package itself is not among it.
ON_COLAB = ["numpy", "pandas", "matplotlib", "scikit-learn", "scipy", "requests", "tqdm", "nbconvert", "ipykernel"]
COLAB_KERNEL = "--IPKernelApp.exec_lines=import sys, types; sys.modules['google.colab'] = types.ModuleType('colab')"


def call(*command, **more) -> None:
    "Run a command; if it fails, stop with the last lines that it said."
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **more)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        sys.exit(f"{' '.join(map(str, command))}\nfailed with exit code {done.returncode}:\n{said}")


def surroundings(home: Path, python: Path) -> dict[str, str]:
    "Give the environment of a fresh machine: this one's ways to the package index, and nothing else of it."
    starts, ends = ("PIP_", "UV_", "SSL_", "LANG", "LC_"), ("_PROXY", "_proxy", "_CA_BUNDLE")
    kept = {key: value for key, value in os.environ.items() if key.startswith(starts) or key.endswith(ends)}
    return kept | {"HOME": str(home), "PATH": f"{python.parent}{os.pathsep}{os.defpath}", "TMPDIR": str(home / "tmp"),
                   "IPYTHONDIR": str(home / "ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1",
                   "TQDM_DISABLE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}


def environment(folder: Path, *packages: str) -> tuple[Path, dict[str, str]]:
    "Make a virtual environment with packages in it; give its Python and what a process there sees."
    home = folder / "home"
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    call(sys.executable, "-m", "venv", folder / "env")
    python = folder / "env" / "bin" / "python"
    env = surroundings(home, python)
    call(python, "-m", "pip", "install", "--quiet", *packages, env=env)
    return python, env


def unpack(folder: Path) -> str:
    "Write the last commit into a folder, and name it."
    git = ["git", "-C", str(ROOT)]
    archive = subprocess.run([*git, "archive", "HEAD"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
    return commit.stdout.strip()


class Binder:
    "Execute pages in an environment that is made from .binder/ alone."

    def __init__(self, folder: Path, book: Path):
        self.book = book
        wanted = (self.book / ".binder" / "runtime.txt").read_text(encoding="utf-8").strip()
        if f"python-{platform.python_version()}.".find(f"{wanted}.") != 0:
            print(f"note: Binder takes {wanted}, this is Python {platform.python_version()}", flush=True)
        self.python, self.env = environment(
            folder, "jupyterlab", "--requirement", str(self.book / ".binder" / "requirements.txt"))
        call(self.book / ".binder" / "postBuild", cwd=self.book, env=self.env)

    def run(self, page: str) -> Run:
        "Execute one page beside its neighbours, with 2 GB of memory."
        command = [str(self.book / ".binder" / "start"), str(self.python), *KERNEL]
        return run_page(self.book / "nbs" / f"{page}.ipynb", command, self.book / "nbs", self.env, BINDER_MEMORY)


class Colab:
    "Execute pages alone; each installs the package that was built here."

    def __init__(self, folder: Path, book: Path):
        call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", book)
        wheel = next((folder / "dist").glob("llm_literate-*.whl"))
        self.folder, self.book = folder, book
        self.python, self.env = environment(folder, *ON_COLAB, "uv")
        call(self.python, "-m", "uv", "pip", "install", "--quiet", "--python", self.python,
             "--torch-backend=cpu", "torch", env=self.env)
        only = folder / "constraint.txt"  # wherever pip looks, it takes this file
        only.write_text(f"llm-literate @ {wheel.as_uri()}\n", encoding="utf-8")
        self.env["PIP_CONSTRAINT"] = str(only)

    def run(self, page: str) -> Run:
        "Execute one page in an empty folder; the package is removed first."
        call(self.python, "-m", "pip", "uninstall", "--quiet", "--yes", "llm-literate", env=self.env)
        with tempfile.TemporaryDirectory(dir=self.folder) as content:
            path = Path(shutil.copy(self.book / "nbs" / f"{page}.ipynb", content))
            return run_page(path, [str(self.python), *KERNEL, COLAB_KERNEL], content, self.env)


PLACES = {"binder": Binder, "colab": Colab}


def machine() -> dict:
    "Describe what this ran on."
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))[1])
    return {"processor": model[1] if model else platform.machine(), "cores": os.cpu_count(),
            "memory_GB": round(memory / 2**20)}


def versions(python: Path) -> dict[str, str]:
    "Ask an environment for the versions of what matters most."
    code = ("import json, platform; from importlib.metadata import version; print(json.dumps("
            "{'Python': platform.python_version(), **{n: version(n) for n in ('torch', 'numpy', 'pandas')}}))")
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def all_pages(book: Path = ROOT) -> list[str]:
    "Name the notebooks in the order of the contents."
    found = {path.stem for path in (book / "nbs").glob("*.ipynb")}
    named = re.findall(r"nbs/(\w+)", (book / "_toc.yml").read_text(encoding="utf-8"))
    return [name for name in named if name in found]


def write(path: Path, place: str, part: dict, order: list[str], some: bool) -> None:
    "Put one place's part into a record; where only some pages ran, the others stay as they were measured."
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if some and place in record:
        new = {run["page"] for run in part["runs"]}
        kept = [run for run in record[place]["runs"] if run["page"] not in new and run["page"] in order]
        part = part | {"runs": kept + part["runs"], "shared": part["shared"] or record[place]["shared"]}
    part["runs"].sort(key=lambda run: order.index(run["page"]))
    record[place] = part
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(path)


def main(args: list[str] | None = None) -> int:
    "Execute pages, write the record, and give 1 if a page failed."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", choices=PLACES, help="whose way")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="like 03a_self_attention; none means all")
    parser.add_argument("--out", type=Path, help="the record; _build/pages.json if not named")
    parser.add_argument("--record", action="store_true", help="write the record that the site shows")
    parser.add_argument("--shared", action="store_true", help="say in the record that others used the machine, too")
    chosen = parser.parse_intermixed_args(args)
    path = chosen.out or (RECORD if chosen.record else ROOT / "_build" / "pages.json")
    begun, runs = datetime.now(UTC), []
    with tempfile.TemporaryDirectory(prefix=f"{chosen.place}-") as folder:
        book = Path(folder, "book")
        commit, known = unpack(book), all_pages(book)
        if strange := [page for page in chosen.pages if page not in known]:
            parser.error(f"commit {commit} has no page {', '.join(strange)}; it has {', '.join(known)}")
        print(f"making the environment of {chosen.place} for commit {commit}", flush=True)
        place = PLACES[chosen.place](Path(folder), book)
        made = datetime.now(UTC)
        for page in chosen.pages or known:
            since = datetime.now(UTC).isoformat(timespec="minutes")
            run = place.run(page)
            runs.append(asdict(run) | {"date": since, "commit": commit})
            took = f"{run.seconds:7.1f} s, {run.processor:6.1f} s at work, {run.memory / 1e6:5.0f} MB"
            print(f"{page:28}{took}  {run.error or 'ok'}", flush=True)
        part = {"command": f"python tests/run_pages.py {chosen.place}", "shared": chosen.shared, "machine": machine(),
                "setup_seconds": round((made - begun).total_seconds()),
                "versions": versions(place.python), "runs": runs}
        write(path, chosen.place, part, known, bool(chosen.pages))
    failed = [run["page"] for run in runs if run["error"]]
    print(f"{len(runs) - len(failed)} pages ran, {len(failed)} failed{': ' + ', '.join(failed) if failed else ''}; "
          f"the record is {os.path.relpath(path)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
