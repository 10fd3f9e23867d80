"""Reading images: the one way in for agents, measurements, models, rewards and reports, with clear errors.

A picture is read as a person sees it: turned upright by its EXIF orientation, transparent parts on white, more than
eight bits a channel scaled to eight (`data/io/image_modes.py`); of animations and files of several pages the first
one. Only regular files and bytes are read. Addresses are never fetched.
"""

import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.errors import UserError
from data.io.image_modes import ModeError, as_seen, prepare

MIN_SIDE = 8
"""Shortest side in pixels. Below it there is nothing to see, and it is usually a broken download."""
MAX_SIDE = 16_384
"""Longest side in pixels."""
MAX_PIXELS = 89_478_485
"""Width times height; from here on Pillow warns of a decompression bomb."""
MAX_ASPECT_RATIO = 200
"""Longest side over shortest, of every family: the limit of Qwen's (`smart_resize` in qwen-vl-utils)."""
MAX_FILE_BYTES = 2**30
"""Of a file. Compressed pictures within the limits above are smaller."""
READERS = 8
"""Threads that read and decode images."""
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
READER_VERSION = 2
"""Raised when pictures are read differently, so that what was computed from them before is not used any more."""

ImageSource = str | os.PathLike | bytes | bytearray | memoryview | dict | np.ndarray | Image.Image
"""A path, the bytes of a file, `{"bytes", "path"}` of a parquet file or HF data set, a PIL image or its array."""

_EXPECTED = "expected a path, bytes, a dict with bytes or a path, or a PIL image"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:/{2}|data:", re.IGNORECASE)
_SHOWN_CHARACTERS = 300
_SIZE_IN_HEADER = ("BMP", "GIF", "JPEG", "MPO", "PNG", "WEBP")
_RUN_PROGRAMS = ("EPS",)  # Pillow would start Ghostscript
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a picture of each EXIF orientation, as `PIL.ImageOps.exif_transpose` does."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is an error from there on


class ImageError(UserError, ValueError):
    """An image that cannot be used; the message names it and says why."""


def is_address(path: Any) -> bool:
    """Whether an image is given as an address (https://, file://, s3://, data:, ...) in place of a path."""
    if isinstance(path, dict) and path.get("bytes") is None:
        path = path.get("path")
    return isinstance(path, str) and _ADDRESS.match(path) is not None


def resolve_path(path: str, base: Path) -> str:
    """An absolute path; one that is absolute already stays as it is."""
    return os.path.normpath(base / path)


def resolve_image(image: Any, base: Path) -> Any:
    """An image whose path, if it is one, is absolute; of a list, every image.

    A dict without bytes becomes its path, and bytes become a dict, so that the same image always looks the same. What
    is no path stays as it is, for `open_image` to refuse.
    """
    if isinstance(image, list | tuple):
        return [resolve_image(one, base) for one in image]
    if isinstance(image, bytes | bytearray | memoryview):
        return {"bytes": bytes(image), "path": None}
    if isinstance(image, dict) and image.get("bytes") is None and isinstance(image.get("path"), str | os.PathLike):
        image = image["path"]
    if not isinstance(image, str | os.PathLike) or is_address(image) or not os.fspath(image):
        return image
    return resolve_path(os.fspath(image), base)


def resolve_images(images: Sequence[Any], base: Path) -> list[Any]:
    """`resolve_image` of each."""
    return [resolve_image(image, base) for image in images]


def describe_source(source: Any) -> str:
    """A name for error messages: the path, or what kind of object it is."""
    if isinstance(source, dict) and source.get("path"):
        source = source["path"]
    if not isinstance(source, str | os.PathLike):
        return f"an image given as {type(source).__name__}"
    name = str(source)
    if len(name) <= _SHOWN_CHARACTERS:
        return name
    return f"{name[: _SHOWN_CHARACTERS // 2]}...{name[-_SHOWN_CHARACTERS // 4 :]}"


def _kind_of_file(mode: int) -> str:
    kinds = {"a folder": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((name for name, is_kind in kinds.items() if is_kind(mode)), "a device")


def checked_file(path: str | os.PathLike, name: str) -> Path:
    """The path of a regular file that is neither empty nor endless; nothing else is opened, since it could block."""
    if is_address(path):
        raise ImageError(f"{name}: an address, which is not fetched: download the image and give its path")
    if not os.fspath(path):
        raise ImageError("expected the path of an image, found an empty one")
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such image file") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f"{name}: expected an image file, found {_kind_of_file(found.st_mode)}")
    _check_bytes(name, found.st_size)
    return Path(path)


def _check_bytes(name: str, size: int) -> None:
    if size == 0:
        raise ImageError(f"{name}: empty, 0 bytes")
    if size > MAX_FILE_BYTES:
        raise ImageError(f"{name}: {size} bytes: expected at most {MAX_FILE_BYTES}")


def _stream(source: Any, name: str) -> BinaryIO:
    """What a file's bytes are read from.

    Raises:
        ImageError: nothing that could be an image file.
    """
    if isinstance(source, dict):
        content, path = source.get("bytes"), source.get("path")
        if content is None and path is None:
            raise ImageError(f"{name}: expected the keys 'bytes' or 'path', found {list(source)!r:.200}")
        source = path if content is None else content
        if content is not None and not isinstance(content, bytes | bytearray | memoryview):
            raise ImageError(f"{name}: field 'bytes': expected bytes, found {type(content).__name__}")
    if isinstance(source, bytes | bytearray | memoryview):
        _check_bytes(name, memoryview(source).nbytes)
        return io.BytesIO(source)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"{name}: {_EXPECTED}")
    return checked_file(source, name).open("rb")


