"""The site's scripts: what is committed is what the pages say, and the figures that answer say what Python says.

The browser opens a page of its own, made of the frames that stand in the notebooks and the theme's style sheets,
so that no built site is needed; the tests marked `site` look at the built pages as well.
"""

import copy
import importlib
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
import site_checks as checks
import torch
from torch import nn

from llm_literate import scripts
from llm_literate.generate import new_cache
from llm_literate.lora import add_lora
from llm_literate.model import CONFIGS, GPTConfig, GPTModel
from llm_literate.tokenizer import BPETokenizer, cut_words, learn_merges
from llm_literate.train import warmup_cosine

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("bpe", "schedule", "lora", "cache")  # the figures that this page of the book explains
FRAME = re.compile(r'<div class="explorer".*?</script>', re.DOTALL)


# What is committed is what the pages say


def test_scripts_and_pages_in_sync(root, lines):
    lines(scripts.stale(root / "nbs"))


def notebook(*cells):
    "Write a notebook of markdown cells."
    return json.dumps({"cells": [{"cell_type": "markdown", "source": cell.splitlines(True)} for cell in cells]})


def block(name, code):
    "Write a fenced block that belongs to a file."
    return f"Words before.\n\n```js\n// file: {name}\n{code}\n```\n\nWords after."


@pytest.fixture
def folder(tmp_path):
    "Give a folder of two pages: one writes a.mjs in two pieces, the other b.mjs."
    nbs = tmp_path / "nbs"
    nbs.mkdir()
    pieces = [block("a.mjs", "const one = 1;"), "```js\nexample();\n```", block("a.mjs", "const two = `\n${one}`;")]
    (nbs / "01.ipynb").write_text(notebook(*pieces), encoding="utf-8")
    (nbs / "02.ipynb").write_text(notebook(block("b.mjs", "“ü”;")), encoding="utf-8")
    return nbs


def test_blocks_of_a_file_are_joined_and_examples_left_out(folder):
    found = scripts.tangled(folder)
    assert list(found) == ["a.mjs", "b.mjs"]
    head, rest = found["a.mjs"].split("\n", 1)
    assert head.startswith("// ") and "nbs/01.ipynb" in head and scripts.MEND in head
    assert rest == "\nconst one = 1;\n\nconst two = `\n${one}`;\n"


def test_code_that_only_looks_like_a_block_is_none(folder):
    cell = {"cell_type": "code", "source": block("c.mjs", "no").splitlines(True)}
    texts = [block("c.mjs", "no").replace("```js", "```python"), block("c.txt", "no"), block("../c.mjs", "no"),
             "```js\n\n// file: c.mjs\nno\n```", "````md\n```js\n// file: c.mjs\nno\n```\n````"]
    page = json.loads(notebook(*texts[:-1]))
    page["cells"].append(cell)
    (folder / "03.ipynb").write_text(json.dumps(page), encoding="utf-8")
    assert "c.mjs" not in scripts.tangled(folder)


def test_a_file_has_one_page(folder, monkeypatch, capsys):
    (folder / "03.ipynb").write_text(notebook(block("a.mjs", "three")), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.mjs.*nbs/01\.ipynb.*nbs/03\.ipynb"):
        scripts.tangled(folder)
    monkeypatch.chdir(folder.parent)
    assert scripts.main() == 1 and "nbs/03.ipynb" in capsys.readouterr().err


def test_what_is_stale_is_told_in_one_line_each(folder):
    scripts.tangle(folder)
    static = folder / "_static"
    assert scripts.stale(folder) == []
    (static / "a.mjs").write_text("// changed by hand\n", encoding="utf-8")
    (static / "b.mjs").rename(static / "old.mjs")
    told = scripts.stale(folder)
    assert [line.split(":")[0] for line in told] == [f"nbs/_static/{name}.mjs" for name in ("a", "b", "old")]
    assert told[0].endswith(scripts.MEND) and told[1].endswith(scripts.MEND)
    assert told[2].endswith("rm nbs/_static/old.mjs") and not any("\n" in line for line in told)


def test_the_command_mends_and_touches_nothing_else(folder):
    def run(cwd):
        return subprocess.run([sys.executable, "-m", "llm_literate.scripts"], cwd=cwd, capture_output=True, text=True,
                              check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})

    done = run(folder.parent)
    assert done.returncode == 0 and "a.mjs, b.mjs" in done.stdout
    (folder / "_static" / "b.mjs").write_text("// changed by hand\n", encoding="utf-8")
    old = (folder / "_static" / "a.mjs").stat().st_mtime_ns
    assert scripts.tangle(folder) == ["b.mjs"] and scripts.stale(folder) == []
    assert (folder / "_static" / "a.mjs").stat().st_mtime_ns == old
    lost = run(folder)
    assert lost.returncode == 1 and "nbs" in lost.stderr and "Traceback" not in lost.stderr


