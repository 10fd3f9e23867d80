"""Which groups are drawn anew on which process, and which rows they replace."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.mixins.dynamic_sampling import plan_redraw, rows_to_draw, rows_to_replace


def test_every_process_draws_as_many_groups_as_the_one_with_most_flat_ones():
    flat = torch.tensor([True, False, True, False, False, True])  # 2 processes, 3 groups each
    plan = plan_redraw(flat, rows=6, size=2)
    assert plan.per_process == 2
    assert plan.groups[:2] == [0, 2]
    assert plan.groups[2] == 5
    assert rows_to_draw(plan, 0, 6, 2) == [0, 0, 1, 1]
    assert rows_to_draw(plan, 1, 6, 2) == [2, 2, 3, 3]


def test_accepted_groups_land_in_their_own_rows():
    flat = torch.tensor([True, False, True, False, False, True])
    plan = plan_redraw(flat, rows=6, size=2)
    accepted = [False, True, True, False]
    assert rows_to_replace(plan, accepted, 0, 6, 2) == ([4, 5], [2, 3])
    assert rows_to_replace(plan, accepted, 1, 6, 2) == ([4, 5], [0, 1])


def test_groups_across_processes_are_drawn_as_a_whole_batch():
    flat = torch.tensor([False, True, False])  # 3 groups of 4 on 2 processes with 6 rows each
    plan = plan_redraw(flat, rows=6, size=4)
    assert plan.per_process is None
    assert rows_to_draw(plan, 0, 6, 4) == [0, 0, 0, 0, 1, 1]
    assert rows_to_draw(plan, 1, 6, 4) == [1, 1, 2, 2, 2, 2]
    accepted = [False, True, False]
    assert rows_to_replace(plan, accepted, 0, 6, 4) == ([4, 5], [4, 5])
    assert rows_to_replace(plan, accepted, 1, 6, 4) == ([0, 1], [0, 1])


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_all_flat_groups_are_drawn_and_equally_many_everywhere(processes, groups_each, data):
    count = processes * groups_each
    flat = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    size = 3
    rows = groups_each * size
    plan = plan_redraw(flat, rows, size)
    assert set(flat.nonzero().flatten().tolist()) <= set(plan.groups)
    assert len({len(rows_to_draw(plan, process, rows, size)) for process in range(processes)}) == 1
    accepted = [bool(flat[group]) for group in plan.groups]
    for process in range(processes):
        replaced, _ = rows_to_replace(plan, accepted, process, rows, size)
        mine = flat[process * groups_each : (process + 1) * groups_each]
        assert sorted(replaced) == [row for row in range(rows) if mine[row // size]]


@pytest.mark.parametrize("size", [2, 3])
def test_nothing_flat_draws_nothing(size):
    plan = plan_redraw(torch.tensor([False, False]), rows=size, size=size)
    assert plan.groups == []
