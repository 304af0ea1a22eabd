"""The package as other people get it: a wheel is built, looked into, and used where no repository is around.

Nothing is downloaded: the wheel is installed without its dependencies, which this environment has.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "llm_literate")


def said(done):
    "Give the end of what a command said."
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Build the wheel from a copy, so that nothing is left in the repository."
    pytest.importorskip("setuptools", "77", reason="building without the network needs setuptools: run `make setup`")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    for stranger in ("tests/test_nothing.py", "nbs/page.ipynb", "runs/model.safetensors", "llm_literate/notes.txt"):
        path = source / stranger  # what lies around must stay out
        path.parent.mkdir(exist_ok=True)
        path.write_text("", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", out, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, said(done)
    [path] = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    "Name the files in the wheel."
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "Install the wheel alone into an empty folder."
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--target", folder]
    done = subprocess.run([*command, wheel], capture_output=True, text=True, check=False)
    assert done.returncode == 0, said(done)
    return folder


def elsewhere(installed, tmp_path, *command, **more):
    "Run a command in an empty folder, with the installed package before the repository's."
    known = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "OMP_NUM_THREADS")
    env = {key: os.environ[key] for key in known if key in os.environ}
    env |= {"PYTHONPATH": str(installed), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "TQDM_DISABLE": "1", "PYTHONUTF8": "1", "USERPROFILE": str(tmp_path)}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True,
                          check=False, encoding="utf-8", **more)
    assert done.returncode == 0, said(done)
    return done.stdout


def program(installed, *args):
    "Give the command line of the installed program."
    scripts = [path for path in (installed / "bin").iterdir() if path.stem == "llm-literate"]
    assert scripts, f"{sorted(path.name for path in installed.iterdir())}: no program llm-literate was installed"
    start = [] if scripts[0].suffix == ".exe" else [sys.executable]
    return [*start, scripts[0], *args]


def test_everything_that_belongs_in_is_in(names):
    package = ROOT / "llm_literate"
    tracked = subprocess.run(["git", "ls-files", "llm_literate"], cwd=ROOT, capture_output=True, text=True, check=False)
    wanted = tracked.stdout.split() or [
        path.relative_to(ROOT).as_posix() for pattern in ("*.py", "assets/*") for path in package.glob(pattern)]
    there = [name for name in wanted if (ROOT / name).exists()]
    assert len(there) > 30
    missing = sorted(set(there) - set(names))
    assert not missing, f"pyproject.toml: the wheel lacks {', '.join(missing)}; see [tool.setuptools.package-data]"


def test_nothing_else_is_in(names):
    allowed = re.compile(r"llm_literate/\w+\.py|llm_literate/assets/[\w.]+|llm_literate-[\w.]+\.dist-info/.+")
    strange = [name for name in names if not allowed.fullmatch(name)]
    assert not strange, f"pyproject.toml: the wheel holds {', '.join(strange)}; see [tool.setuptools.packages.find]"


def test_metadata_and_licence(wheel, names):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
    with zipfile.ZipFile(wheel) as archive:
        told = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        licence = archive.read(f"{info}/licenses/LICENSE")
        commands = archive.read(f"{info}/entry_points.txt").decode()
    assert licence == (ROOT / "LICENSE").read_bytes()
    version = re.search(r'"(.+)"', (ROOT / "llm_literate" / "__init__.py").read_text(encoding="utf-8"))[1]
    assert (told["Name"], told["Version"]) == (project["name"], version)
    assert told["License-Expression"] == project["license"]
    assert told["Requires-Python"] == project["requires-python"]
    needed = [line for line in told.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(needed) == len(project["dependencies"])
    assert f"llm-literate = {project['scripts']['llm-literate']}" in commands
    assert told.get_payload().startswith("# "), "the README is the description"


def test_size_is_what_a_download_bears(wheel):
    assert wheel.stat().st_size < 12e6, "the model alone is about 7 MB; look what else came in: unzip -lv dist/*.whl"


LIBRARY = """
import json, sys
from pathlib import Path
import llm_literate
assert Path(llm_literate.__file__).is_relative_to(sys.argv[1]), llm_literate.__file__
import torch
from llm_literate.generate import generate
from llm_literate.tokenizer import small_tokenizer
from llm_literate.weights import load_pretrained, save_model
from llm_literate.classify import to_classifier
model, tokenizer = load_pretrained("small"), small_tokenizer()
ids = torch.tensor([tokenizer.encode("Once upon a time")])
text = tokenizer.decode(generate(model, ids, 8)[0].tolist())
assert text.startswith("Once upon a time") and len(text) > 20, text
save_model(model, "writer.safetensors")
save_model(to_classifier(model, 2), "filter.safetensors")
print(json.dumps(text))
"""


def test_library_model_and_commands_work_elsewhere(installed, tmp_path):
    assert ROOT not in tmp_path.parents, "the folder must not lie in the repository"
    elsewhere(installed, tmp_path, sys.executable, "-c", LIBRARY, installed)
    overview = elsewhere(installed, tmp_path, *program(installed, "--help"))
    assert "usage: llm-literate COMMAND" in overview
    assert "--doctor" in elsewhere(installed, tmp_path, *program(installed, "judge", "--help"))
    told = elsewhere(installed, tmp_path, *program(installed, "generate", "The fox", "--tokens", "5", "--seed", "1"))
    assert told.startswith("The fox") and len(told.split()) > 3
    verdict = elsewhere(installed, tmp_path,
                        *program(installed, "classify", "You have won!", "--model", "filter.safetensors"))
    assert re.search(r"\b(spam|ham)\b", verdict)
    answer = elsewhere(installed, tmp_path,
                       *program(installed, "ask", "Name a bird.", "--model", "writer.safetensors", "--tokens", "5"))
    assert answer.strip()


def test_each_module_can_be_imported_first(installed, tmp_path):
    modules = [path.stem for path in sorted((installed / "llm_literate").glob("*.py")) if path.stem[0] != "_"]
    assert len(modules) > 25
    script = ("import importlib, os, sys, traceback\n"
              "import torch, numpy, pandas\n"  # shared by the children, which would each take a second
              "for name in sys.argv[1:]:\n"
              "    sys.stdout.flush()\n"
              "    if os.fork() == 0:\n"
              "        try:\n"
              "            importlib.import_module('llm_literate.' + name)\n"
              "        except BaseException:\n"
              "            traceback.print_exc(); os._exit(1)\n"
              "        os._exit(0)\n"
              "    if os.wait()[1]:\n"
              "        sys.exit(f'llm_literate.{name} cannot be imported first')\n")
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork, and a process for each module takes a minute")
    elsewhere(installed, tmp_path, sys.executable, "-c", script, *modules)
