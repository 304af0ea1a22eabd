"""The bibliography: every work has a sentence under its chapter, every citation an entry, every entry an address."""

import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.error import URLError

import check_links
import pytest

CITE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
# Printed before there were addresses, and nowhere to be had freely
PAPER_ONLY = {"gage1994", "wharton1908", "zipf1949"}


@pytest.fixture(scope="module")
def works(root):
    "Give the entries of references.bib by their keys."
    text = (root / "references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in re.finditer(r"^@\w+\{(\w+),.*?^\}$", text, flags=re.M | re.S)}


@pytest.fixture(scope="module")
def told(root):
    "Give (heading, key, sentence) for each work of the bibliography's page, in its order."
    page = (root / "nbs" / "B_references.md").read_text(encoding="utf-8")
    found = []
    for part in page.split("\n## ")[1:]:
        heading = part.splitlines()[0]
        found += [(heading, *pair) for pair in re.findall(r"^\{cite:t\}`(\w+)`\n: (.+)$", part, flags=re.M)]
    return found


@pytest.fixture(scope="module")
def cited(root):
    "Give the pages that cite each key; the bibliography itself is none of them."
    found = {}
    for path in sorted((root / "nbs").glob("*.*")):
        if path.suffix in (".ipynb", ".md") and path.stem != "B_references":
            for keys in CITE.findall(path.read_text(encoding="utf-8")):
                for key in keys.split(","):
                    found.setdefault(key.strip(), set()).add(path.stem)
    return found


def test_every_work_has_one_sentence(works, told, lines):
    keys = [key for _, key, _ in told]
    where = "nbs/B_references.md"
    complaints = [f"{where}: says nothing about {key}; add {{cite:t}}`{key}` and below it “: Read it for …” "
                  "under its chapter" for key in works if key not in keys]
    complaints += [f"{where}: {key} is not in references.bib" for key in keys if key not in works]
    complaints += [f"{where}: {key} stands twice; once is enough" for key in set(keys) if keys.count(key) > 1]
    complaints += [f"{where}: what is said about {key} is no sentence" for _, key, text in told
                   if not re.match(r"[A-Z“].{14,}[.?]$", text)]
    lines(complaints)


def test_every_citation_has_an_entry(works, cited, lines):
    lines(f"nbs/{page}: cites {key}, which is not in references.bib"
          for key, found in cited.items() if key not in works for page in found)


def test_works_stand_under_a_chapter_that_cites_them(told, cited, lines):
    complaints = []
    for heading, key, _ in told:
        chapter = re.match(r"(?:Chapter|Appendix) (\w)", heading)
        starts = {re.match(r"0?(\w)", page)[1] for page in cited.get(key, ())}
        if chapter and starts and not {chapter[1], "1"} & starts:  # chapter 1 looks ahead
            complaints.append(f"nbs/B_references.md: {key} stands under “{heading}”, but is cited by "
                              f"{', '.join(sorted(cited[key]))}; move it")
    lines(complaints)


def test_every_work_can_be_found(works, lines):
    lines(f"references.bib: {key} has neither url nor doi; add one, so that a reader can follow it"
          for key, entry in works.items() if key not in PAPER_ONLY and not re.search(r"^  (?:url|doi) +=", entry, re.M))


def test_entries_are_in_order(works, lines):
    keys = list(works)
    lines(f"references.bib: {b} stands after {a}; the order is the alphabet's"
          for a, b in zip(keys, keys[1:], strict=False) if b < a)


# The links


class Answers(BaseHTTPRequestHandler):
    "Answer each path with the status that it names."

    def do_GET(self):
        status = int(self.path.strip("/").split("-")[0])
        if self.path == "/503-once" and not self.server.__dict__.setdefault("busy", False):
            self.server.busy = True
        elif self.path == "/503-once":
            status = 200
        if self.path == "/405" and self.command == "GET":
            status = 200
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/404")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        "Say nothing."


@pytest.fixture
def server():
    "Give the address of a server on this machine."
    with HTTPServer(("127.0.0.1", 0), Answers) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.mark.parametrize("path, verdict", [("/200", "good"), ("/404", "broken"), ("/410", "broken"), ("/302", "broken"),
                                           ("/403", "unsure"), ("/500", "unsure"), ("/405", "good"),
                                           ("/503-once", "good")])
def test_an_answer_becomes_a_verdict(server, path, verdict):
    assert check_links.look(server + path, pause=0)[0] == verdict


@pytest.mark.parametrize("errno, verdict", [(socket.EAI_NONAME, "broken"), (socket.EAI_AGAIN, "unsure")])
def test_a_host_that_is_gone_is_not_a_network_that_is_down(monkeypatch, errno, verdict):
    def fail(*args, **kwargs):
        raise URLError(socket.gaierror(errno, "what the system says"))

    monkeypatch.setattr(check_links, "urlopen", fail)
    assert check_links.look("http://host.invalid/", pause=0)[0] == verdict


def test_addresses_are_found_where_they_stand(root):
    found = check_links.addresses(root)
    assert any("arxiv.org/abs/1706.03762" in address for address in found)
    assert any(address.startswith("https://doi.org/api/handles/10.") for address in found)
    assert all(re.match(r"https?://[^/]+\.\w+(/|$)", address) for address in found)
    assert not any("127.0.0.1" in address or "localhost" in address for address in found)


@pytest.mark.parametrize("text, expected", [
    ("see [it](https://a.org/x_(y)) now", ["https://a.org/x_(y)"]), ("at https://a.org/x.", ["https://a.org/x"]),
    ("`https://a.org/{name}`", []), ("<https://a.org/#top>", ["https://a.org/"]),
    ("http://localhost:8000/", []), ("https://example.com/x", [])])
def test_an_address_ends_where_it_ends(text, expected):
    assert check_links.in_text(text) == expected


def test_a_broken_link_ends_the_check_with_its_place(server, tmp_path, capsys):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "references.bib").write_text(f"  url = {{{server}/404}}\n")
    (tmp_path / "nbs" / "x.md").write_text(f"[fine]({server}/200)\n")
    assert check_links.main(tmp_path, pause=0, local=True) == 1
    assert f"references.bib: {server}/404 is broken" in capsys.readouterr().out
    (tmp_path / "references.bib").write_text(f"  url = {{{server}/403}}\n")
    assert check_links.main(tmp_path, pause=0, local=True) == 0
