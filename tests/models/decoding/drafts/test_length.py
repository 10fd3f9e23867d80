"""As many tokens are drafted as pay, by what was accepted and what forwards took."""

import pytest

from models.decoding.drafts.length import MOST, FittingLength

ROWS = 8


def fitted(right: float, fixed: float, each: float, found: float = 1.0) -> FittingLength:
    """After 50 forwards, of one token a row and of nine: seconds, and the share of look-ups that was right."""
    length = FittingLength()
    for number in range(50):
        tokens = ROWS * (1 if number % 2 else 9)
        length.note_forward(tokens, fixed + each * tokens)
        length.note_look_ups(ROWS, found * ROWS, right * ROWS, (1 - right) * ROWS)
    return length


def tokens_a_second(drafted: int, right: float, fixed: float, each: float) -> float:
    kept = sum(right**place for place in range(drafted + 1))
    return kept / (fixed + each * ROWS * (drafted + 1))


@pytest.mark.parametrize("right", [0.05, 0.3, 0.6, 0.8, 0.97])
@pytest.mark.parametrize("each", [0.0, 1e-5, 1e-4, 1e-3])
def test_so_many_are_drafted_as_give_most_tokens_a_second(right, each):
    best = max(range(MOST + 1), key=lambda drafted: tokens_a_second(drafted, right, 1e-3, each))
    assert fitted(right, 1e-3, each).of_next(ROWS) == best


def test_what_pays_with_few_rows_may_not_with_many():
    length = fitted(0.6, 1e-3, 1e-4)
    assert length.of_next(1) > length.of_next(ROWS) > length.of_next(64) == 0


def test_rows_without_a_look_up_count_against_it():
    assert fitted(0.9, 1e-3, 1e-4, found=0.1).of_next(ROWS) < fitted(0.9, 1e-3, 1e-4).of_next(ROWS)


def test_nothing_is_drafted_before_a_look_up_was_right_and_much_is_while_forwards_of_one_width_were_seen():
    length = FittingLength()
    assert length.of_next(ROWS) == 0
    for _ in range(10):
        length.note_forward(ROWS, 1e-3)
        length.note_look_ups(ROWS, ROWS, 0, ROWS)
    assert length.of_next(ROWS) == 0
    length.note_look_ups(ROWS, ROWS, ROWS // 2, 0)
    assert length.of_next(ROWS) == MOST


def test_what_is_long_ago_is_forgotten():
    length = fitted(0.97, 1e-3, 1e-5)
    assert length.of_next(ROWS) == MOST
    for _ in range(300):
        length.note_look_ups(ROWS, ROWS, 0, ROWS)
    assert length.of_next(ROWS) == 0
