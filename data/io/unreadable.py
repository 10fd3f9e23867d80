"""Images that cannot be read: all of a data set are named at once, or left out with their rows, counted and recorded.

    skipping = Skipping(arguments.skip_unreadable)
    records = load_records(source, split, left_out=skipping.of("examples"))
    skipping.report()
    ...
    skipping.write(arguments.output)

Every image is decoded once, before anything expensive starts. The ids of the other rows stay what they are, also where
rows go by their positions.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from data.io.images import ImageSource, image_problems
from data.io.records import ImageCount, RecordError, write_json

LEFT_OUT_FILE = "left_out.json"
"""In a folder, or behind the name of a file, that was written without the rows that it names."""
MAX_SHOWN = 5
"""Rows that a message says were left out; the others are counted."""

Row = TypeVar("Row")
ImagesOf = Callable[[Any], Sequence[ImageSource]]
NamesOf = Callable[[Any], Sequence[str]]
ProblemsOf = Callable[[Sequence[ImageSource]], list[str | None]]


def _images_of(row: Any) -> Sequence[ImageSource]:
    return row["images"] if isinstance(row, dict) else row.images


def _id_of(row: Any) -> int | str | None:
    return row.get("id") if isinstance(row, dict) else getattr(row, "id", None)


def count_images(images: Sequence[ImageSource], problems: Sequence[str | None]) -> ImageCount:
    """How many images there are, and how many cannot be read; a path that occurs several times is one image.

    Args:
        problems: of each image, or `None`.
    """
    keys = [image if isinstance(image, str) else number for number, image in enumerate(images)]
    unreadable = {key for key, problem in zip(keys, problems, strict=True) if problem is not None}
    return ImageCount(len(set(keys)), len(unreadable))


def unreadable_error(
    images: Sequence[ImageSource], problems: Sequence[str | None], places: Sequence[str], others: Sequence[str] = ()
) -> RecordError:
    """The error that says how many images cannot be read, and names them.

    Args:
        problems: of each image, or `None`.
        places: of each image: what stands before its problem.
        others: problems of other kinds, which come first.
    """
    named = [f"{place}{problem}" for place, problem in zip(places, problems, strict=True) if problem is not None]
    named = list(dict.fromkeys(named))
    return RecordError([*others, *named], replace(count_images(images, problems), sentences=len(named)))


def refuse_unreadable(
    images: Iterable[tuple[str, ImageSource]],
    problems: Sequence[str] = (),
    name: str = "images",
    problems_of: ProblemsOf = image_problems,
) -> None:
    """Decodes images, and raises a `RecordError` for all that cannot be read, and for problems that are known already.

    Args:
        images: pairs of (where the image is used, image).
        problems: of other kinds.
        name: of the field that holds the images.
        problems_of: decodes images, and says of each why it cannot be used, or `None`.
    """
    pairs = list(images)
    _refuse([image for _, image in pairs], [f"{where}: field '{name}': " for where, _ in pairs], problems, problems_of)


def _refuse(
    images: Sequence[ImageSource], places: Sequence[str], problems: Sequence[str], problems_of: ProblemsOf
) -> None:
    found = problems_of(images)
    if problems or any(found):
        raise unreadable_error(images, found, places, problems)


@dataclass
class LeftOut:
    """The rows of one data set that are left out because an image of theirs cannot be read.

    Args:
        may_be_all: whether it is no error that no row is left.

    Attributes:
        images: how many different images there are, and how many of them cannot be read.
        rows: how many rows there are.
        entries: of each row left out: its `position` (from 0), its `row` (file and line), its `id` where it has one,
            and its `problems`.
    """

    may_be_all: bool = False
    images: ImageCount = ImageCount()
    rows: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def positions(self) -> list[int]:
        """Of the rows left out."""
        return [entry["position"] for entry in self.entries]

    @property
    def ids(self) -> set[int | str]:
        """Of the rows left out."""
        return {entry["id"] for entry in self.entries if "id" in entry}

    @property
    def sentences(self) -> list[str]:
        """One for each image of the rows left out."""
        return [f"{entry['row']}: {problem}" for entry in self.entries for problem in entry["problems"]]

    def take(
        self, rows: Sequence[Row], places: Sequence[str], problems: Sequence[Sequence[tuple[str, str | None]]]
    ) -> list[Row]:
        """The rows without those that are left out.

        Args:
            places: of the rows, for people.
            problems: of each row's images, with the name of the field that holds it.
        """
        kept = []
        for position, (row, found) in enumerate(zip(rows, problems, strict=True)):
            wrong = [f"field '{name}': {problem}" for name, problem in found if problem is not None]
            if not wrong:
                kept.append(row)
                continue
            entry = {"position": position, "row": places[position]}
            if _id_of(row) is not None:
                entry["id"] = _id_of(row)
            self.entries.append({**entry, "problems": wrong})
        self.rows = len(rows)
        return kept


def readable_rows(
    rows: Sequence[Row],
    places: Sequence[str],
    problems: Sequence[str] = (),
    left_out: LeftOut | None = None,
    images_of: ImagesOf = _images_of,
    name: str | NamesOf = "images",
    problems_of: ProblemsOf = image_problems,
    check_files: bool = True,
) -> list[Row]:
    """The rows whose images can all be decoded: every row, or all but those that `left_out` notes.

    Args:
        places: of the rows, for messages.
        problems: of other kinds that are known already.
        left_out: `None` leaves nothing out.
        images_of: the images of a row.
        name: of the field that holds the images, or of each image's.
        problems_of: see `refuse_unreadable`.
        check_files: decode the images; without it, only `problems` are raised.

    Raises:
        RecordError: `problems`; images that cannot be read, where none is to be left out or no row has others.
    """
    if not check_files:
        if problems:
            raise RecordError(list(problems))
        return list(rows)
    images = [list(images_of(row)) for row in rows]
    fields = [
        [name] * len(part) if isinstance(name, str) else name(row) for row, part in zip(rows, images, strict=True)
    ]
    flat = [image for part in images for image in part]
    where = [f"{place}: field '{one}': " for place, part in zip(places, fields, strict=True) for one in part]
    if left_out is None or problems:
        _refuse(flat, where, problems, problems_of)
        return list(rows)
    found = problems_of(flat)
    left_out.images = count_images(flat, found)
    rest = iter(found)
    kept = left_out.take(rows, places, [[(one, next(rest)) for one in part] for part in fields])
    if rows and not kept and not left_out.may_be_all:
        raise unreadable_error(flat, found, where)
    return kept


def with_positions_as_ids(rows: Sequence[Any], left_out: LeftOut | None) -> list[Any]:
    """Records or rows, of which those without an id go by their position, from 0, where any may be left out."""
    if left_out is None:
        return list(rows)
    return [_with_id(row, position) if _id_of(row) is None else row for position, row in enumerate(rows)]


def _with_id(row: Any, position: int) -> Any:
    return {**row, "id": position} if isinstance(row, dict) else row.model_copy(update={"id": position})


class Skipping:
    """What a command that may have `--skip_unreadable` leaves out of its data sets.

    Args:
        wanted: whether it has.
    """

    def __init__(self, wanted: bool):
        self.wanted = wanted
        self.left_out: dict[str, LeftOut] = {}

    def of(self, name: str) -> LeftOut | None:
        """For the reader of one data set; `None` where nothing is to be left out."""
        return self.left_out.setdefault(name, LeftOut()) if self.wanted else None

    def ids(self, name: str) -> set[int | str]:
        """Ids of the rows left out of a data set."""
        return self.left_out[name].ids if name in self.left_out else set()

    def positions(self) -> dict[str, list[int]] | None:
        """Of the rows left out of each data set, for the settings of unfinished work; `None` where there are none."""
        return {name: found.positions for name, found in self.left_out.items() if found.entries} or None

    def report(self) -> None:
        """Says on stderr how many images and rows are left out, and the first of them."""
        for name, found in self.left_out.items():
            if found.entries and os.environ.get("RANK", "0") == "0":
                lines = list(dict.fromkeys(found.sentences))
                more = f"and {len(lines) - MAX_SHOWN:,} more" if len(lines) > MAX_SHOWN else None
                count = f"{len(found.entries):,} of {found.rows:,} {name}"
                first = f"warning: {found.images}; {count} are left out:"
                sys.stderr.write("\n  ".join(filter(None, [first, *lines[:MAX_SHOWN], more])) + "\n")

    def write(self, output: str | Path) -> None:
        """Writes down what was left out, beside a file or in a folder; removes what an earlier run wrote there."""
        output = Path(output)
        path = output / LEFT_OUT_FILE if output.is_dir() else output.with_name(f"{output.name}.{LEFT_OUT_FILE}")
        found = {name: found for name, found in self.left_out.items() if found.entries}
        if not found:
            path.unlink(missing_ok=True)
            return
        content = {
            name: {
                "images": one.images.images,
                "unreadable_images": one.images.unreadable,
                "rows": one.rows,
                "left_out": one.entries,
            }
            for name, one in found.items()
        }
        write_json(path, content)
