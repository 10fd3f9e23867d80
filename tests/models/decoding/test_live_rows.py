"""Rows and prompts stand without holes, each row by its prompt, whatever rows leave in whatever order."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding.live_rows import LiveRows
from models.decoding.prompts import Prompts

PROMPT = 4


class Noted:
    """Stands for a cache: what stands at each place of it."""

    def __init__(self, rows: int, prompts: int):
        self.rows, self.prompts = list(range(rows)), list(range(prompts))
        self.tokens: list[int] = []

    def keep_rows(self, moves, rows: int, tokens) -> None:
        for source, target in moves:
            assert target < rows <= source
            self.rows[target] = self.rows[source]
        del self.rows[rows:]
        self.tokens += tokens

    def keep_prompts(self, moves) -> None:
        for source, target in moves:
            self.prompts[target] = self.prompts[source]


def live_rows(of_row: list[int], axes: int = 0, padded: bool = False) -> tuple[LiveRows, Noted]:
    count = max(of_row) + 1
    positions = 10 * torch.arange(count).unsqueeze(1)
    padding = -torch.arange(float(count))[:, None, None, None].expand(count, 1, 1, PROMPT) if padded else None
    positions = positions.expand(axes, count, 1) if axes else positions
    prompts = Prompts(of_row, [], torch.zeros(count, 3), positions, padding, [[1]] * count, PROMPT)
    noted = Noted(len(of_row), count)
    return LiveRows(prompts, noted), noted


def leave(live: LiveRows, gone: Iterable[int]) -> None:
    live.leave(lambda row: row in set(gone), lambda row: 100 + row)


def assert_laid_out(live: LiveRows, noted: Noted, of_row: list[int], alive: set[int]) -> None:
    """Rows and prompts are those that are left, the cache has them at their places, and the table finds each."""
    assert sorted(live.rows) == sorted(alive)
    assert noted.rows == live.rows
    assert sorted(live.prompts) == sorted({of_row[row] for row in alive})
    assert noted.prompts[: len(live.prompts)] == live.prompts
    step = live.step([0] * len(live.rows), 1)
    numbers = torch.tensor(live.rows)
    if step.grid is None:
        assert len(live.rows) == step.prompts * step.group
    table = step.by_prompt(numbers)
    for prompt, rows in zip(live.prompts, table.tolist(), strict=True):
        assert {row for row in rows if of_row[row] == prompt} == {row for row in alive if of_row[row] == prompt}
    assert torch.equal(step.by_row(table), numbers)
    assert live.first.flatten().tolist()[-len(live.rows) :] == [10 * of_row[row] + 1 for row in live.rows]


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=9))
def test_any_rows_may_leave_in_any_order(rows):
    """Each has a prompt, and a step after which it leaves."""
    different = sorted({prompt for prompt, _ in rows})
    of_row = [different.index(prompt) for prompt, _ in rows]
    live, noted = live_rows(of_row)
    assert_laid_out(live, noted, of_row, set(range(len(rows))))
    for step in range(6):
        alive = {row for row, (_, last) in enumerate(rows) if last > step}
        leave(live, set(range(len(rows))) - alive)
        if not alive:
            assert live.rows == []
            return
        assert_laid_out(live, noted, of_row, alive)


def test_the_last_takes_the_place_of_the_one_that_leaves():
    live, noted = live_rows([0, 0, 1, 1])
    leave(live, [0])
    assert live.rows == [3, 1, 2]
    assert noted.tokens == [103]  # those of the row that moved
    leave(live, [0, 1, 2])
    assert live.rows == [3]
    assert live.prompts == [1]


def test_nothing_is_moved_where_none_leaves():
    live, noted = live_rows([0, 0, 1])
    before = live.first
    leave(live, [])
    assert live.first is before
    assert noted.tokens == []


def test_groups_in_order_need_no_table():
    live, _ = live_rows([0, 0, 1, 1])
    step = live.step([2, 2, 2, 2], 1)
    assert step.grid is None
    assert (step.prompts, step.group, step.at, step.width) == (2, 2, 2, 3)
    assert live_rows([0, 1, 0, 1])[0].step([0] * 4, 1).grid is not None


def test_rows_with_drafts_or_of_other_lengths_write_at_places_of_their_own():
    live, _ = live_rows([0, 0, 0])
    assert live.step([4, 2, 3], 1).at is None
    step = live.step([4, 4, 4], 3)
    assert step.at is None
    assert step.width == 7
    assert step.places.tolist() == [[4, 5, 6]] * 3


@pytest.mark.parametrize("axes", [0, 3, 4])
def test_positions_have_the_axes_of_the_family(axes):
    live, _ = live_rows([1, 0, 1], axes)
    assert live.first.shape == ((axes, 3, 1) if axes else (3, 1))
    leave(live, [0])
    assert live.first.reshape(-1, 2)[0].tolist() == [11, 1]  # of rows 2 and 1


def test_padding_goes_with_its_prompt():
    live, _ = live_rows([0, 1, 2], padded=True)
    assert live.step([0] * 3, 1).padding[:, 0, 0, 0].tolist() == [0, -1, -2]
    leave(live, [0])
    assert live.prompts == [2, 1]
    assert live.step([0] * 2, 1).padding[:, 0, 0, 0].tolist() == [-2, -1]
