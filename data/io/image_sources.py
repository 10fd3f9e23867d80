"""Where pools draw their images from: easy-VQA, a folder of images, or a data set of the datasets library.

Every source gives items for a split. Images of different splits never overlap: easy-VQA has its own test images, the
others are divided by a seeded shuffle.
"""

import os
import random
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, StrictStr, field_validator
from pydantic_core import PydanticCustomError

from data.io.digests import image_digest
from data.io.image_folders import image_files
from data.io.images import IMAGE_ENDINGS, ImageSource, read_each
from data.io.records import Location, Record, RecordError, parse_row, parse_rows, read_rows
from data.io.splits import SPLITS, Shares, divide
from data.io.unreadable import LeftOut, readable_rows, unreadable_error
from data.rows.answers import AnswerError, read_answers

EASY_VQA = "easy_vqa"
EASY_VQA_COLORS = ("red", "blue", "green", "yellow", "teal", "black", "gray", "brown")
EASY_VQA_SHAPES = ("circle", "rectangle", "triangle")
"""What is on easy-VQA's images: one shape of one color."""


@dataclass(frozen=True)
class SourceItem:
    """An image with the question and answers that come with it, if any; `place` names it in messages."""

    image: ImageSource
    question: str = ""
    answers: tuple[str, ...] = ()
    place: str = field(default="", compare=False)


def _easy_vqa_part(questions: tuple, image_paths: dict) -> list[SourceItem]:
    return [
        SourceItem(image_paths[image_id], question, (answer,), f"--source {EASY_VQA}")
        for question, answer, image_id in zip(*questions, strict=True)
    ]


def _easy_vqa() -> tuple[list[SourceItem], list[SourceItem]]:
    try:
        import easy_vqa
    except ImportError as error:
        raise RecordError(["--source easy_vqa needs the package: pip install 'vlm-posttrain[quickstart]'"]) from error
    train = _easy_vqa_part(easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths())
    return train, _easy_vqa_part(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths())


class _Texts(Record):
    """Question and answers of a row, under the names that VQA data sets use."""

    model_config = ConfigDict(extra="ignore")

    question: StrictStr = ""
    answers: Any = None
    answer: Any = None
    multiple_choice_answer: Any = None

    @field_validator("answers", "answer", "multiple_choice_answer")
    @classmethod
    def _as_texts(cls, value: Any) -> tuple[str, ...]:
        try:
            return tuple(read_answers(value))
        except AnswerError as error:
            raise PydanticCustomError("answers", "{message}", {"message": str(error)}) from error

    def texts(self) -> tuple[str, tuple[str, ...]]:
        """(question, answers); of several fields with answers the first counts."""
        known = (self.answers, self.answer, self.multiple_choice_answer)
        return self.question, next((answers for answers in known if answers is not None), ())


class _Metadata(_Texts):
    """A row of an image folder's `metadata.jsonl`."""

    file_name: StrictStr


