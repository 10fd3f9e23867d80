"""Where tokens stand when rows that begin alike are written one behind the other, and their beginning only once.

    row 0  p p p a a          p p p a a b b b   c d d
    row 1  p p p b b b   ->   |---- segment ---|  |- segment
    row 2  c d d

A segment is a beginning (`prefix`) with what each of its rows has after it (`continuations`). Attention must keep the
continuations of a segment apart (models/shared_prefix/attention.py), and positions must be those that the rows have by
themselves.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """Rows that share a beginning.

    Attributes:
        start: place of its first token.
        prefix: number of tokens that the rows share.
        continuations: number of tokens that each row has after them.
        rows: numbers of the rows.
    """

    start: int
    prefix: int
    continuations: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prefix + sum(self.continuations)


@dataclass(frozen=True)
class PrefixLayout:
    """Rows of tokens as segments.

    Attributes:
        shape: (lines, width) of the packed sequence; a place counts through it line by line.
        places: (N, T), where the token at each column of each row stands; -1 for padding.
        sources: (lines * width,), a token `row * T + column` that stands at each place; -1 where there is none.
    """

    segments: tuple[Segment, ...]
    shape: tuple[int, int]
    places: np.ndarray
    sources: np.ndarray

    @property
    def tokens(self) -> int:
        """Real tokens in the packed sequence."""
        return sum(segment.length for segment in self.segments)


def rows_with_equal_keys(keys: Sequence[Hashable]) -> list[list[int]]:
    """Numbers of the rows that have the same key, in the order in which keys first appear."""
    found: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return list(found.values())


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """Number of tokens with which all rows begin."""
    shortest = min(len(row) for row in rows)
    if shortest == 0:
        return 0
    table = np.stack([row[:shortest] for row in rows])
    differs = (table != table[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest


def lay_out(
    mask: np.ndarray, groups: Sequence[Sequence[int]], prefixes: Sequence[int], one_line: bool = True
) -> PrefixLayout:
    """Packs rows.

    Args:
        mask: bool (N, T), the real tokens of each row.
        groups: rows that stand together, each row once.
        prefixes: for each group, how many of their first real tokens all its rows share.
        one_line: all segments in one line without padding; otherwise a line for each, padded on the right.
    """
    rows, columns = mask.shape
    lengths = mask.sum(axis=1)
    totals = [
        shared + int(sum(lengths[row] - shared for row in group))
        for group, shared in zip(groups, prefixes, strict=True)
    ]
    shape = (1, sum(totals)) if one_line else (len(groups), max(totals))
    starts = np.cumsum([0, *totals[:-1]]) if one_line else np.arange(len(groups)) * shape[1]
    places = np.full((rows, columns), -1, dtype=np.int64)
    sources = np.full(shape[0] * shape[1], -1, dtype=np.int64)
    segments = []
    for start, group, shared in zip(starts.tolist(), groups, prefixes, strict=True):
        after = start + shared
        for row in group:
            own = np.flatnonzero(mask[row])
            rest = len(own) - shared
            where = np.concatenate([np.arange(start, start + shared), np.arange(after, after + rest)])
            places[row, own] = where
            sources[where] = row * columns + own
            after += rest
        continuations = tuple(int(lengths[row]) - shared for row in group)
        segments.append(Segment(start, shared, continuations, tuple(group)))
    return PrefixLayout(tuple(segments), shape, places, sources)


def in_blocks(groups: Sequence[Sequence[int]], prefixes: Sequence[int], longest: Sequence[int]) -> list[list[int]]:
    """Cuts groups so that a table of all tokens of a group by all is never larger than those of its rows would be.

    Args:
        longest: for each group, the most tokens that a row has after the prefix.

    With a prefix of P and continuations of C tokens, (P + g C)^2 exceeds g (P + C)^2 once g exceeds (P / C)^2.
    """
    blocks = []
    for group, shared, rest in zip(groups, prefixes, longest, strict=True):
        size = max(1, int((shared / rest) ** 2)) if rest else len(group)
        blocks += [list(group[first : first + size]) for first in range(0, len(group), size)]
    return blocks
