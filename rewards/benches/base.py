"""What a public bench of reward models is: how its published rows are read, and its figures by its published rule.

A bench reads a published row into a preference: a prompt with its images, N responses, their ranks by people, and the
category that its figures divide rows by. Whatever scores the row gives each response a number: a reward model its
score; a judge of two responses 1 to the better one and 0 to the other, and twice the same number for a tie, or for a
verdict that cannot be read. The bench makes its figures of the scored rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import StrictStr, field_validator
from pydantic_core import PydanticCustomError

from data.io.records import Location, field_error, read_some_rows
from data.preferences import PreferenceRecord
from rewards.preferences.scored import ScoredPair, ScoredPreference, all_pairs


class BenchRecord(PreferenceRecord):
    """A row of a bench, to be scored.

    Attributes:
        category: by which the bench divides its figures.
        video: of the prompt; a row that has one is refused.
    """

    category: StrictStr = ""
    video: Any = None

    @field_validator("video")
    @classmethod
    def _no_video(cls, video: Any) -> Any:
        if video is not None and video != "":
            message = "videos are not read: leave such rows out by --skip_bad_rows, or give their scores by --scores"
            raise PydanticCustomError("video", message)
        return video


def published_field(row: dict, name: str) -> Any:
    """The value of a field that every published row has; raises a `ValidationError` where it is missing or null."""
    if row.get(name) is None:
        raise field_error(name, "expected in every row", row.get(name))
    return row[name]


Read = Callable[[str | Path, str], Iterator[tuple[Location, Any]]]
Figures = dict[str, Any]
"""What goes to `summary.json` (`rewards.benches.counts.accuracy_figures`), and a bench's own figures beside."""


@dataclass(frozen=True)
class Bench:
    """One bench.

    Attributes:
        name: on the command line and in the published table.
        title: as its authors write it.
        fields: names by which its rows are told from those of other benches.
        convert: a published row -> the fields of a `BenchRecord`, and `scores` if there are any; raises a
            `ValidationError` (`data.io.records.field_error`) that names the published field.
        names: field of the record -> what the published file calls it; `response.0` names the first response.
        figures: scored rows, of which at least one has a pair -> figures.
        pairs: scored rows -> the pairs that calibration and histograms are about.
        numbered: its rows need no id, and get their number.
        keeps_ties: rows whose responses all have one rank are scored too, and in its figures.
        columns: further figures of each group and of all rows that the printed table shows: (key, heading).
        unit: what the figures count.
        read: (source, split) -> located published rows.
    """

    name: str
    title: str
    fields: frozenset[str]
    convert: Callable[[dict], dict]
    figures: Callable[[Sequence[ScoredPreference]], Figures]
    names: Mapping[str, str] = field(default_factory=dict)
    pairs: Callable[[Sequence[ScoredPreference]], list[ScoredPair]] = all_pairs
    numbered: bool = False
    keeps_ties: bool = False
    columns: tuple[tuple[str, str], ...] = ()
    unit: str = "pairs"
    read: Read = read_some_rows
