"""The figures: colours that follow the page, ids of their own, the same bytes every time, readable in both modes."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_literate import figures

SENTINELS = (figures.INK, figures.PAPER, *figures.PALETTE, figures.GREY)


def numbers(svg):
    "Split an SVG into its numbers and what stands between them."
    parts = re.split(r"(-?\d+(?:\.\d+)?)", svg)
    return [float(part) for part in parts[1::2]], parts[0::2]


def luminance(colour):
    "Give the relative luminance of WCAG 2.2."
    parts = np.array([int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


def contrast(a, b):
    "Give the contrast of WCAG 2.2 between two colours."
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def drawing():
    "Draw a little of everything."
    fig, ax = figures.canvas(6, 3)
    a = figures.box(ax, 1, 2.5, "a box\nof two lines")
    b = figures.box(ax, 4, 2.5, "solid", color=figures.GREEN, solid=True)
    figures.arrow(ax, a.right, b.left, "over")
    figures.tokens(ax, 0.2, 1.5, ["one", " two", "\n"])
    figures.heatmap(ax, [[1, -1], [0, float("-inf")]], "ab", "cd", at=(4, 1.5))
    figures.label(ax, 2, 0.5, "$5 & <6>", color=figures.GREY)
    return fig


@pytest.fixture(autouse=True)
def fresh():
    "Forget what other tests have drawn."
    figures._drawn.clear()


def test_colours_follow_the_page():
    svg = figures.to_svg(drawing())
    outside = re.sub(r"var\([^)]*\)", "", svg)
    assert not [colour for colour in SENTINELS if colour in outside]
    assert "currentColor" in svg and "var(--lit-green, #007e5c)" in svg
    assert "<style" not in svg and "<metadata" not in svg and "<?xml" not in svg
    assert "$5 &amp; &lt;6&gt;" in svg  # text stays text


def test_same_figure_same_bytes():
    first = figures.to_svg(drawing())
    figures._drawn.clear()
    assert figures.to_svg(drawing()) == first


def test_ids_are_unique_on_a_page_and_lead_somewhere():
    from matplotlib.figure import Figure

    def chart(slope):
        fig = Figure()
        fig.subplots().plot([0, 1], [0, slope], marker="o")
        return fig

    page = "".join(figures.to_html(fig) for fig in (chart(1), chart(1), chart(2), drawing()))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert ids and len(ids) == len(set(ids))
    assert {a or b for a, b in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)} == set(ids)


def test_writing_a_figure_leaves_its_layout_alone():
    import matplotlib as mpl

    with mpl.rc_context(figures.style()):
        fig, _ = figures.canvas(2, 2)
        figures.to_svg(fig)
        assert fig.get_layout_engine() is None


def test_a_cell_shows_each_figure_once():
    script = """
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
shell = InteractiveShell.instance()
def count(code):
    with capture_output() as got:
        shell.run_cell(code).raise_error()
    shown = [o for o in got.outputs if "text/html" in o.data]
    assert all(set(o.data) == {"text/html", "text/plain"} for o in shown)
    return len(shown) + got.stdout.count("Out[lit]")
shell.run_cell("from llm_literate import figures; figures.setup(); figures.setup(); "
               "from matplotlib import pyplot as plt; from IPython.display import display")
print(count("fig, ax = plt.subplots(); display(fig)"), count("plt.plot([1]); 1 + 1"), count("2 + 2"),
      count("fig, ax = figures.canvas(); display(fig)"), count("display(fig)"),
      count("a, b = plt.figure(), plt.figure(); display(a)"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "1", "0", "1", "1", "2"], done.stderr


@given(text=st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12))
def test_any_token_can_be_drawn(text):
    fig, ax = figures.canvas(7, 1)
    (box,) = figures.tokens(ax, 0, 0.5, [text])
    assert box.left[0] == pytest.approx(0) and box.w > 0
    assert "<svg" in figures.to_svg(fig)


def test_boxes_know_their_edges():
    _, ax = figures.canvas(6, 2)
    box = figures.box(ax, 3, 1, "a long name for a small box", w=0.5, h=0.4)
    assert box.w > 0.5, "a box grows with its text"
    assert box.left == (3 - box.w / 2, 1) and box.right == (3 + box.w / 2, 1)
    assert box.top == (3, 1 + box.h / 2) and box.bottom == (3, 1 - box.h / 2) and box.center == (3, 1)
    row = figures.tokens(ax, 0.5, 1, ["a", "bb", "ccc"], gap=0.1)
    assert row[0].left[0] == pytest.approx(0.5)
    assert all(b.left[0] - a.right[0] == pytest.approx(0.1) for a, b in zip(row, row[1:], strict=False))


