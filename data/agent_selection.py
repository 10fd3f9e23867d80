"""Records of the agent-selection task: a data-quality report, and which filtering agents are the right answer.

    python -m data.agent_selection --dataset_name input.json --output_dir outputs/data
    python -m data.agent_selection --dataset_name input.jsonl --validate_only

Reads two forms and writes the second, divided into training, validation and test:

raw     {"report", "agent_list": [name], "filtered_datasets": [{"data_ids": [id], "metadata"?}]}
        each pair of a report and a filtered data set is one record
record  {"report", "ground_truth_agents": [name], "ground_truth_filtered_data": [id],
         "ground_truth_prompts"?: {name: prompt}, "images"?: [path], "pool"?: path, "metadata"?, "id"?}

Paths are relative to the file they stand in. `pool` is the folder of the data set that the report is about
(`data/reports/pool.py`); agents run on it when filtering is rewarded.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, StrictStr, field_validator, model_validator

from data.cli.arguments import UNNAMED, option, seed_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.io.counts import counted
from data.io.images import resolve_images, resolve_path
from data.io.output_folder import (
    describe_sizes,
    read_back,
    refuse_own_input,
    relative_image_path,
    remove_split,
    writing,
)
from data.io.records import Location, Record, RecordError, base_folder, parse_row, read_rows, write_json, write_jsonl
from data.io.splits import SPLITS, DivisionArguments, divide
from data.io.unreadable import LeftOut, readable_rows, with_positions_as_ids
from data.prompts import unwritable_character
from data.reports.pool import ITEMS_FILE, ItemId, load_pool
from data.rows.messages import without_leading_marks
from data.rows.row_images import RecordWithImages
from data.rows.same_text import normalise_text

MAX_IMAGES = 4
FORMATS = ("hf", "json", "jsonl")


class AgentSelectionRecord(RecordWithImages):
    """One report and its right answer."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    report: StrictStr = Field(min_length=1)
    ground_truth_agents: list[StrictStr]
    ground_truth_filtered_data: list[ItemId]
    ground_truth_prompts: dict[StrictStr, StrictStr] | None = None
    images: list[Any] = Field(default_factory=list, max_length=MAX_IMAGES)
    pool: StrictStr | None = None
    metadata: dict[str, Any] | None = None
    id: ItemId | None = None

    @field_validator("ground_truth_agents")
    @classmethod
    def _no_empty_names(cls, names: list[str]) -> list[str]:
        if any(not name.strip() for name in names):
            raise ValueError("agent names must not be empty")
        return names

    @field_validator("ground_truth_agents", "ground_truth_prompts")
    @classmethod
    def _can_be_written(cls, value: list[str] | dict[str, str] | None) -> list[str] | dict[str, str] | None:
        texts = [*value, *value.values()] if isinstance(value, dict) else value or []
        for text in texts:
            if (character := unwritable_character(text)) is not None:
                raise ValueError(f"an answer cannot hold the character {character!r}, which XML has no way to write")
        return value

    @model_validator(mode="after")
    def _images_come_first(self) -> "AgentSelectionRecord":
        self.report = without_leading_marks("report", self.report, self.images)
        return self


class FilteredDataset(Record):
    """What remains of a data set when the right agents have run."""

    model_config = ConfigDict(extra="forbid")

    data_ids: list[ItemId]
    metadata: dict[str, Any] | None = None


class RawReport(Record):
    """A report in the raw form; `agent_list` may come from the command line instead."""

    model_config = ConfigDict(extra="forbid")

    report: StrictStr = Field(min_length=1)
    agent_list: list[StrictStr] | None = None
    filtered_datasets: list[FilteredDataset]


def _with_absolute_paths(record: AgentSelectionRecord, base: Path) -> AgentSelectionRecord:
    images = resolve_images(record.images, base)
    pool = None if record.pool is None else resolve_path(record.pool, base)
    return record.model_copy(update={"images": images, "pool": pool})


