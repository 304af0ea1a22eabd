"""The small model in a browser: the scripts of the pages give what PyTorch gives, and the figures answer.

The scripts run in the system's Chromium, served from a folder that these tests fill. Without a browser they skip;
where CI is set they fail instead.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import site_checks as checks
import torch
from hypothesis import example, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from llm_literate import generate as python
from llm_literate.scripts import SHIPPED, furnish
from llm_literate.tokenizer import BPETokenizer, small_tokenizer
from llm_literate.weights import load_pretrained

playwright = checks.tool("playwright.sync_api")

FIGURES = ("generate", "attention", "sampling")
TEXTS = ("", "Once upon a time", "Anna lives by the pond. Anna has a cat.", "Zürich, 12 °C:\n\ttea ☕ for 2!", "a" * 60)
MODEL, WORDS = "small_model.safetensors", "small_tokenizer.json"


# What the theme gives, where the site's pages take it from
PAPER = """<style>
html { --pst-color-text-base: #222; --pst-color-text-muted: #555; --pst-color-background: #fff;
  --pst-color-surface: #eee; --pst-color-border: #ccc; }
html[data-theme=dark] { --pst-color-text-base: #ddd; --pst-color-text-muted: #aaa; --pst-color-background: #121212;
  --pst-color-surface: #333; --pst-color-border: #555; }
body { background: var(--pst-color-background); color: var(--pst-color-text-base); }
</style>"""


# A server that can fail


class Handler(SimpleHTTPRequestHandler):
    "Serve a folder; count what is asked for, and answer some of it badly."

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.asked.append(name)
        what = self.server.faults.get(name)
        if isinstance(what, int):
            return self.send_error(what)
        if what is not None:
            self.send_response(200)
            self.send_header("Content-Length", str(what.get("says", len(what["body"]))))
            self.end_headers()
            self.wfile.write(what["body"])
            self.close_connection = len(what["body"]) < what.get("says", 0)
            return None
        return super().do_GET()

    def end_headers(self):
        self.send_header("Cache-Control", "no-store")  # so that what is kept is kept by the script
        super().end_headers()

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # the browser went away


@contextmanager
def serving(folder):
    "Serve a folder on this machine: address, list of what was asked for, faults by file name."
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        server.asked, server.faults = [], {}
        server.home = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


# Fixtures


@pytest.fixture(scope="module")
def model():
    return load_pretrained("small")


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory, model, tokenizer):
    "Give a folder with the scripts, the model and a page with the three figures, as the notebook writes them."
    folder = tmp_path_factory.mktemp("site")
    furnish(root, folder / "_static")
    assert {MODEL, WORDS, "small_model.json"} <= set(SHIPPED)
    cells = json.loads((root / "nbs" / "05e_javascript.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    places = [re.search(rf'<div class="explorer" data-explorer="{name}".*?</script>', text, re.DOTALL)[0]
              for name in FIGURES]
    ids = [tokenizer.eot_token, *tokenizer.encode("Anna lives by the pond.")]
    shares = (attention(model, ids) * 1000).round().int().tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1]
    data = {"attention-example": {"words": [tokenizer.decode([i]) for i in ids], "layer": 1, "head": 1,
                                  "shares": shares},
            "sampling-example": {"prompt": "Anna lives by the pond.", "logits": (logits * 100).round().int().tolist(),
                                 "names": {i: tokenizer.decode([i]) for i in logits.topk(12).indices.tolist()}}}
    scripts = [f'<script type="application/json" id="{name}">{json.dumps(found)}</script>'
               for name, found in data.items()]
    stills = [f'<div id="fig-browser-{name}"><div class="cell_output">a drawing</div></div>' for name in FIGURES]
    page = ["<!doctype html><html lang=en data-theme=light><meta charset=utf-8><title>t</title>",
            "<link rel=icon href='data:,'>", PAPER,
            "<link rel=stylesheet href='../_static/book.css'><link rel=stylesheet href='../_static/explorers.css'>"
            "<main><article><h1>t</h1>", *scripts, *places, *stills, "</article></main>"]
    (folder / "nbs").mkdir()
    (folder / "nbs" / "page.html").write_text("\n".join(page), encoding="utf-8")
    (folder / "bare.html").write_text("<!doctype html><title>t</title><link rel=icon href='data:,'>", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def well(server):
    "Begin each test with a server that answers."
    server.faults.clear()
    server.asked.clear()


@pytest.fixture(scope="module")
def browser():
    "Give one browser for all tests."
    with checks.a_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def core(browser, server):
    "Give a page with the model and the tokenizer in it, and no figures."
    page = browser.new_page()
    page.goto(f"{server.home}bare.html")
    page.evaluate("""async () => {
      Object.assign(globalThis, await import("/_static/gpt.mjs"), await import("/_static/write.mjs"),
        await import("/_static/tokenizer.mjs"));
      globalThis.model = readModel(await (await fetch("/_static/small_model.safetensors")).arrayBuffer());
      globalThis.words = new Tokenizer(await (await fetch("/_static/small_tokenizer.json")).json());
      globalThis.logitsOf = (ids, cache = model.newCache()) =>
        ids.map((id) => Array.from(model.score(model.read(id, cache))));
      globalThis.all = async (steps) => {
        const found = [];
        for await (const id of steps) found.push(id);
        return found;
      };
    }""")
    yield page
    page.close()


@pytest.fixture
def page(browser, server):
    "Give a page with the three figures, in a browser without memory, and what went wrong in it."
    with browser.new_context(viewport=checks.PHONE, reduced_motion="reduce") as context:
        page = context.new_page()
        page.faults = []
        page.on("console", lambda message: page.faults.append(message.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(f"{server.home}nbs/page.html")
        for name in FIGURES:
            page.locator(f"[data-explorer={name}][data-ready]").wait_for()
        yield page


def attention(model, ids):
    "Work out the attention weights from the layers' inputs: (layers, heads, t, t)."
    inputs, t = [], len(ids)
    hooks = [block.att.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
             for block in model.trf_blocks]
    with torch.no_grad():
        model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        found = []
        for block, x in zip(model.trf_blocks, inputs, strict=True):
            att = block.att
            q, k = (W(x).view(t, att.num_heads, att.head_dim).transpose(0, 1) for W in (att.W_query, att.W_key))
            scores = (q @ k.mT / att.head_dim**0.5).masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf)
            found.append(scores.softmax(-1))
    return torch.stack(found)


def ids_of(tokenizer, text):
    return [tokenizer.eot_token, *tokenizer.encode_ordinary(text)]


# The model


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_logits_are_pytorchs(core, model, tokenizer, text):
    ids = ids_of(tokenizer, text)
    found = torch.tensor(core.evaluate("(ids) => logitsOf(ids)", ids))
    with torch.no_grad():
        wanted = model(torch.tensor([ids]))[0]
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-3  # a hundredth is promised
    assert (found.softmax(-1) - wanted.softmax(-1)).abs().max() < 1e-4


def test_logits_over_the_whole_context(core, model):
    ids = torch.randint(model.config.vocab_size, (model.config.context_length,),
                        generator=torch.Generator().manual_seed(1)).tolist()
    found = torch.tensor(core.evaluate("(ids) => logitsOf(ids)", ids))
    with torch.no_grad():
        wanted = model(torch.tensor([ids]))[0]
    assert (found - wanted).abs().max() < 1e-3


def test_one_token_too_many_is_refused(core, model):
    with pytest.raises(playwright.Error, match=f"the context takes {model.config.context_length} tokens"):
        core.evaluate("(n) => { const cache = model.newCache(); for (let i = 0; i < n; i++) model.read(1, cache); }",
                      model.config.context_length + 1)


def test_a_cache_changes_nothing(core, tokenizer):
    ids = ids_of(tokenizer, TEXTS[2])
    once, anew = core.evaluate("""(ids) => [logitsOf(ids),
      ids.map((_, i) => logitsOf(ids.slice(0, i + 1)).at(-1))]""", ids)
    assert once == anew


def test_two_texts_do_not_mix(core, tokenizer):
    a, b = ids_of(tokenizer, TEXTS[1]), ids_of(tokenizer, TEXTS[2])
    alone, beside = core.evaluate("""([a, b]) => {
      const left = model.newCache(), right = model.newCache(), found = [];
      for (let i = 0; i < a.length; i++) { found.push(...logitsOf([a[i]], left)); logitsOf([b[i]], right); }
      return [logitsOf(a), found];
    }""", [a, b])
    assert alone == beside


@pytest.mark.parametrize("text", TEXTS[:4], ids=range(4))
def test_attention_is_pytorchs(core, model, tokenizer, text):
    ids = ids_of(tokenizer, text)
    found = core.evaluate("""async (ids) => { const cache = model.newCache(), kept = [];
      for (const id of ids) model.read(id, cache, (layer, head, row) => (((kept[layer] ??= [])[head] ??= []).push(
        Array.from(row).concat(Array(ids.length - row.length).fill(0)))));
      return kept; }""", ids)
    wanted = attention(model, ids)
    found = torch.tensor(found)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("number", range(3))
def test_greedy_text_is_pythons(core, model, tokenizer, number):
    prompt, n = ids_of(tokenizer, ("Once upon a time", "Anna was a banker", "Who is Emil?")[number]), 30
    found = core.evaluate("([ids, count]) => all(write(model, ids, {count}))", [prompt, n])
    assert found == python.generate(model, torch.tensor([prompt]), n)[0, len(prompt):].tolist()


def test_greedy_text_goes_on_past_the_context(core, model, tokenizer):
    size = model.config.context_length
    prompt = (ids_of(tokenizer, "Once upon a time ") * 40)[: size - 1]
    found = core.evaluate("([ids, count]) => all(write(model, ids, {count}))", [prompt, 4])
    assert found == python.generate(model, torch.tensor([prompt]), 4)[0, len(prompt):].tolist()
    long = (ids_of(tokenizer, TEXTS[2]) * 20)[: size + 9]
    found = core.evaluate("([ids, count]) => all(write(model, ids, {count}))", [long, 2])
    assert found == python.generate(model, torch.tensor([long]), 2)[0, len(long):].tolist()


def test_text_ends_where_it_is_told(core, tokenizer):
    prompt = ids_of(tokenizer, TEXTS[1])
    whole = core.evaluate("(ids) => all(write(model, ids, {count: 8}))", prompt)
    end = whole[3]
    cut = core.evaluate("([ids, end]) => all(write(model, ids, {count: 8, end}))", [prompt, end])
    assert cut == whole[: whole.index(end) + 1]
    assert core.evaluate("(ids) => all(write(model, ids, {count: 0}))", prompt) == []


# The choice


SETTINGS = st.fixed_dictionaries({
    "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5]), "topK": st.sampled_from([None, 1, 2, 5, 99]),
    "topP": st.sampled_from([None, 0.1, 0.5, 0.93, 1.0])})


@limits(max_examples=40)
@given(logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12, unique_by=lambda v: round(v, 2)),
       options=SETTINGS)
def test_probabilities_are_pythons(core, logits, options):
    found = core.evaluate("([logits, options]) => Array.from(probabilities(logits, options))", [logits, options])
    wanted = python.probabilities(torch.tensor(logits), options["temperature"], options["topK"], options["topP"])
    if options["topP"] not in (None, 1.0):  # a share that lies on the border may fall on either side of it
        plain = python.probabilities(torch.tensor(logits), options["temperature"], options["topK"])
        sums = plain.sort(descending=True).values.cumsum(-1)
        if (sums - options["topP"]).abs().min() < 1e-5:
            return
    assert (torch.tensor(found) - wanted).abs().max() < 1e-5


def test_draws_come_as_often_as_they_should(core):
    logits, n = [2.0, 1.0, 0.0, -1.0], 8000
    counts = core.evaluate("""([logits, n]) => {
      let seed = 1; // a generator of our own, so that the test gives the same each time
      const random = () => ((seed = (seed * 48271) % 2147483647) / 2147483647);
      const counts = logits.map(() => 0);
      for (let i = 0; i < n; i++) counts[choose(logits, {temperature: 1, topK: 3}, random)]++;
      return counts; }""", [logits, n])
    p = python.probabilities(torch.tensor(logits), 1.0, 3)
    off = (torch.tensor(counts) - n * p).abs() / (n * p * (1 - p)).sqrt().clamp(min=1e-9)
    assert counts[3] == 0 and off[:3].max() < 4


def test_draws_at_both_ends_of_chance(core):
    draw = "([logits, options, chance]) => choose(logits, options, () => chance)"
    logits = [0.0, 5.0, 1.0, -50.0]
    assert core.evaluate(draw, [logits, {"temperature": 1}, 0]) == 0
    assert core.evaluate(draw, [logits, {"temperature": 1, "topK": 2}, 1 - 2**-53]) == 2  # never one that was cut
    assert core.evaluate(draw, [logits, {"temperature": 0}, 0.999]) == 1


# The tokenizer

LETTERS = st.characters(exclude_categories=["Cs", "Cn"])  # of characters not yet assigned, each Unicode thinks its own
PIECES = st.sampled_from(["<|endoftext|>", "<|endof", " the", "'ll", "\u0085", "\ufeff", "\u00a0", "  ", "\n\n", "12",
                          "é", "é", "👩‍🚀", "Once upon", "\x1c"])
UNICODE = st.lists(st.one_of(st.text(LETTERS, max_size=12), PIECES), max_size=8).map("".join)


@limits(max_examples=150)
@given(text=UNICODE)
@example(text="")
@example(text="a\u0085 b\ufeff c\u2003\u2003d\x1fe")
@example(text="x" * 300 + " " * 70)
def test_ids_are_pythons(core, tokenizer, text):
    plain, special = core.evaluate("(text) => [words.encode(text), words.encode(text, true)]", text)
    assert plain == tokenizer.encode_ordinary(text)
    assert special == tokenizer.encode(text, allowed_special="all")
    assert core.evaluate("(ids) => words.decode(ids)", special) == text


@limits(max_examples=80)
@given(ids=st.lists(st.integers(0, 2047), max_size=20))
def test_text_is_pythons(core, tokenizer, ids):
    assert core.evaluate("(ids) => words.decode(ids)", ids) == tokenizer.decode(ids)


def test_an_id_of_no_token_is_refused(core):
    with pytest.raises(playwright.Error, match="no token has the id 2048"):
        core.evaluate("() => words.decode([1, 2048])")


def test_several_special_tokens(core, tmp_path):
    ours = BPETokenizer.train("a b a b ab", 300, ("<a>", "<a>b", "[$^\\]"))
    ours.save(tmp_path / "words.json")
    record, text = json.loads((tmp_path / "words.json").read_text(encoding="utf-8")), "x<a>b<a> [$^\\]ab"
    found = core.evaluate("([record, text]) => new Tokenizer(record).encode(text, true)", [record, text])
    assert found == ours.encode(text, allowed_special="all")


# Reading the file


def test_all_halves_are_read_right(core):
    """Every number of 16 bits, in a file of our own."""
    bits = torch.arange(65536).to(torch.uint16)
    header = {"__metadata__": {"llm_literate": 'digest {"config": {}}'},
              "a": {"dtype": "F16", "shape": [65536], "data_offsets": [0, 131072]}}
    found = core.evaluate("""([header, bits]) => {
      const text = new TextEncoder().encode(JSON.stringify(header).padEnd(512)), length = new ArrayBuffer(8);
      new DataView(length).setBigUint64(0, 512n, true);
      const file = new Blob([length, text, new Uint16Array(bits)]);
      return file.arrayBuffer().then((bytes) => Array.from(readModel(bytes).weights.a, String));
    }""", [header, bits.tolist()])
    wanted = bits.view(torch.float16).float()
    found = torch.tensor([float(value.replace("Infinity", "inf")) for value in found])
    assert torch.equal(found.nan_to_num(7.5), wanted.nan_to_num(7.5))
    assert torch.equal(found.isnan(), wanted.isnan())


def test_a_file_that_is_cut_off_is_refused(core):
    with pytest.raises(playwright.Error, match="is cut off"):
        core.evaluate("""async () => {
          const all = await (await fetch("/_static/small_model.safetensors")).arrayBuffer();
          readModel(all.slice(0, all.byteLength - 10));
        }""")


def test_the_core_is_about_a_hundred_lines(root):
    text = (root / "nbs" / "_static" / "gpt.mjs").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("//", "/**"))]
    assert 80 <= len(lines) <= 105
    assert not re.search(r"\bimport\b", text)


# The figures

KEPT = "caches.open('llm_literate').then((store) => store.keys()).then((all) => all.map(({url}) => url))"
ALL_KEPT = f"{KEPT}.then((urls) => urls.length === 3)"


def press(page, figure, label):
    page.locator(f"[data-explorer={figure}]").get_by_role("button", name=label).click()


def says(page, figure, pattern):
    "Wait until a figure says something."
    place = page.locator(f"[data-explorer={figure}] [role=status]").filter(has_text=re.compile(pattern))
    place.first.wait_for()
    return place.first.inner_text()


def loaded(page, figure="generate"):
    press(page, figure, "Load the model")
    page.locator("[data-explorer=generate]").get_by_role("button", name="Write").wait_for()


def slide(page, figure, label, key, times=1):
    slider = page.locator(f"[data-explorer={figure}]").get_by_label(label, exact=True)
    slider.focus()
    for _ in range(times):
        page.keyboard.press(key)


def test_figures_answer_before_the_model_is_there(page, server):
    assert not {MODEL, WORDS} & set(server.asked), "the model was loaded without being asked for"
    stills = page.evaluate("[...document.querySelectorAll('[id^=fig-browser] .cell_output')].map((e) => e.hidden)")
    assert stills == [False, True, True]  # writing needs the model, so its drawing stays
    before = page.locator("[data-explorer=sampling] [role=status]").first.inner_text()
    slide(page, "sampling", "Temperature", "Home")
    assert "1 token is left" in says(page, "sampling", "1 token is left") != before
    slide(page, "attention", "Layer", "ArrowRight")
    assert "layer 2, head 1" in page.locator("[data-explorer=attention] svg").get_attribute("aria-label")
    assert page.faults == []


def test_the_model_writes(page, model, tokenizer):
    loaded(page)
    slide(page, "generate", "Temperature", "Home")
    slide(page, "generate", "Tokens at most", "Home")
    press(page, "generate", "Write")
    line = says(page, "generate", r"^10 tokens")
    assert re.fullmatch(r"10 tokens, \d+ a second\.", line)
    prompt = ids_of(tokenizer, "Once upon a time")
    wanted = tokenizer.decode(python.generate(model, torch.tensor([prompt]), 10)[0, len(prompt):].tolist())
    assert page.locator(".explorer-text b").text_content() == wanted
    assert page.locator(".explorer-text span").text_content() == "Once upon a time"
    assert page.faults == []


def test_writing_can_be_stopped(page):
    loaded(page)
    slide(page, "generate", "Tokens at most", "End")
    slide(page, "generate", "Temperature", "End")
    press(page, "generate", "Write")
    page.wait_for_function("document.querySelector('.explorer-text b').textContent.length > 20")
    press(page, "generate", "Stop")
    line = says(page, "generate", "Stopped")
    text = page.locator(".explorer-text b").text_content()
    page.wait_for_timeout(300)
    assert page.locator(".explorer-text b").text_content() == text
    assert int(line.split()[0]) < 200
    assert page.faults == []


def test_a_second_start_ends_the_first(page):
    loaded(page)
    slide(page, "generate", "Temperature", "Home")
    press(page, "generate", "Write")
    slide(page, "generate", "Tokens at most", "Home")
    press(page, "generate", "Write")
    says(page, "generate", r"^10 tokens")
    page.wait_for_timeout(300)
    assert page.locator("[data-explorer=generate] [role=status]").last.inner_text().startswith("10 tokens")


def test_what_a_reader_types_is_text(page):
    loaded(page)
    slide(page, "generate", "Tokens at most", "Home")
    typed = "<b id=x>&amp;</b><|endoftext|> \u200f😀"
    page.locator("[data-explorer=generate] textarea").fill(typed)
    press(page, "generate", "Write")
    says(page, "generate", r"^\d+ tokens?[.,]")
    assert page.locator(".explorer-text span").text_content() == typed
    page.locator("[data-explorer=attention]").get_by_label("Sentence").fill("<i id=x>hi</i>")
    page.locator("[data-explorer=attention] svg text").filter(has_text="hi").first.wait_for()
    assert page.locator("#x").count() == 0
    assert page.faults == []


def test_the_readers_sentence(page, model, tokenizer):
    loaded(page, "attention")
    page.locator("[data-explorer=attention]").get_by_label("Sentence").fill("Boris has a red drum.")
    ids = ids_of(tokenizer, "Boris has a red drum.")
    n = len(ids)
    page.wait_for_function("(n) => document.querySelectorAll('[data-explorer=attention] svg .cell').length === n",
                           arg=n * (n + 1) // 2)
    slide(page, "attention", "Layer", "End")
    slide(page, "attention", "Head", "ArrowRight", 2)
    cells = page.locator("[data-explorer=attention] svg .cell")
    found = cells.evaluate_all("(all) => all.map((cell) => (cell.getAttribute('fill-opacity') - 0.06) / 0.94)")
    wanted = attention(model, ids)[-1, 2]
    assert (torch.tensor(found) - wanted[torch.ones(n, n).tril() > 0]).abs().max() < 1e-3
    best = wanted[-1].max().item()
    assert f"takes {round(100 * best)}% from" in says(page, "attention", "takes")
    page.locator("[data-explorer=attention]").get_by_label("Sentence").fill("one " * 60)
    says(page, "attention", "Only the first 24 tokens")
    assert page.faults == []


def test_sampling_on_the_readers_beginning(page, model, tokenizer):
    loaded(page, "sampling")
    page.locator("[data-explorer=sampling]").get_by_label("Beginning").fill("Boris has a")
    with torch.no_grad():
        probs = model(torch.tensor([ids_of(tokenizer, "Boris has a")]))[0, -1].softmax(-1)
    best = tokenizer.decode([probs.argmax().item()]).replace(" ", "␣")
    line = says(page, "sampling", f"^“{re.escape(best)}” has {round(100 * probs.max().item())}%")
    assert "2,048 tokens are left" in line
    slide(page, "sampling", "Top-k", "Home")
    says(page, "sampling", "1 token is left")
    assert page.faults == []


def test_one_load_serves_all_figures(page, server):
    loaded(page, "sampling")
    assert page.locator("[data-explorer=attention]").get_by_label("Sentence").is_visible()
    assert page.get_by_role("button", name="Load the model").count() == 0
    assert server.asked.count(MODEL) == 1


@pytest.mark.parametrize(("file", "fault", "words"), [
    ("small_model.json", 404, "the server answers 404"),
    (WORDS, 500, "the server answers 500"),
    (MODEL, 503, "the server answers 503"),
    (MODEL, {"body": b"x" * 5000, "says": 7_000_000}, "the connection broke off"),
    (MODEL, {"body": b"x" * 5000}, "what arrived is not the model"),
], ids=["record", "words", "weights", "broken", "wrong"])
def test_a_failed_download_says_so_and_can_be_tried_again(page, server, file, fault, words):
    server.faults[file] = fault
    press(page, "generate", "Load the model")
    assert words in says(page, "generate", "could not be loaded")
    assert page.evaluate(KEPT) == [], "something was kept"
    server.faults.clear()
    press(page, "generate", "Try again")
    page.get_by_role("button", name="Write").wait_for()


def test_no_network_says_so(page, server):
    page.context.set_offline(True)
    press(page, "generate", "Load the model")
    assert "the network gives no answer" in says(page, "generate", "could not be loaded")


def test_the_second_load_comes_from_the_cache(page, server):
    loaded(page)
    assert server.asked.count(MODEL) == 1
    page.wait_for_function(ALL_KEPT)
    page.reload()
    loaded(page)
    assert server.asked.count(MODEL) == server.asked.count(WORDS) == 1
    server.faults["small_model.json"] = 503  # even without the server's word
    page.reload()
    loaded(page)
    assert server.asked.count(MODEL) == 1


def test_a_spoilt_copy_is_thrown_away(page, server):
    loaded(page)
    page.wait_for_function(ALL_KEPT)
    page.evaluate("""async () => { const store = await caches.open("llm_literate");
      const { url } = (await store.keys()).find(({ url }) => url.includes(".safetensors"));
      await store.put(url, new Response("spoilt")); }""")
    page.reload()
    press(page, "generate", "Load the model")
    assert "what arrived is not the model" in says(page, "generate", "could not be loaded")
    press(page, "generate", "Try again")
    page.get_by_role("button", name="Write").wait_for()
    assert server.asked.count(MODEL) == 2


def test_a_new_model_replaces_the_old_one(page, server, folder):
    loaded(page)
    page.wait_for_function(ALL_KEPT)
    record, path = folder / "_static" / "small_model.json", folder / "_static" / MODEL
    about, before = json.loads(record.read_text(encoding="utf-8")), path.read_bytes()
    content = before[:-2] + b"\0\0"
    try:
        path.write_bytes(content)
        record.write_text(json.dumps(about | {"sha256": hashlib.sha256(content).hexdigest()}), encoding="utf-8")
        page.reload()
        loaded(page)
        assert server.asked.count(MODEL) == 2
        page.wait_for_function(ALL_KEPT)
        digest = hashlib.sha256(content).hexdigest()
        assert [digest in url for url in page.evaluate(KEPT)].count(True) == 2
    finally:
        path.write_bytes(before)
        record.write_text(json.dumps(about), encoding="utf-8")


def test_without_a_cache_the_model_loads_all_the_same(browser, server):
    with browser.new_context() as context:
        context.add_init_script("delete window.caches; Object.defineProperty(window, 'caches', {value: undefined})")
        page = context.new_page()
        page.goto(f"{server.home}nbs/page.html")
        page.locator("[data-explorer=generate][data-ready]").wait_for()
        loaded(page)


def test_without_scripts_the_drawings_stay(browser, server):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{server.home}nbs/page.html")
        assert page.locator(".explorer-still:visible").count() == 3
        assert page.locator(".cell_output:visible").count() == 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_are_fit_for_everybody(page, theme, lines):
    checks.tool("axe_playwright_python")
    loaded(page)
    slide(page, "generate", "Tokens at most", "Home")
    press(page, "generate", "Write")
    says(page, "generate", r"^\d+ tokens?[.,]")
    page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; "
                  "document.querySelectorAll('details').forEach((e) => { e.open = true; }); }", theme)
    from axe_playwright_python.sync_playwright import Axe
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    lines(f"{v['id']}: {v['nodes'][0]['html'][:120]}" for v in found.response["violations"]
          if v["impact"] in ("serious", "critical"))
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.site
def test_figures_answer_on_the_built_site(browser, root):
    site = root / "_build" / "html"
    if not (site / "nbs" / "05e_javascript.html").exists():
        checks.missing("the page is not built: run `make book`")
    with serving(site) as server, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{server.home}nbs/05e_javascript.html")
        for name in FIGURES:
            page.locator(f"[data-explorer={name}][data-ready]").wait_for()
        loaded(page)
        hidden = page.locator("[id^=fig-browser]").evaluate_all(
            "(all) => all.map((e) => [e.id, [...e.querySelectorAll('.cell_output')].map((o) => o.hidden)])")
        assert dict(hidden) == {"fig-browser-writing": [False], "fig-browser-attention": [True],
                                "fig-browser-sampling": [True]}
