"""The concordance: every section of the book stands in it once and in order, and every place it names exists."""

import importlib
import re

import pytest

nodes = pytest.importorskip("docutils.nodes", reason="the ids of headings need docutils, which `make setup` installs")

PAGE = "nbs/Ze_concordance.md"
SECTIONS = re.findall(r"\S+", """
1.1 1.2 1.3 1.4 1.5 1.6 1.7
2.1 2.2 2.3 2.4 2.5 2.6 2.7 2.8
3.1 3.2 3.3.1 3.3.2 3.4.1 3.4.2 3.5.1 3.5.2 3.5.3 3.6.1 3.6.2
4.1 4.2 4.3 4.4 4.5 4.6 4.7
5.1.1 5.1.2 5.1.3 5.2 5.3.1 5.3.2 5.3.3 5.4 5.5
6.1 6.2 6.3 6.4 6.5 6.6 6.7 6.8
7.1 7.2 7.3 7.4 7.5 7.6 7.7 7.8 7.9
A.1 A.2 A.3 A.4 A.5 A.6 A.7 A.8 A.9.1 A.9.2 A.9.3 B C D.1 D.2 D.3 D.4 E.1 E.2 E.3 E.4
""")
LISTINGS = {"2": 6, "3": 5, "4": 8, "5": 5, "6": 12, "7": 11}  # how many each chapter has
NAMES = re.findall(r"\S+", """
SimpleTokenizerV1 SimpleTokenizerV2 GPTDatasetV1 create_dataloader_v1 SelfAttention_v1 SelfAttention_v2 CausalAttention
MultiHeadAttentionWrapper MultiHeadAttention GPT_CONFIG_124M DummyGPTModel LayerNorm GELU FeedForward TransformerBlock
GPTModel generate_text_simple text_to_token_ids token_ids_to_text calc_loss_batch calc_loss_loader train_model_simple
generate SpamDataset train_classifier_simple classify_review format_input InstructionDataset custom_collate_fn
check_if_running query_model generate_model_scores NeuralNetwork ToyDataset find_highest_gradient train_model LoRALayer
LinearWithLoRA replace_linear_with_lora
""")


@pytest.fixture(scope="module")
def text(root):
    "Give the page."
    return (root / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def headings(root, pages):
    "Give the headings of each page by their ids, None for the page itself."
    sources = {page.name: "\n".join(cell.source for cell in page.cells if cell.kind == "markdown") for page in pages}
    sources |= {path.stem: path.read_text(encoding="utf-8") for path in (root / "nbs").glob("*.md")}
    found = {}
    for name, source in sources.items():
        plain = re.sub(r"^(```|~~~).*?^\1", "", source, flags=re.M | re.S).replace("`", "")
        titles = re.findall(r"^(#+) +(.+?) *$", plain, flags=re.M)
        found[name] = {nodes.make_id(title): title for _, title in titles}
        found[name][None] = next(title for sharps, title in titles if sharps == "#")
    return found


def test_every_section_stands_there_in_order(text):
    numbers = re.findall(r"^\| \{index\}`([^`]+)` \|", text, flags=re.M)
    assert [number for number in numbers if not number.startswith("Listing")] == SECTIONS


def test_every_listing_stands_there_once(text, lines):
    named = re.findall(r"^\| \{index\}`Listing ([^`]+)` \|", text, flags=re.M)
    wanted = [f"{chapter}.{n}" for chapter, count in LISTINGS.items() for n in range(1, count + 1)]
    complaints = [f"{PAGE}: listing {number} is missing; add a row" for number in wanted if number not in named]
    complaints += [f"{PAGE}: listing {number} stands twice" for number in sorted(set(named)) if named.count(number) > 1]
    lines(complaints)
    assert [number for number in named if number[0].isdigit()] == wanted


def test_every_name_stands_there_once(text, lines):
    named = re.findall(r"^`(\w+)`\n: ", text, flags=re.M)
    complaints = [f"{PAGE}: the book's {name} is missing; add a row" for name in NAMES if name not in named]
    complaints += [f"{PAGE}: {name} stands twice" for name in sorted(set(named)) if named.count(name) > 1]
    lines(complaints)


def test_every_row_leads_somewhere(text, lines):
    rows = [line for line in text.splitlines() if line.startswith(("| {index}", ": "))]
    assert len(rows) >= len(SECTIONS) + len(NAMES)
    lines(f"{PAGE}: “{row[:40]}…” has no link; add one" for row in rows if "<a href=" not in row)


def test_every_place_exists(text, headings, lines):
    complaints = []
    for href, shown in re.findall(r'<a href="([^"]+)">(.+?)</a>', text):
        page, _, mark = href.partition("#")
        known = headings.get(page.removesuffix(".html"))
        if known is None:
            complaints.append(f"{PAGE}: there is no page {page}")
        elif (mark or None) not in known:
            complaints.append(f"{PAGE}: {page} has no heading “{shown}” any more; its headings: "
                              f"{'; '.join(title for key, title in known.items() if key)}")
        elif known[mark or None] != shown:
            complaints.append(f"{PAGE}: {href} is called “{known[mark or None]}” and not “{shown}”")
    assert len(headings) > 20
    lines(complaints)


def test_every_symbol_exists(text, lines):
    found = set(re.findall(r"\{py:obj\}`~?llm_literate\.(\w+)\.(\w+)`", text))
    assert len(found) > 30
    complaints = []
    for module, name in sorted(found):
        if name not in importlib.import_module(f"llm_literate.{module}").__all__:
            complaints.append(f"{PAGE}: llm_literate.{module} exports no {name}")
    lines(complaints)
