"""Opening images with clear errors, and reading them the way Qwen2-VL does (through qwen-vl-utils)."""

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

MIN_SIDE = 8
"""Shortest side in pixels. Below it there is nothing to see, and it is usually a broken download."""
MAX_SIDE = 16_384
"""Longest side in pixels."""
MAX_ASPECT_RATIO = 200
"""Longest side over shortest; Qwen2-VL's own limit (`smart_resize` in qwen-vl-utils)."""
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

ImageSource = str | Path | dict | Image.Image
"""A path, the `{"bytes", "path"}` of a parquet file or HF data set, or a PIL image."""


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


def resolve_path(path: str, base: Path) -> str:
    """An absolute path; one that is absolute already stays as it is."""
    return os.path.normpath(base / path)


def resolve_images(images: list[ImageSource], base: Path) -> list[ImageSource]:
    """Images with absolute paths, where they are paths."""
    return [resolve_path(image, base) if isinstance(image, str) else image for image in images]


def describe_source(source: Any) -> str:
    """A name for error messages: the path, or what kind of object it is."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, dict) and source.get("path"):
        return str(source["path"])
    return f"an image given as {type(source).__name__}"


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    shown = f"{name}: {width}x{height} pixels"
    if min(size) < MIN_SIDE:
        raise ImageError(f"{shown}: expected at least {MIN_SIDE} pixels a side")
    if max(size) > MAX_SIDE:
        raise ImageError(f"{shown}: expected at most {MAX_SIDE} pixels a side; scale it down first")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ImageError(f"{shown}: one side is more than {MAX_ASPECT_RATIO} times the other, which Qwen2-VL refuses")


def open_image(source: ImageSource) -> Image.Image:
    """Opens and fully decodes an image as RGB.

    Raises:
        ImageError: missing file, not an image, truncated, or a size outside the limits above.
    """
    name = describe_source(source)
    try:
        if isinstance(source, Image.Image):
            image = source
        elif isinstance(source, dict):
            content, path = source.get("bytes"), source.get("path")
            if content is None and path is None:
                raise ImageError(f"{name}: expected the keys 'bytes' or 'path', found {list(source)}")
            image = Image.open(path if content is None else io.BytesIO(content))
        elif isinstance(source, str | Path):
            image = Image.open(source)
        else:
            raise ImageError(f"{name}: expected a path, a dict with bytes or a path, or a PIL image")
        _check_size(name, image.size)  # before decoding, which may be large
        return image.convert("RGB")
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such image file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image, or of an unknown format") from error
    except Exception as error:  # PIL's decoders report broken files with nearly any exception
        raise ImageError(f"{name}: cannot be decoded ({error})") from error


def image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) in pixels, without decoding a file."""
    if isinstance(source, str | Path):
        with Image.open(source) as image:
            return image.size
    return open_image(source).size


def check_images(sources: Iterable[tuple[str, ImageSource]], workers: int = 8) -> list[str]:
    """Decodes every image and returns a sentence for each that cannot be used.

    Args:
        sources: pairs of (where the image is used, image).
    """

    def problem(pair: tuple[str, ImageSource]) -> str | None:
        where, source = pair
        try:
            open_image(source)
        except ImageError as error:
            return f"{where}: field 'images': {error}"
        return None

    with ThreadPoolExecutor(workers) as pool:
        return [found for found in pool.map(problem, sources) if found]


def qwen_size(size: tuple[int, int], min_pixels: int, max_pixels: int, patch_size: int = 14) -> tuple[int, int]:
    """(width, height) that an image is resized to; see `load_for_qwen`.

    qwen-vl-utils rounds the short side of a very long strip to 0, or makes its ratio one that Qwen2-VL refuses; such
    a strip is squeezed to one row of visual tokens, as many as the bounds allow.
    """
    from qwen_vl_utils import smart_resize

    factor = 2 * patch_size
    height, width = smart_resize(size[1], size[0], factor, min_pixels, max_pixels)
    longest = max(1, min(max_pixels // factor**2, MAX_ASPECT_RATIO))  # tokens in a row
    if max(width, height) <= longest * min(width, height):
        return width, height
    return (longest * factor, factor) if width > height else (factor, longest * factor)


def _resize_for_qwen(image: Image.Image, min_pixels: int, max_pixels: int, patch_size: int) -> Image.Image:
    # The step that qwen_vl_utils.fetch_image ends with; calling it would round the size of a strip once more.
    return image.resize(qwen_size(image.size, min_pixels, max_pixels, patch_size))


@lru_cache(maxsize=512)
def _load_path_for_qwen(path: str, min_pixels: int, max_pixels: int, patch_size: int) -> Image.Image:
    return _resize_for_qwen(open_image(path), min_pixels, max_pixels, patch_size)


def load_for_qwen(source: ImageSource, min_pixels: int, max_pixels: int, patch_size: int = 14) -> Image.Image:
    """Reads an image and resizes it as qwen-vl-utils does, so that the processor's own resizing changes nothing.

    Args:
        min_pixels, max_pixels: bounds of width * height after resizing; sides become multiples of 2 * `patch_size`.
        patch_size: of the vision tower, in pixels (14 for every published Qwen2-VL).

    Images read from a path are kept (the last 512): a group's completions all ask for the same ones.
    """
    if isinstance(source, str | Path):
        return _load_path_for_qwen(str(source), min_pixels, max_pixels, patch_size)
    return _resize_for_qwen(open_image(source), min_pixels, max_pixels, patch_size)
