"""What can be measured about a pool: the figures that reports quote and that filtering agents compare with a bound.

Sharpness is scikit-image's `blur_effect` (Crete et al. 2007), hashes are ImageHash's; the rest is arithmetic on
pixels and words. Every bound that counts as healthy stands once, in `HEALTHY`: agents take it as their default,
report writers call what lies outside remarkable, and damages are made to lie outside.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mode

import numpy as np
from PIL import Image

from data.cli.processes import process_pool
from data.io.digests import picture_digest, pool_digest
from data.io.images import ImageError, open_image
from data.io.records import write_json
from data.io.unreadable import refuse_unreadable
from data.reports.pool import Item, ItemId, Pool, images_of_pools, load_pool
from data.rows.same_text import normalise_text
from data.rows.words import count_words

MEASUREMENTS_FILE = "measurements.json"
VERSION = 3
"""Raised whenever a formula below, or the reading of pictures, changes, so that stored figures are measured again."""

BLUR_WORKING_SIDE = 256
BLUR_FILTER_SIZE = 5
VISIBLE_BLUR = 0.02
"""Pictures whose blur differs by less are equally sharp."""
HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
MAX_PIXEL_BLOCK = 8
BORDER_SHARE = 0.9


@dataclass(frozen=True)
class Bounds:
    """A closed interval; `None` means unbounded."""

    minimum: float | None = None
    maximum: float | None = None

    def contains(self, value: float) -> bool:
        above = self.minimum is None or value >= self.minimum
        return above and (self.maximum is None or value <= self.maximum)


HEALTHY = {
    "blur": Bounds(maximum=0.75),
    "brightness": Bounds(minimum=0.15),
    "clipping": Bounds(maximum=0.7),
    "aspect": Bounds(maximum=2.0),
    "question_words": Bounds(minimum=3, maximum=40),
    "answer_words": Bounds(maximum=20),
    "agreement": Bounds(minimum=0.6),
    "distance": Bounds(maximum=0.1),
}
"""What is unremarkable, by measurement. `distance`: at most this far apart counts as a near copy."""

_WORDS = ("question_words", "answer_words")

HEALTHY_RESOLUTION = 0.6
"""The shortest effective side that is unremarkable, as a share of the pool's median (pools differ in scale)."""


@dataclass(frozen=True)
class Measurement:
    """The figures of one item.

    Attributes:
        blur: 0 (sharp) to 1, of the image scaled down to 256 pixels at most.
        brightness: mean luminance, 0 (black) to 1 (white).
        clipping: share of pixels whose luminance is at least 252/255.
        side: shorter side in pixels, divided by the block size if the image was enlarged by repeating pixels.
        aspect: longer side over shorter side, at least 1.
        question_words, answer_words: words of the question, and of the longest answer (`data/rows/words.py`); 0 where
            there is none.
        agreement: share of all answers given to this question about this image that are the most common one, and 0
            if this item's own answer is another one; 1 without answers.
        pixels: SHA-256 of the decoded pixels.
        hash: 256-bit perceptual hash, hexadecimal.
    """

    id: ItemId
    blur: float
    brightness: float
    clipping: float
    side: float
    aspect: float
    question_words: int
    answer_words: int
    agreement: float
    pixels: str
    hash: str

    def lies_within(self, bounds: Mapping[str, Bounds]) -> bool:
        """Whether every quantity lies within its bound. The words of a text that is not there are not judged."""
        judged = {name: bound for name, bound in bounds.items() if name not in _WORDS or getattr(self, name)}
        return all(bound.contains(getattr(self, name)) for name, bound in judged.items())


def _luminance(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=np.float64) / 255  # (H, W), 0..1


