"""Data sets of any task as rows that trainers and evaluations share: a prompt, images, and columns for the rewards.

The task is told from a row's fields: `report` is agent selection, `question` is visual question answering, and
`prompt` (chat messages, as TRL has it) is anything else.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from data import agent_selection, vqa
from data.images import check_images, resolve_images
from data.prompts import format_selection, selection_messages, vqa_messages
from data.records import Location, Malformed, RecordError, base_folder, read_rows

GOLD_REASONING = "The report shows what to filter."
DEFAULT_PROMPT = "use the default"
"""Of a right agent for which a record has no prompt, or an empty one."""

AgentDescriptions = Iterable[tuple[str, str]]
"""(name, one-line description) of the agents that may be selected."""


def selection_row(record: agent_selection.AgentSelectionRecord, agents: AgentDescriptions) -> dict:
    """A row of agent selection; `gold` is the right answer as it should be written."""
    prompts = record.ground_truth_prompts or {}
    gold = {name: prompts.get(name) or DEFAULT_PROMPT for name in record.ground_truth_agents}
    return {
        "id": record.id,
        "prompt": selection_messages(record.report, agents),
        "images": record.images,
        "ground_truth_agents": record.ground_truth_agents,
        "ground_truth_filtered_data": record.ground_truth_filtered_data,
        "pool": record.pool,
        "gold": format_selection(gold, GOLD_REASONING),
    }


def vqa_row(record: vqa.VqaRecord, answer_tags: bool = False) -> dict:
    """A row of visual question answering; the gold answer is the annotators' most common one."""
    common = vqa.common_answer(record)
    return {
        "id": record.id,
        "prompt": vqa_messages(record.question, answer_tags),
        "images": record.images,
        "answers": record.answers,
        "gold": f"<answer>{common}</answer>" if answer_tags else common,
    }


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str | list)


def _chat_rows(rows: Iterable[tuple[Location, Any]], base: Path, check_files: bool) -> list[dict]:
    """Rows that bring their own prompt; further fields are kept as columns."""
    kept, problems, images = [], [], []
    for location, row in rows:
        if isinstance(row, Malformed) or not isinstance(row, dict):
            problems.append(f"{location}: {row if isinstance(row, Malformed) else 'expected an object'}")
            continue
        prompt = row.get("prompt")
        if not (isinstance(prompt, list) and prompt and all(_is_message(turn) for turn in prompt)):
            expected = "a list of chat messages, each with 'role' and 'content'"
            problems.append(f"{location}: field 'prompt': expected {expected}, found {prompt!r:.80}")
            continue
        row_images = row.get("images")
        if row_images is None:
            row_images = [] if row.get("image") is None else [row["image"]]
        if not isinstance(row_images, list):
            problems.append(f"{location}: field 'images': expected a list, found {row_images!r:.80}")
            continue
        row_images = resolve_images(row_images, base)
        images.extend((str(location), image) for image in row_images)
        kept.append({"id": None, **{key: row[key] for key in row if key != "image"}, "images": row_images})
    if check_files:
        problems.extend(check_images(images))
    if problems:
        raise RecordError(problems)
    return kept


def load_rows(
    source: str | Path,
    split: str,
    agents: AgentDescriptions = (),
    answer_tags: bool = False,
    check_files: bool = True,
    limit: int | None = None,
) -> list[dict]:
    """Rows of a data set, each with `id`, `prompt`, `images` and the columns that rewards need.

    Args:
        source: see `data.records.read_rows`.
        agents: for the system text of agent selection.
        answer_tags: visual question answering asks for reasoning and an <answer> element.
        check_files: decode every image and look for every pool.
        limit: read at most this many records.

    Raises:
        RecordError: lists every problem of every row.
    """
    located = list(islice(read_rows(source, split), limit))
    if not located:
        raise RecordError([f"{source}: the {split} split has no rows"])
    base = base_folder(source)
    fields = next((row for _, row in located if isinstance(row, dict)), {})
    if "prompt" in fields:
        rows = _chat_rows(located, base, check_files)
    elif "question" in fields:
        rows = [vqa_row(record, answer_tags) for record in vqa.parse_records(located, base, check_files)]
    else:
        agents = list(agents)
        records = agent_selection.parse_records(located, base, check_files=check_files)
        rows = [selection_row(record, agents) for record in records]
    for number, row in enumerate(rows):
        if row["id"] is None:
            row["id"] = number
    return rows
