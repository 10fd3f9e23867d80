"""Records of visual question answering: an image, a question, and the answers of annotators.

    python -m data.vqa --source easy_vqa --output_dir outputs/vqa
    python -m data.vqa --questions Q.json --annotations A.json --image_dir val2014/ --output_dir outputs/vqa

The second form reads the official VQAv2 and OK-VQA files. Record:

    {"image" | "images": path(s), "question", "answers": [str] | str, "question_type"?, "answer_type"?, "id"?}

Answers are a list with one of each annotator; a text is the right answer, as if ten annotators agreed on it.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, StrictInt, StrictStr, field_validator, model_validator

from data.cli.arguments import OptionError, limit_option, option, seed_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.io.counts import counted
from data.io.image_folders import files_by_number, image_files
from data.io.image_sources import EASY_VQA, load_splits
from data.io.images import resolve_images
from data.io.output_folder import write_split, writing
from data.io.records import (
    Location,
    Record,
    RecordError,
    RecordType,
    base_folder,
    field_error,
    parse_rows,
    parsed_rows,
    read_json,
    read_rows,
)
from data.io.splits import ShareArguments, Shares
from data.io.unreadable import LeftOut, readable_rows, with_positions_as_ids
from data.reports.pool import ItemId
from data.rows.answers import ANNOTATORS, SEVERAL, AnswerError, annotators_answers, problem_of_tags
from data.rows.messages import without_leading_marks
from data.rows.row_images import RecordWithImages

MAX_IMAGES = 4


class VqaRecord(RecordWithImages):
    """One question about one image or a few, which come before it."""

    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True)

    question: StrictStr = Field(min_length=1)
    answers: list[StrictStr] = Field(min_length=1)
    images: list[Any] = Field(min_length=1, max_length=MAX_IMAGES)
    question_type: StrictStr | None = None
    answer_type: StrictStr | None = None
    id: ItemId | None = None

    @field_validator("answers", mode="before")
    @classmethod
    def _answers_as_texts(cls, answers: Any) -> Any:
        try:
            return annotators_answers(answers)
        except AnswerError as error:
            raise field_error((), error.expected, error.found) from error

    @model_validator(mode="after")
    def _images_come_first(self) -> "VqaRecord":
        self.question = without_leading_marks("question", self.question, self.images)
        return self


def problem_of_scoring(record: VqaRecord) -> str | None:
    """Why no answer to a question could score above 0 by the official rule, which compares each annotator with the
    others; `None` if one could."""
    if len(record.answers) > 1:
        return None
    return f"field 'answers': {SEVERAL}, found {record.answers!r:.80}"


def common_answer(record: VqaRecord) -> str:
    """The annotators' most common answer, the first of those equally common: what an example is shown with."""
    return max(record.answers, key=record.answers.count)


def record_ids(records: Sequence[VqaRecord]) -> list[ItemId]:
    """Ids of records in their order; one without an id goes by its position, from 0.

    Raises:
        RecordError: a duplicate id.
    """
    ids = [position if record.id is None else record.id for position, record in enumerate(records)]
    first: dict[ItemId, int] = {}
    problems = []
    for position, item in enumerate(ids):
        if item in first:
            problems.append(f"record {position + 1}: field 'id': {item!r} is record {first[item] + 1}'s id too")
        first.setdefault(item, position)
    if problems:
        raise RecordError(problems)
    return ids


def parse_records(
    rows: Iterable[tuple[Location, Any]],
    base: Path,
    check_files: bool = True,
    left_out: LeftOut | None = None,
    answer_tags: bool = False,
) -> list[VqaRecord]:
    """Records with absolute image paths.

    Args:
        check_files: decode every image.
        left_out: notes the records with an image that cannot be read, which are left out in place of an error; those
            without an id get their position.
        answer_tags: the answers are to stand between <answer> tags, and hold none.

    Raises:
        RecordError: lists every problem of every row.
    """
    records: list[VqaRecord] = []
    problems: list[str] = []
    places: list[str] = []
    for location, record in parsed_rows(rows, VqaRecord, problems):
        problem = problem_of_tags(record.answers) if answer_tags else None
        if problem is not None:
            problems.append(f"{location}: field 'answers': {problem}")
            continue
        records.append(record.model_copy(update={"images": resolve_images(record.images, base)}))
        places.append(str(location))
    records = with_positions_as_ids(records, left_out)
    return readable_rows(records, places, problems, left_out, check_files=check_files)


def load_records(
    source: str | Path, split: str = "train", check_files: bool = True, left_out: LeftOut | None = None
) -> list[VqaRecord]:
    """Records of a file, or of one split of a folder or Hub data set; see `read_rows` and `parse_records`."""
    return parse_records(read_rows(source, split), base_folder(source), check_files, left_out)


def _easy_vqa_rows(shares: Shares, seed: int) -> dict[str, list[dict]]:
    rows = {}
    for split, items in load_splits(EASY_VQA, shares, seed).items():
        rows[split] = [
            {
                "id": f"{split}-{number}",
                "image": item.image,
                "question": item.question,
                "answers": list(item.answers) * ANNOTATORS,  # easy-VQA has one; the rule compares annotators
            }
            for number, item in enumerate(items)
        ]
        random.Random(seed).shuffle(rows[split])
    return rows


