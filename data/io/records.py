"""Reading rows from files, checking them against a record type, and writing files that are never half-written.

Every error names the file, the line (or row), the field, what was found and what was expected.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from data.errors import UserError, described
from data.io.counts import counted
from data.io.json_text import NotJson, decode_json, parse_json, unstorable

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_ERRORS_SHOWN = 20
MAX_CHARACTERS_SHOWN = 1_800
"""Of all problems together: a message that fills the screen is not read."""

RecordType = TypeVar("RecordType", bound=BaseModel)


@dataclass(frozen=True)
class Location:
    """Where a row stands: a line of a JSONL file, or an item of any other source (both counted from 1), or its key."""

    source: str
    number: int | str
    unit: str = "line"

    def name_of(self, field: str) -> str:
        """What the file calls a field of the record that is made of the row."""
        return field

    def __str__(self) -> str:
        return f"{self.source}:{self.number}" if self.unit == "line" else f"{self.source}, {self.unit} {self.number}"


def shown_problems(problems: list[str]) -> list[str]:
    """The first problems, as many as a person reads; an endless one is cut in its middle."""
    shown: list[str] = []
    for problem in problems[:MAX_ERRORS_SHOWN]:
        if len(problem) > MAX_CHARACTERS_SHOWN // 2:
            problem = f"{problem[: MAX_CHARACTERS_SHOWN // 3]} ... {problem[-MAX_CHARACTERS_SHOWN // 8 :]}"
        if sum(map(len, shown)) + len(problem) > MAX_CHARACTERS_SHOWN:
            break
        shown.append(problem)
    return shown


@dataclass(frozen=True)
class ImageCount:
    """Images that were decoded.

    Attributes:
        images: how many different ones.
        unreadable: how many of them cannot be read.
        sentences: how many problems of an error say so.

    >>> str(ImageCount(1000, 3))
    '3 of 1,000 images cannot be read'
    """

    images: int = 0
    unreadable: int = 0
    sentences: int = 0

    def __add__(self, other: "ImageCount") -> "ImageCount":
        return ImageCount(
            self.images + other.images, self.unreadable + other.unreadable, self.sentences + other.sentences
        )

    def __str__(self) -> str:
        return f"{self.unreadable:,} of {counted(self.images, 'image')} cannot be read"


class RecordError(UserError, ValueError):
    """One or more malformed rows. `problems` holds a sentence for each.

    Args:
        images: that were decoded; the message says how many of them cannot be read, if any.
    """

    def __init__(self, problems: list[str], images: ImageCount = ImageCount()):
        self.problems = problems
        self.images = images
        shown = shown_problems(problems)
        hidden = len(problems) - len(shown)
        more = f"... and {counted(hidden, 'more problem')}" if hidden > 0 else ""
        super().__init__("\n".join(filter(None, [self.heading and f"{self.heading}:", *shown, more])))

    @classmethod
    def joined(cls, errors: Iterable["RecordError"], problems: Iterable[str] = ()) -> "RecordError":
        """One error for several, and for further problems."""
        errors = list(errors)
        own = [problem for error in errors for problem in error.problems]
        return cls([*own, *problems], sum((error.images for error in errors), ImageCount()))

    def at(self, place: str) -> "RecordError":
        """The same error with a place before each problem."""
        return RecordError([f"{place}: {problem}" for problem in self.problems], self.images)

    @property
    def heading(self) -> str:
        """How many images cannot be read, and how many problems there are beside; empty where all can be read."""
        if not self.images.unreadable:
            return ""
        others = len(self.problems) - self.images.sentences
        return f"{self.images}; {counted(others, 'problem')} beside" if others else str(self.images)

    @property
    def count(self) -> str:
        """How many problems there are, for commands that list all of them."""
        problems = counted(len(self.problems), "problem")
        return f"{self.images}; {problems}" if self.images.unreadable else problems

    def __reduce__(self):
        return type(self), (self.problems, self.images)  # by default it would be made again from its message


class Record(BaseModel):
    """What rows are checked against. A field of a row that is null is as good as missing, unless it is required.
    Further fields that a record keeps stay null.

    Arrow's tables have every field in every row and in every part of a nested list, null where nothing was given.
    """

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        kept = {name for name, field in cls.model_fields.items() if field.is_required()}
        if cls.model_config.get("extra") == "allow":
            kept |= row.keys() - cls.model_fields.keys()
        return {name: value for name, value in row.items() if value is not None or name in kept}


def field_error(place: str | int | tuple, message: str, found: Any) -> ValidationError:
    """For a validator to raise: what is wrong with the field at a place below the record."""
    place = place if isinstance(place, tuple) else (place,)
    problem = PydanticCustomError("field", "{message}", {"message": message})
    return ValidationError.from_exception_data("record", [InitErrorDetails(type=problem, loc=place, input=found)])


class Malformed(str):
    """Stands where a row should be that could not even be read; the text is the problem."""


def _shorten(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _shown_key(part: str | int) -> str:
    text = str(part)
    return text if text.isprintable() and len(text) <= 80 else _shorten(text)


def describe_problems(error: ValidationError, location: Location) -> list[str]:
    """One sentence for each field that pydantic refused: place, field, what is wrong, what was found."""
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(_shown_key(part) for part in item["loc"]) or "the row"
        found = "missing" if item["type"] == "missing" else _shorten(item["input"])
        problems.append(described(str(location), location.name_of(field), f"{item['msg']} (found {found})"))
    return problems


def read_json(path: Path, parse: Callable[[bytes], Any] = parse_json) -> Any:
    """The content of a JSON file.

    Args:
        parse: `data.io.json_text.decode_json`, for callers that look for what no file can hold row by row.

    Raises:
        RecordError: it cannot be read, or is not JSON.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise RecordError([f"{path}: cannot be read: {error.strerror}"]) from error
    except NotJson as error:
        raise RecordError([f"{path}{'' if error.line is None else f':{error.line}'}: {error}"]) from error


