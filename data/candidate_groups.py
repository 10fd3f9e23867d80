"""Candidate groups: a query, several candidates for it, and how well each of them did. JSONL, a group a line.

    python -m data.candidate_groups --dataset_name beams.json --output groups.jsonl
    python -m data.candidate_groups --dataset_name groups.jsonl --output rl_data.json --to rl
    python -m data.candidate_groups --dataset_name groups.jsonl --examples outputs/vqa --split train

The first two convert from and to the JSON of earlier systems (`data/candidates/legacy_formats.py`), identified by its
content; the last, without --output, only checks. Group:

    {"id", "pool"?: [example ids], "candidates": [{"pointer": [ids] | "completion": text, "reward"?, ...}], ...}

A candidate is a pointer (which examples to show, in the order in which they were selected) or a completion of a
model. What may stand beside it is in `Candidate`; further columns of groups and candidates are kept. A group of
completions may bring its own `prompt`, with `images`, which are read as those of any such row (`data/rows/chat.py`).
"""

import json
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from tqdm import tqdm

from data.candidates.legacy_formats import (
    ConstructOrder,
    EarlierFormat,
    Positions,
    RLForm,
    beam_entry,
    check_ids_alone,
    entries_by_key,
    read_earlier,
    rl_entry,
)
from data.candidates.pools import load_pools
from data.cli.arguments import UNNAMED, OptionError, option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1
from data.errors import described
from data.io.counts import counted
from data.io.field_types import Count, Finite, Hit, IdList, OneId, Share
from data.io.images import resolve_images
from data.io.records import GivenRows, Location, RecordError, Source, atomic_write, base_folder, parse_row, read_rows
from data.io.unreadable import readable_rows
from data.reports.pool import ItemId
from data.rows.chat import NAME_TAKEN, RESERVED, ChatRecord, check_reserved
from data.rows.row_images import gather_images, is_image_name


class Candidate(BaseModel):
    """One candidate: a pointer or a completion, and what is known of it. All numbers are finite.

    Attributes:
        pointer: ids of examples in the order of selection; none twice.
        completion: text that a model wrote.
        reward: what is learned from, if it is set.
        scores: by name of a reward; `None` where one does not apply.
        gen_method: "beam", "sample", "retrieval", "random", "model", ...
        beam_rank: 0 for the best beam.
        beam_score: of the whole sequence.
        step_scores: of each step, in the order of selection.
        logprob_score: log-probability of the sequence under the policy that made it.
        temperature: it was sampled with.
        similarity_score: to the query, for retrieved candidates.
        vqa_raw_generation, vqa_pred_answer: what the VLM wrote, and the answer read from it.
        vqa_correct: 1 if the accuracy is above 0.
        vqa_acc_score: VQA accuracy, 0 to 1.
        vqa_gt_prob: probability that the VLM gives to the right answers; a sum over answers, so it may pass 1.
        vqa_rel_token_f1, vqa_rel_edit_sim, vqa_rel_score: likeness of the answer to the right ones, 0 to 1.
    """

    model_config = ConfigDict(extra="allow")

    pointer: IdList | None = None
    completion: StrictStr | None = None
    reward: Finite | None = None
    scores: dict[StrictStr, Finite | None] | None = None
    gen_method: StrictStr | None = None
    beam_rank: Count | None = None
    beam_score: Finite | None = None
    step_scores: list[Finite] | None = None
    logprob_score: Finite | None = None
    temperature: Finite | None = Field(default=None, ge=0)
    similarity_score: Finite | None = None
    vqa_raw_generation: StrictStr | None = None
    vqa_pred_answer: StrictStr | None = None
    vqa_correct: Hit | None = None
    vqa_acc_score: Share | None = None
    vqa_gt_prob: Finite | None = Field(default=None, ge=0)
    vqa_rel_token_f1: Share | None = None
    vqa_rel_edit_sim: Share | None = None
    vqa_rel_score: Share | None = None

    @property
    def kind(self) -> str:
        """`pointer` or `completion`."""
        return "completion" if self.pointer is None else "pointer"


