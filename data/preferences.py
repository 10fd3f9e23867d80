"""Records of preferences: two or more responses to a prompt with images, ranked by people.

    python -m data.preferences --source easy_vqa --output_dir outputs/preferences

writes preferences from easy-VQA (data/easy_preferences.py). Record, in JSONL, JSON, parquet or a HF data set:

    {"id"?, "query", "image" | "images"?: path(s), bytes or PIL images, "response": [str, str, ...],
     "human_ranking": [0, 1, ...]: a number a response, lower is better, "margin"?: float}

A response may hold images, as parts or as a turn of the assistant (data/rows/responses.py).

TRL's form is read too: {"prompt", "chosen", "rejected", "images"?}, texts or chat messages, where the prompt may also
be the messages, or the words, with which `chosen` and `rejected` both begin.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from data.cli.arguments import OptionError, option, seed_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_0, AT_LEAST_1
from data.easy_preferences import ATTRIBUTES, KINDS, write_easy_preferences
from data.io.counts import counted
from data.io.field_types import Finite, OneId
from data.io.images import resolve_images
from data.io.records import Location, RecordError, base_folder, parse_row, read_rows
from data.io.unreadable import LeftOut, readable_rows
from data.rows.messages import Prompt, parse_prompt, place_images
from data.rows.responses import ParsedResponse, images_by_field, resolve_responses
from data.rows.row_images import RecordWithImages

TRL_FIELDS = ("chosen", "rejected")


class PreferenceRecord(RecordWithImages):
    """One prompt with the responses that people ranked.

    Attributes:
        query: a question, or chat messages without the response.
        images: of the prompt, in order; maybe none.
        response: texts, or texts with images.
        human_ranking: of each response; lower is better, equal is a tie.
        margin: by how much the better response should win, at least.
    """

    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True)

    id: OneId | None = None
    query: Any
    response: list[ParsedResponse] = Field(min_length=2)
    human_ranking: list[Finite]
    margin: Finite | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, row: Any) -> Any:
        """Reads TRL's form into the fields above."""
        if not isinstance(row, dict):
            return row
        if row.get("response") is None:
            sides = [row.get(name) for name in TRL_FIELDS]
            if None not in sides:
                return row | _from_trl(row)
            if any(side is not None for side in sides) or "query" not in row:
                raise PydanticCustomError(
                    "form", "expected 'chosen' and 'rejected', or 'response' and 'human_ranking'"
                )
        return row

    @field_validator("query")
    @classmethod
    def _parse_query(cls, query: Any) -> Any:
        return parse_prompt(query)

    @model_validator(mode="after")
    def _check(self) -> "PreferenceRecord":
        if len(self.human_ranking) != len(self.response):
            context = {"responses": len(self.response), "ranks": len(self.human_ranking)}
            message = "human_ranking: expected a rank for each of {responses} responses, found {ranks}"
            raise PydanticCustomError("ranking", message, context)
        if self.margin is not None and self.margin < 0:
            raise PydanticCustomError("margin", "margin: expected at least 0, found {found}", {"found": self.margin})
        if not isinstance(self.query, str) and self.query[-1].role != "user":
            raise PydanticCustomError("query", "query: expected chat messages that end with the user's turn")
        self.query, self.images = place_images("query", self.query, self.images)
        return self

    def prompt(self) -> Prompt:
        """`query` as a model takes it."""
        return self.query

    def images_by_field(self) -> list[tuple[str, Any]]:
        """Every image with the name of its field, those of responses too."""
        return images_by_field(self.images, self.response)


def _from_trl(row: dict) -> dict[str, Any]:
    """`query`, `response` and `human_ranking` of a row of TRL's form."""
    prompt: Any = row.get("prompt", row.get("query"))
    sides: list[Any] = [row.get("chosen"), row.get("rejected")]
    found: dict[str, Any] = {"human_ranking": [0, 1]}
    if prompt is None and all(isinstance(side, str) for side in sides):
        prompt, sides = _divided_texts(*sides)
    if prompt is not None and not any(_has_turns(side) for side in sides):
        return found | {"query": prompt, "response": sides}
    if not all(isinstance(side, list | tuple) for side in sides):
        return found | {"response": sides, **({} if prompt is None else {"query": prompt})}
    if prompt is None:  # what both have in common
        length = 0
        while length < min(map(len, sides)) - 1 and sides[0][length] == sides[1][length]:
            length += 1
        prompt, sides = sides[0][:length], [side[length:] for side in sides]
    responses = []
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        turn = side[0] if len(side) == 1 and isinstance(side[0], dict) else None
        if turn is None or turn.get("role") != "assistant" or "content" not in turn:
            context = {"name": name, "count": len(side)}
            message = (
                "{name}: expected the prompt and one turn of the assistant after it, found {count} turns after it"
            )
            raise PydanticCustomError("trl", message, context)
        responses.append(turn)
    return found | {"query": prompt, "response": responses}


