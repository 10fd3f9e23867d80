"""Preferences as a trainer reads them: checked records, their lengths, and batches of ranked responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from datasets import Dataset

from data.io.records import GivenRows, Location, RecordError, parse_rows
from data.preferences import PreferenceRecord, as_pairs, load_preferences, readable_preferences
from data.rows.messages import message_texts, promised_images, texts_of
from data.rows.responses import Response, response_images
from models.families.loading import image_tokens, render
from models.reward.encoding import encode_groups
from models.reward.inputs import ResponseGroup, reward_messages
from trainers.run.console import say
from trainers.setup.evaluation_rows import evaluation_rows
from trainers.setup.model import ModelInfo
from trainers.setup.recipes import DataArguments
from trainers.setup.task_data import TokenCounts, check_lengths

Preferences: TypeAlias = Sequence[PreferenceRecord] | Dataset
GROUP_KEYS = ("rows", "ranks", "margins", "index")
"""What a batch has beside the model's inputs."""


@dataclass
class PreferenceArguments(DataArguments):
    """Where preferences come from, what is done with rows that cannot be used, and where a run begins."""

    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "Leave out rows that cannot be used, and say how many; else they are an error."},
    )
    own_folder: bool = field(
        default=True,
        metadata={
            "help": "Write to output_dir_TIMESTAMP, so that no run overwrites another; an unfinished one goes on."
        },
    )
    load_weights_only: bool = field(
        default=False,
        metadata={"help": "Take the weights of resume_from_checkpoint, and start optimizer, schedule and data anew."},
    )


@dataclass(frozen=True)
class Lengths:
    """Tokens of a data set.

    Attributes:
        prompts: of the prompts, images included.
        response: of the longest response.
        responses: number to one prompt, at most.
    """

    prompts: TokenCounts
    response: int
    responses: int


def _lengths(
    records: Sequence[PreferenceRecord], model: ModelInfo, system_prompt: str | None
) -> list[tuple[int, int, int]]:
    """(prompt, longest response, visual) tokens of each record; equal texts and files of images are counted once."""
    processor, of_file = model.processor, cache(model.bounds.tokens)

    @cache
    def of_text(text: str) -> int:
        """Without a tokenizer, as many as it has bytes, which is never too few."""
        if processor is None:
            return len(text.encode())
        return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_text(record: PreferenceRecord) -> str:
        messages = reward_messages(record.prompt(), len(record.images), "", system_prompt)[:-1]
        if processor is None:
            return "".join(message_texts(messages)) + " " * (16 * (len(messages) + 1))
        return render(processor, messages, add_generation_prompt=True)

    def of_images(images: Sequence[Any], others: int) -> int:
        found = [(of_file if isinstance(one, str) else model.bounds.tokens)(one, others) for one in images]
        return sum(found) + model.bounds.tokens_around * len(found)

    def of_conversation(record: PreferenceRecord, prompt: int, response: Response) -> tuple[int, int, int]:
        own = response_images(response)
        others = len(record.images) + len(own) - 1
        seen, made = of_images(record.images, others), of_images(own, others)
        return prompt + seen, sum(map(of_text, texts_of(response))) + 1 + made, seen + made

    found = []
    for record in records:
        prompt = of_text(prompt_text(record))
        conversations = [of_conversation(record, prompt, response) for response in record.response]
        found.append(max(conversations, key=lambda counts: counts[0] + counts[1]))
    return found


def _longest(
    records: Sequence[PreferenceRecord], lengths: Sequence[tuple[int, int, int]], parts: int, exact: bool = True
) -> TokenCounts:
    """Of the prompts alone (`parts` 1), or with their longest responses (2)."""
    row = max(range(len(lengths)), key=lambda row: sum(lengths[row][:parts]))
    return TokenCounts(sum(lengths[row][:parts]), records[row].id, max(length[2] for length in lengths), exact)


def _promising_images(record: PreferenceRecord, name: str, model: ModelInfo) -> list[str]:
    """What is wrong with a record whose texts hold tokens that stand for pictures in the model's family."""
    if model.processor is None:
        return []
    asked = [record.query] if isinstance(record.query, str) else message_texts(record.query)
    texts = {"query": asked, "response": [text for said in record.response for text in texts_of(said)]}
    return promised_images(texts, f"{name}: row {record.id!r}", image_tokens(model.processor))