class OfficialQuestion(Record):
    """An entry of an official questions file; further fields are not needed."""

    question_id: StrictInt
    image_id: StrictInt
    question: StrictStr


class OfficialAnswer(Record):
    """What one annotator answered."""

    answer: StrictStr


class OfficialAnnotation(Record):
    """An entry of an official annotations file; further fields are not needed."""

    question_id: StrictInt
    image_id: StrictInt | None = None
    answers: list[OfficialAnswer] = Field(min_length=1)
    question_type: StrictStr | None = None
    answer_type: StrictStr | None = None


EntryType = TypeVar("EntryType", OfficialQuestion, OfficialAnnotation)


def _load_official(path: Path, key: str, record_type: type[RecordType]) -> list[RecordType]:
    """The entries of the list that an official file has under `key`."""
    content = read_json(path)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise RecordError([f"{path}: field '{key}': expected a JSON object with this list, found {content!r:.80}"])
    unit = key.removesuffix("s")
    return parse_rows(((Location(str(path), number, unit), row) for number, row in enumerate(entries, 1)), record_type)


def _unique_by_question(path: Path, key: str, entries: Sequence[EntryType]) -> dict[int, EntryType]:
    """Entries of an official file by `question_id`.

    Raises:
        RecordError: names both entries of every question that has two.
    """
    found: dict[int, tuple[int, EntryType]] = {}
    problems = []
    unit = key.removesuffix("s")
    for number, entry in enumerate(entries, start=1):
        first, _ = found.setdefault(entry.question_id, (number, entry))
        if first != number:
            where = f"{path}, {unit} {number}: field 'question_id'"
            problems.append(f"{where}: duplicate {entry.question_id}, which is also that of {unit} {first}")
    if problems:
        raise RecordError(problems)
    return {question_id: entry for question_id, (_, entry) in found.items()}


def _problem_of_question(
    question: OfficialQuestion, annotation: OfficialAnnotation | None, images: list[Path], image_dir: Path
) -> str | None:
    """Why a question cannot be joined with its annotation and its one image, if it cannot."""
    if annotation is None:
        return "no annotation"
    if annotation.image_id not in (None, question.image_id):
        return f"it is about image {question.image_id}, and its annotation about image {annotation.image_id}"
    if not images:
        return f"no image {question.image_id} below {image_dir}"
    if len(images) > 1:
        named = ", ".join(str(image) for image in images[:3])
        return f"expected one image {question.image_id} below {image_dir}, found {len(images)}: {named}"
    return None


def official_rows(questions: Path, annotations: Path, image_dir: Path) -> list[dict]:
    """Rows of the official files of VQAv2 or OK-VQA, joined on `question_id`.

    Raises:
        RecordError: a malformed file, a question without annotations or without an image file, or with several.
    """
    asked = _unique_by_question(questions, "questions", _load_official(questions, "questions", OfficialQuestion))
    answered = _load_official(annotations, "annotations", OfficialAnnotation)
    by_question = _unique_by_question(annotations, "annotations", answered)
    by_number = files_by_number(image_files(image_dir))
    rows, problems = [], []
    for question in asked.values():
        annotation: Any = by_question.get(question.question_id)
        images = by_number.get(question.image_id, [])
        problem = _problem_of_question(question, annotation, images, image_dir)
        if problem is not None:
            problems.append(f"{questions}: question {question.question_id}: {problem}")
            continue
        rows.append(
            {
                "id": question.question_id,
                "image": str(images[0].resolve()),
                "question": question.question,
                "answers": [answer.answer for answer in annotation.answers],
                "question_type": annotation.question_type,
                "answer_type": annotation.answer_type,
            }
        )
    if problems:
        raise RecordError(problems)
    return rows


@dataclass(kw_only=True)
class VqaArguments(ShareArguments):
    """Which questions to read, and what to write of them."""

    source: str | None = option("where images and questions come from", None, choices=(EASY_VQA,))
    questions: Path | None = option("official questions file", None)
    annotations: Path | None = option("official annotations file", None)
    image_dir: Path | None = option("folder with the images of the official files", None)
    split: str = option("name of the split that the official files make", "train")
    limit: int | None = limit_option("records of each split")
    seed: int = seed_option("of what is drawn")
    output_dir: Path = option("folder to write the records to")

    def __post_init__(self):
        super().__post_init__()
        if self.source is None and None in (self.questions, self.annotations, self.image_dir):
            raise OptionError("give --source easy_vqa, or all of --questions, --annotations and --image_dir")


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(VqaArguments, argv)
    if arguments.source:
        splits = _easy_vqa_rows(arguments.shares, arguments.seed)
    else:
        places: Any = (arguments.questions, arguments.annotations, arguments.image_dir)
        rows = official_rows(*places)
        splits = {arguments.split: rows}
    with writing(arguments.output_dir) as folder:
        for split, rows in splits.items():
            rows = rows[: arguments.limit]
            write_split(folder, split, rows, partial(load_records, check_files=False))
            path = folder / f"{split}.jsonl"
            print(f"{counted(len(rows), 'record')} written to {path}" if rows else f"no {split} records")


if __name__ == "__main__":
    main()
