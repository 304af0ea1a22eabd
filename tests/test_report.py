"""Scores without a judge, intervals, comparisons and agreement: known values, other people's formulas, properties."""

import functools
import html.parser
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_literate.report import (
    Report,
    agreement,
    bootstrap,
    character_f,
    check_responses,
    compare,
    exact_match,
    fingerprint,
    measure,
)

SCORES = st.lists(st.integers(0, 100) | st.none(), min_size=1, max_size=30)


def report(scores, about=(), response="r"):
    entries = [{"instruction": str(i), "input": "", "output": "o", "response": response} for i in range(len(scores))]
    results = [{"status": "ok" if s is not None else "unreadable", "score": s, "reason": ""} for s in scores]
    return Report(entries, results, {"by": "a test", **dict(about)})


# Measures


def naive_chrf(answer, reference):
    "Calculate chrF slowly, from its definition."
    answer, reference = "".join(answer.split()), "".join(reference.split())
    shares = []
    for n in range(1, 7):
        a = [answer[i : i + n] for i in range(len(answer) - n + 1)]
        b = [reference[i : i + n] for i in range(len(reference) - n + 1)]
        if a and b:
            hits = sum(min(a.count(run), b.count(run)) for run in set(a))
            shares.append((hits / len(a), hits / len(b)))
    if not shares:
        return 0.0
    p, r = np.mean(shares, axis=0)
    return 100 * 5 * p * r / (4 * p + r) if p + r else 0.0


@given(st.text("abc ", max_size=12), st.text("abc ", max_size=12))
def test_character_f_is_chrf(answer, reference):
    assert character_f(answer, reference) == pytest.approx(naive_chrf(answer, reference))
    assert 0 <= character_f(answer, reference) <= 100 + 1e-9


def test_character_f_agrees_with_sacrebleu():
    chrf = pytest.importorskip("sacrebleu", reason="compares with sacrebleu where it is installed").CHRF()
    pairs = [
        ("The cat sat.", "The cat sat on the mat."),
        ("a", "a"),
        ("abc", "xyz"),
        ("It is a fox", "It is a box."),
        ("Ü 漢字", "漢字 ü"),
        ("aaaa", "aa"),
    ]
    for answer, reference in pairs:
        assert character_f(answer, reference) == pytest.approx(chrf.sentence_score(answer, [reference]).score, abs=1e-9)


@given(st.text(min_size=1))
def test_the_reference_earns_everything(text):
    assert exact_match(text, text) == 100
    assert character_f(text, text) == pytest.approx(100 if text.split() else 0)
    assert exact_match(text + "x", text) == 0


def test_measures_say_that_they_are_no_judge():
    found = measure([{"instruction": "i", "input": "", "output": "o", "model_response": " o\n"}])
    assert found.scores == [100] and "no judge" in found.about["by"] and "exact match" in repr(found)


ENTRY = {"instruction": "i", "input": "", "output": "a fox", "model_response": "a box"}


class Half:
    def __call__(self, response, reference):
        return np.float32(50)


@pytest.mark.parametrize("metric, score, name", [
    (functools.partial(character_f, order=3), character_f("a box", "a fox", 3), "character f order=3, a formula"),
    (Half(), 50.0, "Half, a formula"), (lambda response, reference: 7, 7.0, "<lambda>, a formula"),
])
def test_any_callable_measures_and_can_be_saved(metric, score, name, tmp_path):
    found = measure([ENTRY], metric)
    assert found.scores == [score] and found.about["by"].startswith(name)
    assert json.loads(found.save(tmp_path / "r.json").read_text())["results"] == found.results


@pytest.mark.parametrize("wrong", ["5", None, [5]])
def test_a_metric_must_give_numbers(wrong):
    given = iter([1, wrong])
    with pytest.raises(ValueError, match="for entry 1, must give a number"):
        measure([ENTRY, ENTRY | {"instruction": "j"}], lambda response, reference: next(given))


def test_the_longest_run_has_a_character_at_least():
    with pytest.raises(ValueError, match="order is 0, must be 1 or more"):
        character_f("a", "a", 0)


# Records


@pytest.mark.parametrize("wrong, why", [({}, "only nothing"), ({1: 2}, "only 1")])
def test_what_an_entry_has_is_told(wrong, why):
    with pytest.raises(ValueError, match=f"entry 0 has no 'instruction', {why}"):
        check_responses([wrong])


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_fingerprints_do_not_know_the_order(value):
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))
    assert fingerprint(value) != fingerprint(value | {"one more key than before": 1})


def test_only_what_is_needed_is_taken():
    entry = {"instruction": "i", "input": "", "output": "o", "family": "f", "answer": "a"}
    assert check_responses([entry], "answer") == [{"instruction": "i", "input": "", "output": "o", "response": "a"}]


# Reports


