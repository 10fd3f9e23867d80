"""What files and rows hold, as short texts: equal for equal content, wherever it lies and whatever it is called."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel

from data.io.images import READER_VERSION, ImageError, ImageSource, describe_source, open_image, read_image_bytes
from data.reports.pool import ITEMS_FILE, Pool, load_pool

IMAGE_KEYS = ("image", "images", "image_path")
"""Fields of rows whose texts are names of image files."""
POOL_KEYS = ("pool",)
"""Fields of rows whose texts are names of pools (`data.reports.pool`): rewards read what lies in them."""
PLACE_FIELDS = ("where",)
"""Fields of dataclasses that only say where a row came from; a column of that name is data like any other."""


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=100_000)
def _digest_as_of(path: str, changed_at: int, size: int) -> str:
    """Of an image that many rows may show: read once, as long as it does not change."""
    return image_bytes_digest(path)


def rows_digest(rows: Iterable[Any]) -> str:
    """SHA-256 of rows in their order: mappings, dataclasses or pydantic records, with images and pools by content.

    >>> rows_digest([{"a": 1, "b": "x"}]) == rows_digest([{"b": "x", "a": 1}])
    True
    """
    digest = hashlib.sha256()
    for row in rows:
        _feed(digest, row, False)
    return digest.hexdigest()


def _feed(digest: Any, value: Any, image: bool) -> None:
    """Adds a value to a digest, with its type, so that neighbours cannot run into each other.

    Args:
        image: a text is the name of an image file.
    """
    if isinstance(value, BaseModel):
        _feed(digest, dict(value), image)
    elif is_dataclass(value):
        kept = [item.name for item in fields(value) if item.name not in PLACE_FIELDS]
        _feed(digest, {name: getattr(value, name) for name in kept}, image)
    elif isinstance(value, Mapping):
        _feed_mapping(digest, value, image)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}\n".encode())
        for item in value:
            _feed(digest, item, image)
    elif isinstance(value, Image.Image) and image:
        _add(digest, "picture", image_bytes_digest(value).encode())
    elif isinstance(value, Image.Image):
        _add(digest, f"picture {value.mode} {value.size} {value.getpalette()}", value.tobytes())
    elif isinstance(value, np.ndarray):
        _add(digest, f"array {value.dtype} {value.shape}", np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes):
        _add(digest, "picture", image_bytes_digest(value).encode()) if image else _add(digest, "bytes", value)
    elif image and isinstance(value, str | Path) and Path(value).is_file():
        found = Path(value).stat()
        _add(digest, "picture", _digest_as_of(str(value), found.st_mtime_ns, found.st_size).encode())
    else:
        _add(digest, type(value).__name__, str(value).encode("utf-8", "surrogatepass"))


def _feed_mapping(digest: Any, row: Mapping, image: bool) -> None:
    if row.get("bytes") is not None and set(row) <= {"bytes", "path"}:  # an image as `datasets` stores it
        _feed(digest, row["bytes"], image)
        return
    digest.update(f"mapping {len(row)}\n".encode())
    for key in sorted(row, key=str):
        _add(digest, "key", str(key).encode("utf-8", "surrogatepass"))
        if key in POOL_KEYS and isinstance(row[key], str) and (Path(row[key]) / ITEMS_FILE).is_file():
            _feed(digest, _pool_rows(load_pool(row[key])), image)
        else:
            _feed(digest, row[key], key in IMAGE_KEYS or (image and key == "path"))


def pool_digest(pool: Pool) -> str:
    """SHA-256 of a pool's items, with their images by content: equal for the same pool elsewhere."""
    return rows_digest(_pool_rows(pool))


def _pool_rows(pool: Pool) -> list[dict[str, Any]]:
    return [item.model_dump() | {"image": pool.image_path(item)} for item in pool.items]


def _add(digest: Any, kind: str, content: bytes) -> None:
    digest.update(f"{kind} {len(content)}\n".encode())
    digest.update(content)


def picture_digest(picture: Image.Image) -> str:
    """SHA-256 of the size and pixels of an RGB picture."""
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def image_digest(source: ImageSource) -> str:
    """SHA-256 of a picture as it is read: equal for the same picture under other names and in other lossless files.

    Raises:
        ImageError: see `data.io.images.open_image`.
    """
    if isinstance(source, dict) and source.get("bytes") is None:
        source = source.get("path")
    if isinstance(source, str | os.PathLike):
        return _digest_of_picture(os.fspath(source), *_state(source))
    return picture_digest(open_image(source))


def image_bytes_digest(source: ImageSource) -> str:
    """SHA-256 of what a picture is read from, without decoding it: for caches, and to see whether data changed.

    A picture without a file goes by its pixels. How pictures are read counts too: `READER_VERSION`.
    """
    if isinstance(source, Image.Image | np.ndarray):
        return image_digest(source)
    return hashlib.sha256(f"{READER_VERSION} ".encode() + read_image_bytes(source)).hexdigest()


def _state(path: str | os.PathLike) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        open_image(path)  # says what is wrong with it
        raise ImageError(f"{describe_source(path)}: changed while it was in use") from None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=65_536)
def _digest_of_picture(path: str, modified: int, size: int) -> str:
    return picture_digest(open_image(path))
