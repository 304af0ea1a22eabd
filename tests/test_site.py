"""The built site in a real browser: every page loads, alone and readable, and every link leads somewhere.

The checks themselves are in site_checks.py; the tests at the end show that each of them can fail.
Without a built site or a browser these tests skip; where CI is set they fail instead.
"""

import ast
import re
import struct
import tomllib
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import site_checks as checks

yaml, playwright = checks.tool("yaml"), checks.tool("playwright.sync_api")
checks.tool("bs4"), checks.tool("axe_playwright_python")

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"


def walk(contents):
    "Yield the pages of _toc.yml in reading order."
    if isinstance(contents, dict):
        for key, value in contents.items():
            yield from [value] if key in ("root", "file") else walk(value)
    elif isinstance(contents, list):
        for item in contents:
            yield from walk(item)


PAGES = list(walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))
NOTEBOOKS = [page for page in PAGES if (ROOT / f"{page}.ipynb").exists()]
CHAPTERS = [page for page in NOTEBOOKS if re.match(r"nbs/\d\d", page)]

site_test = pytest.mark.site
each_page = pytest.mark.parametrize("page", PAGES)
each_notebook = pytest.mark.parametrize("page", NOTEBOOKS)


@pytest.fixture(scope="module")
def site():
    "Give every built page, parsed, by its path."
    if not (SITE / "index.html").exists():
        checks.missing("there is no built site in _build/html: run `make book`")
    return checks.read_site(SITE)


@pytest.fixture(scope="module")
def public():
    "Give the address that the site will have."
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["html"]["baseurl"]


@pytest.fixture(scope="module")
def repository():
    "Give the address of the source."
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


@pytest.fixture(scope="module")
def browser():
    "Give one browser for all tests."
    with checks.a_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def context(browser):
    "Give a phone, in the light."
    with browser.new_context(viewport=checks.PHONE, reduced_motion="reduce", color_scheme="light") as context:
        yield context


@pytest.fixture
def desk(browser):
    "Give a window of its own, with its own memory."
    with browser.new_context(viewport=checks.DESK, reduced_motion="reduce", color_scheme="light") as context:
        yield context.new_page()


@pytest.fixture(scope="module")
def home(site, public):
    "Serve the site below the same folder as its public address, and give its address."
    with checks.served(SITE, urlsplit(public).path) as home:
        yield home


@pytest.fixture(scope="module")
def visit(context, home):
    "Give a function that visits a page once and remembers what it saw."
    seen = {}

    def visit_once(page):
        if page not in seen:
            seen[page] = checks.measure(context, f"{home}{page}.html", home)
        return seen[page]

    return visit_once


# Every page, in the browser


@site_test
@each_page
def test_page_loads_alone_and_without_errors(visit, page, lines):
    seen = visit(page)
    assert seen.status == 200
    lines([f"{page}: {error}" for error in seen.errors] + [f"{page}: asks {url}" for url in seen.foreign])


@site_test
@each_page
def test_page_fits_a_phone(visit, page, lines):
    lines(f"{page}: {what} at {checks.PHONE['width']} pixels" for what in visit(page).wide)


@site_test
@each_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_is_readable(visit, page, theme, lines):
    lines(f"{page}, {theme}: {text}" for text in visit(page).faint[theme])


@site_test
@each_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, page, theme, lines):
    lines(f"{page}, {theme}: {fault}" for fault in visit(page).axe[theme])


@site_test
def test_pages_follow_the_system_into_the_dark(visit):
    paper = visit(PAGES[0]).paper
    assert sum(map(int, re.findall(r"\d+", paper["light"])[:3])) > 700
    assert sum(map(int, re.findall(r"\d+", paper["dark"])[:3])) < 150


@site_test
def test_other_pages_load_alone_and_without_errors(site, context, home, lines):
    told = []
    others = site.keys() - {f"{page}.html" for page in PAGES} - {"index.html"}  # that one leads on at once
    modules = sorted(path for path in others if path.startswith("_modules/llm_literate/"))
    for path in others - set(modules[1:]):  # these pages differ in their text alone
        page, seen = checks.open_page(context, home + path, home)
        page.close()
        told += [f"{path}: {what}" for what in seen.errors + seen.foreign]
    lines(sorted(told))


# What a reader does


@site_test
def test_root_leads_to_the_first_page(desk, home):
    desk.goto(home)
    desk.wait_for_url(f"{home}{PAGES[0]}.html")