def _has_turns(side: Any) -> bool:
    """Whether one side of TRL's form holds chat messages, and is neither a text nor parts."""
    return isinstance(side, list | tuple) and any(isinstance(one, dict) and "role" in one for one in side)


def _divided_texts(chosen: str, rejected: str) -> tuple[str, list[str]]:
    """Prompt and responses of two texts that have the prompt in them: the words with which both begin.

    >>> _divided_texts("Which colour? It is red.", "Which colour? It is green.")
    ('Which colour? It is', ['red.', 'green.'])

    Raises:
        PydanticCustomError: they begin differently, or one is the beginning of the other.
    """
    common = os.path.commonprefix([chosen, rejected])
    length = max((place for place, letter in enumerate(common, 1) if letter.isspace()), default=0)
    prompt, responses = common[:length].strip(), [chosen[length:].strip(), rejected[length:].strip()]
    if not prompt or not all(responses):
        message = "chosen, rejected: without a prompt, expected texts that begin with the same words, and then differ"
        raise PydanticCustomError("trl", message)
    return prompt, responses


def pairs(record: PreferenceRecord) -> list[tuple[int, int]]:
    """All (better, worse) positions of responses of unequal rank, in the order of the ranks.

    >>> pairs(PreferenceRecord(query="?", response=["a", "b", "c"], human_ranking=[1, 0, 1]))
    [(1, 0), (1, 2)]
    """
    ranks = record.human_ranking
    order = sorted(range(len(ranks)), key=lambda position: ranks[position])
    return [(better, worse) for better in order for worse in order if ranks[better] < ranks[worse]]


def tied_pairs(record: PreferenceRecord) -> int:
    """Number of pairs of responses of equal rank."""
    count = len(record.response)
    return count * (count - 1) // 2 - len(pairs(record))


@dataclass
class PreferenceCounts:
    """What was read.

    Attributes:
        rows: of the source.
        records: that are used.
        pairs: of unequal rank in them.
        tied_records: left out because all their responses have one rank.
        tied_pairs: pairs of equal rank, left out; those of `tied_records` too.
        skipped: bad rows left out.
        problems: a sentence for each problem of a bad row.
    """

    rows: int = 0
    records: int = 0
    pairs: int = 0
    tied_records: int = 0
    tied_pairs: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.records} of {self.rows} records used, {self.pairs} pairs"
        if self.tied_pairs:
            text += f"; ties left out: {self.tied_pairs} pairs, {self.tied_records} whole records"
        return text + (f"; bad rows skipped: {self.skipped}" if self.skipped else "")


Read = Callable[[str | Path, str], Iterable[tuple[Location, Any]]]
AnyPreference = TypeVar("AnyPreference", bound=PreferenceRecord)