def test_a_build_brings_a_changed_script_though_no_page_changed(folder, tmp_path):
    application = checks.tool("sphinx.application")
    for name in scripts.SHIPPED:
        path = tmp_path / "llm_literate" / "assets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "index.rst").write_text("Title\n=====\n", encoding="utf-8")

    def build():
        settings = {"extensions": ["llm_literate.scripts"], "exclude_patterns": ["nbs", "llm_literate", "out"]}
        app = application.Sphinx(tmp_path, None, tmp_path / "out", tmp_path / "out" / "trees", "html", settings,
                                 status=None, warning=None)
        app.build()
        found = (tmp_path / "out" / "_static").glob("*.mjs")
        return {path.name: path.read_text(encoding="utf-8") for path in found}

    first = build()
    times = {name: (tmp_path / "out" / "_static" / name).stat().st_mtime_ns for name in scripts.SHIPPED}
    (folder / "02.ipynb").write_text(notebook(block("b.mjs", "new;")), encoding="utf-8")
    second = build()
    assert first["a.mjs"] == second["a.mjs"] and "ü" in first["b.mjs"] and "new;" in second["b.mjs"]
    assert times == {name: (tmp_path / "out" / "_static" / name).stat().st_mtime_ns for name in scripts.SHIPPED}


def test_scripts_can_be_coloured(root, lines):
    lexers, token = checks.tool("pygments.lexers"), checks.tool("pygments.token")
    told = []
    for path in sorted((root / "nbs" / "_static").glob("*.mjs")):
        bad = [text for kind, text in lexers.JavascriptLexer().get_tokens(path.read_text(encoding="utf-8"))
               if kind is token.Error]
        told += [f"nbs/_static/{path.name}: pygments stumbles over {bad[0]!r}, and the build would stop; "
                 "write it in another way on its page"] if bad else []
    lines(told)


def frames(pages):
    "Yield (page, name of the figure, its frame) for every figure that answers."
    for page in pages:
        for cell in page.cells:
            if cell.kind == "markdown":
                for found in FRAME.findall(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)):
                    yield page, re.search(r'data-explorer="(\w+)"', found)[1], found


def test_frames_are_whole(root, pages, lines):
    told, seen = [], set()
    for page, name, frame in frames(pages):
        seen.add(name)
        labels = {d.split(": ")[1] for cell in page.cells for d in cell.directives if d.startswith("label: ")}
        script = re.search(r'<script type="module" src="\.\./_static/([\w.]+)">', frame)
        still = re.search(r'data-still="([\w-]+)"', frame)
        path = root / "nbs" / "_static" / (script[1] if script else "")
        wrong = [
            (not script or not path.is_file(), "names no script of nbs/_static"),
            (path.is_file() and f'explorer("{name}"' not in path.read_text(encoding="utf-8"), "loads another's script"),
            (not re.search(r'data-label="[^"]{5,}"', frame), "has no data-label for screen readers"),
            (not re.search(r'<p class="explorer-still">[^<]', frame), "has no line for where scripts are off"),
            (still and still[1] not in labels, "stands for a drawing that the page does not have"),
        ]
        told += [f"{page.file}: the figure {name!r} {what}; mend its cell" for fault, what in wrong if fault]
    lines(told)
    assert seen >= set(NAMES)


# In the browser


@pytest.fixture(scope="module")
def browser():
    "Give one browser for all tests."
    with checks.a_browser() as chromium:
        yield chromium


PAGE = """<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Figures</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">{styles}</head>
<body><main><article class="bd-article"><h1>Figures</h1>{figures}</article></main></body></html>"""
STILL = """<div class="cell" id="{label}"><div class="cell_output">
<svg role="img" aria-label="drawing" width="9" height="9"></svg></div></div>"""