@site_test
def test_switch_of_the_theme_works_and_is_remembered(desk, home):
    def state():
        return desk.evaluate("""[document.documentElement.dataset.mode, document.documentElement.dataset.theme,
                                 getComputedStyle(document.body).backgroundColor]""")

    desk.goto(f"{home}{PAGES[0]}.html")
    seen = [state()]
    for _ in range(3):
        desk.locator(".theme-switch-button:visible").click()
        seen.append(state())
    assert {mode for mode, *_ in seen} == {"auto", "light", "dark"}
    assert {(mode, theme) for mode, theme, _ in seen} == {("auto", "light"), ("light", "light"), ("dark", "dark")}
    assert len({paper for _, theme, paper in seen if theme == "light"}) == 1
    assert len({paper for *_, paper in seen}) == 2
    while state()[0] != "dark":
        desk.locator(".theme-switch-button:visible").click()
    desk.goto(f"{home}{PAGES[1]}.html")
    assert state()[:2] == ["dark", "dark"], "the next page forgets the choice"


@site_test
def test_search_finds_byte_pair_encoding(desk, home):
    desk.goto(f"{home}{PAGES[0]}.html")
    desk.locator("button.search-button-field:visible, button.search-button:visible").first.click()
    desk.locator("dialog[open] input[name=q]").fill("byte pair encoding")
    desk.keyboard.press("Enter")
    desk.wait_for_url("**/search.html?q=*")
    found = desk.locator("#search-results a[href*='02a_tokenizer.html']").first
    found.wait_for()
    found.click()
    desk.wait_for_url("**/nbs/02a_tokenizer.html*")
    assert "byte pair encoding" in desk.locator("article").inner_text().lower()


@site_test
def test_contents_open_on_a_phone(context, home):
    page = context.new_page()
    page.goto(f"{home}{PAGES[0]}.html")
    link = page.locator(f"nav.bd-links a[href$='{Path(PAGES[1]).name}.html']")
    assert not link.is_visible()
    page.locator("button.primary-toggle").click()
    page.locator("dialog[open]").wait_for()
    link.click()
    page.wait_for_url(f"**/{PAGES[1]}.html")
    page.close()


@site_test
def test_unknown_address_gets_a_page_that_works(desk, home):
    seen = []
    desk.on("response", lambda answer: seen.append((answer.status, answer.url)))
    assert desk.goto(f"{home}no/such/page.html").status == 404
    assert "no page" in desk.locator("article").inner_text()
    assert [url for status, url in seen[1:] if status != 200] == []
    desk.locator("a.navbar-brand").first.click()
    desk.wait_for_url(f"{home}{PAGES[0]}.html")


# What stands in the pages


@site_test
def test_links_lead_somewhere(site, public, lines):
    files = {path.relative_to(SITE).as_posix() for path in SITE.rglob("*") if path.is_file()}
    lines(checks.broken_links(site, files, public))


@site_test
@pytest.mark.parametrize("check", [checks.pictures_without_words, checks.doubled_ids, checks.leaks,
                                   checks.bad_formulas], ids=lambda check: check.__name__)
def test_pages_hold_no(site, check, lines):
    lines(f"{path}: {fault}" for path, soup in site.items() for fault in check(soup))


@site_test
def test_pages_name_no_other_host(site, public, lines):
    told = [f"{path}: {fault}" for path, soup in site.items() for fault in checks.foreign_parts(soup, public)]
    for style in SITE.rglob("*.css"):
        loads = re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^'\")\s]+", style.read_text(encoding="utf-8"))
        told += [f"{style.relative_to(SITE).as_posix()}: {what}" for what in loads]
    lines(told)


@site_test
@each_notebook
def test_page_opens_elsewhere(site, repository, page):
    path = f"{page}.ipynb"
    owner = urlsplit(repository).path.strip("/")
    links = {a.get_text(strip=True): a["href"] for a in site[f"{page}.html"].select(".article-header-buttons a[href]")}
    assert links["Binder"] == f"https://mybinder.org/v2/gh/{owner}/main?urlpath=lab/tree/{path}"
    assert links["Colab"] == f"https://colab.research.google.com/github/{owner}/blob/main/{path}"


@site_test
@each_page
def test_page_leads_to_its_source(site, repository, page):
    source = next(f"{page}{end}" for end in (".ipynb", ".md") if (ROOT / f"{page}{end}").exists())
    links = {a.get_text(strip=True): a["href"] for a in site[f"{page}.html"].select(".article-header-buttons a[href]")}
    assert links["Repository"] == repository
    assert links["Suggest edit"] == f"{repository}/edit/main/{source}"
    assert links["Open issue"].startswith(f"{repository}/issues/new?")
    assert f"{page}.html" in unquote(links["Open issue"])


