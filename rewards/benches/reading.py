"""Rows of a bench, read from its published file: to be scored, or with the scores that stand in them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data.io.records import Location, Malformed, describe_problems, parse_rows
from data.preferences import PreferenceCounts, load_preferences
from rewards.benches.base import Bench, BenchRecord
from rewards.preferences.scored import ScoredPreference


@dataclass(frozen=True)
class _PublishedLocation(Location):
    """Where a published row stands, and what its file calls the fields of the record."""

    names: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, field: str) -> str:
        parts = field.split(".")
        for length in range(len(parts), 0, -1):
            name = self.names.get(".".join(parts[:length]))
            if name is not None:
                return ".".join([name, *parts[length:]])
        return field


def _converted_rows(bench: Bench, source: str | Path, split: str) -> Iterator[tuple[Location, Any]]:
    """The rows with the record's fields; one that the bench cannot convert says why in its place."""
    for location, row in bench.read(source, split):
        published = _PublishedLocation(location.source, location.number, location.unit, bench.names)
        if not isinstance(row, dict):
            yield published, row
            continue
        try:
            fields = bench.convert(row)
        except ValidationError as error:
            [problem] = describe_problems(error, published)
            yield published, Malformed(problem.removeprefix(f"{published}: "))
        else:
            yield published, {"id": location.number} | fields if bench.numbered else fields


def load_bench(
    bench: Bench, source: str | Path, split: str = "test", skip_bad_rows: bool = False
) -> tuple[list[BenchRecord], PreferenceCounts]:
    """Rows to be scored, and what was left out (`data.preferences.load_preferences`).

    Raises:
        RecordError: lists every problem of every row, by file, line and published field; or nothing is left.
    """
    return load_preferences(
        source,
        split,
        skip_bad_rows,
        keep_ties=bench.keeps_ties,
        read=lambda source, split: _converted_rows(bench, source, split),
        record_type=BenchRecord,
    )


def load_scored_bench(bench: Bench, source: str | Path, split: str = "test") -> list[ScoredPreference]:
    """Rows that have `scores`, one a response, in order.

    Raises:
        RecordError: lists every problem of every row, by file, line and published field.
    """
    return parse_rows(_converted_rows(bench, source, split), ScoredPreference)
