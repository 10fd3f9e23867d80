"""Figures of verdicts in both orders, computed by hand."""

import json

import pytest

from data.io.records import RecordError, write_jsonl
from rewards.judging.__main__ import main
from rewards.judging.order_swaps import SwappedVerdicts, accuracy_gain, load_swaps, summarise_swaps

RIGHT = SwappedVerdicts("A", "B")
WRONG = SwappedVerdicts("B", "A")
ALWAYS_A = SwappedVerdicts("A", "A")
HALF = SwappedVerdicts(None, "B")
SILENT = SwappedVerdicts(None, None)


def test_figures_of_five_pairs():
    figures = summarise_swaps([RIGHT, WRONG, ALWAYS_A, HALF, SILENT])
    low, high = figures.pop("accuracy_interval")
    assert 0 <= low < 0.4 < high <= 1
    assert figures == {
        "pairs": 5,
        "accuracy": (1 + 0 + 0.5 + 0.5 + 0) / 5,
        "both_right": 1 / 5,
        "flips": 1 / 3,  # of the pairs with two verdicts
        "first": 4 / 7,  # of the readable verdicts
        "unreadable": 3 / 10,
    }


def test_shares_of_nothing_are_none():
    figures = summarise_swaps([SILENT])
    assert (figures["flips"], figures["first"], figures["unreadable"]) == (None, None, 1.0)


def test_the_gain_is_paired_by_pair():
    before = {"a": WRONG, "b": ALWAYS_A, "c": RIGHT}
    after = {"c": RIGHT, "b": RIGHT, "a": ALWAYS_A}
    assert accuracy_gain(before, after).estimate == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert accuracy_gain(before, after).low == 0  # a pair that stayed, and never one that lost
    with pytest.raises(RecordError, match="verdicts of both judges on the same pairs, found those of one on 'c'"):
        accuracy_gain({"a": WRONG, "b": RIGHT}, after)


def row(pair, better, completion, **more):
    return {"id": f"{pair}/{better}", "pair": pair, "better": better, "completion": completion, **more}


def test_completions_are_read_whatever_their_order_and_form(tmp_path):
    path = tmp_path / "completions.jsonl"
    turns = [{"role": "assistant", "content": "So: <verdict>A</verdict>"}]
    rows = [row(1, "B", "<verdict>B</verdict>"), row("1", "A", "A!"), row(1, "A", turns), row("1", "B", turns)]
    write_jsonl(path, rows)
    assert load_swaps(path) == {1: RIGHT, "1": SwappedVerdicts(None, "A")}


def test_pairs_without_both_orders_are_an_error_that_names_them(tmp_path):
    path = tmp_path / "completions.jsonl"
    verdict = "<verdict>A</verdict>"
    write_jsonl(path, [row("x", "A", verdict), row("y", "A", verdict), row("y", "A", verdict), row("y", "B", verdict)])
    with pytest.raises(RecordError) as error:
        load_swaps(path)
    assert error.value.problems == [
        f"{path}: pair 'x': expected one completion with 'better' B, found 0",
        f"{path}: pair 'y': expected one completion with 'better' A, found 2",
    ]


def test_the_command_writes_and_shows_both_judges_and_the_gain(tmp_path, capsys):
    for name, last in (("before", "A"), ("after", "B")):
        verdicts = [row("x", "A", "<verdict>A</verdict>"), row("x", "B", f"<verdict>{last}</verdict>")]
        write_jsonl(tmp_path / f"{name}.jsonl", verdicts)
    files = ["--completions", str(tmp_path / "after.jsonl"), "--before", str(tmp_path / "before.jsonl")]
    main(["figures", *files, "--output_dir", str(tmp_path / "out")])
    figures = json.loads((tmp_path / "out/verdicts.json").read_text())
    assert (figures["before"]["accuracy"], figures["after"]["accuracy"]) == (0.5, 1.0)
    assert figures["gain"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
    assert capsys.readouterr().out.splitlines() == [
        "              accuracy  both_right       flips       first  unreadable       pairs",
        "before            50.0         0.0       100.0       100.0         0.0           1",
        "after            100.0       100.0         0.0        50.0         0.0           1",
        "accuracy after - before: +0.500 [+0.500, +0.500], 95% interval over pairs",
    ]