@pytest.mark.parametrize("wrong", [
    lambda ax: figures.canvas(8, 2),
    lambda ax: figures.canvas(2, 0),
    lambda ax: figures.tokens(ax, 0, 0, ["a", "b"], ["#000000"]),
    lambda ax: figures.heatmap(ax, [[1, 2]], cols=["one"]),
    lambda ax: figures.roadmap(10),
])
def test_mistakes_are_told(wrong):
    with pytest.raises(ValueError, match=r"\d"):
        wrong(figures.canvas(1, 1)[1])


def test_heatmap_takes_tensors_and_charts():
    torch = pytest.importorskip("torch")
    from matplotlib.figure import Figure

    fig = Figure()
    figures.heatmap(fig.subplots(), torch.eye(3), rows=range(3), cols=np.array(["a", "b", "c"]))
    assert figures.to_svg(fig).count("1.00") == 3


def test_palette_is_readable_in_both_modes():
    for colour in (*figures.PALETTE, figures.GREY):
        assert contrast(colour, "#ffffff") >= 4.5
        assert contrast(colour, figures.DARK[figures.PAPER]) >= 3
        assert contrast(figures.DARK[colour], figures.DARK[figures.PAPER]) >= 4.5


# Machado, Oliveira and Fernandes (2009), severity 1: what remains of linear red, green and blue
SIMULATED = {
    "protan": [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    "deutan": [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.01182, .04294, .968881]],
    "tritan": [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .3039]],
}


def seen(colour, matrix):
    "Give a colour in CIE Lab as seen through a simulated deficiency."
    parts = np.array([int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]])
    xyz = to_xyz @ np.clip(matrix @ linear, 0, 1)
    f = np.cbrt(np.maximum(xyz / (.9505, 1, 1.089), 1e-4))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", SIMULATED)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_palette_stays_apart_for_colour_blind_readers(kind, mode):
    colours = figures.PALETTE if mode == "light" else [figures.DARK[c] for c in figures.PALETTE]
    lab = [seen(colour, np.array(SIMULATED[kind])) for colour in colours]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(lab) for b in lab[:i]]
    assert min(apart) > 10  # 2.3 is a just noticeable difference


def test_stylesheet_has_the_same_palette(root):
    css = (root / "nbs" / "_static" / "book.css").read_text(encoding="utf-8")
    blocks = re.findall(r"^html.*?^}", css, re.S | re.M)[:2]
    light, dark = (dict(re.findall(r"--lit-(\w+): (#\w+);", block)) for block in blocks)
    for name in ("BLUE", "ORANGE", "GREEN", "RED", "PURPLE", "GREY"):
        colour = getattr(figures, name)
        assert light[name.lower()] == colour, f"nbs/_static/book.css: --lit-{name.lower()}"
        assert dark[name.lower()] == figures.DARK[colour], f"nbs/_static/book.css: --lit-{name.lower()}, dark"
    assert dark["paper"] == figures.DARK[figures.PAPER]


def test_pictures_that_are_files_are_current(root, tmp_path):
    mend = "write it again: python -c 'from llm_literate import figures; figures.write_assets()'"
    static = root / "nbs" / "_static"
    figures.write_assets(tmp_path)
    values, words = numbers(re.sub("f[0-9a-f]{8}-", "", (tmp_path / "roadmap.svg").read_text(encoding="utf-8")))
    stored, told = numbers(re.sub("f[0-9a-f]{8}-", "", (static / "roadmap.svg").read_text(encoding="utf-8")))
    assert words == told, f"nbs/_static/roadmap.svg is old; {mend}"
    assert values == pytest.approx(stored, abs=1.5), f"nbs/_static/roadmap.svg is old; {mend}"
    from matplotlib.image import imread

    new, old = imread(tmp_path / "social.png"), imread(static / "social.png")
    assert old.shape[:2] == (630, 1200)
    assert np.abs(new - old).mean() < 0.02, f"nbs/_static/social.png is old; {mend}"


@pytest.mark.parametrize("step", range(1, 10))
def test_roadmap_lights_one_step(step):
    svg = figures.to_svg(figures.roadmap(step))
    assert svg.count("var(--lit-paper, #ffffff)") == 1
    assert re.search(rf"--lit-paper[^>]*>{step} ", svg)


def test_roadmap_is_told_in_words():
    for *_, names in figures.STAGES:
        for name in names:
            assert re.sub(r"\s+", " ", name) in figures.ROADMAP_ALT
