"""Rows of a task as a data set that a trainer can index, images opened when they are needed; and their lengths."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import ProcessorMixin

from data.io.digests import image_digest
from data.io.pixel_bounds import ImageReader
from data.io.records import GivenRows, RecordError
from data.rows.given_images import with_images_read, with_streamed_images_read
from data.rows.messages import message_texts, promised_images
from data.tasks import TASK_FIELDS, load_rows
from filter_agents.registry import described_agents
from models.families.loading import image_reader, image_tokens, render
from models.shared_prefix.layout import rows_with_equal_keys
from trainers.setup.recipes import DataArguments

NOT_FOR_REWARDS = ("gold",)


class RowLoader:
    """Transform of an index data set: looks up rows and opens their images, resized for the model."""

    def __init__(self, rows: Sequence[dict], bounds: ImageReader, columns: Sequence[str]):
        self.rows = rows
        self.bounds = bounds
        self.columns = columns

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [self.rows[index] for index in batch["index"]]
        loaded = {column: [row.get(column) for row in rows] for column in self.columns}
        if "images" in loaded:
            loaded["images"] = [[self.bounds.open(image) for image in images] for images in loaded["images"]]
        return loaded


def to_dataset(rows: Sequence[dict], bounds: ImageReader, columns: Sequence[str] | None = None) -> Dataset:
    """A data set of rows for a trainer.

    Args:
        columns: those to give; by default all that some row has. `images` is left out if no row has any.
    """
    if columns is None:
        columns = sorted({name for row in rows for name in row if name not in NOT_FOR_REWARDS})
        if not any(row.get("images") for row in rows):
            columns = [name for name in columns if name != "images"]
    index = Dataset.from_dict({"index": list(range(len(rows)))})
    return index.with_transform(RowLoader(rows, bounds, columns))


def rows_behind(dataset: Any) -> Sequence[dict] | None:
    """The rows that `to_dataset` made a data set of; `None` for any other data set."""
    options = getattr(dataset, "format", {}).get("format_kwargs", {})
    loader = options.get("transform")
    return loader.rows if isinstance(loader, RowLoader) else None


def rows_by_prompt(rows: Sequence[dict]) -> list[list[int]]:
    """Numbers of the rows with the same prompt and pictures; images are read only where a prompt's words repeat."""
    texts = [json.dumps(row["prompt"], default=repr, sort_keys=True) for row in rows]
    count = Counter(texts)
    return rows_with_equal_keys(
        [
            (text, *(image_digest(image) for image in row["images"] if count[text] > 1))
            for text, row in zip(texts, rows, strict=True)
        ]
    )


def load_task_rows(arguments: DataArguments, split: str, check_files: bool, source: str | None = None) -> list[dict]:
    """Rows of a recipe's data set, or of another `source`; see `data.tasks.load_rows`."""
    agents = described_agents(arguments.agents)
    rows = load_rows(source or arguments.dataset_name, split, agents, arguments.answer_tags, check_files)
    _check_agents(rows, [name for name, _ in agents], source or arguments.dataset_name)
    return rows


def _check_agents(rows: Sequence[dict], known: Sequence[str], source: str) -> None:
    """Raises `RecordError` for right answers with agents that the prompt does not offer."""
    rows_of: dict[str, list] = {}
    for row in rows:
        for name in row.get("ground_truth_agents") or ():
            if name not in known:
                rows_of.setdefault(name, []).append(row["id"])
    problems = [
        f"{source}: row {ids[0]!r}{f' and {len(ids) - 1} more' if len(ids) > 1 else ''}: "
        f"field 'ground_truth_agents': {name!r} is none of the recipe's agents; expected some of {', '.join(known)}"
        for name, ids in rows_of.items()
    ]
    if problems:
        raise RecordError(problems)


# -- from Python ------------------------------------------------------------------------------------------------------

LIBRARY_COLUMNS = {"tools", "chat_template_kwargs"}
"""Columns that TRL reads and rows of a task do not have."""


def is_of_a_task(dataset: Any) -> bool:
    """Whether a data set has rows of a task (data/tasks.py), neither of another form of TRL's nor prepared ones."""
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return False
    columns = set(dataset.column_names)
    return bool(columns & set(TASK_FIELDS)) and not columns & LIBRARY_COLUMNS


def given_rows(dataset: Dataset, name: str, processor: Any, limit: int | None) -> list[dict]:
    """Rows of a data set that a trainer is given, as of a file; agents are all built-in ones that need no model.

    On the main process every image is decoded, and prompts are counted where there is a limit.

    Args:
        name: of the data set, for messages.
        limit: tokens a prompt may have.

    Raises:
        RecordError: lists every problem of every row.
    """
    main = PartialState().is_main_process
    agents = described_agents()
    rows = load_rows(GivenRows(name, dataset), "train", agents, check_files=main)
    if main and limit is not None:
        check_lengths(count_tokens(rows, name, image_reader(processor), processor), name, limit, "max_prompt_length")
    return rows