def measure_blur(image: Image.Image) -> float:
    """No-reference blur, 0 (sharp) to 1; comparable between sizes because large images are scaled down first."""
    working = image.convert("L")
    working.thumbnail((BLUR_WORKING_SIDE, BLUR_WORKING_SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(working, dtype=np.float64) / 255
    if min(pixels.shape) <= BLUR_FILTER_SIZE or np.ptp(pixels) == 0:
        return 1.0  # nothing to see is as bad as out of focus
    from skimage.measure import blur_effect  # imports scipy, which `--help` of many commands can do without

    return float(blur_effect(pixels, h_size=BLUR_FILTER_SIZE))


def _share_at_borders(changes: np.ndarray, block: int) -> float:
    """Share of the changes between neighbouring lines that lies between one block of lines and the next."""
    total = changes.sum()
    return float(changes[block - 1 :: block].sum() / total) if total > 0 else 0.0


def measure_pixel_block(image: Image.Image) -> int:
    """The factor by which an image was enlarged by repeating pixels; 1 for ordinary images.

    Between the lines of a block nothing changes, so nearly all changes fall on its borders, in both directions.
    """
    pixels = _luminance(image)
    between_columns = np.square(np.diff(pixels, axis=1)).sum(axis=0)  # (W - 1,)
    between_rows = np.square(np.diff(pixels, axis=0)).sum(axis=1)  # (H - 1,)
    for block in range(MAX_PIXEL_BLOCK, 1, -1):
        if min(pixels.shape) < 3 * block:
            continue
        if min(_share_at_borders(changes, block) for changes in (between_columns, between_rows)) > BORDER_SHARE:
            return block
    return 1


def measure_image(image: Image.Image) -> dict:
    """The figures of `Measurement` that depend on the picture alone."""
    import imagehash  # imports scipy

    width, height = image.size
    luminance = _luminance(image)
    return {
        "blur": round(measure_blur(image), 4),
        "brightness": round(float(luminance.mean()), 4),
        "clipping": round(float(np.mean(luminance >= 252 / 255)), 4),
        "side": round(min(width, height) / measure_pixel_block(image), 2),
        "aspect": round(max(width, height) / min(width, height), 4),
        "pixels": picture_digest(image),
        "hash": str(imagehash.phash(image, hash_size=HASH_SIDE)),
    }


def measure_file(path: str) -> dict:
    """`measure_image` of a file."""
    return measure_image(open_image(path))


def _measure_files(paths: list[str], workers: int) -> list[dict]:
    if workers == 1:
        return [measure_file(path) for path in paths]
    with process_pool(workers) as processes:
        return list(processes.map(measure_file, paths, chunksize=16))


def check_pool_images(pool: Pool) -> None:
    """Decodes every image of a pool, and raises a `RecordError` that names those that cannot be read."""
    refuse_unreadable(images_of_pools([pool]), name="image")


def _agreements(items: list[Item], pixels: list[str]) -> list[float]:
    """Agreement of each item: see `Measurement`. Items that ask the same about the same picture are taken together."""
    answers_to: dict[tuple, list[str]] = {}
    for item, picture in zip(items, pixels, strict=True):
        answers = [normalise_text(answer) for answer in item.answers]
        answers_to.setdefault((picture, normalise_text(item.question)), []).extend(answers)
    agreements = []
    for item, picture in zip(items, pixels, strict=True):
        given = answers_to[picture, normalise_text(item.question)]
        if not item.answers:
            agreements.append(1.0)
            continue
        majority = mode(given)
        own = mode(normalise_text(answer) for answer in item.answers)
        agreements.append(round(given.count(majority) / len(given), 4) if own == majority else 0.0)
    return agreements


def measure_items(items: list[Item], image_figures: list[dict]) -> list[Measurement]:
    """Joins the figures of the images with those of the texts."""
    agreements = _agreements(items, [figures["pixels"] for figures in image_figures])
    return [
        Measurement(
            id=item.id,
            question_words=count_words(item.question),
            answer_words=max(map(count_words, item.answers), default=0),
            agreement=agreement,
            **figures,
        )
        for item, figures, agreement in zip(items, image_figures, agreements, strict=True)
    ]


def _fingerprint(pool: Pool) -> str:
    """Changes whenever an item or an image does, and the way of measuring."""
    return f"{VERSION}-{pool_digest(pool)}"


def _stored(pool: Pool) -> list[Measurement] | None:
    """What was measured of the pool, if neither an item nor an image file has changed since."""
    path = pool.folder / MEASUREMENTS_FILE
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("fingerprint") != _fingerprint(pool):
        return None
    return [Measurement(**row) for row in content["items"]]


def check_pools(folders: Iterable[str]) -> None:
    """Decodes every image of pools; one whose measurements are still right has been decoded.

    Raises:
        RecordError: a folder that is no pool; or names the images of all pools that cannot be read.
    """
    pools = [load_pool(folder) for folder in dict.fromkeys(folders)]
    missing = [not all(pool.image_path(item).is_file() for item in pool.items) for pool in pools]
    unknown = [pool for pool, lacks in zip(pools, missing, strict=True) if lacks or _stored(pool) is None]
    refuse_unreadable(images_of_pools(unknown), name="image")


def measure_pool(pool: Pool, workers: int = 1) -> list[Measurement]:
    """Figures of every item of a pool, in its order; stored in the pool's folder and read from there while it is
    unchanged.

    Args:
        workers: processes that decode and measure images.

    Raises:
        RecordError: images of the pool are missing or broken; names all of them.
    """
    paths = [str(pool.image_path(item)) for item in pool.items]
    if any(not Path(path).is_file() for path in paths):
        check_pool_images(pool)
    if (stored := _stored(pool)) is not None:
        return stored
    try:
        figures = _measure_files(paths, workers)
    except ImageError:
        check_pool_images(pool)
        raise
    measurements = measure_items(pool.items, figures)
    store_measurements(pool, measurements)
    return measurements


def store_measurements(pool: Pool, measurements: list[Measurement]) -> None:
    """Writes the figures beside the items, for as long as neither items nor images change."""
    content = {"fingerprint": _fingerprint(pool), "items": [asdict(row) for row in measurements]}
    write_json(pool.folder / MEASUREMENTS_FILE, content, indent=None)


@lru_cache(maxsize=4096)
def pool_measurements(folder: str) -> tuple[Measurement, ...]:
    """`measure_pool` of a folder, read once a process."""
    return tuple(measure_pool(load_pool(folder)))


def median_side(measurements: list[Measurement]) -> float:
    return float(np.median([row.side for row in measurements]))


def exact_copies(items: list[Item], measurements: list[Measurement]) -> list[ItemId]:
    """Ids of items that repeat an earlier one: same pixels, same question, same answers."""
    seen, copies = set(), []
    for item, row in zip(items, measurements, strict=True):
        key = (row.pixels, normalise_text(item.question), tuple(sorted(map(normalise_text, item.answers))))
        if key in seen:
            copies.append(item.id)
        seen.add(key)
    return copies


def _hash_bits(measurements: list[Measurement]) -> np.ndarray:
    words = [np.frombuffer(bytes.fromhex(row.hash), dtype=np.uint8) for row in measurements]
    return np.unpackbits(np.stack(words), axis=1)  # (items, HASH_BITS)


def _quality_rank(row: Measurement) -> tuple[float, int]:
    """Sorts the best picture first: by resolution, then by sharpness, as far as it can be seen."""
    return -row.side, round(row.blur / VISIBLE_BLUR)


def near_copies(items: list[Item], measurements: list[Measurement], maximum_distance: float) -> list[ItemId]:
    """Ids of items that look like a better one that is kept, and ask the same question; in the order of the items.

    The better one has the higher resolution (`side`), then the sharper picture, then the earlier place.

    Args:
        maximum_distance: share of the 256 hash bits that may differ, 0 to 1.
    """
    if not items:
        return []
    bits = _hash_bits(measurements)
    kept_by_question: dict[str, list[int]] = {}
    copies = set()
    for index in sorted(range(len(items)), key=lambda index: _quality_rank(measurements[index])):
        kept = kept_by_question.setdefault(normalise_text(items[index].question), [])
        differing = (bits[kept] != bits[index]).sum(axis=1)
        if len(kept) and differing.min() <= math.floor(maximum_distance * HASH_BITS):
            copies.add(index)
        else:
            kept.append(index)
    return [item.id for index, item in enumerate(items) if index in copies]
