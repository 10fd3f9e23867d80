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
    assert dates == sorted(dates, reverse=True)


def test_lines_whose_overall_does_not_follow_from_their_groups_are_marked():
    bench = published_benches()["vl_rewardbench"]
    by_name = {line.model: line for line in bench.lines}
    # (183 * 66.0 + 749 * 80.0 + 318 * 61.0) / 1250 = 73.1; for R1-Reward it is 77.2, and 71.9 is printed.
    assert not by_name["Skywork-VL-Reward-7B"].inconsistent(bench.sizes)
    assert by_name["R1-Reward-7B"].inconsistent(bench.sizes)
    assert by_name["LLaVA-Critic-8B"].inconsistent(bench.sizes)  # macro 44.0, mean of its groups 50.7


@pytest.mark.parametrize(("general", "shown"), [(183, True), (182, False)])
def test_ones_own_line_stands_first_where_the_same_pairs_were_scored(general, shown):
    groups = {group: {"accuracy": 0.695, "n": VL_SIZES[group]} for group in GROUPS}
    groups["general"] = {"accuracy": 0.5, "n": general}
    summary = {"groups": groups, "overall": 0.667, "macro": 0.63, "items": 1067 + general}
    lines = published_table("vl_rewardbench", "mine", summary).splitlines()
    own = [line.split() for line in lines[2:3] if line.startswith("> mine")]
    assert own == (["> mine 50.0 69.5 69.5 66.7 63.0 this evaluation".split()] if shown else [])
