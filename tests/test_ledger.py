"""The ledger: a number that drifts, an unknown record and a quoted one must each be refused."""

import math

import numpy as np
import pytest
import torch

from llm_literate.ledger import Mark, Record, agree, check, find, parse_records, plain, quote, records, show

TOML = """
[[record]]
id = "1-x"
section = "1"
what = "a number"
value = {value}
tolerance = {tolerance}
status = "{status}"
"""


@pytest.fixture
def ledger(monkeypatch):
    """Put one record in place of the shipped ledger."""

    def place(value="3.5", tolerance="0.1", status="reproduced"):
        found = parse_records(TOML.format(value=value, tolerance=tolerance, status=status))
        monkeypatch.setattr("llm_literate.ledger.records", lambda: found)

    return place


def test_shipped_ledger_is_well_formed():
    for id, record in records().items():
        assert id.split("-")[0], id
        assert record.what, id
        assert record.status != "erratum" or record.note, f"{id}: an erratum must say what is right"


@pytest.mark.parametrize("got", [3.5, 3.59, np.float64(3.41), torch.tensor(3.5)])
def test_check_accepts_within_the_tolerance(ledger, got):
    ledger()
    assert isinstance(check("1-x", got), Mark)


@pytest.mark.parametrize("got", [3.61, 3.39, math.nan, math.inf, [3.5], "3.5"])
def test_check_refuses_a_drifted_value(ledger, got):
    ledger()
    with pytest.raises(AssertionError, match="1-x"):
        check("1-x", got)


@pytest.mark.parametrize("got", [[1, 2, 3], [1], [2, 1], 1, [[1, 2]]])
def test_lists_must_have_the_same_shape_and_values(ledger, got):
    ledger(value="[1, 2]", tolerance="0")
    with pytest.raises(AssertionError):
        check("1-x", got)
    assert check("1-x", (1, 2)).value == [1, 2]


def test_a_quoted_number_is_never_shown_as_reproduced(ledger):
    ledger(status="quoted")
    with pytest.raises(ValueError, match="quoted"):
        check("1-x", 3.5)
    assert "quoted" in repr(quote("1-x")) and "data-ledger-value" not in quote("1-x")._repr_html_()


def test_quote_refuses_what_can_be_computed(ledger):
    ledger()
    with pytest.raises(ValueError, match="compute it"):
        quote("1-x")


def test_unknown_record_names_the_nearest():
    with pytest.raises(ValueError, match="2.5-vocabulary"):
        find("2.5-vocabullary")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOML.format(value=1, tolerance=0, status="seen"), "status"),
        (TOML.format(value=1, tolerance=-1, status="quoted"), "negative"),
        (TOML.format(value=1, tolerance=0, status="quoted") + 'colour = "red"', "colour"),
        (TOML.format(value=1, tolerance=0, status="quoted") * 2, "twice"),
    ],
)
def test_malformed_ledgers_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_records(text)


def test_plain_and_agree_walk_into_nested_values():
    assert plain(torch.arange(4).reshape(2, 2)) == [[0, 1], [2, 3]]
    assert agree([[0, 1.05]], [[0, 1]], 0.1) and not agree([[0, 1.2]], [[0, 1]], 0.1)


def test_marks_are_safe_html():
    mark = Mark(Record("1-<b>", "1", "x", "<i>", "reproduced"), "<i>")
    assert "<i>" not in mark._repr_html_() and "<b>" not in mark._repr_html_()
    assert show(50257) == "50,257" and show([1, 2.5]) == "[1, 2.5]"
    assert show([15496, 0.12345678]) == "[15496, 0.123457]" and show([[50257]]) == "[[50257]]"
