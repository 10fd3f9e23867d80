"""Folders whose files belong together: they are written as a whole, or seen to be unfinished.

    with writing("outputs/data") as folder:
        write_split(folder, "train", rows, read=load_records)

While they are written, `unfinished.json` stands beside them, locked by the process that writes. A process that is
killed leaves it there, and readers (`data.io.records.read_rows`, `data.reports.pool.Pool`) refuse the folder until
the command has run to its end. A second start in the same folder is refused too.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.cli.locks import open_locked, write_holder
from data.io.digests import picture_digest
from data.io.images import ImageSource, open_image
from data.io.records import SPLIT_FILE_ENDINGS, UNFINISHED_FILE, RecordError, atomic_write, being_written, write_jsonl
from data.io.splits import SPLITS

HF_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")
"""At the top of a data set as the datasets library saves it."""


@contextmanager
def writing(folder: str | Path) -> Iterator[Path]:
    """Marks a folder as unfinished until the block ends without an error.

    Raises:
        RecordError: a file stands in the folder's place, or another process is writing to the folder.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise RecordError([f"{folder}: expected a folder to write to, found a file"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / UNFINISHED_FILE
    with open_locked(path, folder) as file:
        write_holder(file)
        os.fsync(file.fileno())
        place = folder.resolve()
        being_written.add(place)
        try:
            yield folder
        finally:
            being_written.discard(place)
        path.unlink()


def refuse_own_input(source: str | Path, output_dir: Path) -> None:
    """Raises a `RecordError` where a command would overwrite what it reads: a folder, or a file of a split in it."""
    source, place = Path(source).resolve(), output_dir.resolve()
    is_split = source.is_file() and source.parent == place and source.stem in SPLITS
    if place == source or is_split:
        raise RecordError([f"--output_dir {output_dir}: would overwrite the input {source}; choose another folder"])


def remove_split(folder: Path, split: str) -> None:
    """Removes what an earlier run left of a split, in whatever format: readers must not find it beside the new one."""
    for ending in SPLIT_FILE_ENDINGS:
        (folder / f"{split}{ending}").unlink(missing_ok=True)
    if any((folder / name).is_file() for name in HF_FILES):
        for part in folder.iterdir():
            if any((part / name).is_file() for name in HF_FILES):
                shutil.rmtree(part)
        for saved in [*(folder / name for name in HF_FILES), *folder.glob("data-*.arrow")]:
            saved.unlink(missing_ok=True)


def read_back(folder: Path, split: str, count: int, read: Callable[[Path, str], Sequence[Any]]) -> None:
    """Reads what was written, as its users will.

    Args:
        count: records that there must be.
        read: (folder, split) -> records.

    Raises:
        RecordError: it cannot be read, or is not all there.
    """
    try:
        found = len(read(folder, split))
    except RecordError as error:
        raise error.at(f"{folder}: was written, and cannot be read back") from error
    if found != count:
        raise RecordError([f"{folder}: the {split} split was written with {count} records, and {found} are read back"])


def write_split(folder: Path, split: str, rows: Sequence[dict], read: Callable[[Path, str], Sequence[Any]]) -> None:
    """Writes `{split}.jsonl` in place of whatever the folder had of this split, and reads it back.

    An empty split is left out: nothing can be trained or measured on it.
    """
    remove_split(folder, split)
    if rows:
        write_jsonl(folder / f"{split}.jsonl", rows)
        read_back(folder, split, len(rows), read)


def describe_sizes(sizes: dict[str, int]) -> str:
    """How many records each split got, and which ones were left out.

    >>> describe_sizes({"train": 3, "validation": 0, "test": 1})
    '3 train, 1 test (no validation: nothing is left for it)'
    """
    shown = ", ".join(f"{size} {split}" for split, size in sizes.items() if size)
    missing = ", ".join(split for split, size in sizes.items() if not size)
    return f"{shown} (no {missing}: nothing is left for it)" if missing else shown


def image_file(image: ImageSource, folder: Path) -> str:
    """The path of an image; one that is not a file yet is stored in a folder first, by its content."""
    if isinstance(image, str):
        return image
    opened = open_image(image)
    path = folder / f"{picture_digest(opened)[:24]}.png"
    if not path.exists():
        with atomic_write(path, "wb") as file:
            opened.save(file, "PNG")
    return str(path)


def relative_image_path(image: ImageSource, base: Path) -> str:
    """The path of an image relative to `base`, in whose folder `images` it is stored if it is not a file yet."""
    return os.path.relpath(image_file(image, base / "images"), base)
