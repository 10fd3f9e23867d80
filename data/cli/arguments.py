"""Options that several commands have, read in one way: numbers with bounds, and how many rows to take."""

import argparse
from collections.abc import Callable
from pathlib import Path

ALL = -1
"""The value of `--limit` that means every row, as the option is written when it is not wanted."""


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from error


def at_least(least: int) -> Callable[[str], int]:
    """A `type` of argparse: a whole number from `least` on.

    >>> at_least(1)("8")
    8
    """

    def read(text: str) -> int:
        number = _whole_number(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {number}")
        return number

    return read


def jsonl_file(text: str) -> Path:
    """A `type` of argparse: a file of rows to write, whose name tells those who read it what it is."""
    if not text.endswith(".jsonl"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .jsonl, found {text!r}")
    return Path(text)


def _limit(text: str) -> int | None:
    number = _whole_number(text)
    if number == ALL:
        return None
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}; {ALL} means all")
    return number


def add_restart_argument(parser: argparse._ActionsContainer) -> None:
    """Adds `--restart`, for commands whose unfinished work is kept by `data.io.shards.ShardStore`."""
    parser.add_argument("--restart", action="store_true", help="discard unfinished work, as of other settings")


def add_skip_argument(parser: argparse._ActionsContainer) -> None:
    """Adds `--skip-unreadable`, for commands that can leave out rows of pictures (`data/io/unreadable.py`)."""
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out rows with an image that cannot be read, and write down which, in place of an error",
    )


def add_limit_argument(parser: argparse._ActionsContainer, what: str = "rows") -> None:
    """Adds `--limit`, which becomes the number of rows to take, or `None` for all of them."""
    parser.add_argument(
        "--limit", type=_limit, metavar="N", help=f"only the first N {what}; {ALL}, or without it, all"
    )