def check_record_lengths(
    records: Sequence[PreferenceRecord], name: str, model: ModelInfo, system_prompt: str | None, args: Any
) -> None:
    """Raises `RecordError` if a prompt with its longest response has more tokens than `args.max_length`, or a prompt
    than `args.max_prompt_length`.

    Args:
        name: of the data, for the message.
        model: with its processor.
    """
    if args.max_length is None and args.max_prompt_length is None:
        return
    lengths = _lengths(records, model, system_prompt)
    check_lengths(_longest(records, lengths, 1), name, args.max_prompt_length, "max_prompt_length")
    check_lengths(_longest(records, lengths, 2), name, args.max_length, "max_length, response included")


def load_checked_preferences(
    arguments: PreferenceArguments,
    split: str,
    model: ModelInfo,
    system_prompt: str | None,
    args: Any,
    source: str | None = None,
) -> tuple[list[PreferenceRecord], Lengths | None]:
    """Records of a split; on the main process every image is decoded and every text counted.

    Args:
        args: with `max_length`, tokens that a prompt with its longest response may have, and `max_prompt_length`.
        source: by default the recipe's `dataset_name`.

    Returns:
        The records, and on the main process their lengths.

    Raises:
        RecordError: lists what is wrong with the data.
    """
    main = PartialState().is_main_process
    source = source or arguments.dataset_name
    checks = main or arguments.skip_bad_rows  # all processes must leave out the same rows
    records, counts = load_preferences(source, split, arguments.skip_bad_rows, check_files=checks)
    if not checks:
        return records, None
    found = [_promising_images(record, source, model) for record in records]
    problems = [problem for of_record in found for problem in of_record]
    if problems and not arguments.skip_bad_rows or found and all(found):
        raise RecordError(problems)
    counts.problems += problems
    promising = sum(map(bool, found))
    records = [record for record, of_record in zip(records, found, strict=True) if not of_record]
    text = getattr(model.config, "get_text_config", lambda: None)()
    positions = getattr(text, "max_position_embeddings", None)
    limits = [(limit, name) for limit, name in ((args.max_length, "max_length"), (positions, "positions")) if limit]
    lengths = _lengths(records, model, system_prompt)
    fits = [
        all(prompt + response <= limit for limit, _ in limits) and prompt <= (args.max_prompt_length or prompt)
        for prompt, response, _ in lengths
    ]
    too_long = 0
    if arguments.skip_bad_rows and model.processor is not None and not all(fits):
        too_long = fits.count(False)
        records = [record for record, fit in zip(records, fits, strict=True) if fit]
        lengths = [length for length, fit in zip(lengths, fits, strict=True) if fit]
        if not records:
            raise RecordError([f"{source}: every row of the {split} split is too long"])
    if not main:
        return records, None
    exact = model.processor is not None
    prompts, wholes = (_longest(records, lengths, parts, exact) for parts in (1, 2))
    check_lengths(prompts, source, args.max_prompt_length, "max_prompt_length")
    for limit, name in limits:
        name = "max_length, response included" if name == "max_length" else "positions of the model"
        check_lengths(wholes, source, limit, name)
    kind = "exact" if exact else "upper bound"
    say(
        f"{split}: {counts}{f'; with tokens of images and skipped: {promising}' if promising else ''}"
        f"{f'; too long and skipped: {too_long}' if too_long else ''}; longest prompt with response "
        f"{wholes.longest} tokens ({kind}), {wholes.images} visual at most"
    )
    for problem in counts.problems[:5]:
        say(f"  skipped: {problem}")
    responses = max(len(record.response) for record in records)
    return records, Lengths(prompts, max(length[1] for length in lengths), responses)


def load_preferences_and_held_out(
    arguments: PreferenceArguments, args: Any, model: ModelInfo
) -> tuple[list[PreferenceRecord], list[PreferenceRecord] | None, Lengths | None]:
    """Checked records to train on, those to evaluate on (`None` if the recipe asks for none), and on the main process
    the lengths of the former.

    Raises:
        RecordError: lists what is wrong with the data.
        RecipeError: the evaluation would be on records that are trained on.
    """
    system_prompt = args.system_prompt or getattr(model.config, "system_prompt", None)

    def load(source: str, split: str) -> tuple[list[PreferenceRecord], Lengths | None]:
        return load_checked_preferences(arguments, split, model, system_prompt, args, source)

    records, lengths = load(arguments.dataset_name, arguments.dataset_train_split)
    if args.eval_strategy == "no":
        return records, None, lengths
    divided = evaluation_rows(arguments, args.seed, records, lambda *place: load(*place)[0], preference_content)
    return *divided, lengths