@pytest.fixture(scope="module")
def place(pages, tmp_path_factory):
    "Write a page with the four figures into a folder like the site's, and give the folder."
    site = tmp_path_factory.mktemp("site")
    (site / "nbs").mkdir()
    theme = importlib.util.find_spec("pydata_sphinx_theme")
    if not theme:
        checks.tool("pydata_sphinx_theme")
    shutil.copytree(Path(theme.origin).parent / "theme" / "pydata_sphinx_theme" / "static" / "styles",
                    site / "_static" / "styles")
    scripts.tangle(ROOT / "nbs", site / "_static")
    for name in ("book.css", "explorers.css"):
        shutil.copy(ROOT / "nbs" / "_static" / name, site / "_static")
    sheets = ["styles/theme.css", "styles/pydata-sphinx-theme.css", "book.css", "explorers.css"]
    found = {name: frame for _, name, frame in frames(pages) if name in NAMES}
    stills = [re.search(r'data-still="([\w-]+)"', found[name]) for name in NAMES]
    figures = [(STILL.format(label=still[1]) if still else "") + found[name]
               for name, still in zip(NAMES, stills, strict=True)]
    text = PAGE.format(styles="".join(f'<link rel="stylesheet" href="../_static/{sheet}">' for sheet in sheets),
                       figures="\n".join(figures))
    (site / "_static" / "basic.css").touch()  # Sphinx's own, which the theme's begins with
    (site / "nbs" / "figures.html").write_text(text, encoding="utf-8")
    return site


@pytest.fixture(scope="module")
def home(place):
    "Serve that folder, and give its address."
    with checks.served(place) as home:
        yield home


@contextmanager
def opened(browser, home):
    "Open the page, and see to it that the browser has nothing to say and asks nobody else."
    said = []
    with browser.new_context(viewport=checks.PHONE, reduced_motion="reduce", color_scheme="light") as context:
        page = context.new_page()
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"script: {error}"))
        page.on("requestfailed", lambda request: said.append(f"not loaded: {request.url}"))
        page.on("request", lambda request: request.url.startswith((home, "data:"))
                or said.append(f"asks {request.url}"))
        page.goto(f"{home}nbs/figures.html")
        page.wait_for_function("n => document.querySelectorAll('[data-ready]').length === n", arg=len(NAMES))
        yield page
    assert said == []


@pytest.fixture
def page(browser, home):
    "Give a page that nobody has used."
    with opened(browser, home) as page:
        yield page


@pytest.fixture(scope="module")
def call(browser, home):
    "Give a function that calls one of a script's functions with each of a list of arguments."
    with opened(browser, home) as page:
        yield lambda module, function, calls: page.evaluate("""async ([module, name, calls]) => {
            const found = (await import(`../_static/${module}.mjs`))[name];
            return calls.map(call => found(...call));
        }""", [module, function, calls])


class Keys:
    "Use one figure by keyboard alone."

    def __init__(self, page, name):
        self.page, self.figure = page, page.locator(f'[data-explorer="{name}"]')
        self.board = page.keyboard
        self.figure.locator("button, input, select, textarea").first.focus()

    def reach(self, label):
        "Press Tab until the control with this label has the focus."
        told = """([figure]) => {
            const here = document.activeElement;
            if (!figure.contains(here)) return null;
            return [here.labels?.[0]?.textContent ?? here.textContent, here.tagName + (here.type ?? "")];
        }"""
        seen = []
        for _ in range(80):
            if (now := self.page.evaluate(told, [self.figure.element_handle()])) and now[0] == label:
                return self
            seen.append(now)
            self.board.press("Tab")
        raise AssertionError(f"no key leads to {label!r}, only to {seen}")

    def press(self, *keys):
        "Press keys one after the other."
        for key in keys:
            self.board.press(key)
        return self

    @property
    def value(self):  # what a screen reader says of the slider that has the focus
        return self.page.evaluate("document.activeElement.getAttribute('aria-valuetext')")

    @property
    def says(self):  # the line that is read aloud
        return self.figure.get_by_role("status").inner_text()

    @property
    def words(self):  # what stands for the drawing
        return self.figure.get_by_role("img").get_attribute("aria-label")


def number(text):
    "Read a number as it is written for people."
    return float(text.replace(",", ""))


TEXTS = ["the baker bakes, the bakers baked", "", "a", "aaaa aaaa aaa", "héé hé 🍞🍞 ñandú ñandú",
         "x\n\n  y\tz  \n 'll I'll", "\x1c\x85a\ufeff\ufeffb\u3000c\u200bd \xa0e",
         "don't won't can't 1234 1234 12 %% %%"]


def random_texts(n):
    "Write texts in which pairs repeat and ties are many."
    dice = random.Random(7)
    return ["".join(dice.choices("abc  \né'1", k=dice.randint(5, 120))) for _ in range(n)]


