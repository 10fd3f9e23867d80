"""Sizes of splits, and dividing records among them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.cli.arguments import parse_arguments
from data.io.splits import ShareArguments, divide, split_sizes


@pytest.mark.parametrize(
    ("total", "shares", "sizes"),
    [
        (10, (0.8, 0.1, 0.1), (8, 1, 1)),
        (640, (0.8, 0.1, 0.1), (512, 64, 64)),
        (3, (0.5, 0.5, 0.0), (2, 1, 0)),  # rounding each share by itself would take 4 of 3
        (5, (0.5, 0.5, 0.0), (2, 3, 0)),
        (7, (1.0, 0.0, 0.0), (7, 0, 0)),
        (7, (0.0, 0.0, 1.0), (0, 0, 7)),
        (1, (0.8, 0.1, 0.1), (1, 0, 0)),
        (2, (0.8, 0.1, 0.1), (1, 0, 1)),
        (4, (0.8, 0.1, 0.1), (2, 1, 1)),
        (0, (0.8, 0.1, 0.1), (0, 0, 0)),
    ],
)
def test_sizes_by_hand(total, shares, sizes):
    assert split_sizes(total, shares) == sizes


@given(total=st.integers(0, 10_000), train=st.floats(0, 1), rest=st.floats(0, 1))
def test_sizes_add_up_follow_the_shares_and_leave_none_empty(total, train, rest):
    shares = (train, (1 - train) * rest, (1 - train) * (1 - rest))
    sizes = split_sizes(total, shares)
    assert sum(sizes) == total
    given_away = 2 * (min(size for size, share in zip(sizes, shares, strict=True) if share) <= 1)
    for size, share in zip(sizes, shares, strict=True):
        assert size >= (share > 0 and total >= 3)
        assert abs(size - share * total) <= 1 + given_away


def test_dividing_keeps_every_record_once_and_leaves_the_list_alone():
    records = list(range(20))
    parts = divide(records, (0.5, 0.25, 0.25), seed=1)
    assert [len(parts[split]) for split in ("train", "validation", "test")] == [10, 5, 5]
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == records == list(range(20))


def test_the_seed_decides_the_order():
    first, again, other = (divide(list(range(50)), (0.8, 0.1, 0.1), seed) for seed in (1, 1, 2))
    assert first == again != other


def _read(*arguments: str):
    return parse_arguments(ShareArguments, arguments).shares


def test_shares_are_read_and_have_defaults():
    assert _read() == (0.8, 0.1, 0.1)
    assert _read("--train_split", "0.5", "--val_split", ".3", "--test_split", ".2") == (0.5, 0.3, 0.2)


@pytest.mark.parametrize("arguments", [["--train_split", "0.9"], ["--train_split", "0.5", "--val_split", "0.6"]])
def test_shares_that_do_not_add_up_end_the_program(arguments, capsys):
    with pytest.raises(SystemExit):
        _read(*arguments)
    assert "must add up to 1, found (" in capsys.readouterr().err
