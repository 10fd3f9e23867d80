"""Rows and prompts stand without holes, each row by its prompt, whatever rows leave in whatever order."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding.live_rows import LiveRows
from models.decoding.prompts import Begun, Prompts

PROMPT = 4


class Noted:
    """Stands for a cache: what stands at each place of it."""

    def __init__(self):
        self.rows: list[int] = []
        self.prompts: list[int] = []
        self.tokens: list[int] = []

    def enter(self, begun: Begun, prompts: int) -> None:
        self.rows += begun.rows
        self.prompts[prompts:] = begun.prompts

    def keep_rows(self, moves, rows: int, tokens) -> None:
        for source, target in moves:
            assert target < rows <= source
            self.rows[target] = self.rows[source]
        del self.rows[rows:]
        self.tokens += tokens

    def keep_prompts(self, moves) -> None:
        for source, target in moves:
            self.prompts[target] = self.prompts[source]


def live_rows(
    of_row: list[int], axes: int = 0, padded: bool = False, first: int | None = None
) -> tuple[LiveRows, Noted]:
    """Of rows of these prompts, of which the first have begun; by default all."""
    count = max(of_row) + 1
    positions = 10 * torch.arange(count).unsqueeze(1)
    padding = -torch.arange(float(count))[:, None, None, None].expand(count, 1, 1, PROMPT) if padded else None
    positions = positions.expand(axes, count, 1) if axes else positions
    noted = Noted()
    live = LiveRows(Prompts({}, of_row, positions, padding, [[1]] * count, PROMPT), noted)
    enter(live, list(range(len(of_row)))[:first])
    return live, noted


def enter(live: LiveRows, rows: list[int]) -> None:
    unread = {live.of_row[row] for row in rows} - set(live.prompts)
    live.enter(Begun(rows, sorted(unread), [], [], torch.empty(0)))


def leave(live: LiveRows, gone: Iterable[int], waiting: Iterable[int] = ()) -> None:
    live.leave(lambda row: row in set(gone), lambda row: 100 + row, list(waiting))


def assert_laid_out(live: LiveRows, noted: Noted, of_row: list[int], alive: set[int]) -> None:
    """Rows and prompts are those that are there, the cache has them at their places, and the table finds each."""
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


@settings(max_examples=60)
@given(lasts=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4), data=st.data())
def test_others_take_the_places_of_those_that_leave(lasts, data):
    """Rows of each prompt stay for so many steps; as many as there is room for begin after each."""
    of_row = [prompt for prompt, rows in enumerate(lasts) for _ in rows]
    stays = [last for rows in lasts for last in rows]
    slots = data.draw(st.integers(1, len(of_row)))
    live, noted = live_rows(of_row, first=slots)
    waiting = list(range(slots, len(of_row)))
    while live.rows:
        assert_laid_out(live, noted, of_row, set(live.rows))
        assert len(live.rows) == min(slots, len(live.rows) + len(waiting))
        stays = [left - (row in live.rows) for row, left in enumerate(stays)]
        leave(live, [row for row, left in enumerate(stays) if left == 0], waiting)
        room = slots - len(live.rows)
        begun, waiting = waiting[:room], waiting[room:]
        if begun:
            enter(live, begun)
    assert not any(stays)


def test_a_prompt_stays_while_rows_of_it_wait():
    live, noted = live_rows([0, 1, 1, 1], first=2)
    leave(live, [0, 1], waiting=[2, 3])
    assert live.prompts == [1]
    enter(live, [2])
    assert_laid_out(live, noted, [0, 1, 1, 1], {2})
    leave(live, [2])
    assert live.prompts == []


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
