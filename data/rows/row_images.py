"""The images of a row, under whichever of their usual names; and media that no row is read with, which are refused.

A row whose images stand under a name that nobody reads would be used without them, in silence.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from data.io.images import IMAGE_ENDINGS, is_address
from data.io.records import Record, field_error

_STEMS = ("image", "img", "picture", "photo")
IMAGE_NAMES = frozenset(
    f"{stem}{kind}{plural}"
    for stem in _STEMS
    for kind in ("", "path", "file", "filename", "filepath", "list", "byte")
    for plural in ("", "s")
) | {f"{stem}s{kind}" for stem in _STEMS for kind in ("path", "paths", "files", "list")}
"""Names of fields that hold a row's images, without capital letters and separators: `image_path`, `imgs`, ..."""

_MEDIA_WORDS = {
    *_STEMS, "pic", "media", "video", "clip", "audio", "sound", "speech", "frame", "screenshot", "pixel", "thumbnail",
}  # fmt: skip
_FORM_WORDS = {"path", "file", "url", "uri", "link", "data", "base64", "b64", "bytes", "values", "name", "src"}
_OTHER_ENDINGS = (
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wav", ".mp3", ".flac", ".ogg", ".m4a", ".heic",
    ".avif", ".svg", ".jfif", ".npy",
)  # fmt: skip
MEDIA_ENDINGS = (*IMAGE_ENDINGS, *_OTHER_ENDINGS)


def check_image(place: str | tuple, image: Any) -> None:
    """Raises a pydantic `ValidationError` for what cannot be an image, whatever it holds."""
    if is_address(image):
        raise field_error(place, "expected a path, bytes or an image: addresses are not fetched", image)
    if isinstance(image, str) and not image.strip():
        raise field_error(place, "expected a path, and this one is empty", image)
    if isinstance(image, dict) and image.get("bytes") is None and image.get("path") is None:
        raise field_error(place, "expected the keys 'bytes' or 'path'", image)
    if not isinstance(image, str | Path | bytes | bytearray | memoryview | dict) and not hasattr(image, "convert"):
        raise field_error(place, "expected a path, bytes or an image", image)


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(name: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def is_image_name(name: str) -> bool:
    """Whether a row's images may stand in a field of this name.

    >>> is_image_name("image_path"), is_image_name("image_id")
    (True, False)
    """
    return _plain(name) in IMAGE_NAMES


def _words(name: Any) -> list[str]:
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+", str(name))
    return [word if word in _FORM_WORDS else word.removesuffix("s") for word in map(str.lower, parts)]


def _is_media_name(name: Any) -> bool:
    words = _words(name)
    while words and (words[-1] in _FORM_WORDS or words[-1].isdigit()):
        words.pop()
    return bool(words) and words[-1] in _MEDIA_WORDS


def _is_file_name(name: Any) -> bool:
    """Whether a name says that a file's name is its value, and of what kind of file does not: `file_name`, `path`."""
    words = _words(name)
    return not {"file", "path"}.isdisjoint(words) and set(words) <= _FORM_WORDS


def _is_picture(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and set(value) <= {"bytes", "path"}
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_picture, value))
    return isinstance(value, bytes) or hasattr(value, "convert")


def _names_media(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_names_media, value))
    return isinstance(value, str) and value.lower().split("?")[0].endswith(MEDIA_ENDINGS)


def _holds_media(name: Any, value: Any) -> bool:
    """Texts are media by the name of their field: an answer, a choice or an address may be called like a file."""
    named = _is_media_name(name) and isinstance(value, str | bytes | dict | list | tuple) and len(value) > 0
    return named or _is_picture(value) or (_is_file_name(name) and _names_media(value))


def gather_images(row: dict, known: set[str], refuse_others: bool = True) -> dict:
    """The row with all its images, checked, in one list `images`, and without their other names.

    Args:
        known: fields that are read as something else, whatever they are called.
        refuse_others: a row without images must not hold other media either.

    Raises:
        ValidationError: two names with different images, what cannot be an image, or, where there are no images,
            media under a name that is not read.
    """
    names = [name for name in row if is_image_name(name) and name not in known]
    found = {name: _as_list(row[name]) for name in names if row[name] is not None and row[name] != []}
    for name, images in found.items():
        for number, image in enumerate(images):
            if isinstance(image, str | Path) and _plain(name).endswith(("byte", "bytes")):
                raise field_error(name, "expected bytes; a path stands in 'image'", image)
            check_image((name, number) if isinstance(row[name], list | tuple) else name, image)
    first = next(iter(found), None)
    for name in found:
        if found[name] != found[first]:
            raise field_error(name, f"expected the images of '{first}', or one of the two fields", row[name])
    others = {name: value for name, value in row.items() if name not in names}
    if first is None and refuse_others:
        for name, value in others.items():
            if name not in known and _holds_media(name, value):
                expected = "a row's images stand in 'image' or 'images', and no other media are read"
                raise field_error(name, expected, value)
    return {**others, "images": found.get(first, [])}


class RecordWithImages(Record):
    """A record with images, in order, maybe none: paths, bytes, `{"bytes", "path"}`, or PIL images."""

    images: list[Any] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _gather_images(cls, row: Any) -> Any:
        return gather_images(row, set(cls.model_fields) - {"images"}) if isinstance(row, dict) else row