@settings(max_examples=40)
@given(SCORES)
def test_a_report_keeps_every_row(scores):
    made = report(scores)
    known = [s for s in scores if s is not None]
    assert made.scores == scores
    assert made.failures == ({"unreadable": scores.count(None)} if None in scores else {})
    low, high = made.bounds
    assert 0 <= low <= high <= 100
    if known:
        assert low - 1e-9 <= made.mean <= high + 1e-9
        assert min(known) <= made.interval[0] <= made.interval[1] <= max(known)
    else:
        assert math.isnan(made.mean) and (low, high) == (0, 100)
    assert len(made.table()) == len(scores)


def test_results_must_fit():
    with pytest.raises(ValueError, match="1 entries and 2 results"):
        Report([{}], [{}, {}])


def test_best_and_worst():
    made = report([50, None, 100, 0, 100])
    assert made.table(best=2).index.tolist() == [2, 4]
    assert made.table(best=-2).index.tolist() == [3, 0]


class Reader(html.parser.HTMLParser):
    "Collect the tags and the text of a page."

    def __init__(self):
        super().__init__()
        self.tags, self.text = Counter(), ""

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_data(self, data):
        self.text += data


@settings(max_examples=40)
@given(
    st.text() | st.sampled_from(["<script>x</script>", "</td></table>", "a|b\nc", "`x` **y** [z](u)", "\r\n", "&lt;"])
)
def test_an_answer_cannot_break_out_of_a_fragment(text):
    made = report([10, 90], response=text)
    plain = report([10, 90], response="r")
    reader, wanted = Reader(), Reader()
    reader.feed(made.fragment())
    wanted.feed(plain.fragment())
    assert reader.tags == wanted.tags
    markdown = made.fragment("md")
    assert len(markdown.splitlines()) == len(plain.fragment("md").splitlines())
    assert "<" not in markdown
    markdown.encode()


@pytest.mark.parametrize("text", ["Don't", 'It is "so".', "&#x27; and #27", "5 < 6 & *7*", "It's `x`, a|b \\\\ ~c~"])
@pytest.mark.parametrize("kind", ["html", "md"])
def test_an_answer_shows_as_itself(text, kind):
    fragment = report([10], response=text).fragment(kind)
    if kind == "md":
        markdown_it = pytest.importorskip("markdown_it")
        fragment = markdown_it.MarkdownIt("commonmark").enable("table").render(fragment)
    reader = Reader()
    reader.feed(fragment)
    assert reader.tags["table"] == 3 and text in reader.text


def test_a_quote_needs_no_escape_in_markdown():
    assert "| Don't |" in report([10], response="Don't").fragment("md")


def test_saving(tmp_path):
    made = report([1, None], {"options": {"seed": 1}})
    saved = json.loads(made.save(tmp_path / "r.json").read_text())
    assert saved["results"] == made.results and saved["about"]["options"] == {"seed": 1}
    for ending in "html", "md":
        assert "seed" in made.save(tmp_path / f"r.{ending}").read_text()
    for name in "r.pdf", "r":
        with pytest.raises(ValueError, match=f"{name} must end with .json, .html or .md"):
            made.save(tmp_path / name)


@pytest.mark.parametrize("ending", ["json", "html", "md"])
def test_an_old_file_stays_whole_if_saving_fails(ending, tmp_path, monkeypatch):
    path = report([1]).save(tmp_path / f"r.{ending}")
    before = path.read_bytes()

    def full(self, text, **options):
        self.write_bytes(text[:5].encode())
        raise OSError("no space left")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError, match="no space"):
        report([2]).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_plot_is_drawn_even_of_nothing():
    for scores in [0, 50, 100], [None], [7]:
        assert report(scores).plot().axes


# Intervals and comparisons


def test_the_interval_holds_what_it_promises():
    random, held = np.random.default_rng(1), 0
    for _ in range(200):
        low, high = bootstrap(random.normal(10, 3, size=40), resamples=500)
        held += low <= 10 <= high
    assert 0.88 <= held / 200 <= 0.99  # 95 % in the long run, a little less for 40 values


def test_the_interval_is_the_same_each_time_and_follows_the_values():
    values = np.random.default_rng(2).random(50) * 100
    low, high = bootstrap(values)
    assert bootstrap(values) == (low, high)
    assert bootstrap(values / 2) == pytest.approx((low / 2, high / 2))
    assert bootstrap(values, level=0.5)[0] > low
    assert bootstrap([7.0]) == (7, 7) and all(map(math.isnan, bootstrap([])))


@pytest.mark.parametrize("wrong", [{"level": -1}, {"level": 0}, {"level": 1.5}, {"resamples": 0}])
def test_impossible_intervals_are_refused(wrong):
    with pytest.raises(ValueError, match="level must be above 0 and below 1, and one draw is the least"):
        bootstrap([1, 2], **wrong)


def test_a_large_sample_needs_little_memory():
    low, high = bootstrap(np.arange(200_000) % 101, resamples=20)
    assert 49 < low <= high < 51