@site_test
def test_formulas_are_there(site, pages, lines):
    told = []
    for page in pages:
        if f"nbs/{page.name}" in PAGES:
            text = "\n".join(cell.source for cell in page.cells if cell.kind == "markdown")
            text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
            wanted = len(re.findall(r"\$\$.+?\$\$", text, re.DOTALL))
            found = len(site[f"nbs/{page.name}.html"].select("math[display=block]"))
            if found < wanted:
                told.append(f"{page.file}: {wanted} displayed formulas, but {found} on the page")
    lines(told)


def public_name(node):
    "Name what a statement gives to others: a function, a class, or a method that `patch` adds to a class."
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
        return None
    if any(ast.unparse(decorator).partition("(")[0] == "patch" for decorator in node.decorator_list):
        return f"{ast.unparse(node.args.args[0].annotation)}.{node.name}"
    return node.name


@site_test
def test_exported_code_page_and_library_lead_to_one_another(site, pages, lines):
    told, places = [], {path: {e["id"]: e for e in soup.find_all(id=True)} for path, soup in site.items()}

    def links(element, path):
        return [urljoin(path, a["href"]) for a in element.select("a[href]")]

    for page in pages:
        path, api = f"nbs/{page.name}.html", f"nbs/api/{page.module}.html"
        source = f"_modules/llm_literate/{page.module}.html"
        if path not in site or not page.module:
            continue
        for cell in page.cells:
            if not (cell.exported and cell.shown):
                continue
            for name in filter(None, map(public_name, ast.parse(cell.code).body)):
                full = f"llm_literate.{page.module}.{name}"
                here = places[path].get(f"def-{name}")
                after = here and here.find_next(class_="lit-export")
                entry, code = (places.get(p, {}).get(i) for p, i in [(api, full), (source, name)])
                if not after or not {source, f"{api}#{full}"} <= set(links(after, path)):
                    told.append(f"{page.file}: the line under {name} does not lead to {source} and {api}#{full}")
                if not entry or f"{path}#def-{name}" not in links(entry, api):
                    told.append(f"{api}: {name} does not lead to {path}#def-{name}")
                if "." in name:  # a method added later: Sphinx does not find its source
                    continue
                if entry and f"{source}#{name}" not in links(entry, api):
                    told.append(f"{api}: {name} does not lead to {source}#{name}")
                if not code or f"{api}#{full}" not in links(code, source):
                    told.append(f"{source}: {name} does not lead back to {api}")
    lines(told)


@site_test
@pytest.mark.parametrize("page", CHAPTERS)
def test_chapter_leads_to_the_glossary(site, page):
    terms = site[f"{page}.html"].select("article a:has(> .std-term)")
    assert terms, "no word of this page is linked to the glossary"
    entries = {dt["id"] for dt in site["nbs/glossary.html"].select("dl.glossary dt[id]")}
    assert {term["href"] for term in terms} <= {f"glossary.html#{entry}" for entry in entries}


# What others see of it


@site_test
def test_pages_introduce_themselves(site, public, lines):
    lines(f"{page}: {fault}" for page in PAGES
          for fault in checks.introduction_faults(site[f"{page}.html"], f"{public}{page}.html", public))


@site_test
def test_preview_picture_is_there(site, public):
    pictures = {meta["content"] for soup in site.values() for meta in soup.select("meta[property='og:image']")}
    assert len(pictures) == 1
    picture = (SITE / pictures.pop().removeprefix(public)).read_bytes()
    assert picture.startswith(b"\x89PNG") and struct.unpack(">II", picture[16:24]) == (1200, 630)


@site_test
def test_sitemap_lists_the_pages(site, public):
    listed = re.findall(r"<loc>(.*?)</loc>", (SITE / "sitemap.xml").read_text(encoding="utf-8"))
    places = {address.removeprefix(public) for address in listed}
    assert {f"{page}.html" for page in PAGES} <= places
    generated = re.compile(r"(genindex|py-modindex|_modules/[\w/]+)\.html")
    assert [place for place in places - {f"{page}.html" for page in PAGES} if not generated.fullmatch(place)] == []
    assert [place for place in places if place not in site] == []


# Every check can fail

PUBLIC = "https://example.org/book/"