# -- from Python ------------------------------------------------------------------------------------------------------


def as_records(dataset: Preferences, name: str) -> list[PreferenceRecord]:
    """The records themselves, or those in the rows of a data set; ids are row numbers where they have none.

    Args:
        name: for messages.

    Raises:
        RecordError: lists every problem of every row.
    """
    rows = list(GivenRows(name, dataset).plain)
    if all(isinstance(row, PreferenceRecord) for row in rows):
        return rows
    records = parse_rows(
        ((Location(name, number, "row"), row) for number, row in enumerate(rows, 1)), PreferenceRecord
    )
    numbered = enumerate(records)
    return [record if record.id is not None else record.model_copy(update={"id": place}) for place, record in numbered]


def evaluation_records(dataset: Preferences | Mapping[str, Preferences] | None) -> Any:
    """The records to evaluate on: a list, lists by their names, or none."""
    if isinstance(dataset, Mapping):
        return {key: as_records(rows, f"eval_dataset {key}") for key, rows in dataset.items()}
    return None if dataset is None else as_records(dataset, "eval_dataset")


def check_records(records: Sequence[PreferenceRecord], name: str, model: ModelInfo, args: Any) -> None:
    """Raises `RecordError` for records with an image that cannot be read, with a token for one in a text, or longer
    than `args` allow.

    Args:
        name: of the data set.
        model: a reward model.
    """
    readable_preferences(records, [f"{name}, row {number}" for number in range(1, len(records) + 1)])
    problems = [problem for record in records for problem in _promising_images(record, name, model)]
    if problems:
        raise RecordError(problems)
    check_record_lengths(records, name, model, model.config.system_prompt, args)


# -- batches ----------------------------------------------------------------------------------------------------------


def preference_content(record: PreferenceRecord) -> tuple[str, Sequence[Any]]:
    """What makes two records the same question (trainers/setup/evaluation_rows.py)."""
    return repr(record.query), record.images


def _look_up(batch: dict[str, list[int]], records: Sequence[PreferenceRecord]) -> dict[str, list[Any]]:
    """Transform of an index data set: the records themselves."""
    return {"index": batch["index"], "record": [records[index] for index in batch["index"]]}


def preference_dataset(records: Sequence[PreferenceRecord]) -> Dataset:
    """A data set for a trainer; images are opened when a batch is made."""
    return Dataset.from_dict({"index": list(range(len(records)))}).with_transform(partial(_look_up, records=records))


def examples(records: Sequence[PreferenceRecord], grouped: bool) -> list[PreferenceRecord]:
    """What a trainer learns from: the records, or one for each pair of responses of unequal rank."""
    return list(records) if grouped else [pair for record in records for pair in as_pairs(record)]


def evaluation_examples(records: Any, grouped: bool) -> Dataset | dict[str, Dataset] | None:
    """What `evaluation_records` found, for a trainer."""
    if isinstance(records, dict):
        return {key: preference_dataset(examples(few, grouped)) for key, few in records.items()}
    return None if records is None else preference_dataset(examples(records, grouped))


@dataclass
class PreferenceCollator:
    """Makes a batch of examples: the model's inputs of all their responses, and how these are ranked.

    Attributes:
        processor: of the model.
        system_prompt: of the reward model.
        labelled: give the best response of each example language-model labels.
    """

    processor: Any
    system_prompt: str | None
    labelled: bool = False

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The model's inputs, and `rows` (B, G), each response's row among them, -1 for none; `ranks` (B, G);
        `margins` (B,), NaN for none; `index` (B,)."""
        records: list[PreferenceRecord] = [item["record"] for item in items]
        groups = [ResponseGroup(record.prompt(), record.images, record.response) for record in records]
        best = [record.human_ranking.index(min(record.human_ranking)) for record in records]
        inputs = encode_groups(self.processor, groups, self.system_prompt, best if self.labelled else None)
        sizes = [len(record.response) for record in records]
        rows = torch.full((len(records), max(sizes)), -1)
        ranks = torch.zeros(rows.shape)
        start = 0
        for number, (record, size) in enumerate(zip(records, sizes, strict=True)):
            rows[number, :size] = torch.arange(start, start + size)
            ranks[number, :size] = torch.tensor(record.human_ranking, dtype=torch.float)
            start += size
        margins = torch.tensor([float("nan") if record.margin is None else record.margin for record in records])
        index = torch.tensor([item["index"] for item in items])
        return {**inputs, "rows": rows, "ranks": ranks, "margins": margins, "index": index}