@settings(max_examples=40)
@given(SCORES, st.data())
def test_comparing_is_antisymmetric(scores, data):
    others = data.draw(st.lists(st.integers(0, 100) | st.none(), min_size=len(scores), max_size=len(scores)))
    one, two = compare(report(scores), report(others)), compare(report(others), report(scores))
    assert (one.n, one.wins, one.ties, one.losses) == (two.n, two.losses, two.ties, two.wins)
    assert one.n + one.left_out == len(scores) and one.wins + one.ties + one.losses == one.n
    if one.n:
        assert one.difference == pytest.approx(-two.difference)
        assert one.p == pytest.approx(two.p) and 0 <= one.p <= 1


def test_a_constant_gain_is_seen():
    base = np.random.default_rng(3).integers(0, 90, 30).tolist()
    better = compare(report(base), report([score + 5 for score in base]))
    assert better.difference == 5 and better.interval == (5, 5) and better.wins == 30 and better.p < 1e-6
    same = compare(report(base), report(base))
    assert (same.difference, same.ties, same.p) == (0, 30, 1)


def test_only_alike_is_compared():
    with pytest.raises(ValueError, match="same requests"):
        compare(report([1, 2]), report([1]))
    with pytest.raises(ValueError, match="digest differ"):
        compare(report([1], {"digest": "a"}), report([1], {"digest": "b"}))
    with pytest.raises(ValueError, match="same answers"):
        agreement(report([1]), report([1], response="other"))


# Agreement


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=3, max_size=25))
def test_kappa_is_that_of_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    a, b = (np.array(scores) for scores in zip(*pairs, strict=True))
    grades = [sum(np.array(scores) >= cut for cut in (20, 40, 60, 80)) for scores in (a, b)]
    ours = agreement(a.tolist(), b.tolist()).kappa
    if len({*grades[0], *grades[1]}) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(metrics.cohen_kappa_score(*grades, labels=range(5), weights="quadratic"))


def test_agreement_with_oneself_is_full():
    found = agreement([0, 30, 55, 100], [0, 30, 55, 100])
    assert (found.pearson, found.spearman, found.kendall, found.kappa) == pytest.approx((1, 1, 1, 1))
    assert (found.apart, found.bias, found.equal) == (0, 0, 1)


def test_what_cannot_be_said_is_nan(recwarn):
    for pair in ([50, 50], [10, 20]), ([1], [2]), ([None], [5]), ([], []):
        assert math.isnan(agreement(*pair).pearson)
    assert not recwarn


def test_a_missing_score_shifts_nothing():
    a, b = list(range(40)), [i + i % 3 for i in range(40)]
    with_gap = agreement([None, *a[1:]], b)
    assert with_gap.left_out == 1 and with_gap.pearson == pytest.approx(agreement(a[1:], b[1:]).pearson)
    with pytest.raises(ValueError, match="39 and 40 scores"):
        agreement(a[1:], b)


# The recorded judges


@pytest.fixture
def recorded(data_dir):
    def read(name):
        return json.loads((data_dir / "judge" / name).read_text(encoding="utf-8"))

    return (read("eval-example-data.json"), read("gpt4-model-1-scores.json"), read("llama3-8b-model-1-scores.json"))


@pytest.mark.data
def test_recorded_scores(recorded):
    _, gpt4, llama3 = recorded
    for scores, (mean, median, sd, low, high) in (
        (gpt4, (74.09, 100, 41.02, 66.01, 81.79)),
        (llama3, (77.05, 91, 28.55, 71.42, 82.49)),
    ):
        assert (np.mean(scores), np.median(scores), np.std(scores, ddof=1)) == pytest.approx(
            (mean, median, sd), abs=0.006
        )
        assert bootstrap(scores) == pytest.approx((low, high), abs=0.006)


@pytest.mark.data
def test_recorded_agreement(recorded):
    _, gpt4, llama3 = recorded
    found = agreement(gpt4, llama3)
    assert (found.pearson, found.spearman, found.kendall) == pytest.approx((0.804890, 0.698406, 0.572920), abs=5e-7)
    assert (found.apart, found.bias, found.equal) == pytest.approx((15.92, 2.96, 0.05))
    assert found.kappa == pytest.approx(0.7170, abs=5e-5)
    assert agreement(gpt4[:-1], llama3[1:]).pearson < 0


@pytest.mark.data
def test_recorded_ceiling_and_comparison(recorded):
    entries, gpt4, llama3 = recorded
    perfect = measure(entries, exact_match, "model 1 response").scores
    for scores, wanted in ((gpt4, 100), (llama3, 93.33)):
        assert np.mean([s for s, p in zip(scores, perfect, strict=True) if p]) == pytest.approx(wanted, abs=0.005)
    one, two = (measure(entries, character_f, f"model {n} response") for n in (1, 2))
    found = compare(one, two)
    assert found.n == 100 and found.difference < 0 and found.losses > found.wins
