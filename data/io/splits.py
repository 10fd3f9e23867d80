"""Training, validation and test: names, shares, and dividing records among them."""

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data.cli.arguments import OptionError, option
from data.cli.ranges import SHARE

SPLITS = ("train", "validation", "test")
DEFAULT_SHARES = (0.8, 0.1, 0.1)

Shares = tuple[float, float, float]
"""Of training, validation and test; they add up to 1."""


@dataclass(kw_only=True)
class ShareArguments:
    """Shares of the splits."""

    train_split: float = option("share of the records", DEFAULT_SHARES[0], within=SHARE)
    val_split: float = option("share of the records", DEFAULT_SHARES[1], within=SHARE)
    test_split: float = option("share of the records", DEFAULT_SHARES[2], within=SHARE)

    def __post_init__(self):
        if abs(sum(self.shares) - 1) > 1e-6:
            raise OptionError(f"--train_split, --val_split and --test_split must add up to 1, found {self.shares}")

    @property
    def shares(self) -> Shares:
        """All three; they add up to 1."""
        return self.train_split, self.val_split, self.test_split


@dataclass(kw_only=True)
class DivisionArguments(ShareArguments):
    """Shares of the splits, and the folder for them, unless the records are only checked."""

    output_dir: Path | None = option("folder to write to; not needed with validate_only", None)
    validate_only: bool = option("list every problem and write nothing", False)

    def __post_init__(self):
        super().__post_init__()
        if self.output_dir is None and not self.validate_only:
            raise OptionError("--output_dir is needed unless --validate_only is given")


def split_sizes(total: int, shares: Shares) -> tuple[int, int, int]:
    """Sizes of the splits, cut at rounded places: they add up to `total`, and a share of 0 gives none.

    Rounding leaves no split empty that has a share, as long as there are enough: the largest gives one away.
    """
    first, second = round(shares[0] * total), round((shares[0] + shares[1]) * total)
    sizes = [first, second - first, total - second]
    for split in _short_splits(sizes, shares):
        largest = sizes.index(max(sizes))
        if sizes[largest] > 1:
            sizes[largest] -= 1
            sizes[split] += 1
    return tuple(sizes)


def _short_splits(sizes: Sequence[int], shares: Shares) -> list[int]:
    """Splits that have a share and nothing else; where too little is there for all, the last ones stay empty."""
    most_needed_first = (0, 2, 1)  # training, test, validation
    return [split for split in most_needed_first if shares[split] > 0 and sizes[split] == 0]


Record = TypeVar("Record")


def linked_groups(records: Sequence[Record], keys: Callable[[Record], Iterable[Hashable]]) -> list[list[Record]]:
    """Records that share a key together, and those that are linked through others; in the order of their first ones.

    >>> linked_groups(["ab", "c", "bd", "d"], keys=lambda letters: letters)
    [['ab', 'bd', 'd'], ['c']]
    """
    parent = list(range(len(records)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first_with: dict[Hashable, int] = {}
    for number, record in enumerate(records):
        for key in keys(record):
            one, other = sorted((root(number), root(first_with.setdefault(key, number))))
            parent[other] = one
    groups: dict[int, list[Record]] = {}
    for number, record in enumerate(records):
        groups.setdefault(root(number), []).append(record)
    return list(groups.values())


def divide(
    records: Sequence[Record],
    shares: Shares,
    seed: int,
    keys: Callable[[Record], Iterable[Hashable]] = lambda record: (),
) -> dict[str, list[Record]]:
    """A seeded shuffle cut into the three splits, such that no key stands in two of them.

    Groups of linked records are shuffled, and cut where the records before a cut come nearest to their share. A split
    that has a share is empty only where there are fewer groups than such splits.

    Args:
        keys: what must not be on two sides of a cut, of a record: its image, its report, its pool.
    """
    groups = linked_groups(records, keys)
    random.Random(seed).shuffle(groups)
    first, second, _ = split_sizes(len(records), shares)
    parts: list[list[list[Record]]] = [[], [], []]
    before = 0
    for group in groups:
        middle = before + len(group) / 2
        parts[(middle > first) + (middle > first + second)].append(group)
        before += len(group)
    for split in _short_splits([len(part) for part in parts], shares):
        donor = max(parts, key=len)
        if len(donor) > 1:
            parts[split].append(donor.pop(donor.index(min(donor, key=len))))
    return {name: [record for group in part for record in group] for name, part in zip(SPLITS, parts, strict=True)}
