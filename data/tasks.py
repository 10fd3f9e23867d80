"""Data sets of any task as rows that trainers and evaluations share: a prompt, images, and columns for the rewards.

The task is identified by a row's fields: `report` is agent selection, `question` is visual question answering, and
`prompt` (a text or chat messages, as TRL has it; data/rows/chat.py) is anything else. A file holds rows of one task.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from data import agent_selection, vqa
from data.io.records import Location, Malformed, RecordError, Source, base_folder, read_rows
from data.io.unreadable import LeftOut
from data.prompts import format_selection, selection_messages, vqa_messages
from data.rows.answers import problem_of_tags
from data.rows.chat import parse_rows_with_prompts

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
    """A row of visual question answering; the gold answer is the annotators' most common one.

    Raises:
        RecordError: an answer that is to stand between <answer> tags holds such tags, and could not be read back.
    """
    problem = problem_of_tags(record.answers) if answer_tags else None
    if problem is not None:
        raise RecordError([f"record {record.id!r}: field 'answers': {problem}"])
    common = vqa.common_answer(record)
    return {
        "id": record.id,
        "prompt": vqa_messages(record.question, answer_tags),
        "images": record.images,
        "answers": record.answers,
        "gold": f"<answer>{common}</answer>" if answer_tags else common,
    }


TASK_FIELDS = ("prompt", "question", "report")


EXPECTED_FIELDS = (
    "expected 'prompt' (a text or chat messages), 'question' with 'answers', or 'report' with 'ground_truth_agents'"
)


def _fields_of(row: Any) -> list[str]:
    """Those of `TASK_FIELDS` that a row has, in their order."""
    return [name for name in TASK_FIELDS if isinstance(row, dict) and row.get(name) is not None]


def _task_field(rows: Iterable[tuple[Location, Any]]) -> str | None:
    """The field that tells the task, of the first row that has one."""
    return next((found[0] for _, row in rows if (found := _fields_of(row))), None)


def _one_task(rows: Iterable[tuple[Location, Any]], field: str | None) -> list[tuple[Location, Any]]:
    """The rows; those that are of another task than the first, or of none, become `Malformed`."""
    checked = []
    for location, row in rows:
        found = _fields_of(row)
        if field is None and isinstance(row, dict):
            row = Malformed(_of_no_task(row))
        elif found and TASK_FIELDS.index(found[0]) < TASK_FIELDS.index(field):
            problem = f"field '{found[0]}': a row of another task among rows with '{field}': one task a file"
            row = Malformed(problem)
        checked.append((location, row))
    return checked


def _of_no_task(row: dict) -> str:
    having = ", ".join(map(str, row)) or "none"
    turns = "; of 'messages', the turns before the answer are 'prompt', and the answer is 'completion'"
    return f"{EXPECTED_FIELDS}; found the fields {having:.200}{turns if 'messages' in row else ''}"


def _number_rows(rows: list[dict], source: Source) -> None:
    """Gives rows without an id their number, from 0; raises `RecordError` for ids that two rows have."""
    first: dict[Any, int] = {}
    problems = []
    for number, row in enumerate(rows):
        if row["id"] is None:
            row["id"] = number
        if first.setdefault(row["id"], number) != number:
            earlier = first[row["id"]] + 1
            problems.append(
                f"{source}: row {number + 1}: field 'id': duplicate id {row['id']!r:.80}, of row {earlier}"
            )
    if problems:
        raise RecordError(problems)


def load_rows(
    source: Source,
    split: str,
    agents: AgentDescriptions = (),
    answer_tags: bool = False,
    check_files: bool = True,
    limit: int | None = None,
    left_out: LeftOut | None = None,
) -> list[dict]:
    """Rows of a data set, each with `id`, `prompt`, `images` and the columns that rewards need.

    Args:
        source: see `data.io.records.read_rows`.
        agents: for the system text of agent selection.
        answer_tags: visual question answering asks for reasoning and an <answer> element, which no right answer may
            hold.
        check_files: decode every image and look for every pool.
        limit: read at most this many records.
        left_out: notes the rows with an image that cannot be read, which are left out in place of an error; the
            numbers of the others stay what they are.

    Raises:
        RecordError: lists every problem of every row.
    """
    located = list(islice(read_rows(source, split), limit))
    if not located:
        raise RecordError([f"{source}: the {split} split has no rows"])
    base = base_folder(source)
    field = _task_field(located)
    located = _one_task(located, field)
    if field == "prompt":
        rows = parse_rows_with_prompts(located, base, check_files, left_out)
    elif field == "question":
        questions = vqa.parse_records(located, base, check_files, left_out, answer_tags)
        rows = [vqa_row(record, answer_tags) for record in questions]
    else:
        agents = list(agents)
        records = agent_selection.parse_records(located, base, check_files=check_files, left_out=left_out)
        rows = [selection_row(record, agents) for record in records]
    _number_rows(rows, source)
    return rows
