"""What test_site.py looks for in the built pages: checks of the HTML alone, and what a browser measures.

Every check yields one line for each fault, so that a test has only to list them.
"""

import importlib
import os
import re
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

from llm_literate.printing import find_browser

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]

# Within the article, what the theme puts there and no page can change. Everything else is our own content.
CHROME = {
    "a.headerlink": "the theme's sign beside a heading, seen only under the mouse",
    "button.copybtn": "the copy button of a code cell, seen only under the mouse",
    ".sig-return-icon": "the arrow of a signature, which axe takes for an icon",
}


# What is needed, and may be missing


def tool(name):
    "Import what only these tests need. Without it they skip, but not where CI is set."
    if os.environ.get("CI"):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"these tests need {name}, which `make setup` installs")


def missing(what):
    "Skip where something is missing; where the site is to be tested in earnest, fail."
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@contextmanager
def a_browser():
    "Give the system's Chromium, without a window."
    playwright = tool("playwright.sync_api")
    if not (path := find_browser()):
        missing("there is no Chromium on this machine: install chromium or google-chrome")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


# The HTML alone


def parse(text):
    "Read a page."
    from bs4 import BeautifulSoup

    return BeautifulSoup(text, "html.parser")


def read_site(folder):
    "Read every page below a folder, by its path; what the theme and failed pages leave behind is none."
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*.html")))
    return {path.as_posix(): parse((folder / path).read_text(encoding="utf-8"))
            for path in paths if path.parts[0] not in ("_static", "reports")}


def addresses(soup):
    "Yield every address that a page names, with the element that names it."
    for element in soup.find_all(True):
        for name in ("href", "src", "poster", "data", "xlink:href"):
            if value := element.get(name):
                yield element, value.strip()
        if element.name == "meta" and element.get("http-equiv", "").lower() == "refresh":
            yield element, element["content"].partition("url=")[2].strip()


def broken_links(site, files, public):
    "Yield links to what is not there: `site` by path, all `files` of it, the `public` address it will have."
    marks = {path: {element.get("id") or element.get("name") for element in soup.find_all(id=True)
                    + soup.find_all("a", attrs={"name": True})} for path, soup in site.items()}
    for path, soup in site.items():
        for element, address in addresses(soup):
            url, mark = urldefrag(urljoin(public + path, address))
            if not url.startswith(public):
                if urlsplit(url).netloc == urlsplit(public).netloc:
                    yield f"{path}: {address!r} leaves the site's folder"
                continue
            target = unquote(urlsplit(url).path)[len(urlsplit(public).path):]
            target += "index.html" if target.endswith("/") or not target else ""
            if target not in files:
                yield f"{path}: {address!r} ({element.name}) leads to no file"
            elif mark and target in marks and unquote(mark) not in marks[target]:
                yield f"{path}: {address!r} leads to no place in {target}"


def foreign_parts(soup, public):
    "Yield what a page would load from another host, sooner or later."
    for element in soup.find_all(["script", "img", "iframe", "source", "video", "audio", "embed", "object", "link"]):
        if element.name == "link" and {"canonical", "license", "author"} & set(element.get("rel", [])):
            continue
        for name in ("src", "href", "data", "srcset"):
            host = urlsplit(element.get(name, "")).netloc
            if host and host != urlsplit(public).netloc:
                yield f"<{element.name}> loads {element[name]!r}"


def pictures_without_words(soup):
    "Yield pictures that say nothing to those who can't see them."
    for image in soup.find_all("img"):
        words = image.get("alt", "").strip()
        holder = image.find_parent(["a", "button"])
        if image.get("alt") == "" and holder and holder.get_text(strip=True):
            continue  # a sign beside its word
        if not words or words == image.get("src") or re.fullmatch(r"\S+\.(png|svg|jpe?g|webp)", words):
            yield f"img {image.get('src', '')[:60]!r} has {f'the alt text {words!r}' if words else 'no alt text'}"
    for number, picture in enumerate(soup.find_all("svg"), start=1):
        if picture.get("aria-hidden") == "true" or picture.find_parent("svg"):
            continue
        if picture.get("role") != "img":
            yield f"svg {number} has no role=img"
        if not picture.get("aria-label", "").strip():
            yield f"svg {number} has no aria-label"