def _from_raw(raw: RawReport, agent_list: Sequence[str] | None, location: Location) -> list[AgentSelectionRecord]:
    agents = raw.agent_list if raw.agent_list is not None else agent_list
    if agents is None:
        raise RecordError([f"{location}: field 'agent_list': missing, and no --agent_list was given"])
    rows = [
        {
            "report": raw.report,
            "ground_truth_agents": agents,
            "ground_truth_filtered_data": filtered.data_ids,
            "metadata": filtered.metadata,
        }
        for filtered in raw.filtered_datasets
    ]
    return [parse_row(location, row, AgentSelectionRecord) for row in rows]


def _parse_row(location: Location, row: Any, agent_list: Sequence[str] | None) -> list[AgentSelectionRecord]:
    if isinstance(row, dict) and ("filtered_datasets" in row or "agent_list" in row):
        return _from_raw(parse_row(location, row, RawReport), agent_list, location)
    return [parse_row(location, row, AgentSelectionRecord)]


def _problems_of_files(record: AgentSelectionRecord, location: Location) -> list[str]:
    where = f"{location}: field 'pool'"
    if record.pool is None:
        return []
    if not (Path(record.pool) / ITEMS_FILE).is_file():
        return [f"{where}: no {ITEMS_FILE} in {record.pool}"]
    try:
        pool = load_pool(record.pool)
    except RecordError as error:
        return [f"{where}: {problem}" for problem in error.problems]
    paths = [(item.id, pool.image_path(item)) for item in pool.items]
    return [f"{where}: item {item_id!r}: no such image file: {path}" for item_id, path in paths if not path.is_file()]


def parse_records(
    rows: Iterable[tuple[Location, Any]],
    base: Path,
    agent_list: Sequence[str] | None = None,
    check_files: bool = True,
    left_out: LeftOut | None = None,
) -> list[AgentSelectionRecord]:
    """Records from rows of either form, with absolute paths.

    Args:
        base: the folder that relative paths start from.
        agent_list: right answer for raw reports that name none.
        check_files: also look for pools and decode every image.
        left_out: notes the records with an image that cannot be read, which are left out in place of an error; those
            without an id get their position.

    Raises:
        RecordError: lists every problem of every row.
    """
    records, problems, places = [], [], []
    agent_lists = set()
    for location, row in rows:
        try:
            parsed = [_with_absolute_paths(record, base) for record in _parse_row(location, row, agent_list)]
        except RecordError as error:
            problems.extend(error.problems)
            continue
        if isinstance(row, dict) and row.get("agent_list") is not None:
            agent_lists.add(tuple(row["agent_list"]))
        if check_files:
            problems.extend(problem for record in parsed for problem in _problems_of_files(record, location))
        records.extend(parsed)
        places += [str(location)] * len(parsed)
    records = with_positions_as_ids(records, left_out)
    records = readable_rows(records, places, problems, left_out, check_files=check_files)
    if len(agent_lists) > 1:
        shown = "; ".join(", ".join(agents) for agents in sorted(agent_lists)[:3])
        warnings.warn(f"the reports name {len(agent_lists)} different agent lists, among them: {shown}", stacklevel=2)
    return records


def load_records(source: str | Path, split: str = "train", check_files: bool = True) -> list[AgentSelectionRecord]:
    """Records of a file, or of one split of a folder or Hub data set; see `data.io.records.read_rows`."""
    return parse_records(read_rows(source, split), base_folder(source), check_files=check_files)


def as_row(record: AgentSelectionRecord, base: Path) -> dict:
    """A record as plain data with paths relative to `base`; absent fields are left out."""
    row = record.model_dump(exclude_none=True, exclude={"images"})
    if record.images:
        row["images"] = [relative_image_path(image, base) for image in record.images]
    if record.pool is not None:
        row["pool"] = os.path.relpath(record.pool, base)
    return row