def _texts_by_file(metadata: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Question and answers by path relative to the folder of the metadata.

    Raises:
        RecordError: a malformed line, a second line for a file, or a line for a file that is not there.
    """
    lines = list(read_rows(metadata))
    rows = parse_rows(lines, _Metadata)
    first: dict[str, Location] = {}
    problems = []
    for (location, _), row in zip(lines, rows, strict=True):
        name = os.path.normpath(row.file_name)
        if first.setdefault(name, location) is not location:
            problems.append(f"{location}: field 'file_name': duplicate {row.file_name!r}, also that of {first[name]}")
        elif not (metadata.parent / name).is_file():
            problems.append(f"{location}: field 'file_name': no such file: {metadata.parent / name}")
    if problems:
        raise RecordError(problems)
    return {os.path.normpath(row.file_name): row.texts() for row in rows}


def _folder(folder: Path) -> list[SourceItem]:
    """Images below a folder; texts from a `metadata.jsonl` as the datasets library's image folders have it."""
    texts = {}
    metadata = folder / "metadata.jsonl"
    if metadata.is_file():
        texts = _texts_by_file(metadata)
    items = []
    for path in image_files(folder):
        question, answers = texts.get(str(path.relative_to(folder)), ("", ()))
        items.append(SourceItem(str(path.resolve()), question, answers, f"--source {folder}"))
    if not items:
        raise RecordError([f"{folder}: found no images below it (endings {', '.join(IMAGE_ENDINGS)})"])
    return items


def _hf_dataset(name: str) -> list[SourceItem]:
    from datasets import DatasetDict, Image, concatenate_datasets, load_dataset, load_from_disk

    try:
        dataset = load_from_disk(name) if Path(name).is_dir() else load_dataset(name)
    except Exception as error:
        raise RecordError([f"--source {name}: not easy_vqa, no folder of images, no data set: {error}"]) from error
    if isinstance(dataset, DatasetDict):
        dataset = concatenate_datasets(list(dataset.values()))
    column = next((name for name, feature in dataset.features.items() if isinstance(feature, Image)), None)
    if column is None:
        raise RecordError([f"--source {name}: no image column among {', '.join(dataset.column_names)}"])
    dataset = dataset.cast_column(column, Image(decode=False))
    return _items(name, column, dataset)


def _items(name: str, column: str, rows: Iterable[dict]) -> list[SourceItem]:
    """An item a row.

    Raises:
        RecordError: lists rows without an image, or with texts of another type.
    """
    items, problems = [], []
    for number, row in enumerate(rows, start=1):
        location = Location(f"--source {name}", number, "row")
        if row[column] is None:
            problems.append(f"{location}: field '{column}': expected an image, found null")
            continue
        try:
            items.append(SourceItem(row[column], *parse_row(location, row, _Texts).texts(), str(location)))
        except RecordError as error:
            problems.extend(error.problems)
    if problems:
        raise RecordError(problems)
    return items


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def load_all(source: str) -> list[SourceItem]:
    """Every item of a source, splits together."""
    path = Path(source)
    if source == EASY_VQA:
        train, test = _easy_vqa()
        return train + test
    if path.is_dir() and not _is_saved_dataset(path):
        return _folder(path)
    return _hf_dataset(source)


def picture_keys(images: Iterable[ImageSource]) -> list[str]:
    """A key of each image, the same for the same picture, whatever its file is called and however it is stored.

    Raises:
        RecordError: names the images that cannot be read, all at once.
    """
    images = list(images)
    found = read_each(images, image_digest)
    problems = [problem for _, problem in found]
    if any(problems):
        raise unreadable_error(images, problems, [""] * len(images))
    return [key for key, _ in found]


def _picture_problems(images: Sequence[ImageSource]) -> list[str | None]:
    """Of each image, why it cannot be used, or `None`. What files show is remembered, for `picture_keys`."""
    return [problem for _, problem in read_each(images, image_digest)]


def readable_items(items: Sequence[SourceItem], left_out: LeftOut | None = None) -> list[SourceItem]:
    """The items, whose images are all decoded: every one, or all but those that `left_out` notes.

    Raises:
        RecordError: names the images that cannot be read, where none is to be left out or no item has others.
    """
    places = [item.place for item in items]
    return readable_rows(
        items, places, (), left_out, lambda item: [item.image], name="image", problems_of=_picture_problems
    )


def load_splits(source: str, shares: Shares, seed: int, without: Container[int] = ()) -> dict[str, list[SourceItem]]:
    """Items of each split, by the shares of training, validation and test; no image stands in two splits.

    Args:
        without: positions in `load_all` of items that are left out.

    Raises:
        RecordError: names the images that cannot be read, except for easy-VQA, whose images are not looked at.
    """
    rng = random.Random(seed)
    if source == EASY_VQA:
        train, test = _easy_vqa()
        test = [item for position, item in enumerate(test, start=len(train)) if position not in without]
        train = [item for position, item in enumerate(train) if position not in without]
        paths = sorted({item.image for item in train})
        rng.shuffle(paths)
        of_train = shares[0] / (shares[0] + shares[1]) if shares[1] else 1.0
        for_training = set(paths[: round(of_train * len(paths))])
        kept = [item for item in train if item.image in for_training]
        held_out = [item for item in train if item.image not in for_training]
        return dict(zip(SPLITS, (kept, held_out, test), strict=True))
    items = [item for position, item in enumerate(load_all(source)) if position not in without]
    items = readable_items(items)
    pictures = dict(zip(map(id, items), picture_keys(item.image for item in items), strict=True))
    return divide(items, shares, seed, keys=lambda item: [pictures[id(item)]])
