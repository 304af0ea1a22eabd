"""What helps a reader: times, the way, glossary links, a search for numbers and Vietnamese names, the book on paper."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
from urllib.parse import quote

import pytest
import site_checks as checks

from llm_literate import book, printing, reading

nodes = pytest.importorskip("docutils.nodes", reason="pages are trees of docutils, which `make setup` installs")
yaml = pytest.importorskip("yaml", reason="reading _toc.yml needs PyYAML, which `make setup` installs")

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"
CHAPTER = re.compile(r"nbs/(\d\d|[ACDE]\d?_)")
STARTS = ("02a0_words", "03a_self_attention", "04a_building_blocks", "05a0_loss", "06_classification",
          "07a_instructions")


@pytest.fixture(scope="module")
def contents():
    "Give the pages of the book in order."
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [page for _, pages in printing.book_parts(toc) for page in pages]


@pytest.fixture(scope="module")
def glossary():
    "Give the glossary as it stands."
    return (ROOT / "nbs" / "glossary.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site():
    "Give the built pages."
    pytest.importorskip("bs4")
    if not (SITE / "nbs" / "glossary.html").exists():
        checks.missing("there is no built site in _build/html: run `make book`")
    return checks.read_site(SITE / "nbs")


# The glossary


def test_every_entry_has_a_vietnamese_name_and_a_meaning(glossary, lines):
    terms = reading.read_glossary(glossary)
    block = glossary.partition(":::{glossary}\n")[2].partition("\n:::")[0]
    told = []
    for entry in re.split(r"\n\n(?=\S)", block.strip()):
        term, *rest = entry.split("\n")
        meaning = " ".join(line.strip() for line in rest if "lit-vi" not in line).strip()
        if not terms[term]:
            told.append(f"nbs/glossary.md: {term} has no Vietnamese name; write it like its neighbours do")
        if len(meaning.split()) < 3 or not meaning.endswith((".", "?")):
            told.append(f"nbs/glossary.md: {term} has no meaning; say in a sentence what it is")
    lines(told)
    assert len(terms) == len(re.split(r"\n\n(?=\S)", block.strip())) > 120


def test_entries_are_in_order_and_none_stands_twice(glossary):
    terms = list(reading.read_glossary(glossary))  # which refuses doubles
    assert len({term.lower() for term in terms}) == len(terms)
    key = [re.sub(r"[^a-z0-9 ]", "", term.lower().replace("-", " ")) for term in terms]
    assert key == sorted(key)


def test_no_vietnamese_name_stands_for_two_terms(glossary):
    names = [name for found in reading.read_glossary(glossary).values() for name, kept in found if not kept]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []
    assert all(any(ord(letter) > 127 for letter in name) for name in names if "one-hot" not in name)


def test_a_double_entry_is_refused(glossary):
    with pytest.raises(ValueError, match="'batch' twice"):
        reading.read_glossary(glossary.replace("\nbias\n", "\nbatch\n"))


def test_everyday_words_are_terms(glossary):
    assert set(reading.read_glossary(glossary)) >= reading.EVERYDAY


@pytest.mark.parametrize("words", [
    "a ă â b c d đ e ê g i o ô ơ u ư y", "ma mà mả mã má mạ", "dấu đầu", "tăng tấm tầng", "mạng mất mầu mè",
    "ma_trận mã_hóa mạng"])
def test_vietnamese_order(words):
    words = [word.replace("_", " ") for word in words.split()]
    assert sorted(reversed(words), key=reading.vietnamese_order) == words


def test_plain_letters():
    assert reading.plain_letters("Độ lệch chuẩn") == "Do lech chuan"


# Links at the first use


def tree(*paragraphs):
    from docutils.utils import new_document

    document = new_document("page")
    for text in paragraphs:
        document += nodes.paragraph("", "", *([nodes.Text(text)] if isinstance(text, str) else text))
    return document


def links(document):
    from sphinx import addnodes

    return [(link.astext(), link["reftarget"]) for link in document.findall(addnodes.pending_xref)]


def test_only_the_first_use_is_linked_and_the_text_stays():
    document = tree("Self-attention is not attention. Tokens, a token.", "More attention for special tokens.")
    before = document.astext()
    terms = ["attention", "self-attention", "token", "special token"]
    assert reading.link_terms(document, terms, "nbs/x") == ["self-attention", "attention", "token", "special token"]
    assert links(document) == [("Self-attention", "self-attention"), ("attention", "attention"), ("Tokens", "token"),
                               ("special tokens", "special token")]
    assert document.astext() == before


def test_code_links_and_everyday_words_stay_as_they_are():
    from sphinx import addnodes

    by_hand = addnodes.pending_xref("", nodes.Text("batches"), reftype="term", reftarget="Batch")
    document = tree([nodes.literal("", "softmax")], [by_hand, nodes.Text(" of a batch")], "The key is a value.")
    assert reading.link_terms(document, ["softmax", "batch", "key", "value"], "nbs/x") == []


@pytest.mark.site
def test_every_term_is_linked_on_each_chapter_page_that_uses_it(site, contents, glossary, lines):
    terms = [term for term in reading.read_glossary(glossary) if term not in reading.EVERYDAY]
    told = []
    for page in filter(CHAPTER.match, contents):
        soup = site[f"{page.removeprefix('nbs/')}.html"]
        linked = {a["href"].partition("#")[2] for a in soup.select("article a:has(> .std-term)")}
        running = [p for p in soup.select("article p") if not p.find_parent(
            ["blockquote", "figcaption", "table", "details"]) and not p.find_parent(class_=re.compile(
                "exercise|solution|cell_output|caption")) and "lit-export" not in p.get("class", [])
            and "lit-times" not in p.get("class", [])]
        for p in running:
            for part in p.find_all(["a", "code", "math", "span"]):
                part.extract()
        text = " ".join(p.get_text() for p in running)
        for term in terms:
            anchor = "term-" + re.sub(r"[^a-zA-Z0-9]+", "-", term).strip("-")
            if anchor not in linked and reading.term_pattern([term]).search(text):
                told.append(f"{page}: uses {term!r} and never links it")
    lines(told)


# The top of a page


def page_of(*cells):
    return json.dumps({"cells": [{"cell_type": kind, "source": source} for kind, source in cells]})


def test_reading_time_counts_what_is_seen():
    words, code = ("markdown", "word " * 200), ("code", "x = 1\n" * 30)
    assert reading.reading_minutes(page_of(words, code)) == 2
    hidden = [("code", f"{line}\n" + "x = 1\n" * 30) for line in ("#| hide", "#| echo: false", "#| code-fold: true")]
    solution = [("markdown", ":::{solution-start} ex\n:::"), code, ("markdown", "no\n\n:::{solution-end}\n:::")]
    assert reading.reading_minutes(page_of(words, code, *hidden, *solution)) == 2
    assert reading.reading_minutes(page_of(*solution, words, ("code", "#| export\nx = 1"))) == 1 + 1 / 30
    both = ("markdown", "word " * 200 + "\n\n:::{solution-start} ex\n:::\n\nno"), code, solution[-1]
    assert reading.reading_minutes(page_of(*both)) == 1


def test_formulas_and_addresses_are_not_words():
    text = "# A title\n\n$$x = y$$ and [a link](https://example.org/a-b) $z$ ```\ncode\n``` <b>x</b>"
    assert reading.prose_words(text) == 6


@pytest.mark.parametrize(("minutes", "seconds", "line"), [
    (0.1, 0.2, "About 1 minute to read, less than a second to run."),
    (12.4, 1.2, "About 12 minutes to read, 1 second to run."),
    (2, 150, "About 2 minutes to read, 2 minutes to run."), (7, None, "About 7 minutes to read.")])
def test_times_line(minutes, seconds, line):
    assert reading.times_line(minutes, seconds) == line


def test_steps_and_homes_exist(contents):
    pages = [page.removeprefix("nbs/") for page in contents]
    assert set(reading.HOMES) <= set(pages)
    assert [reading.step_of(home) for home in reading.HOMES] == list(range(1, 10))
    assert [start for start in reading.STEPS if not any(page.startswith(start) for page in pages)] == []
    assert [page for page in pages if re.match(r"\d\d", page) and reading.step_of(page) is None] == []


def test_first_page_of_a_chapter_shows_the_roadmap(pages, lines):
    named = {page.name: page for page in pages}
    lines(f"nbs/{name}.ipynb: begins a chapter without figures.roadmap(…); add it among the first cells"
          for name in STARTS
          if not any("figures.roadmap(" in cell.source for cell in named[name].cells[:12]))


@pytest.mark.site
def test_every_page_tells_where_it_is_and_how_long_it_takes(site, contents, lines):
    told = []
    for page in contents:
        soup = site[f"{page.removeprefix('nbs/')}.html"]
        if not (ROOT / f"{page}.ipynb").exists():
            continue
        times = [p.get_text() for p in soup.select("article .lit-times")]
        if len(times) != 1 or not re.fullmatch(r"About \d+ minutes? to read, .* to run\.", times[0]):
            told.append(f"{page}: says {times} about its time")
        step = reading.step_of(page)
        current = [int(a.get_text().split()[0]) for a in soup.select("nav.lit-way a[aria-current=step]")]
        if current != ([step] if step else []):
            told.append(f"{page}: marks the steps {current}, belongs to {step}")
        if (step is not None) != (len(soup.select("nav.lit-way li")) == 9):
            told.append(f"{page}: shows {len(soup.select('nav.lit-way li'))} steps")
    lines(told)


@pytest.mark.site
def test_previous_and_next_follow_the_contents(site, contents, lines):
    told = []
    for number, page in enumerate(contents):
        soup = site[f"{page.removeprefix('nbs/')}.html"]
        for sign, there in (("left-prev", contents[number - 1] if number else None),
                            ("right-next", contents[number + 1] if number + 1 < len(contents) else None)):
            found = soup.select_one(f"a.{sign}")
            goes = found and os.path.normpath(Path(page).parent / found["href"]).removesuffix(".html")
            if goes != there:
                told.append(f"{page}: {sign} leads to {goes}, the contents say {there}")
    lines(told)


# What a page takes


def test_budgets_are_told_with_their_mend():
    assert book.over_budget("nbs/x", 1_400_000_000, 100) == []
    slow, large = book.over_budget("nbs/06b_spam_filter", 1_700_000_000, 400)
    assert slow == ("nbs/06b_spam_filter.ipynb: takes 400 s of processor time, at most 360; make it smaller, "
                    "then make page PAGE=06b_spam_filter")
    assert "needs 1.7 GB of memory, at most 1.5" in large


@pytest.mark.parametrize(("term", "plural"), [
    ("batch", "batches"), ("loss", "losses"), ("softmax", "softmaxes"), ("vocabulary", "vocabularies"),
    ("key", "keys"), ("epoch", "epochs"), ("token", "tokens"), ("bias", "biases")])
def test_plurals_are_found_as_they_are_written(term, plural):
    assert reading.term_pattern([term]).findall(f"A {term}, two {plural}; no x{plural}, no {term}ss") == [term, plural]


# The search

@pytest.mark.parametrize("typeset", [set(), {"nbs/a"}, {"nbs/a", "nbs/b"}])
def test_entries_of_pages_that_a_build_left_alone_are_kept(typeset):
    places = {"nbs/a": [("3.5.2", "dropout")], "nbs/b": [("5.1.2", "loss")]}
    index = SimpleNamespace(_index_entries={page: [("other", "x", "main")] for page in typeset})
    app = SimpleNamespace(builder=SimpleNamespace(indexer=index), env=SimpleNamespace(found_docs=sorted(places)),
                          literate_places=places, literate_terms=[])
    with patch.object(reading, "search_entries", lambda page, places, terms: places[page]):
        assert reading._add_entries(app) == reading._add_entries(app) == []
    for page, [(typed, anchor)] in places.items():
        assert index._index_entries[page].count((typed, anchor, "main")) == 1
        assert (("other", "x", "main") in index._index_entries[page]) == (page in typeset)


@pytest.fixture(scope="module")
def search(site):
    "Give a function that asks the site's own search, in a browser."
    with checks.served(SITE) as home, checks.a_browser() as chromium:
        page = chromium.new_page()

        def ask(words):
            page.goto(f"{home}search.html?q={quote(words)}")
            page.locator("#search-results p.search-summary", has_text="found").wait_for()
            return [link.get_attribute("href") for link in page.locator("#search-results li a").all()[:4]]

        yield ask


@pytest.mark.site
@pytest.mark.parametrize(("words", "place"), [
    ("3.5.2", "nbs/03b_multi_head_attention.html#dropout"),
    ("5.1.2", "nbs/05a0_loss.html#perplexity"),
    ("Listing 3.1", "nbs/03a_self_attention.html#one-class"),
    ("listing 6.10", "nbs/06_classification.html#training"),
    ("lan truyền ngược", "nbs/glossary.html#term-backpropagation"),
    ("lan truyen nguoc", "nbs/glossary.html#term-backpropagation"),
    ("mạng nơ-ron", "nbs/glossary.html#term-neural-network"),
    ("tốc độ học", "nbs/glossary.html#term-learning-rate"),
])
def test_search_finds_numbers_and_vietnamese_names(search, words, place):
    assert place in search(words)


@pytest.mark.site
def test_vietnamese_is_marked_as_vietnamese(site):
    entries = site["glossary.html"].select("dl.glossary dd")
    assert all(entry.select(".lit-vi") for entry in entries) and len(entries) > 120
    foreign = [span for span in site["glossary.html"].select(".lit-vi:not([lang])")]
    assert [span.get_text() for span in foreign if not span.get_text().isascii()] == []
    assert len(site["glossary.html"].select("table span[lang=vi]")) > 90


# Figures on a phone


@pytest.mark.site
def test_letters_of_figures_are_at_least_nine_pixels_on_a_phone(site, lines):
    told = []
    for path in sorted((SITE / "nbs").glob("*.html")):
        for number, found in enumerate(re.finditer(
                r'<svg role="img"[^>]*?viewBox="0 0 (\S+) \S+"[^>]*?min-width: (\d+)px.*?</svg>',
                path.read_text(encoding="utf-8"), re.S), start=1):
            width, least = float(found[1]), float(found[2])
            scale = max(least, min(350, width * 4 / 3)) / width
            sizes = {float(size) for size in re.findall(r"font(?:-size)?: (?:\w+ )*?([\d.]+)px", found[0])}
            # raised figures of a logarithmic axis are 0.7 of their base
            small = {size for size in sizes if size * scale < 8.9 and round(size / 0.7, 2) not in sizes}
            if small:
                told.append(f"{path.stem}: figure {number} has letters of {min(small) * scale:.1f} pixels on a phone; "
                            f"give them at least 10 points")
    lines(told)


# The book on paper


@pytest.mark.parametrize(("page", "address", "there"), [
    ("nbs/a", "b.html#x", "#nbs-b--x"), ("nbs/a", "#x", "#nbs-a--x"), ("nbs/api/c", "../a.html", "#nbs-a"),
    ("nbs/a", "https://example.org", "https://example.org"), ("nbs/a", "../genindex.html", None)])
def test_links_move_with_their_pages(page, address, there):
    assert printing.moved_link(page, address, {"nbs/a", "nbs/b", "nbs/api/c"}) == there


def small_site(root):
    "Write a site of three pages, as the theme would."
    (root / "_build" / "html" / "nbs").mkdir(parents=True)
    (root / "_build" / "html" / "search.html").write_text('<link rel="stylesheet" href="_static/x.css?v=1">')
    (root / "_toc.yml").write_text("format: jb-book\nroot: nbs/index\nparts:\n- caption: Two pages\n  chapters:\n"
                                   "  - file: nbs/one\n  - file: nbs/two\n")
    (root / "_config.yml").write_text("title: A small book\nauthor: Nobody\nhtml: {baseurl: 'https://example.org/'}\n")
    menu = '<ul class="dropdown-menu"><li><button class="btn-download-pdf-button">.pdf</button></li></ul>'
    svg = '<svg role="img" viewBox="0 0 9 9"><defs><path id="p"></path></defs><use href="#p"></use></svg>'
    for name, title, text in [
            ("index", "The beginning", 'See <a href="two.html#end">the end</a>. <span class="lit-pdf-place"></span>'),
            ("one", "First page", f"<script>no</script>{svg}<pre><span class='n'>x</span> "
             "<span class='k'>if</span></pre>"),
            ("two", "Second page", '<p id="end">The end. <a href="../genindex.html">index</a></p>')]:
        (root / "_build" / "html" / "nbs" / f"{name}.html").write_text(
            f'<html>{menu}<article class="bd-article"><section id="top"><h1>{title}'
            f'<a class="headerlink" href="#top">#</a></h1>{text}</section></article></html>')
    return root


def test_drawings_stay_whole_and_code_keeps_its_colours(tmp_path):
    site = small_site(tmp_path) / "_build" / "html"
    title, article = printing.read_pages(site, ["nbs/one"])["nbs/one"]
    assert title == "First page"
    assert '<path id="p"></path>' in article and 'href="#p"' in article
    assert '<pre>x <span class="k">if</span></pre>' in article and "no</script>" not in article


def test_a_small_book_is_printed_with_numbers_and_links(tmp_path):
    pypdf, root = pytest.importorskip("pypdf"), small_site(tmp_path)
    if not printing.find_browser():
        checks.missing("there is no Chromium on this machine: install chromium or google-chrome")
    pages = root / "_build" / "html" / "nbs"
    assert printing.offer_pdf(root / "_build" / "html") == 0
    assert "llm_literate.pdf" not in (pages / "one.html").read_text()
    reader = pypdf.PdfReader(printing.make_pdf(root))
    sheets = [sheet.extract_text() for sheet in reader.pages]
    assert "A small book" in sheets[0] and "Nobody" in sheets[0]
    contents = " ".join(sheets[1].split())
    assert re.search(r"The beginning ?3 .*Two pages .*First page ?4 .*Second page ?5", contents), contents
    assert [sheet.split("\n")[1] for sheet in sheets[2:]] == ["The beginning", "First page", "Second page"]
    outline = [item.title for item in reader.outline if not isinstance(item, list)]
    assert outline == ["The beginning", "Two pages"] and reader.metadata.title == "A small book"
    goals = {str(note.get_object().get("/Dest")) for note in reader.pages[2].get("/Annots", [])}
    assert goals == {"/nbs-two--end"} and "/nbs-two--end" in reader.named_destinations
    assert not list((root / "_build" / "html").glob("print.*"))
    offered = (pages / "index.html").read_text()
    assert 'href="../llm_literate.pdf">one PDF</a>' in offered and offered.count("whole book, .pdf") == 1
    assert printing.offer_pdf(root / "_build" / "html") == 0, "a second time changes nothing"


def test_without_a_site_or_a_browser_one_line_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="make book"):
        printing.make_pdf(tmp_path)
    monkeypatch.setattr(printing, "find_browser", lambda: "")
    with pytest.raises(FileNotFoundError, match="no Chromium"):
        printing.make_pdf(small_site(tmp_path))


def test_a_browser_that_fails_is_told_and_leaves_nothing(tmp_path):
    site = small_site(tmp_path) / "_build" / "html"
    with pytest.raises(RuntimeError, match="wrote no PDF"):
        printing.make_pdf(tmp_path, browser="/bin/false")
    assert not list(site.glob("*.pdf")) and not list(site.glob("print.*"))


@pytest.mark.site
def test_the_printed_book_has_every_page(site, contents, lines):
    pypdf, pdf = pytest.importorskip("pypdf"), SITE / printing.PDF
    links = [a["href"] for soup in site.values() for a in soup.select("a.lit-pdf")]
    if not pdf.exists():
        assert links == [], "pages link a PDF that is not there"
        pytest.skip("the book was not printed here: make pdf")
    assert len(links) > len(contents) / 2
    reader = pypdf.PdfReader(pdf)
    titles = [item.title for item in flat(reader.outline)]
    assert "llm_literate" in reader.pages[0].extract_text()
    starts = printing.page_numbers(pdf, contents)
    told = [f"{page}: has no place in the PDF" for page in contents if page not in starts]
    for page, sheet in starts.items():
        title = site[f"{page.removeprefix('nbs/')}.html"].find("h1").find(string=True).strip()
        text = " ".join(reader.pages[sheet - 1].extract_text().split())
        if not any(title in name for name in titles) or squeezed(title)[:20] not in squeezed(text):
            told.append(f"{page}: “{title}” does not stand on sheet {sheet}")
    lines(told)


def flat(outline):
    for item in outline:
        yield from flat(item) if isinstance(item, list) else [item]


def squeezed(text):
    return re.sub(r"\W|ﬁ|fi|ﬂ|fl", "", text).lower()