def introduction_faults(soup, url, public):
    "Yield what is wrong with a page's name, address and preview, as other sites see them."
    card = {meta.get("property") or meta.get("name"): meta["content"].strip() for meta in soup.select("meta[content]")}
    canonical = soup.select_one("link[rel=canonical]")
    for name, address in [("og:url", card.get("og:url")), ("canonical", canonical and canonical["href"])]:
        if address != url:
            yield f"{name} is {address!r}, must be {url!r}"
    if not card.get("og:title") or card["og:title"] not in soup.title.get_text():
        yield f"og:title is {card.get('og:title')!r}, the title {soup.title.get_text()!r}"
    for name in ("og:site_name", "og:image:alt"):
        if not card.get(name) or "not set" in card[name]:
            yield f"{name} is {card.get(name)!r}"
    for name in ("description", "og:description"):
        if len(card.get(name, "")) < 30 or "exported to" in card[name]:
            yield f"{name} is {card.get(name)!r}"
    if not card.get("og:image", "").startswith(public):
        yield f"og:image is {card.get('og:image')!r}, must begin with {public!r}"
    if not soup.select_one("link[rel=icon][href]"):
        yield "has no favicon"


def doubled_ids(soup):
    "Yield names that stand for two elements of one page; sphinx-exercise names all its exercises alike."
    for name, count in Counter(element["id"] for element in soup.find_all(id=True)).items():
        if count > 1 and name not in ("exercise-content", "solution-content"):
            yield f"id {name!r} stands {count} times"


_LEAKS = {
    r"\$\$|\\\(|\\\)|\\\[|\\\]|\\begin\{|\\frac\b": "a raw formula",
    r"^\s*#\s?\|\s*\w": "a directive",
    r":::|\{(?:term|cite|ref|numref|doc|py:\w+)\}": "raw MyST",
}


def leaks(soup):
    "Yield markup that stands on a page as text."
    content = soup.find("article") or soup
    for element in content.select(".system-message, .problematic"):
        yield f"Sphinx's complaint is on the page: {element.get_text(' ', strip=True)[:80]!r}"
    for cell in content.select(".cell_input pre"):
        if re.match(r"\s*#\s?\|", cell.get_text()):
            yield f"a cell begins with a directive: {cell.get_text().strip().splitlines()[0]!r}"
    for piece in content.find_all(string=re.compile("|".join(_LEAKS), re.MULTILINE)):
        if not piece.find_parent(["pre", "code", "script", "style", "math"]):
            for pattern, what in _LEAKS.items():
                if found := re.search(pattern, piece, re.MULTILINE):
                    yield f"{what} is on the page: {piece[max(0, found.start() - 20):][:60].strip()!r}"


def bad_formulas(soup):
    "Yield formulas that were not understood."
    for element in soup.select(".math:not(:has(math)), .MathJax, script[type^='math/']"):
        yield f"no MathML: {element.get_text()[:60]!r}"
    for formula in soup.find_all("math"):
        words = formula.get_text(" ", strip=True)
        if not words or "\\" in words:
            yield f"MathML with raw LaTeX or nothing in it: {words[:60]!r}"


# A server and a browser


class _Server(SimpleHTTPRequestHandler):
    "Answer as GitHub Pages does: the site below its prefix, 404.html for everything that is not there."

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, prefix, **options):
        self.prefix = prefix
        super().__init__(*args, **options)

    def translate_path(self, path):
        inside = path.startswith(self.prefix)
        return super().translate_path(path[len(self.prefix) - 1:]) if inside else str(Path(self.directory, "\x01"))

    def end_headers(self):
        self.send_header("Cache-Control", "max-age=600")  # each page asks for the same 30 files
        super().end_headers()

    def list_directory(self, path):
        return self.send_error(404)

    def send_error(self, code, message=None, explain=None):
        page = Path(self.directory, "404.html")
        body = page.read_bytes() if code == 404 and page.exists() else b""
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


