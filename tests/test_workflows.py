"""What runs on other people's machines: the workflows and the files beside them are valid, and give away nothing.

Nothing here needs the network. What a hosted runner really does can only be seen there.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "custom.github-workflows-require-timeout": WORKFLOWS,
    "vendor.dependabot": [ROOT / ".github" / "dependabot.yml"],
    "vendor.github-issue-forms": sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")),
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}


def tool(name):
    "Find a command beside this Python, or skip with a word."
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if not found:
        pytest.skip(f"{name} is not installed beside this Python: run `make setup`")
    return found


def told(path):
    "Name a file as a person would type it."
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_follow_their_schema(schema):
    command = [tool("check-jsonschema"), "--builtin-schema", schema]
    done = subprocess.run([*command, *SCHEMAS[schema]], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        names = " ".join(map(told, SCHEMAS[schema]))
        pytest.fail(f"{names}: breaks {schema}; see where: check-jsonschema --builtin-schema {schema} {names}\n"
                    f"{done.stdout}", pytrace=False)


def test_workflows_are_safe():
    command = [tool("zizmor"), "--offline", "--no-progress", "--persona=auditor", str(ROOT / ".github")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        pytest.fail(".github: zizmor objects; see why: zizmor --offline --persona=auditor .github\n"
                    f"{done.stdout}", pytrace=False)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_with_their_version(path, lines):
    uses = re.findall(r"uses:\s*(\S+)(.*)", path.read_text(encoding="utf-8"))
    lines(f"{told(path)}: {name}{rest} is not owner/name@<40 hex digits> # v1.2.3; pin it so"
          for name, rest in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", name + rest))


def test_an_action_has_one_version(lines):
    found = {}
    for path in WORKFLOWS:
        for name, commit in re.findall(r"uses:\s*([\w./-]+)@(\S+)", path.read_text(encoding="utf-8")):
            found.setdefault(name, {}).setdefault(commit, told(path))
    lines(f"{' and '.join(commits.values())}: differ in the version of {name}; take the newer one in both"
          for name, commits in found.items() if len(commits) > 1)


def test_tests_left_out_on_other_systems_exist(lines):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    named = re.findall(r"--ignore=(\S+)", text)
    assert named
    lines(f".github/workflows/ci.yml: ignores {name}, which is not there; take it out"
          for name in named if not (ROOT / name).exists())


def test_scripts_that_workflows_call_exist(lines):
    found = [(path, name) for path in WORKFLOWS
             for name in re.findall(r"python (tests/\S+\.py)", path.read_text(encoding="utf-8"))]
    for needed, why in (("tests/check_links.py", "dead links are told"),
                        ("tests/run_pages.py", "a page that fails elsewhere is told")):
        assert any(name == needed for _, name in found), \
            f".github/workflows/nightly.yml: must run {needed}, so that {why}"
    lines(f"{told(path)}: calls {name}, which is not there; take it out or write it"
          for path, name in found if not (ROOT / name).exists())


def test_binder_scripts_can_run(lines):
    complaints = []
    for name in ("postBuild", "start"):
        path = ROOT / ".binder" / name
        if not path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n"):
            complaints.append(f".binder/{name}: must begin with #!/usr/bin/env bash")
        if sys.platform != "win32" and not path.stat().st_mode & 0o111:
            complaints.append(f".binder/{name}: cannot be executed; chmod +x .binder/{name}")
        if (bash := shutil.which("bash")) and subprocess.run([bash, "-n", path], check=False).returncode:
            complaints.append(f".binder/{name}: is not valid bash; see where: bash -n .binder/{name}")
    lines(complaints)


def test_binder_takes_the_pinned_cpu_build():
    script = (ROOT / ".binder" / "postBuild").read_text(encoding="utf-8")
    installs = [line for line in script.splitlines() if "pip install" in line]
    assert installs and all("--torch-backend=cpu" in line and "--constraint constraints.txt" in line
                            for line in installs), \
        ".binder/postBuild: every install takes --torch-backend=cpu and --constraint constraints.txt"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==\d+\.\d+\.\d+$", pins, re.M), \
        "constraints.txt: torch is pinned without a build name (+cpu), so that every index can serve it"


def test_every_place_runs_its_pages_every_night():
    import run_pages

    text = (ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"- place: (\w+)", text)) == set(run_pages.PLACES), \
        ".github/workflows/nightly.yml: the job `pages` must name each place of tests/run_pages.py"
    wanted = (ROOT / ".binder" / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    assert re.search(rf'- place: binder\s+python: "{re.escape(wanted)}"', text), \
        f".github/workflows/nightly.yml: the job `pages` must take Python {wanted} for binder, as .binder does"
