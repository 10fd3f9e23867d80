"""Rows look up what may come next, and what was looked up is compared with what came."""

import pytest

from models.decoding.drafts.drafting import Drafting, RowDrafts, parse_drafts
from models.decoding.drafts.length import MOST, FittingLength
from models.decoding.drafts.store import DraftStore


class Noting(FittingLength):
    """Drafts so many tokens, and keeps what it is told."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length
        self.seen: list[tuple[int, ...]] = []

    def of_next(self, rows: int) -> int:
        return self.length

    def note_look_ups(self, rows: int, found: int, right: int, wrong: int) -> None:
        self.seen.append((rows, found, right, wrong))


def rows_of(fitting: FittingLength | None, prompts: list[list[int]], most: int = 4) -> RowDrafts:
    store = DraftStore((2,))
    store.note([1, 2, 3, 4, 5, 6, 7], 0)
    return RowDrafts(Drafting(store, most, fitting), prompts)


@pytest.mark.parametrize(("room", "expected"), [(9, [3, 4, 5, 6]), (2, [3, 4]), (0, [])])
def test_rows_get_what_followed_their_last_tokens_and_no_more_than_they_have_room_for(room, expected):
    assert rows_of(None, [[9, 1, 2]]).of_rows([0], [room]) == [expected]


def test_what_rows_have_read_is_looked_up_in_later_ones():
    drafts = rows_of(None, [[8, 9], [8, 9], [1]])
    assert drafts.of_rows([0, 1, 2], [9, 9, 9]) == [[], [], []]
    drafts.note([0, 1, 2], [[5, 5], [7], [2]])
    assert drafts.of_rows([1, 2], [9, 9]) == [[], [3, 4, 5, 6]]
    drafts.note([1, 2], [[3], [4]])
    late = RowDrafts(Drafting(drafts.store, 4), [[0, 8, 9]])
    assert late.of_rows([0], [9]) == [[7, 3]]  # met last in row 1


@pytest.mark.parametrize(
    ("length", "came", "right", "wrong"),
    [
        (4, [3, 4, 5, 6, 1], 4, 0),
        (4, [3, 4, 9], 2, 1),
        (4, [9], 0, 1),
        (2, [3, 4, 9], 2, 0),  # the third was not drafted
        (0, [3], 1, 0),  # one is compared though none is drafted
        (0, [9], 0, 1),
    ],
)
def test_what_came_is_compared_with_what_was_looked_up(length, came, right, wrong):
    fitting = Noting(length)
    drafts = rows_of(fitting, [[1, 2], [9, 9]])
    assert drafts.of_rows([0, 1], [9, 9]) == [[3, 4, 5, 6][:length], []]
    drafts.note([0, 1], [came, [0]])
    assert fitting.seen == [(2, 1, right, wrong)]


def test_the_first_tokens_come_without_a_look_up():
    fitting = Noting(4)
    rows_of(fitting, [[1, 2]]).note([0], [[3]])
    assert fitting.seen == [(0, 0, 0, 0)]


def test_drafting_is_of_a_number_of_as_many_as_pay_or_none():
    assert Drafting.of(0) is None
    assert (Drafting.of(3).most, Drafting.of(3).fitting) == (3, None)
    assert Drafting.of("auto").most == Drafting.of("auto").fitting.most == MOST


def test_numbers_may_be_written_as_texts():
    assert [parse_drafts(value, "drafts") for value in ("auto", 0, "4", 5)] == ["auto", 0, 4, 5]
    with pytest.raises(ValueError, match=r"drafts: expected auto or a whole number of at least 0, found 'AUTO '"):
        parse_drafts("AUTO ", "drafts")