def test_words_are_cut_as_in_python(call):
    signs = [sign for sign in map(chr, range(0x3100)) if unicodedata.category(sign) != "Cn"]  # in all Unicodes of today
    texts = TEXTS + random_texts(20) + [f"a{sign}{sign} {sign}b" for sign in signs]
    assert call("bpe", "cutWords", [[text] for text in texts]) == [cut_words(text) for text in texts]


def test_merges_are_those_of_the_tokenizer(call):
    for text, found in zip(TEXTS + random_texts(40),
                           call("bpe", "learn", [[text, 500] for text in TEXTS + random_texts(40)]), strict=True):
        n = len(found["merges"])
        pairs = learn_merges(Counter(cut_words(text)), n + 1)
        assert [tuple(merge["pair"]) for merge in found["merges"]] == pairs[:n]
        ids = [id for word in found["words"] for id in word]
        assert ids == BPETokenizer.train(text, 257 + n).encode_ordinary(text)
        assert max(Counter(chain.from_iterable(map(pairwise, found["words"]))).values(), default=0) < 2
        assert found["next"] is None


def spelled(token):
    "Write a token as the figure does."
    try:
        return token.decode().replace(" ", "␣")
    except UnicodeDecodeError:
        return "".join(f"<{byte:02x}>" for byte in token)


def test_bpe_answers_by_keyboard(page):
    text = "<b>the rain</b> in the train ünd"
    figure = Keys(page, "bpe").reach("Your text").press("Control+a")
    figure.board.insert_text(text)
    tokens = figure.figure.get_by_role("list", name="Tokens of the text").get_by_role("listitem")
    merges = figure.figure.get_by_role("list", name="Merges so far").get_by_role("listitem")
    assert f"{len(text.encode())} bytes and is {len(text.encode())} tokens" in figure.says
    words = [[*word.encode()] for word in cut_words(text)]
    most = max(Counter(chain.from_iterable(map(pairwise, words))).values())
    first = spelled(BPETokenizer.train(text, 258).tokens[256])
    told = f"Most frequent now: {first[0]} + {first[1]}, {['twice', '3 times', '4 times'][most - 2]}."
    assert told in figure.figure.inner_text()
    figure.reach("Next merge").press("Enter", "Space", "Enter")
    trained = BPETokenizer.train(text, 257 + 3)
    ids = trained.encode_ordinary(text)
    assert tokens.all_text_contents() == [spelled(trained.tokens[id]) for id in ids]
    assert "<c3>" in tokens.all_text_contents()
    assert "Merge 3: " in figure.says and f"is {len(ids)} tokens" in figure.says and merges.count() == 3
    assert figure.figure.locator("b").count() == 0  # what is typed stays text
    figure.reach("Back").press("Enter")
    assert "Merge 2: " in figure.says and merges.count() == 2
    figure.reach("All merges").press("Enter", "Enter")  # nothing more to do, and the focus is still there
    assert figure.page.evaluate("document.activeElement.textContent") == "All merges"
    assert figure.page.evaluate("document.activeElement.getAttribute('aria-disabled')") == "true"
    assert "No pair occurs twice" in figure.figure.inner_text()
    figure.reach("Start again").press("Enter")
    assert merges.count() == 0 and tokens.count() == len(text.encode())


def test_schedule_is_that_of_the_training_loop(call):
    dice = random.Random(3)
    runs = [(10, 0.25, 0.0, 0.1), (10, 0.35, 0.0, 0.0), (1, 0.0, 0.0, 0.1), (2, 0.5, 0.5, 0.0)]
    runs += [(dice.randint(1, 90), dice.randrange(60) / 100, dice.random(), dice.random()) for _ in range(60)]
    calls = [(step, *run) for run in runs for step in range(run[0])]
    assert call("schedule", "warmupCosine", calls) == pytest.approx([warmup_cosine(*c) for c in calls], abs=1e-12)