class _Threads(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # the browser went on before it had everything
            super().handle_error(request, client_address)


@contextmanager
def served(folder, prefix="/"):
    "Serve a folder on this machine, and give its address."
    with _Threads(("127.0.0.1", 0), partial(_Server, directory=str(folder), prefix=prefix)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
        server.shutdown()


@dataclass
class Visit:
    "Hold what a browser saw of one page."

    status: int  # of the answer
    errors: list[str] = field(default_factory=list)  # of scripts and of what they load
    foreign: list[str] = field(default_factory=list)  # requests to other hosts
    wide: list[str] = field(default_factory=list)  # what is wider than a phone
    faint: dict[str, list[str]] = field(default_factory=dict)  # theme → text that can't be read
    axe: dict[str, list[str]] = field(default_factory=dict)  # theme → violations; what no theme changes is in "dark"
    paper: dict[str, str] = field(default_factory=dict)  # theme → colour behind the text


def open_page(context, url, home):
    "Load a page, and give it with the beginning of its record."
    page = context.new_page()
    visit = Visit(0)
    page.on("console", lambda message: message.type == "error" and visit.errors.append(
        f"{message.text} ({message.location.get('url', '')})"))
    page.on("pageerror", lambda error: visit.errors.append(f"script: {error}"))
    page.on("request", lambda request: urlsplit(request.url).netloc not in ("", urlsplit(home).netloc)
            and visit.foreign.append(request.url))
    visit.status = page.goto(url, wait_until="load").status
    return page, visit


# A reader may unfold everything, and colours must not be caught half way.
_SETTLE = """() => {
  document.querySelectorAll("article details").forEach(e => e.open = true);
  document.querySelectorAll("article .toggle-hidden").forEach(e => e.classList.remove("toggle-hidden"));
  const still = document.createElement("style");
  still.textContent = "*, *::before, *::after { transition: none !important; animation: none !important }";
  document.head.append(still);
}"""

# The thousands of parts of code and drawings say nothing to axe.
_FLATTEN = """() => {
  document.querySelectorAll("article pre").forEach(e => e.textContent = e.textContent);
  document.querySelectorAll("article svg[role=img]").forEach(e => e.replaceChildren());
}"""

# Too wide is what sticks out of the page, unless something around it scrolls.
_WIDE = """() => {
  const page = document.documentElement, article = document.querySelector("article"), told = [];
  const name = e => e.tagName.toLowerCase() + (e.id ? "#" + e.id : "") +
    [...e.classList].map(c => "." + c).join("") + " " + JSON.stringify(e.textContent.trim().slice(0, 40));
  if (page.scrollWidth > page.clientWidth) told.push(`the page is ${page.scrollWidth} pixels wide`);
  const walk = e => {
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (style.display === "none" || style.position === "fixed") return;
    const out = Math.round(Math.max(box.right - page.clientWidth, -box.left));
    if (out > 1 && box.width > 1 && style.display !== "contents") told.push(`${name(e)} sticks out by ${out} pixels`);
    else if (!["auto", "scroll"].includes(style.overflowX)) for (const child of e.children) walk(child);
  };
  if (article) walk(article);
  return told;
}"""

# WCAG 2's contrast of every piece of text against what is really painted behind it, in HTML and in SVG.
_FAINT = """([chrome]) => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true}), known = {};
  const rgba = colour => known[colour] ??= (canvas.clearRect(0, 0, 1, 1), canvas.fillStyle = colour,
    canvas.fillRect(0, 0, 1, 1), [...canvas.getImageData(0, 0, 1, 1).data].map((v, i) => i < 3 ? v : v / 255));
  const over = (top, below, opacity = 1) => {
    const a = top[3] * opacity;
    return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a)).concat(1);
  };
  const light = c => [.2126, .7152, .0722].reduce((sum, weight, i) => {
    const v = c[i] / 255;
    return sum + weight * (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  }, 0);
  const papers = new Map();
  const paper = e => {
    if (!e) return [255, 255, 255, 1];
    if (!papers.has(e)) papers.set(e, over(rgba(getComputedStyle(e).backgroundColor), paper(e.parentElement)));
    return papers.get(e);
  };
  const opacity = (e, end) => e === end || !e ? 1 : getComputedStyle(e).opacity * opacity(e.parentElement, end);
  const shapes = "path, rect, circle, ellipse, polygon";
  const behind = (text, svg) => {  // the shapes painted before a text, under its middle
    const box = text.getBoundingClientRect();
    const middle = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2);
    let below = paper(svg);
    for (const shape of svg.querySelectorAll(shapes)) {
      if (shape.closest("defs, clipPath") || !(text.compareDocumentPosition(shape) & 2)) continue;
      const style = getComputedStyle(shape), matrix = shape.getScreenCTM();
      if (style.fill === "none" || style.fill.startsWith("url") || !matrix) continue;
      if (shape.isPointInFill(middle.matrixTransform(matrix.inverse())))
        below = over(rgba(style.fill), below, style.fillOpacity * opacity(shape, svg));
    }
    return below;
  };
  const faults = {}, seen = {};
  const article = document.querySelector("article");
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const words = walker.currentNode.data.trim(), e = walker.currentNode.parentElement;
    if (!words || e.closest(chrome + ", script, style, title, desc") || !e.checkVisibility({visibilityProperty: true}))
      continue;
    const style = getComputedStyle(e), svg = e.closest("svg");
    const box = e.getBoundingClientRect();
    if (box.width <= 1 || box.height <= 1) continue;  // for screen readers only
    const below = svg ? behind(e, svg) : paper(e);
    const ink = svg ? over(rgba(style.fill), below, style.fillOpacity * opacity(e, svg.parentElement))
                    : over(rgba(style.color), below, opacity(e, article));
    const [high, low] = [light(ink), light(below)].sort((a, b) => b - a), contrast = (high + .05) / (low + .05);
    const size = parseFloat(style.fontSize) * (svg ? Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b) : 1);
    const needed = size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5;
    if (contrast >= needed) continue;
    const hex = c => "#" + c.slice(0, 3).map(v => Math.round(v).toString(16).padStart(2, "0")).join("");
    const name = e.tagName.toLowerCase() + [...e.classList].map(c => "." + c).join("");
    const kind = `${name} ${hex(ink)} on ${hex(below)}`;
    seen[kind] = (seen[kind] ?? 0) + 1;
    faults[kind] ??= `${kind} is ${contrast.toFixed(2)}:1, must be ${needed}:1: ${JSON.stringify(words.slice(0, 40))}`;
  }
  return Object.entries(faults).map(([kind, text]) => seen[kind] > 1 ? `${text}, ${seen[kind]} times` : text);
}"""


def inject_axe(page):
    "Bring axe-core to a page."
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate(Axe().axe_script)


def run_axe(page, **options):
    "List axe-core's serious and critical violations in our own content."
    place = {"include": [["article"]], "exclude": [[selector] for selector in CHROME]}
    found = page.evaluate("([place, options]) => axe.run(place, options).then(result => result.violations)",
                          [place, {"resultTypes": ["violations"], "preload": False} | options])
    return [f"{fault['impact']}: {fault['id']}, {fault['help']}: {fault['nodes'][0]['html'][:120]}"
            + (f", {len(fault['nodes'])} times" if len(fault["nodes"]) > 1 else "")
            for fault in found if fault["impact"] in ("serious", "critical")]


def measure(context, url, home):
    "Visit a page once, for all tests: on a phone in the light, then at a desk in the dark."
    page, visit = open_page(context, url, home)
    page.evaluate(_SETTLE)
    visit.wide = page.evaluate(_WIDE)
    for theme, window in {"light": PHONE, "dark": DESK}.items():
        page.emulate_media(color_scheme=theme)
        page.set_viewport_size(window)
        page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
        visit.paper[theme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        visit.faint[theme] = page.evaluate(_FAINT, [", ".join(CHROME)])
    seen = len(visit.errors)
    page.evaluate(_FLATTEN)
    inject_axe(page)
    # Of its rules two look at colours; `_FAINT` does the work of one of them, for code and drawings too, and faster.
    visit.axe["dark"] = run_axe(page, rules={"color-contrast": {"enabled": False}})
    page.emulate_media(color_scheme="light")
    page.wait_for_function("document.documentElement.dataset.theme === 'light'")
    visit.axe["light"] = run_axe(page, runOnly=["link-in-text-block"])
    del visit.errors[seen:]  # what axe itself stumbled over
    page.close()
    return visit