def rollout_dataset(
    dataset: Any, name: str, processor: Any, limit: int | None, from_environments: bool = False
) -> Any:
    """A data set that a trainer is given, as it rolls out: rows of a task without a prompt get theirs, all others are
    the library's to read.

    Args:
        dataset, name, processor, limit: as of `given_rows`; there may be several data sets, by their names.
        from_environments: prompts may come from environments, which read whatever columns they know.
    """
    if isinstance(dataset, Mapping):
        return {
            key: rollout_dataset(one, f"{name} {key}", processor, limit, from_environments)
            for key, one in dataset.items()
        }
    if not (isinstance(processor, ProcessorMixin) and is_of_a_task(dataset)):
        if not from_environments:
            check_columns(dataset, name, ("prompt",))
        check_no_limit(dataset, limit)
        return library_dataset(dataset, name, processor)
    has_prompts = "prompt" in dataset.column_names
    if has_prompts and limit is None:
        return library_dataset(dataset, name, processor)
    rows = given_rows(dataset, name, processor, limit)
    return library_dataset(dataset, name, processor) if has_prompts else to_dataset(rows, image_reader(processor))


def library_dataset(dataset: Any, name: str, processor: Any) -> Any:
    """A data set that the library reads, with its images as this toolkit reads them if the model sees any
    (`data.rows.given_images`); a prepared one as it is."""
    if not isinstance(processor, ProcessorMixin):
        return dataset
    if isinstance(dataset, IterableDataset):
        return with_streamed_images_read(dataset, name)
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return dataset
    return with_images_read(dataset, name, check=PartialState().is_main_process)


def check_columns(dataset: Any, name: str, read: Sequence[str]) -> None:
    """Raises `ValueError` for a data set of which no column would be read.

    Args:
        name: of the data set, for messages.
        read: columns of which one at least is expected.
    """
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom" or not dataset.column_names:
        return
    if not {*read, *TASK_FIELDS} & {*dataset.column_names}:
        expected = ", ".join(dict.fromkeys((*TASK_FIELDS, *read)))
        raise ValueError(f"{name}: expected a column of {expected}, found {', '.join(dataset.column_names)}")


def check_no_limit(dataset: Any, limit: int | None) -> None:
    """Raises `ValueError` for a limit of prompts in a data set whose prompts are the library's to read."""
    is_prepared = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
    if limit is not None and dataset is not None and not is_prepared:
        raise ValueError(
            "max_prompt_length: prompts are counted of a vision-language model's rows with a prompt, question or "
            "report; leave it out"
        )


# -- lengths ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenCounts:
    """Prompt tokens of a data set, images included.

    Attributes:
        longest: of any row.
        longest_row: its id.
        images: most visual tokens of any row.
        exact: False if no tokenizer was at hand and `longest` is an upper bound, from the number of bytes.
    """

    longest: int
    longest_row: Any
    images: int
    exact: bool


def _check_special_tokens(row: dict, source: str, tokens: Sequence[str]) -> None:
    values = {name: row.get(name) for name in ("prompt", "completion", "gold")}
    texts = {name: message_texts(one) if isinstance(one, list) else [str(one)] for name, one in values.items()}
    problems = promised_images(texts, f"{source}: row {row['id']!r}", tokens)
    if problems:
        raise RecordError(problems[:1])


def count_tokens(rows: Sequence[dict], source: str, bounds: ImageReader, processor: Any | None) -> TokenCounts:
    """Counts the prompt tokens of every row.

    Args:
        source: for messages.
        processor: of the model; without one, a text counts as many tokens as it has bytes, which is never too few.

    Raises:
        RecordError: a text that contains a token that stands for pictures.
    """
    longest, longest_row, most_visual = 0, None, 0
    reserved = [] if processor is None else image_tokens(processor)
    for row in rows:
        _check_special_tokens(row, source, reserved)
        others = len(row["images"]) - 1
        visual = sum(bounds.tokens(image, others) + bounds.tokens_around for image in row["images"])
        if processor is None:
            text = sum(len(part.encode()) for part in message_texts(row["prompt"])) + 16 * (len(row["prompt"]) + 1)
        else:
            rendered = render(processor, row["prompt"], add_generation_prompt=True)
            text = len(processor.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        most_visual = max(most_visual, visual)
        if text + visual > longest:
            longest, longest_row = text + visual, row["id"]
    return TokenCounts(longest, longest_row, most_visual, processor is not None)


def check_lengths(counts: TokenCounts, source: str, limit: int | None, limit_name: str) -> None:
    """Raises `RecordError` if the longest prompt has more tokens than allowed."""
    if limit is not None and counts.longest > limit and counts.exact:
        raise RecordError(
            [
                f"{source}: row {counts.longest_row!r}: the prompt has {counts.longest} tokens (no row has more than "
                f"{counts.images} visual ones); expected at most {limit} ({limit_name}). Raise it, or lower "
                "max_pixels where the model takes it; prompts are never cut, because half an image cannot be read"
            ]
        )