def read_image_bytes(source: Any) -> bytes:
    """The bytes of an image file, not decoded; see `open_image` for what can be read."""
    name = describe_source(source)
    try:
        with _stream(source, name) as stream:
            return stream.read()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror})") from error


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    shown = f"{name}: {width}x{height} pixels"
    if min(size) < MIN_SIDE:
        raise ImageError(f"{shown}: expected at least {MIN_SIDE} pixels a side")
    if max(size) > MAX_SIDE:
        raise ImageError(f"{shown}: expected at most {MAX_SIDE} pixels a side; scale it down first")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{shown}: expected at most {MAX_PIXELS} pixels; scale it down first")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ImageError(f"{shown}: expected no side more than {MAX_ASPECT_RATIO} times the other")


@contextmanager
def _undecoded(source: Any):
    """(Pillow's image, its stream) before its pixels are decoded; a failure until the block ends is an ImageError."""
    name = describe_source(source)
    try:
        if isinstance(source, Image.Image | np.ndarray):
            image = Image.fromarray(source) if isinstance(source, np.ndarray) else source
            _check_size(name, image.size)
            yield image, None
            return
        with _stream(source, name) as stream:
            image = Image.open(stream, formats=_formats())
            _check_size(name, image.size)
            yield image, stream
    except ImageError:
        raise
    except ModeError as error:
        raise ImageError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image, or of an unknown format") from error
    except Exception as error:  # Pillow's decoders report broken files with nearly any exception
        raise ImageError(f"{name}: cannot be decoded ({str(error):.200})") from error


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _RUN_PROGRAMS]


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image upright. A broken EXIF block turns nothing, as in any viewer."""
    try:
        return _UPRIGHT.get(Image.Image.getexif(image).get(_ORIENTATION))
    except Exception:
        return None


def open_image(source: ImageSource) -> Image.Image:
    """Opens and fully decodes an image, as RGB without metadata, as a person sees it (see the module's text).

    Raises:
        ImageError: missing file, not a regular file, an address, not an image, truncated, a size outside the limits
            above, or values that no brightness can be told of.
    """
    with _undecoded(source) as (image, _):
        white = prepare(image)
        image.load()
        turn = _turn(image)
        seen = as_seen(image, white)
        return seen if turn is None else seen.transpose(turn)


def image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) in pixels of what `open_image` gives; usual formats are not decoded for it.

    Raises:
        ImageError: see `open_image`; what is only found by decoding may stay unnoticed.
    """
    with _undecoded(source) as (image, stream):
        if image.format not in _SIZE_IN_HEADER or (image.format == "PNG" and _metadata_after_pixels(stream)):
            image.load()
        turn = _turn(image)
        width, height = image.size
        is_swapped = turn in (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])
        return (height, width) if is_swapped else (width, height)


def _metadata_after_pixels(stream: BinaryIO | None) -> bool:
    """Whether a PNG file says its orientation only behind its pixels, which Pillow reads when it has decoded them."""
    if stream is None:
        return True
    stream_position = stream.tell()
    stream.seek(8)
    found = pixels_seen = False
    while not found and len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        pixels_seen |= kind == b"IDAT"
        found = pixels_seen and kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
        stream.seek(length + 4, os.SEEK_CUR)
    stream.seek(stream_position)
    return found


def read_each(sources: Sequence[ImageSource], read: Callable[[ImageSource], Any]) -> list[tuple[Any, str | None]]:
    """(what `read` gives, why the image cannot be used) of each; one of them is `None`. Several threads read, and a
    path that occurs several times is read once."""
    keys = [source if isinstance(source, str) else number for number, source in enumerate(sources)]
    different = dict(zip(keys, sources, strict=True))

    def result_or_problem(source: ImageSource) -> tuple[Any, str | None]:
        try:
            return read(source), None
        except ImageError as error:
            return None, str(error)

    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(different, pool.map(result_or_problem, different.values()), strict=True))
    return [found[key] for key in keys]


def image_problems(sources: Sequence[ImageSource]) -> list[str | None]:
    """Decodes every image; why each cannot be used, or `None`."""
    return [problem for _, problem in read_each(sources, lambda source: open_image(source).close())]