class CandidateGroup(BaseModel):
    """A query's candidates, all pointers or all completions.

    Attributes:
        id: of the query.
        shots: number of examples of its pointers, where a query has a group for each of several numbers; a query has
            one group a number, or one without.
        pool: ids of the examples that could be chosen for it, if known; every pointer is among them.

    Further columns are those of the query. `prompt` (of completions) is chat messages with a place for each of
    `images`, a list, under whichever of their usual names they stood.
    """

    model_config = ConfigDict(extra="allow")

    id: OneId
    shots: Count | None = None
    pool: IdList | None = None
    candidates: list[Candidate] = Field(min_length=1)

    @property
    def kind(self) -> str:
        """`pointer` or `completion`."""
        return self.candidates[0].kind

    @property
    def name(self) -> str:
        """For messages; no two groups of a file share it."""
        return repr(self.id) if self.shots is None else f"{self.id!r} with {self.shots} shots"

    @model_validator(mode="after")
    def _fits_together(self) -> "CandidateGroup":
        wrong = list(_wrong_candidates(self)) + list(_not_finite(self))
        if wrong:
            details = [
                InitErrorDetails(type=PydanticCustomError("group", message), loc=loc, input=found)
                for loc, message, found in wrong
            ]
            raise ValidationError.from_exception_data("CandidateGroup", details)
        return self

    @model_validator(mode="after")
    def _read_query(self) -> "CandidateGroup":
        columns = _query_columns(self.model_extra or {}, self.kind)
        if self.model_extra is not None:
            self.model_extra.clear()
            self.model_extra.update(columns)
        return self


def _query_columns(given: dict[str, Any], kind: str) -> dict[str, Any]:
    """A group's further columns as they are used: with a prompt of its own, those of a row that has one.

    Raises:
        ValidationError: what such rows may not have, or what cannot be an image.
    """
    if kind == "completion" and given.get("prompt") is not None:
        record = ChatRecord.model_validate(given)
        return {name: value for name, value in record.row(record.images).items() if name != "id"}
    check_reserved(given)
    has_images = any(is_image_name(name) for name in given)
    return gather_images(given, set(), refuse_others=False) if has_images else dict(given)


Wrong = tuple[tuple[str | int, ...], str, Any]
"""Place in the row, what is wrong, what was found there."""


def _wrong_candidates(group: CandidateGroup) -> Iterator[Wrong]:
    pool = None if group.pool is None else set(group.pool)
    for number, candidate in enumerate(group.candidates):
        place = ("candidates", number)
        if (candidate.pointer is None) == (candidate.completion is None):
            both = "both" if candidate.pointer is not None else "neither"
            yield place, f"expected either 'pointer' or 'completion', found {both}", group_row(candidate)
        elif candidate.kind != group.kind:
            message = f"expected a {group.kind}, as the group's first candidate is, found a {candidate.kind}"
            yield place, message, group_row(candidate)
        elif candidate.pointer is not None:
            if pool is not None and not pool.issuperset(candidate.pointer):
                outside = [item for item in candidate.pointer if item not in pool]
                yield (*place, "pointer"), "expected ids of the group's pool", outside
            steps = candidate.step_scores
            if steps is not None and len(steps) != len(candidate.pointer):
                message = f"expected {len(candidate.pointer)} scores, one for each id of the pointer"
                yield (*place, "step_scores"), message, steps
        for name, value in (candidate.model_extra or {}).items():
            if name in RESERVED and value is not None:
                yield (*place, name), NAME_TAKEN, value


