"""Pictures of a data set whose rows a library reads: seen as in rows of a file, and refused as there."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from pydantic import model_validator

from data.io.images import ImageError, image_problems, open_image
from data.io.records import GivenRows, Location, field_error, parse_row, parsed_rows, read_rows
from data.io.unreadable import unreadable_error
from data.rows.row_images import RecordWithImages, check_image, gather_images, is_image_name

CONVERSATIONS = ("prompt", "messages", "completion")
"""Columns whose messages may hold pictures in their parts."""
TOGETHER = 256
"""Pictures that are in memory at once while all of a data set are checked."""


def _parts(row: dict[str, Any]) -> Iterator[tuple[tuple, dict]]:
    """Place and part of everything in a row's messages that stands for a picture, or is one."""
    for name in CONVERSATIONS:
        messages = row.get(name)
        for turn, message in enumerate(messages if isinstance(messages, list) else ()):
            content = message.get("content") if isinstance(message, dict) else None
            for number, part in enumerate(content if isinstance(content, list) else ()):
                if isinstance(part, dict) and "image" in part:
                    yield (name, turn, "content", number, "image"), part


def _in_messages(row: dict[str, Any]) -> list[tuple[tuple, Any]]:
    """Place and picture, of those that stand in messages."""
    return [(place, part["image"]) for place, part in _parts(row) if part["image"] is not None]


class _Row(RecordWithImages):
    """The pictures of a row, those of its messages too, and what its own texts are called."""

    prompt: Any = None
    messages: Any = None
    completion: Any = None

    @model_validator(mode="after")
    def _with_parts(self) -> "_Row":
        parts = _in_messages(dict(self))
        for place, image in parts:
            check_image(place, image)
            if self.images:
                raise field_error(place, "expected a place, as 'images' has the row's pictures", image)
        self.images = [*self.images, *(image for _, image in parts)]
        return self


def check_images(dataset: Dataset, name: str) -> None:
    """Decodes every picture.

    Args:
        name: of the data set, for messages.

    Raises:
        RecordError: lists every picture that cannot be read, address, and media under a name that is not read.
    """
    problems: list[str] = []
    names: list[str | None] = []  # of each image its path, if that is what it is: bytes must not pile up
    places: list[str] = []
    unreadable: list[str | None] = []
    rows = parsed_rows(read_rows(GivenRows(name, dataset)), _Row, problems)
    pairs = ((f"{location}: field 'images': ", image) for location, row in rows for image in row.images)
    while some := list(islice(pairs, TOGETHER)):
        unreadable += image_problems([image for _, image in some])
        names += [image if isinstance(image, str) else None for _, image in some]
        places += [place for place, _ in some]
    if problems or any(unreadable):
        raise unreadable_error(names, unreadable, places, problems)


class ImageTransform:
    """Transform of a data set: its pictures as `open_image` gives them, under a name that libraries read."""

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        rows = [self.read(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        images = gather_images(row, set(CONVERSATIONS))["images"] or [image for _, image in _in_messages(row)]
        images = [open_image(image) for image in images]
        for _, part in _parts(row):  # places, which libraries fill in their order
            del part["image"]
        if "image" in row and "images" not in row and not isinstance(row["image"], list):
            return {**row, "image": images[0] if images else None}
        return {**row, "images": images}


def with_images_read(dataset: Dataset, name: str, check: bool = True) -> Dataset:
    """The data set, its pictures read as those of any row: transparent ones on white, upright, in all depths; also
    those under other names than `image` and `images`.

    Args:
        name: of the data set, for messages.
        check: decode every picture first.

    Raises:
        RecordError: see `check_images`.
    """
    dataset = GivenRows(name, dataset).plain
    if check:
        check_images(dataset, name)
    columns = [column for column in dataset.column_names if is_image_name(column) or column in CONVERSATIONS]
    has_images = any(map(is_image_name, columns))
    if has_images or any(_in_messages(row) for row in dataset.select_columns(columns)):
        return dataset.with_transform(ImageTransform())
    return dataset


def with_streamed_images_read(dataset: IterableDataset, name: str) -> IterableDataset:
    """The same of a data set that is streamed: its first row is checked at once, all others when they are reached."""
    first = next(iter(dataset), None)
    if first is None:
        return dataset
    parse_row(Location(name, 1, "row"), first, _Row)
    if not any(map(is_image_name, first)) and not _in_messages(first):
        return dataset
    transform = ImageTransform()

    def read(row: dict[str, Any], index: int) -> dict[str, Any]:
        location = Location(name, index + 1, "row")
        parse_row(location, row, _Row)
        try:
            return transform.read(row)
        except ImageError as error:
            raise error.at(f"{location}: field 'images'") from error

    return dataset.map(read, with_indices=True)