@pytest.mark.parametrize(("body", "fault"), [
    ("<a href='gone.html'>x</a>", "'gone.html' (a) leads to no file"),
    ("<a href='b.html#gone'>x</a>", "'b.html#gone' leads to no place in b.html"),
    ("<a href='#gone'>x</a>", "'#gone' leads to no place in a.html"),
    ("<a href='/b.html'>x</a>", "'/b.html' leaves the site's folder"),
    ("<a href='../b.html'>x</a>", "'../b.html' leaves the site's folder"),
    ("<img src='gone.png'>", "'gone.png' (img) leads to no file"),
    ("<link href='sub/'>", "'sub/' (link) leads to no file"),
    ("<meta http-equiv='Refresh' content='0; url=gone.html'>", "'gone.html' (meta) leads to no file"),
    (f"<a href='{PUBLIC}gone.html'>x</a>", f"'{PUBLIC}gone.html' (a) leads to no file"),
    ("<a href='b.html?q=1#in%20b'>x</a><a href='/book/b.html'>x</a><a href='https://other.org/'>x</a><a href='#'>x</a>"
     "<a href='mailto:a@b.c'>x</a><a href='data:,x'>x</a><a href='./'>x</a><a href='b.html#old'>x</a>", None),
])
def test_broken_links_are_found(body, fault):
    site = {"a.html": checks.parse(body), "b.html": checks.parse("<p id='in b'><a name='old'></a>")}
    found = list(checks.broken_links(site, {"a.html", "b.html", "index.html"}, PUBLIC))
    assert found == ([f"a.html: {fault}"] if fault else [])


@pytest.mark.parametrize(("check", "body", "faults"), [
    (checks.pictures_without_words, "<img src='x.png'>", 1),
    (checks.pictures_without_words, "<img src='x.png' alt=' '>", 1),
    (checks.pictures_without_words, "<img src='../x.png' alt='../x.png'>", 1),
    (checks.pictures_without_words, "<svg><g/></svg>", 2),
    (checks.pictures_without_words, "<svg role='img' aria-label=''></svg>", 1),
    (checks.pictures_without_words, "<svg aria-label='An arrow'></svg>", 1),
    (checks.pictures_without_words, "<a href='./'><img src='x.png' alt=''></a>", 1),
    (checks.pictures_without_words, "<a href='./'><img src='x.png' alt=''> Home</a>", 0),
    (checks.pictures_without_words, "<img src='x.png' alt='A tree'><svg role='img' aria-label='An arrow'><svg/></svg>"
                                    "<svg aria-hidden='true'></svg>", 0),
    (checks.doubled_ids, "<p id='a'><p id='b'><p id='a'>", 1),
    (checks.doubled_ids, "<p id='a'><p id='b'><p id='exercise-content'><p id='exercise-content'>", 0),
    (checks.leaks, "<p>costs $$x^2$$ a day</p>", 1),
    (checks.leaks, r"<p>where \(x\) is</p>", 1),
    (checks.leaks, "<p>#| export</p>", 1),
    (checks.leaks, "<div class='cell_input'><pre>#| echo: false\nx</pre></div>", 1),
    (checks.leaks, "<p>:::{note}</p>", 1),
    (checks.leaks, "<p>a {term}<code>token</code></p>", 1),
    (checks.leaks, "<p>a <span class='problematic'>thing</span></p>", 1),
    (checks.leaks, "<p>a <code>#| export</code> for $5 and <a>$6</a></p><pre>x = '$$'</pre>", 0),
    (checks.bad_formulas, "<span class='math'>x^2</span>", 1),
    (checks.bad_formulas, r"<math><mi>\foo</mi></math>", 1),
    (checks.bad_formulas, "<math></math>", 1),
    (checks.bad_formulas, "<div class='math'><math><mi>x</mi></math></div>", 0),
])
def test_faults_of_a_page_are_found(check, body, faults):
    assert len(list(check(checks.parse(body)))) == faults


GOOD_HEAD = f"""<title>Words – book</title><link rel="icon" href="x.svg"><link rel="canonical" href="{PUBLIC}a.html">
<meta property="og:url" content="{PUBLIC}a.html"><meta property="og:title" content="Words">
<meta property="og:site_name" content="book"><meta property="og:image" content="{PUBLIC}x.png">
<meta property="og:image:alt" content="book">
<meta property="og:description" content="What words are, and how they come.">
<meta name="description" content="What words are, and how they come.">"""


