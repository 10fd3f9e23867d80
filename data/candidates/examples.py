"""VQA records as the queries and examples of a selection: told apart by id, read as a text."""

from collections.abc import Sequence
from pathlib import Path

from data.io.records import RecordError
from data.io.unreadable import LeftOut, readable_rows
from data.vqa import VqaRecord, common_answer, load_records

TEXTS = ("question", "question_answer")
"""What of a record is encoded."""
SINGLE_IMAGE = "expected one image, all that a selector with encoders of its own reads"


def load_examples(source: str | Path, split: str = "train", check_files: bool = False) -> list[VqaRecord]:
    """VQA records of which each has an id of its own.

    Raises:
        RecordError: lists records that are malformed, lack an id, or share one.
    """
    records = load_records(source, split, check_files)
    if not records:
        raise RecordError([f"{source}: expected at least one record, found none"])
    problems, first = [], {}
    for number, record in enumerate(records, start=1):
        if record.id is None:
            problems.append(f"{source}, record {number}: field 'id': missing; records are referred to by it")
        elif first.setdefault(record.id, number) != number:
            problems.append(
                f"{source}, record {number}: field 'id': {record.id!r} is also record {first[record.id]}'s"
            )
    if problems:
        raise RecordError(problems)
    return records


def record_text(record: VqaRecord, text: str = "question") -> str:
    """What of a record is encoded: its question, or its question and its annotators' most common answer."""
    if text == "question":
        return record.question
    return f"{record.question} {common_answer(record)}"


def readable_examples(records: Sequence[VqaRecord], source: str, left_out: LeftOut | None = None) -> list[VqaRecord]:
    """The records, whose images are all decoded: every one, or those that `left_out` does not note.

    Raises:
        RecordError: lists the images that cannot be read, where none is to be left out.
    """
    places = [f"{source}, record {number}" for number in range(1, len(records) + 1)]
    return readable_rows(records, places, left_out=left_out)


def check_single_images(records: Sequence[VqaRecord], source: str) -> None:
    """Raises a `RecordError` that lists the records with several images."""
    problems = [
        f"{source}, record {record.id!r}: field 'images': {SINGLE_IMAGE}, found {len(record.images)}"
        for record in records
        if len(record.images) != 1
    ]
    if problems:
        raise RecordError(problems)