def test_schedule_answers_by_keyboard(page):
    figure = Keys(page, "schedule").reach("Steps").press("End", "ArrowLeft")
    assert figure.value == "490"
    figure.reach("Warm-up, share").press("Home", *["ArrowRight"] * 7)
    assert figure.value == "7 %"
    figure.reach("Look at step").press("PageUp", "ArrowLeft")
    step = int(figure.value)
    figure.reach("Peak rate").press("End")
    assert number(figure.value) == 0.01
    figure.reach("Initial rate").press("Home")
    figure.reach("Minimum rate").press("End", "ArrowLeft")
    rates = [0.01 * warmup_cosine(k, 490, 0.07, 0.0, 0.005 / 0.01) for k in range(490)]
    step_told, rate_told = re.search(r"Step (\d+) of 0 to 489: rate ([\d.e-]+),", figure.says).groups()
    assert int(step_told) == step and float(rate_told) == pytest.approx(rates[step], rel=6e-3)
    first, most, last = map(float, re.findall(r"(?:at|most|ends at) (\d[\d.e-]*\d)", figure.words))
    assert (first, most, last) == pytest.approx((rates[0], max(rates), rates[-1]), rel=6e-3)
    figure.reach("Steps").press("Home")  # ten steps: the place looked at moves with the end
    assert "Step 9 of 0 to 9" in figure.says


LAYERS = {"all": None, "queries and values": ["W_query", "W_value"], "attention": ["att"], "feed-forward": ["ff"]}


def classifier(size):
    "Make a model without numbers that ends in two classes."
    with torch.device("meta"):
        model = GPTModel(replace(CONFIGS[size], qkv_bias=size != "small", tie_weights=False))
        model.out_head = nn.Linear(CONFIGS[size].emb_dim, 2)
    return model


def counted(model, rank, layers):
    "Count what trains after LoRA was added to a copy."
    with torch.device("meta"):
        model = add_lora(copy.deepcopy(model), rank, 1, layers)
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("size", list(CONFIGS))
def test_lora_counts_are_those_of_real_models(call, size):
    model = classifier(size)
    assert call("lora", "frozen", [[size]]) == [sum(weight.numel() for weight in model.parameters())]
    for which, layers in LAYERS.items():
        one, three = call("lora", "trained", [[size, 1, which], [size, 3, which]])
        assert one == counted(model, 1, layers) and three == 3 * one


def test_lora_answers_by_keyboard(page):
    figure = Keys(page, "lora").reach("Rank")
    assert figure.value == "16" and "2,666,528 numbers" in figure.says  # as in appendix E of the book
    figure.reach("Model").press("ArrowDown")
    figure.reach("Layers with LoRA").press("ArrowDown")
    figure.reach("Rank").press("Home", "ArrowRight", "ArrowRight")
    model = classifier("355M")
    count, whole = counted(model, 4, LAYERS["queries and values"]), sum(weight.numel() for weight in model.parameters())
    assert figure.says.startswith(f"Rank 4 trains {count:,} numbers beside {whole:,} that stay")
    assert "GPT-2, 355M" in figure.words and "queries and values" in figure.words


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers,heads,per,context,batch", [(1, 1, 16, 5, 1), (3, 4, 8, 12, 2), (2, 2, 32, 7, 5)])
def test_cache_bytes_are_those_of_a_real_cache(call, layers, heads, per, context, batch, dtype):
    model = GPTModel(GPTConfig(11, context, heads * per, heads, layers, 0.0)).to(dtype)
    kept = new_cache(model, context)
    with torch.no_grad():
        model(torch.zeros(batch, context, dtype=torch.long), kept)
    nothing = torch.zeros(batch, heads, 0, per, dtype=dtype)
    held = sum(part.nbytes for cache in kept for part in cache.append(nothing, nothing))
    sizes = {"layers": layers, "width": heads * per, "context": context, "batch": batch, "each": dtype.itemsize}
    assert call("cache", "cacheBytes", [[sizes]]) == [held]
    matrices = sum(weight.nbytes for weight in model.trf_blocks.parameters() if weight.dim() == 2)
    assert call("cache", "weightBytes", [[sizes]]) == [matrices]


def test_cache_answers_by_keyboard(page):
    figure = Keys(page, "cache").reach("Tokens of context")
    assert figure.value == "1,024" and f"the cache {2 * 12 * 768 * 1024 * 4:,} bytes (75.5 MB)" in figure.says
    figure.reach("Model").press("End")  # the largest GPT-2
    figure.reach("Texts at a time").press("ArrowRight", "ArrowRight", "ArrowRight")
    figure.reach("Bytes per number").press("ArrowDown")
    big = CONFIGS["1558M"]
    size = 2 * big.n_layers * big.emb_dim * big.context_length * 8 * 2
    assert f"{big.n_heads} heads of {big.emb_dim // big.n_heads} make a width of {big.emb_dim:,}" in figure.says
    assert f"the cache {size:,} bytes" in figure.says and f"{size / 1e9:.2f} GB at 1,024" in figure.words
    figure.reach("Layers").press("Home")
    figure.reach("Heads").press("Home")
    figure.reach("Numbers per head").press("Home")
    figure.reach("Tokens of context").press("Home")
    figure.reach("Texts at a time").press("Home")
    assert f"the cache {2 * 16 * 16 * 2:,} bytes" in figure.says
    for label in ("Tokens of context", "Layers", "Heads", "Numbers per head", "Texts at a time"):
        figure.reach(label).press("End")
    figure.reach("Bytes per number").press("Home")
    assert f"the cache {2 * 128 * (128 * 256) * 2**17 * 256 * 4:,} bytes" in figure.says and "PB" in figure.words