@pytest.mark.parametrize(("old", "new", "faults"), [
    ("", "", 0),
    ("a.html", "b.html", 2),
    (f'"{PUBLIC}a.html"><meta', '"a.html"><meta', 1),
    ('"Words"', '"Sentences"', 1),
    ('"book"', '"Project name not set"', 2),
    ("What words are", "exported to x.py", 2),
    ("og:description", "og:nothing", 1),
    (f"{PUBLIC}x.png", "x.png", 1),
    ("icon", "ikon", 1),
])
def test_faults_of_an_introduction_are_found(old, new, faults):
    soup = checks.parse(GOOD_HEAD.replace(old, new))
    assert len(list(checks.introduction_faults(soup, f"{PUBLIC}a.html", PUBLIC))) == faults


@pytest.mark.parametrize(("body", "faults"), [
    ("<script src='https://cdn.org/x.js'></script>", 1),
    ("<link rel='preconnect' href='https://cdn.org'>", 1),
    ("<img srcset='//cdn.org/x.png 2x'>", 1),
    (f"<a href='https://other.org/'>x</a><link rel='canonical' href='{PUBLIC}'><script src='x.js'></script>", 0),
])
def test_foreign_parts_are_found(body, faults):
    assert len(list(checks.foreign_parts(checks.parse(body), PUBLIC))) == faults


BAD_PAGE = """<!doctype html><html lang="en"><head><title>Bad</title><style>
  body { background: white; font: 16px sans-serif } html[data-theme=dark] body { background: #111; color: #ddd }
  .folded { color: #999 } html[data-theme=dark] figcaption { color: #333 }
  html[data-theme=dark] p { color: #ddd !important }
  html[data-theme=dark] .link { color: #88f !important; text-decoration: underline !important }
</style><script>
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => { document.documentElement.dataset.theme = dark.matches ? "dark" : "light" };
  dark.onchange = paint; paint();
</script></head><body><article>
  <h1>A page with everything wrong</h1><p>But this is readable. <span style="color: #0008">This is not.</span></p>
  <div style="overflow-x: auto" tabindex="0"><div style="width: 600px">may be wide</div></div>
  <div class="too-wide" style="width: 500px">wide</div>
  <p style="color: #222">Here a <a href="#" style="color: #00f; text-decoration: none" class="link">link</a> hides.</p>
  <details><summary>fold</summary><p class="folded">faint and folded</p></details>
  <figure><svg role="img" aria-label="boxes" width="300" height="60" style="color: inherit">
    <rect width="90" height="50" fill="#246"/><text x="5" y="20" fill="#000">on dark</text>
    <rect x="100" width="90" height="50" fill="#246"/><text x="105" y="20" fill="#fff">good</text>
    <text x="205" y="20" fill="currentColor">free</text>
    <text x="205" y="40" fill="#000">black</text>
  </svg><figcaption>a caption</figcaption></figure>
  <button></button><img src="x.png"><img src="http://other.invalid/y.png" alt="y">
  <a class="headerlink" style="color: #eee">chrome</a>
</article><script>console.error("told"); throw new Error("thrown")</script></body></html>"""


@site_test
def test_browser_finds_what_is_wrong(context, tmp_path):
    (tmp_path / "bad.html").write_text(BAD_PAGE, encoding="utf-8")
    (tmp_path / "404.html").write_text("not here", encoding="utf-8")
    with checks.served(tmp_path) as home:
        seen = checks.measure(context, f"{home}bad.html", home)
        page, gone = checks.open_page(context, f"{home}a/b.html", home)
        assert gone.status == 404 and page.content().count("not here") == 1
        page.goto(f"{home}bad.html")
        checks.inject_axe(page)
        contrast = checks.run_axe(page, runOnly=["color-contrast"])
        page.close()
    assert seen.status == 200
    assert seen.foreign == ["http://other.invalid/y.png"]
    for word in ("told", "script: thrown", f"{home}x.png"):
        assert any(word in error for error in seen.errors), word
    assert [line.partition(' "')[0] for line in seen.wide[1:]] == ["div.too-wide"]
    assert seen.wide[0].startswith("the page is 5")
    assert [line.partition(" ")[0] for line in seen.faint["light"]] == ["span", "p.folded", "text"]
    assert [line.partition(" ")[0] for line in seen.faint["dark"]] == ["span", "text", "text", "figcaption"]
    assert any("#000000 on #224466" in line for line in seen.faint["light"])
    rules = {theme: [line.split(",")[0].split(": ")[1] for line in told] for theme, told in seen.axe.items()}
    assert rules == {"light": ["link-in-text-block"], "dark": ["button-name", "image-alt"]}
    assert len(contrast) == 1 and contrast[0].count("<span") == 1, "axe and we disagree about the text in HTML"
