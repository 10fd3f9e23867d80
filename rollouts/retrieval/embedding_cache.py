"""Embeddings kept by the content that they were made from, so that nothing is encoded twice and nothing is stale.

The cache is a folder with one folder an encoder, of safetensors files that are written once: `keys` (n, 32) uint8, a
SHA-256 each, and `values` (n, width). Several processes may use it at once: each adds files of its own.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.candidates.embedding_table import load_tensors, save_tensors
from data.io.digests import image_bytes_digest
from data.io.images import ImageError, ImageSource, describe_source, open_image, read_image_bytes
from data.io.records import RecordError
from data.io.unreadable import refuse_unreadable
from models.embeddings import Encoder

READERS = 8  # threads that read and decode images
TEXT_CHUNK, IMAGE_CHUNK = 1024, 64
SHARD_ROWS, SHARD_SECONDS = 8192, 60
"""New embeddings are stored at least so often; what was not is encoded again after an interruption."""


def _key(encoder: Encoder, kind: str, content: bytes) -> bytes:
    return hashlib.sha256(f"{encoder.fingerprint}\n{kind}\n".encode() + content).digest()


class EmbeddingCache:
    """What one encoder has made, in a folder.

    Args:
        folder: of the cache; `None` keeps nothing.
    """

    def __init__(self, folder: str | Path | None, encoder: Encoder):
        self.folder = None if folder is None else Path(folder) / encoder.fingerprint[:32]
        self.width = encoder.width

    def read(self, wanted: dict[bytes, int], values: np.ndarray) -> np.ndarray:
        """Fills the rows of `values` whose keys are stored; returns which are filled, as bool (rows).

        Raises:
            RecordError: a file of the cache that cannot be used.
        """
        filled = np.zeros(len(values), dtype=bool)
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder else ():
            shard, _ = load_tensors(path, ["keys", "values"])
            keys, stored = shard["keys"], shard["values"]
            if keys.shape != (len(stored), 32) or stored.shape[1:] != (self.width,):
                raise RecordError(
                    [f"{path}: expected {self.width} numbers a key, found {stored.shape}; delete the file"]
                )
            pairs = [(wanted[key], row) for row, key in enumerate(map(bytes, keys)) if key in wanted]
            if pairs:
                rows, sources = np.array(pairs).T
                values[rows] = stored[sources]
                filled[rows] = True
        return filled

    def write(self, keys: list[bytes], values: np.ndarray) -> None:
        """Adds a file; equal keys give an equal name, so that processes that did the same work leave one file."""
        if self.folder is None or not keys:
            return
        digests = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32)
        name = hashlib.sha256(digests.tobytes()).hexdigest()[:32]
        save_tensors(self.folder / f"{name}.safetensors", {"keys": digests, "values": values}, {})

    def complete(
        self, keys: Sequence[bytes], encode: Callable[[list[int]], np.ndarray], chunk: int, title: str
    ) -> np.ndarray:
        """The embedding of every key, (N, width); those not stored are made by `encode` and stored.

        Args:
            encode: positions in `keys` -> their embeddings; asked once for each distinct key.
        """
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        position = {key: place for place, key in reversed(list(enumerate(keys)))}  # the first place of each key
        values = np.empty((len(rows), self.width), dtype=np.float32)
        distinct = list(rows)
        missing = np.flatnonzero(~self.read(rows, values))
        stored, last = 0, time.monotonic()
        made = 0
        try:
            with tqdm(total=len(missing), desc=f"embedding {title}s", unit=title, delay=1) as bar:
                for start in range(0, len(missing), chunk):
                    todo = missing[start : start + chunk]
                    values[todo] = encode([position[distinct[row]] for row in todo])
                    made = start + len(todo)
                    bar.update(len(todo))
                    if made - stored >= SHARD_ROWS or time.monotonic() - last > SHARD_SECONDS:
                        self.write([distinct[row] for row in missing[stored:made]], values[missing[stored:made]])
                        stored, last = made, time.monotonic()
        finally:
            self.write([distinct[row] for row in missing[stored:made]], values[missing[stored:made]])
        return values[[rows[key] for key in keys]]


def embed_texts(encoder: Encoder, texts: Sequence[str], cache_dir: str | Path | None = None) -> np.ndarray:
    """float32 (N, width), rows of length 1. Equal texts are encoded once."""
    keys = [_key(encoder, "text", text.encode()) for text in texts]
    cache = EmbeddingCache(cache_dir, encoder)
    return cache.complete(keys, lambda todo: encoder.encode_texts([texts[n] for n in todo]), TEXT_CHUNK, "text")


def _image_key(encoder: Encoder, source: ImageSource) -> bytes:
    return _key(encoder, "image", image_bytes_digest(source).encode())


def _decode(encoder: Encoder, source: ImageSource, key: bytes) -> Image.Image:
    """Opens an image from the very bytes that its key was made from."""
    if not isinstance(source, Image.Image | np.ndarray):
        source = {"bytes": read_image_bytes(source), "path": describe_source(source)}
    if _image_key(encoder, source) != key:
        raise ImageError(f"{describe_source(source)}: changed while it was in use")
    return open_image(source)


def embed_images(
    encoder: Encoder, images: Sequence[Sequence[ImageSource]], cache_dir: str | Path | None = None
) -> np.ndarray:
    """float32 (N, width), rows of length 1: one for the images of each record.

    Several images of a record count as their mean. Images with equal content are encoded once.

    Raises:
        RecordError: names every image that cannot be read.
    """
    try:
        return _embedded(encoder, images, cache_dir)
    except ImageError:
        refuse_unreadable((f"record {number}", image) for number, group in enumerate(images) for image in group)
        raise


def _embedded(encoder: Encoder, images: Sequence[Sequence[ImageSource]], cache_dir: str | Path | None) -> np.ndarray:
    flat = [image for group in images for image in group]
    by_path = {image: place for place, image in reversed(list(enumerate(flat))) if isinstance(image, str)}
    distinct = [image for place, image in enumerate(flat) if not isinstance(image, str) or by_path[image] == place]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda image: _image_key(encoder, image), distinct)
        keys = list(tqdm(found, total=len(distinct), desc="reading images", unit="image", delay=1))

        def encode(todo: list[int]) -> np.ndarray:
            return encoder.encode_images(list(pool.map(lambda n: _decode(encoder, distinct[n], keys[n]), todo)))

        values = EmbeddingCache(cache_dir, encoder).complete(keys, encode, IMAGE_CHUNK, "image")
    row_of_path = {image: row for row, image in enumerate(distinct) if isinstance(image, str)}
    others = iter(row for row, image in enumerate(distinct) if not isinstance(image, str))
    rows = [row_of_path[image] if isinstance(image, str) else next(others) for image in flat]
    return _means(values, np.array(rows, dtype=np.int64), [len(group) for group in images])


def _means(values: np.ndarray, rows: np.ndarray, counts: list[int]) -> np.ndarray:
    """The mean, again of length 1, of each group of consecutive `rows`."""
    if all(count == 1 for count in counts):
        return values[rows]
    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(values[rows].astype(np.float64), starts, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if not lengths.all():
        raise RecordError([f"images of record {int(np.argmin(lengths))}: their embeddings cancel out"])
    return (sums / lengths).astype(np.float32)
