"""Does every address that the pages name still answer? Run every night; needs the network and nothing but Python.

`python tests/check_links.py` ends with 1 if an address is gone. One that refuses to be asked by a program is told, and
counts as neither good nor broken. Each host is asked slowly, one address after the other.
"""

import json
import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urldefrag, urlsplit
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 1.5  # seconds between two questions to one host
GONE = (404, 410)
NO_SUCH_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
PAIRS = "()", "[]", "{}"
NOT_OURS_TO_ASK = re.compile(r"localhost|127\.0\.0\.1|\[::1\]|(^|\.)example\.(com|org|net)$|\.invalid$")


def in_text(text, local=False):
    "Find the addresses in a text, without the punctuation around them and the place within the page."
    found = []
    for address in re.findall(r"https?://[^\s\"'`<>\\|^]+", text):
        while address[-1] in ".,;:!?*" or any(address.endswith(b) and address.count(b) > address.count(a)
                                              for a, b in PAIRS):
            address = address[:-1]
        host = urlsplit(address).hostname or ""
        if not re.search(r"[{}$\[\]]", address) and (local or ("." in host and not NOT_OURS_TO_ASK.search(host))):
            found.append(urldefrag(address).url)
    return found


def addresses(root, local=False):
    "Find every address of the pages and the bibliography, with the files that name it; ours is not published yet."
    ours = re.findall(r"^(?:Homepage|Repository) = \"(.+?)/?\"",
                      (root / "pyproject.toml").read_text(encoding="utf-8"), re.M) if not local else []
    found = {}
    pages = root / "nbs"
    for path in [root / "references.bib", *sorted(pages.glob("*.md")), *sorted(pages.glob("*.ipynb"))]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]
                             if cell["cell_type"] == "markdown")
        text = re.sub(r"\bdoi +(= +)\{(10\.[^}]+)\}", r"url \1{https://doi.org/\2}", text)
        for address in in_text(text, local):
            if not address.startswith(tuple(ours)):
                # Publishers turn programs away; the registry of DOIs says what it knows.
                address = re.sub(r"^https?://(?:dx\.)?doi\.org/", "https://doi.org/api/handles/", address)
                found.setdefault(address, []).append(path.relative_to(root).as_posix())
    return found


def ask(address, method):
    "Ask once, and give the status of the answer."
    asked = Request(address, method=method, headers={"User-Agent": "Mozilla/5.0 (compatible; llm_literate link check)"})
    with urlopen(asked, timeout=30) as answer:
        return answer.status


def look(address, pause=PAUSE):
    "Ask an address up to three times; give “good”, “broken” or “unsure”, and why."
    verdict = "unsure", "no answer"
    for method in ("HEAD", "GET", "GET"):
        try:
            return "good", str(ask(address, method))
        except HTTPError as error:
            verdict = ("broken" if error.code in GONE else "unsure"), f"status {error.code}"
        except URLError as error:
            verdict = ("broken" if getattr(error.reason, "errno", 0) in NO_SUCH_HOST else "unsure"), str(error.reason)
        except (OSError, ValueError) as error:
            verdict = "unsure", f"{type(error).__name__}: {error}"
        time.sleep(pause)
    return verdict


def main(root=ROOT, pause=PAUSE, local=False):
    "Look at every address, say what is wrong, and give the exit status."
    found, hosts = addresses(root, local), {}
    for address in found:
        hosts.setdefault(urlsplit(address).netloc, []).append(address)

    def walk(host):
        told = []
        for address in hosts[host]:
            told.append((address, *look(address, pause)))
            time.sleep(pause)
        return told

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for told in pool.map(walk, hosts) for answer in told]
    for address, verdict, why in answers:
        if verdict != "good":
            say = "is broken" if verdict == "broken" else "could not be asked"
            print(f"{', '.join(sorted(set(found[address])))}: {address} {say} ({why})")
    broken = sum(verdict == "broken" for _, verdict, _ in answers)
    print(f"{len(answers)} addresses on {len(hosts)} hosts, {broken} broken")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