def to_dataset(rows: list[dict]) -> Any:
    """Rows as a data set of the datasets library.

    Ids may be integers in one row and strings in the next, and metadata is free, which Arrow's typed columns cannot
    hold: those columns are stored as JSON. Their texts are made here, because the library would round numbers.
    """
    import pyarrow as pa
    from datasets import Dataset, Features, Json, List, Value

    features = Features(
        {
            "id": Json(),
            "report": Value("string"),
            "ground_truth_agents": List(Value("string")),
            "ground_truth_filtered_data": Json(),
            "ground_truth_prompts": Json(),
            "images": List(Value("string")),
            "pool": Value("string"),
            "metadata": Json(),
        }
    )
    columns = {name: [row.get(name) for row in rows] for name in features}
    columns["images"] = [images or [] for images in columns["images"]]
    for name in (name for name, feature in features.items() if isinstance(feature, Json)):
        columns[name] = [None if value is None else json.dumps(value) for value in columns[name]]
    return Dataset(pa.table(columns).cast(features.arrow_schema))


def write_splits(splits: dict[str, list[AgentSelectionRecord]], output_dir: Path, file_format: str) -> None:
    """Writes the splits in the format asked for, and `metadata.json` with their sizes; empty splits are left out.

    Raises:
        RecordError: what was written cannot be read back, or another process is writing there.
    """
    base = output_dir.resolve()
    agents = sorted({agent for records in splits.values() for r in records for agent in r.ground_truth_agents})
    sizes = {name: len(records) for name, records in splits.items()}
    with writing(output_dir):
        for name in SPLITS:
            remove_split(output_dir, name)
        rows = {name: [as_row(record, base) for record in records] for name, records in splits.items() if records}
        if file_format == "hf":
            from datasets import DatasetDict

            DatasetDict({name: to_dataset(part) for name, part in rows.items()}).save_to_disk(str(output_dir))
        for name, part in rows.items():
            if file_format == "jsonl":
                write_jsonl(output_dir / f"{name}.jsonl", part)
            elif file_format == "json":
                write_json(output_dir / f"{name}.json", part)
            read_back(output_dir, name, len(part), partial(load_records, check_files=False))
        write_json(output_dir / "metadata.json", {"format": file_format, "sizes": sizes, "agents": agents})


def kept_together(record: AgentSelectionRecord) -> list[tuple[str, str]]:
    """What must not stand on two sides of a division: the report, however it is written, and the pool."""
    report = ("report", normalise_text(record.report))
    return [report] if record.pool is None else [report, ("pool", os.path.realpath(record.pool))]


@dataclass(kw_only=True)
class AgentSelectionArguments(DivisionArguments):
    """Which reports to read, and how to divide and write them."""

    dataset_name: str = option("JSON or JSONL file (or parquet, or a saved data set)", old=("input", UNNAMED))
    seed: int = seed_option("of the shuffle before splitting", 42)
    agent_list: tuple[str, ...] | None = option("agents of raw reports that name none", None)
    format: str = option("of what is written", "hf", choices=FORMATS)


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(AgentSelectionArguments, argv)
    source = arguments.dataset_name
    try:
        records = parse_records(read_rows(source), base_folder(source), arguments.agent_list)
        if not records:
            raise RecordError([f"{source}: expected at least one record, found none"])
    except RecordError as error:
        sys.exit("\n".join([*error.problems, f"error: {error.count} in {source}"]))
    print(f"{source}: {counted(len(records), 'valid record')}")
    if arguments.validate_only:
        return
    splits = divide(records, arguments.shares, arguments.seed, keys=kept_together)
    assert arguments.output_dir is not None  # or the records are only validated
    refuse_own_input(source, arguments.output_dir)
    write_splits(splits, arguments.output_dir, arguments.format)
    sizes = describe_sizes({name: len(part) for name, part in splits.items()})
    print(f"written to {arguments.output_dir} as {arguments.format}: {sizes}")


if __name__ == "__main__":
    main()