def _read_jsonl(path: Path) -> Iterator[tuple[Location, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.strip() == BYTE_ORDER_MARK:
                continue
            location = Location(str(path), number)
            try:
                yield location, parse_json(line.strip())
            except NotJson as error:
                yield location, Malformed(error)


def _read_json(path: Path) -> Iterator[tuple[Location, Any]]:
    content, suspect = read_json(path, decode_json)
    if not isinstance(content, list):
        raise RecordError([f"{path}: expected a JSON list of objects, found {type(content).__name__}"])
    for number, row in enumerate(content, start=1):
        problem = next(unstorable(row), None) if suspect else None
        yield Location(str(path), number, "item"), row if problem is None else Malformed(problem)


def _undecoded(feature: Any) -> Any:
    """A feature of the datasets library whose images stay bytes, so that a broken one is found with its row."""
    from dataclasses import replace

    from datasets import Image, LargeList, List

    if isinstance(feature, Image):
        return Image(decode=False)
    if isinstance(feature, List | LargeList):
        return replace(feature, feature=_undecoded(feature.feature))
    if isinstance(feature, dict):
        return {name: _undecoded(part) for name, part in feature.items()}
    return [_undecoded(part) for part in feature] if isinstance(feature, list) else feature


def _read_dataset(source: str, rows: Any) -> Iterator[tuple[Location, Any]]:
    from datasets import Features, Json, Value

    texts = [name for name, feature in rows.features.items() if isinstance(feature, Json)]
    features = Features({name: _undecoded(feature) for name, feature in rows.features.items()})
    features |= {name: Value("string") for name in texts}
    rows = rows if features == rows.features else rows.cast(features)
    for number, row in enumerate(rows, start=1):
        yield Location(source, number, "row"), row | {name: _of_json(row[name]) for name in texts}


def _of_json(text: str | None) -> Any:
    """What a column of JSON holds; the datasets library itself reads long numbers as 0, or rounds them."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


SPLIT_FILE_ENDINGS = (".jsonl", ".json", ".parquet")


def _split_of_folder(folder: Path, split: str) -> Iterator[tuple[Location, Any]]:
    files = [path for ending in SPLIT_FILE_ENDINGS if (path := folder / f"{split}{ending}").is_file()]
    if len(files) > 1:
        named = " and ".join(path.name for path in files)
        raise RecordError([f"{folder}: expected one file of the {split} split, found {named}"])
    if files:
        return read_rows(files[0])
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        from datasets import DatasetDict, load_from_disk

        try:
            dataset = load_from_disk(str(folder))
        except Exception as error:
            raise RecordError([f"{folder}: not readable as a saved data set: {error}"]) from error
        if isinstance(dataset, DatasetDict):
            if split not in dataset:
                raise RecordError([f"{folder}: no split '{split}'; it has {', '.join(dataset)}"])
            dataset = dataset[split]
        return _read_dataset(str(folder), dataset)
    names = ", ".join(f"{split}{ending}" for ending in SPLIT_FILE_ENDINGS)
    raise RecordError([f"{folder}: found none of {names}, and no saved data set of the datasets library"])


UNFINISHED_FILE = "unfinished.json"
"""Stands in a folder while a command writes its files (`data/io/output_folder.py`)."""
being_written: set[Path] = set()
"""Folders that this process itself is writing to: it may read what it has written."""


def check_finished(folder: Path) -> None:
    """Raises a `RecordError` for a folder whose files are being written, or were left unfinished.

    Two levels up count too: the pools of reports lie in a folder of theirs.
    """
    folder = folder.resolve()
    for place in (folder, *list(folder.parents)[:2]):
        path = place / UNFINISHED_FILE
        if not path.is_file() or place in being_written:
            continue
        try:
            command = json.loads(path.read_bytes())["command"]
        except (OSError, ValueError, KeyError, TypeError):
            command = "the command that writes it"
        raise RecordError([f"{place}: unfinished: still being written, or interrupted; run to its end: {command}"])


def available_splits(folder: Path, names: Iterable[str]) -> list[str]:
    """Which of some splits a folder has, in whatever format."""
    dataset = folder / "dataset_dict.json"
    found = set(json.loads(dataset.read_bytes())["splits"] if dataset.is_file() else [])
    found |= {path.stem for path in folder.iterdir() if path.suffix in SPLIT_FILE_ENDINGS}
    return [name for name in names if name in found]


@dataclass(frozen=True)
class GivenRows:
    """Rows that a program has, where others come from a file: a `datasets.Dataset`, and its name for messages."""

    name: str
    dataset: Any

    @property
    def plain(self) -> Any:
        """The data set with values as files have them, where it shows them as tensors, arrays or tables."""
        shown = getattr(self.dataset, "format", None)
        if not isinstance(shown, dict) or shown["type"] in (None, "custom"):
            return self.dataset
        return self.dataset.with_format(None, columns=shown["columns"])

    def __str__(self) -> str:
        return self.name


Source = str | Path | GivenRows
"""Where rows come from."""


def read_rows(source: Source, split: str = "train") -> Iterator[tuple[Location, Any]]:
    """Rows of a JSONL, JSON or parquet file, a folder with one such file (or HF split) a split, or a Hub data set.

    Args:
        source: path, or `owner/name` of a data set on the Hub; or rows that are there.
        split: which split of a folder or of a Hub data set; ignored for single files.

    A line of JSONL that is not JSON comes as a `Malformed`, so that a reader can go on and report every problem.

    Raises:
        RecordError: no such file, no such split, or a JSON file that is not a list.
    """
    if isinstance(source, GivenRows):
        return _read_dataset(source.name, source.plain)
    path = Path(source)
    check_finished(path if path.is_dir() else path.parent)
    if path.is_dir():
        return _split_of_folder(path, split)
    if path.is_file() and path.suffix == ".jsonl":
        return _read_jsonl(path)
    if path.is_file() and path.suffix == ".json":
        return _read_json(path)
    if path.is_file() and path.suffix == ".parquet":
        return _read_parquet(path)
    if path.is_file():
        endings = ", ".join(SPLIT_FILE_ENDINGS)
        raise RecordError([f"{path}: cannot tell the format from the ending '{path.suffix}'; expected {endings}"])
    if path.suffix or str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise RecordError([f"{source}: no such file or folder"])
    return _read_hub(str(source), split)


def read_some_rows(source: str | Path, split: str = "train") -> Iterator[tuple[Location, Any]]:
    """The same rows, of which there must be one at least.

    Raises:
        RecordError: the source has no rows.
    """
    empty = True
    for located in read_rows(source, split):
        empty = False
        yield located
    if empty:
        where = f"{source}: the {split} split" if Path(source).is_dir() else f"{source}:"
        raise RecordError([f"{where} has no rows"])


def _read_parquet(path: Path) -> Iterator[tuple[Location, Any]]:
    from datasets import Dataset

    try:
        dataset = Dataset.from_parquet(str(path))
    except Exception as error:
        raise RecordError([f"{path}: not readable as parquet: {error}"]) from error
    return _read_dataset(str(path), dataset)


def _read_hub(name: str, split: str) -> Iterator[tuple[Location, Any]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=split)
    except Exception as error:
        problem = f"{name}: no such file or folder here, and as a Hub data set it failed to load: {error}"
        raise RecordError([problem]) from error
    return _read_dataset(name, dataset)


def parse_row(location: Location, row: Any, record_type: type[RecordType]) -> RecordType:
    """Checks one row; raises a `RecordError` with every problem of it."""
    if isinstance(row, Malformed):
        raise RecordError([f"{location}: {row}"])
    try:
        return record_type.model_validate(row)
    except ValidationError as error:
        raise RecordError(describe_problems(error, location)) from error


def parsed_rows(
    rows: Iterable[tuple[Location, Any]], record_type: type[RecordType], problems: list[str]
) -> Iterator[tuple[Location, RecordType]]:
    """The rows that are well-formed, with their places; `problems` gets those of the others."""
    for location, row in rows:
        try:
            record = parse_row(location, row, record_type)
        except RecordError as error:
            problems.extend(error.problems)
        else:
            yield location, record


def parse_rows(rows: Iterable[tuple[Location, Any]], record_type: type[RecordType]) -> list[RecordType]:
    """Checks every row and raises one `RecordError` that lists all problems, or returns all records."""
    problems: list[str] = []
    records = [record for _, record in parsed_rows(rows, record_type, problems)]
    if problems:
        raise RecordError(problems)
    return records


def base_folder(source: Source) -> Path:
    """Where relative paths in a file's or folder's rows start; those of given rows, in the current folder."""
    path = Path() if isinstance(source, GivenRows) else Path(source)
    return (path if path.is_dir() else path.parent).resolve()


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[Any]:
    """Opens a temporary file beside `path` and renames it into place when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Writes one JSON object a line, atomically."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Writes JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=indent) + "\n")