def _not_finite(group: CandidateGroup) -> Iterator[Wrong]:
    """NaN and infinity in further columns, which no type checks; JSON has neither."""
    waiting: list[tuple[tuple, Any]] = [((name,), value) for name, value in (group.model_extra or {}).items()]
    for number, candidate in enumerate(group.candidates):
        waiting += [(("candidates", number, name), value) for name, value in (candidate.model_extra or {}).items()]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, float) and not -float("inf") < value < float("inf"):
            yield place, "expected a finite number", value
        elif isinstance(value, dict):
            waiting += [((*place, str(name)), item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [((*place, number), item) for number, item in enumerate(value)]


# -- reading and writing ----------------------------------------------------------------------------------------------


class _Reader:
    """Collects groups, and every problem of those that are wrong."""

    def __init__(self, example_ids: Container[ItemId] | None):
        self.example_ids = example_ids
        self.groups: list[CandidateGroup] = []
        self.places: list[Location] = []
        self.problems: list[str] = []
        self._seen: dict[str, Location] = {}

    def add(self, location: Location, row: Any) -> None:
        try:
            group = parse_row(location, row, CandidateGroup)
        except RecordError as error:
            self.problems.extend(error.problems)
            return
        problems = [described(str(location), location.name_of(field), text) for field, text in self._misfits(group)]
        self._seen.setdefault(group.name, location)
        self.problems.extend(problems)
        if not problems:
            self.groups.append(group)
            self.places.append(location)

    def _misfits(self, group: CandidateGroup) -> Iterator[tuple[str, str]]:
        """(field, problem): what is wrong beside the other groups and the data set of examples."""
        if group.name in self._seen:
            yield "id", f"duplicate {group.name}, first at {self._seen[group.name]}"
        if self.groups and group.kind != self.groups[0].kind:
            yield "candidates", f"expected {self.groups[0].kind}s as in {self.places[0]}, found {group.kind}s"
        if self.example_ids is None:
            return
        lists = {"pool": group.pool} | {f"candidates.{n}.pointer": c.pointer for n, c in enumerate(group.candidates)}
        for field, ids in lists.items():
            if missing := [item for item in ids or () if item not in self.example_ids]:
                yield field, f"expected ids of the examples' data set, found {missing!r:.80}"


def load_groups(
    source: Source,
    split: str = "train",
    example_ids: Container[ItemId] | None = None,
    check_files: bool = True,
    earlier: EarlierFormat | None = None,
) -> list[CandidateGroup]:
    """Groups of a file, or of one split of a folder or Hub data set; see `data.io.records.read_rows`.

    A `.json` file that holds an object instead of a list is read as an earlier system's beam or RL data.

    Args:
        example_ids: of the data set that pointers name; every pointer and pool must be among them.
        check_files: decode the images that groups bring (a column `images`).
        earlier: how to read earlier systems' files, where their content does not say it.

    Returns:
        Groups in the order of the file; relative paths in `images` have become absolute.

    Raises:
        RecordError: lists every problem: malformed lines, fields of a wrong type or range, numbers that are not
            finite, no candidates, pointers that leave the pool or the data set, an id twice, a prompt that cannot be
            used, images that cannot be read.
    """
    reader = _Reader(example_ids)
    for location, row in tqdm(_located_rows(source, split, earlier), desc="reading groups", unit="group", delay=2):
        reader.add(location, row)
    if not reader.groups and not reader.problems:
        reader.problems.append(f"{source}: expected at least one group, found none")
    base = base_folder(source)
    for group in reader.groups:
        if _images_of(group):
            group.images = resolve_images(_images_of(group), base)  # type: ignore[attr-defined]  # a further column
    if check_files:
        return readable_rows(reader.groups, list(map(str, reader.places)), reader.problems, images_of=_images_of)
    if reader.problems:
        raise RecordError(reader.problems)
    return reader.groups


def _located_rows(source: Source, split: str, earlier: EarlierFormat | None) -> Iterator[tuple[Location, Any]]:
    if isinstance(source, GivenRows):
        return read_rows(source)
    path, how = Path(source), earlier or EarlierFormat()
    if path.is_file() and path.suffix == ".json":
        return read_earlier(path, how)
    check_ids_alone(source, how)
    return read_rows(source, split)


def _images_of(group: CandidateGroup) -> list[Any]:
    return (group.model_extra or {}).get("images") or []


def group_row(group: CandidateGroup | Candidate) -> dict:
    """A group, or a candidate, as JSON: fields that were given (`None` too), and further columns."""
    return group.model_dump(exclude_unset=True)


def candidate_rows(group: CandidateGroup) -> list[dict]:
    """A row for each candidate, as rewards take them: its fields, and the group's further columns.

    `completion` is empty for a pointer; `generation` is the candidate's number in the group.
    """
    columns = {"id": group.id, **(group.model_extra or {})}
    return [
        {**columns, **candidate.model_dump(), "completion": candidate.completion or "", "generation": number}
        for number, candidate in enumerate(group.candidates)
    ]


def write_groups(path: str | Path, groups: Iterable[CandidateGroup]) -> None:
    """Writes a group a line, atomically.

    Raises:
        RecordError: an id twice, or a value that JSON cannot hold (NaN, an image that is not a path); nothing is
            written then.
    """
    seen = set()
    with atomic_write(path) as file:
        for group in tqdm(groups, desc="writing groups", unit="group", delay=2):
            if group.name in seen:
                raise RecordError([f"{path}: field 'id': duplicate {group.name}"])
            seen.add(group.name)
            file.write(_to_json(group_row(group), f"{path}: group {group.id!r}") + "\n")


def write_earlier(path: str | Path, groups: Iterable[CandidateGroup], convert: Callable[[dict], dict]) -> None:
    """Writes one JSON object with an entry for each group, an entry a line, atomically.

    Args:
        convert: a group's row -> its entry; see `data.candidates.legacy_formats`.

    Raises:
        RecordError: a group that the format cannot hold, or a value that JSON cannot.
    """
    rows = (group_row(group) for group in tqdm(groups, desc="writing groups", unit="group", delay=2))
    with atomic_write(path) as file:
        before = "{\n"
        for key, entry in entries_by_key(rows, convert):
            text = _to_json(entry, f"{path}: group {key}")
            file.write(f"{before}{json.dumps(key, ensure_ascii=False)}: {text}")
            before = ",\n"
        file.write("\n}\n")


def _to_json(row: dict, place: str) -> str:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        text.encode()  # a lone surrogate cannot be written
    except (TypeError, ValueError) as error:
        raise RecordError([f"{place}: cannot be stored as JSON: {error}"]) from error
    return text


# -- command ----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class CandidateGroupArguments:
    """Which groups to check, and what to write them as."""

    dataset_name: str = option(
        "groups (JSONL), or an earlier system's beams or RL data (JSON)", old=("input", UNNAMED)
    )
    output: Path | None = option("where to write; without it the groups are only checked", None)
    to: Literal["groups", "rl", "beams"] = option("format to write", "groups")
    examples: str | None = option("VQA records that pointers name; every id must be among theirs", None)
    split: str = option("split of examples, and of dataset_name if it is a folder", "train")
    pools: Path | None = option("candidate pools (JSONL), for RL data or beams that lack them", None)
    shots: int | None = option("only groups made for this number of examples", None, within=AT_LEAST_1)
    integer_ids: bool = option("query ids that stand only in keys are integers", False)
    positions: Positions | None = option(
        "of RL data or beams to read: what stands in place of ids. pool: pointers are positions in their query's "
        "pool; examples: all ids, queries' too, are positions in examples. From 0",
        None,
    )
    construct_order: ConstructOrder = option(
        "of beams: where a newly selected example was put, before or after the earlier ones", "left"
    )
    form: RLForm | None = option(
        "of RL data to write: ids, or positions in the pool; by default local if every group has a pool", None
    )

    def __post_init__(self):
        if self.positions == "examples" and self.examples is None:
            raise OptionError("--positions: examples: expected --examples, the data set that they are positions in")
        if self.to == "groups" and self.output is not None and self.output.suffix != ".jsonl":
            raise OptionError(
                f"--output: expected a name that ends in .jsonl, found '{self.output}'; groups are JSONL"
            )


def _write(output: Path, groups: list[CandidateGroup], to: str, construct_order: Any, form: Any) -> None:
    if to == "groups":
        write_groups(output, groups)
    elif to == "beams":
        write_earlier(output, groups, lambda row: beam_entry(row, construct_order))
    else:
        form = form or ("local" if all(group.pool is not None for group in groups) else "global")
        write_earlier(output, groups, lambda row: rl_entry(row, form))


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(CandidateGroupArguments, argv)
    example_ids, in_order = None, []
    if arguments.examples is not None:
        from data.vqa import load_records, record_ids

        in_order = record_ids(load_records(arguments.examples, arguments.split, check_files=False))
        example_ids = set(in_order)
    pools = {} if arguments.pools is None else load_pools(arguments.pools, example_ids)
    earlier = EarlierFormat(arguments.construct_order, arguments.integer_ids, pools, arguments.positions, in_order)
    groups = load_groups(arguments.dataset_name, arguments.split, example_ids, earlier=earlier)
    if arguments.shots is not None:
        groups = [group for group in groups if group.shots == arguments.shots]
        if not groups:
            raise RecordError([f"{arguments.dataset_name}: field 'shots': no group has {arguments.shots}"])
    candidates = sum(len(group.candidates) for group in groups)
    count = f"{counted(len(groups), 'group')} with {counted(candidates, 'candidate')}"
    if arguments.output is None:
        print(f"{count}: no problems found")
        return
    _write(arguments.output, groups, arguments.to, arguments.construct_order, arguments.form)
    print(f"{count} written to {arguments.output}")


if __name__ == "__main__":
    main()
