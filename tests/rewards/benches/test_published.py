"""The published table: figures with their sources, newest first, and one's own line only where rows are the same."""

import re

import pytest

from rewards.benches.published import published_benches, published_table
from rewards.benches.registry import BENCHES
from rewards.benches.vl_rewardbench import GROUPS

VL_SIZES = {"general": 183, "hallucination": 749, "reasoning": 318}


def test_every_bench_has_a_table_and_every_figure_a_column_a_source_and_a_date():
    assert published_benches().keys() == BENCHES.keys()
    for bench in published_benches().values():
        for line in bench.lines:
            assert line.figures.keys() <= set(bench.columns)
            assert all(0 < figure <= 100 for figure in line.figures.values())
            assert re.match(r"arXiv \d{4}\.\d{5}", line.source)
            assert re.fullmatch(r"202\d-(0[1-9]|1[0-2])", line.date)


@pytest.mark.parametrize("name", BENCHES)
def test_lines_stand_newest_first(name):
    dates = [line.date for line in published_benches()[name].lines]
    assert max(dates, default="2026") >= {"mmrb2": "2025-12"}.get(name, "2026")
    assert dates == sorted(dates, reverse=True)


def test_lines_whose_overall_does_not_follow_from_their_groups_are_marked():
    bench = published_benches()["vl_rewardbench"]
    by_name = {line.model: line for line in bench.lines}
    # (183 * 66.0 + 749 * 80.0 + 318 * 61.0) / 1250 = 73.1; for R1-Reward it is 77.2, and 71.9 is printed.
    assert not by_name["Skywork-VL-Reward-7B"].inconsistent(bench.sizes)
    assert by_name["R1-Reward-7B"].inconsistent(bench.sizes)
    assert by_name["LLaVA-Critic-8B"].inconsistent(bench.sizes)  # macro 44.0, mean of its groups 50.7


def test_a_bench_whose_published_rows_are_unknown_shows_no_line_of_ones_own():
    table = published_table("mr2bench", "mine", {"groups": {"image": {"accuracy": 1.0, "n": 240}}, "items": 240})
    assert "> mine" not in table
    assert "no source says that its figures are of your 240 rows, so yours are not shown beside" in table


def test_further_figures_of_ones_own_stand_in_their_columns():
    groups = {name: {"accuracy": 0.5, "n": 34} for name in ("mcq", "long", "short", "safety", "video")}
    table = published_table(
        "mm_rlhf_rewardbench", "mine", {"groups": groups, "overall": 0.6, "acc_plus": 0.4, "items": 170}
    )
    assert "50.0 50.0 50.0 50.0 50.0 60.0 40.0 this evaluation" in " ".join(table.split())


@pytest.mark.parametrize(("general", "shown"), [(183, True), (182, False)])
def test_ones_own_line_stands_first_where_the_same_pairs_were_scored(general, shown):
    groups = {group: {"accuracy": 0.695, "n": VL_SIZES[group]} for group in GROUPS}
    groups["general"] = {"accuracy": 0.5, "n": general}
    summary = {"groups": groups, "overall": 0.667, "macro": 0.63, "items": 1067 + general}
    lines = published_table("vl_rewardbench", "mine", summary).splitlines()
    own = [line.split() for line in lines[2:3] if line.startswith("> mine")]
    assert own == (["> mine 50.0 69.5 69.5 66.7 63.0 this evaluation".split()] if shown else [])


def test_lines_of_other_rows_than_ones_own_are_marked():
    summary = {"groups": {"vqa": {"accuracy": 0.5, "n": 1}}, "overall": 0.5, "items": 5211}
    lines = published_table("multimodal_rewardbench", "mine", summary).splitlines()
    by_source = {"2502.14191" in line: " + " in line for line in lines if "arXiv" in line}
    assert by_source == {True: False, False: True}
    assert lines[-1] == "+ of other rows than yours, as far as is known"
    assert published_table("multimodal_rewardbench", "mine", {**summary, "items": 4711}).count(" +") == 8