def test_models_of_the_cache_are_those_of_the_library(page):
    figure = Keys(page, "cache").reach("Model").press("Home")
    for size in ["small", "124M", "355M", "774M", "1558M"]:
        config = CONFIGS[size]
        token = 2 * config.n_layers * config.emb_dim * 4
        assert f"{config.n_heads} heads of {config.emb_dim // config.n_heads} make" in figure.says
        assert f"A token takes {token:,} bytes, the cache {token * config.context_length:,} bytes" in figure.says
        figure.press("ArrowDown")


def test_figures_can_be_used_by_everybody(page):
    checks.tool("axe_playwright_python")
    told = []
    Keys(page, "bpe").reach("Next merge").press("Enter")
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
        for window in (checks.PHONE, checks.DESK):
            page.set_viewport_size(window)
            page.wait_for_timeout(100)  # drawings follow the width
            told += [f"{theme}, {window['width']}: {what}" for what in
                     page.evaluate(checks._WIDE) + page.evaluate(checks._FAINT, [", ".join(checks.CHROME)])]
        checks.inject_axe(page)
        told += [f"{theme}: {what}" for what in checks.run_axe(page)]
    assert told == []


def test_a_drawing_steps_aside_only_for_a_figure_that_answers(browser, home, place):
    drawings = ".cell_output:visible"
    with browser.new_context(viewport=checks.PHONE) as context:
        page = context.new_page()
        page.goto(f"{home}nbs/figures.html")
        page.wait_for_function("n => document.querySelectorAll('[data-ready]').length === n", arg=len(NAMES))
        assert page.locator(drawings).count() == 0 and page.locator(".explorer-still").count() == 0
        page.emulate_media(media="print")  # on paper nothing answers
        assert page.locator(drawings).count() == 3
    for address in (f"{home}nbs/figures.html", (place / "nbs" / "figures.html").as_uri()):
        with browser.new_context(viewport=checks.PHONE, java_script_enabled=address.startswith("file")) as context:
            page = context.new_page()  # no scripts, then a file, from which no modules are loaded
            page.goto(address)
            assert page.locator(drawings).count() == 3 and page.locator(".explorer-still:visible").count() == len(NAMES)
            assert "make serve" in page.locator(".explorer-still").first.inner_text()
    with browser.new_context(viewport=checks.PHONE) as context:
        page = context.new_page()  # a browser that lacks something: the figure says so, the drawing stays
        page.add_init_script("delete window.ResizeObserver")
        page.goto(f"{home}nbs/figures.html")
        page.wait_for_selector("[data-ready]")
        assert page.locator(drawings).count() == 3 and page.locator("[data-ready]").count() == 1
        assert "ResizeObserver" in page.locator(".explorer-still").first.inner_text()


@pytest.mark.site
@pytest.mark.parametrize("name", NAMES)
def test_figure_answers_on_its_page(browser, pages, name):
    where = next(page.name for page, found, _ in frames(pages) if found == name)
    site = ROOT / "_build" / "html"
    path = site / "nbs" / f"{where}.html"
    if not path.exists() or f'data-explorer="{name}"' not in path.read_text(encoding="utf-8"):
        pytest.skip(f"{where} is not built, or older than its figure: run `make book`")
    with checks.served(site) as home, browser.new_context(viewport=checks.PHONE) as context:
        page = context.new_page()
        page.goto(f"{home}nbs/{where}.html")
        page.wait_for_selector(f'[data-explorer="{name}"][data-ready]')
        place = page.locator(f'[data-explorer="{name}"]')
        assert place.get_by_role("status").inner_text() and place.locator(".explorer-still").count() == 0
        if still := place.get_attribute("data-still"):
            drawing = page.locator(f"#{still}")
            assert drawing.count() == 1 and drawing.locator(".cell_output:visible").count() == 0