def load_preferences(
    source: str | Path,
    split: str = "train",
    skip_bad_rows: bool = False,
    check_files: bool = True,
    keep_ties: bool = False,
    read: Read = read_rows,
    record_type: type[AnyPreference] = PreferenceRecord,  # type: ignore[assignment]
) -> tuple[list[AnyPreference], PreferenceCounts]:
    """Records of a file, or of one split of a folder or Hub data set (`data.io.records.read_rows`).

    Records whose responses all have one rank are left out and counted: they prefer nothing. Records without an id get
    their row number, from 0.

    Args:
        skip_bad_rows: leave out rows that cannot be used, and count them, in place of an error.
        check_files: decode every image.
        keep_ties: also records whose responses all have one rank, if any others are there.
        read: (source, split) -> the rows, with the record's fields.

    Raises:
        RecordError: lists every problem of every row; or nothing is left.
    """
    base = base_folder(source)
    counts = PreferenceCounts()
    found: list[AnyPreference] = []
    places: list[str] = []
    for number, (location, row) in enumerate(read(source, split)):
        counts.rows += 1
        try:
            record = parse_row(location, row, record_type)
        except RecordError as error:
            counts.skipped += 1
            counts.problems.extend(error.problems)
            continue
        known = {"id": number if record.id is None else record.id, "images": resolve_images(record.images, base)}
        known["response"] = resolve_responses(record.response, base)
        found.append(record.model_copy(update=known))
        places.append(str(location))
    if check_files:
        found = _with_readable_images(found, places, counts, skip_bad_rows)
    elif counts.problems and not skip_bad_rows:
        raise RecordError(counts.problems)
    records = []
    for record in found:
        counts.tied_pairs += tied_pairs(record)
        ranked = len(pairs(record))
        counts.pairs += ranked
        counts.tied_records += not ranked
        records += [record] if ranked or keep_ties else []
    counts.records = len(records)
    if not counts.pairs:
        where = f"{source}: the {split} split" if Path(source).is_dir() else f"{source}"
        raise RecordError([f"{where}: no preferences: {counts}", *counts.problems])
    return records, counts


def _with_readable_images(
    read: list[AnyPreference], places: list[str], counts: PreferenceCounts, skip_bad_rows: bool
) -> list[AnyPreference]:
    """The records whose images can be decoded; the others are counted, or an error."""
    if not skip_bad_rows:
        return readable_preferences(read, places, counts.problems)
    left_out = LeftOut(may_be_all=True)
    kept = readable_preferences(read, places, left_out=left_out)
    counts.skipped += len(left_out.entries)
    counts.problems += left_out.sentences
    return kept


def readable_preferences(
    records: Sequence[AnyPreference],
    places: Sequence[str],
    problems: Sequence[str] = (),
    left_out: LeftOut | None = None,
) -> list[AnyPreference]:
    """`data.io.unreadable.readable_rows` of all images, those of responses too."""
    return readable_rows(
        records,
        places,
        problems,
        left_out,
        images_of=lambda record: [image for _, image in record.images_by_field()],
        name=lambda record: [name for name, _ in record.images_by_field()],
    )


def as_pairs(record: PreferenceRecord) -> list[PreferenceRecord]:
    """A record of two responses for each pair of unequal rank, the better one first."""
    return [
        record.model_copy(update={"response": [record.response[one] for one in pair], "human_ranking": [0, 1]})
        for pair in pairs(record)
    ]


@dataclass(kw_only=True)
class PreferenceArguments:
    """How many preferences and answers to write, and about what."""

    source: str = option("where images and questions come from", choices=("easy_vqa",))
    output_dir: Path = option("folder to write the preferences to")
    pairs: int = option("training pairs", 12_000, within=AT_LEAST_1)
    attributes_first: int = option(
        "training pairs about colours and shapes alone before the others", 0, within=AT_LEAST_0
    )
    held_out_pairs: int = option("pairs of validation and of test, each", 1_000, within=AT_LEAST_1)
    answers: int = option("training answers, for a warm start", 12_000, within=AT_LEAST_1)
    shapes_first: int = option("answers about shapes alone before the others", 0, within=AT_LEAST_0)
    hasty: int = option("training answers of which most answer another question", 0, within=AT_LEAST_0)
    kinds: tuple[str, ...] = option("kinds of questions", tuple(KINDS), choices=tuple(KINDS))
    seed: int = seed_option("of what is drawn")

    def __post_init__(self):
        if self.attributes_first and not set(ATTRIBUTES) & set(self.kinds):
            raise OptionError(
                f"--attributes_first: none of {', '.join(ATTRIBUTES)} is among --kinds {' '.join(self.kinds)}"
            )


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(PreferenceArguments, argv)
    written = write_easy_preferences(
        arguments.output_dir,
        arguments.pairs,
        arguments.attributes_first,
        arguments.held_out_pairs,
        arguments.answers,
        arguments.shapes_first,
        arguments.hasty,
        arguments.kinds,
        arguments.seed,
        read_preferences=lambda source, split: load_preferences(source, split, check_files=False)[0],
    )
    for path, count in written.items():
        print(f"{counted(count, 'record')} written to {path}")


if __name__ == "__main__":
    main()
