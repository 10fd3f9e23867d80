"""The encoders of a trained `EncodingSelector`, as those that make tables of embeddings.

    encoders = load_selector_encoders("outputs/v2_lora")
    encoders.text.encode_texts(["what color is the circle?"])  # (1, width), rows of length 1

`encoders.selector` reads such tables: what it chooses from them is what the model chooses from texts and images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import send_to_device

from models.embeddings import Encoder, described, fingerprint_of
from models.model_paths import loading
from models.selectors.encoder_inputs import InputReader, Inputs
from models.selectors.encoding import EncodingSelector
from models.selectors.load import load_encoding_selector
from models.selectors.pointer import PointerSelector

if TYPE_CHECKING:
    import torch
    from PIL import Image


class SelectorEncoder(Encoder):
    """One of the encoders of an `EncodingSelector`.

    Args:
        name: where the model was found.
        model: in eval mode.
        part: "image" or "text".
    """

    def __init__(self, name: str, model: EncodingSelector, reader: InputReader, part: str):
        self._model, self._reader = model, reader
        self.can_text, self.can_images = part == "text", part == "image"
        own = model.text_model if self.can_text else model.image_encoder
        processor = reader.tokenizer if self.can_text else reader.image_processor
        config = model.config
        settings = [part, described(own.config), config.lora_rank, config.lora_alpha, reader.full_length]
        super().__init__(name, fingerprint_of(own, settings, [processor]), model.widths[part])

    def _text_batch(self, texts: list[str]) -> "torch.Tensor":
        return self._embed(self._model.embed_texts, self._reader.read_texts(texts))

    def _image_batch(self, images: list["Image.Image"]) -> "torch.Tensor":
        return self._embed(self._model.embed_images, self._reader.read_images(images))

    def _embed(self, embed: Callable, inputs: Inputs) -> "torch.Tensor":
        return embed(send_to_device(inputs, self._model.device))


@dataclass(frozen=True)
class SelectorEncoders:
    """A trained `EncodingSelector` in its parts.

    Attributes:
        selector: reads embeddings.
        text, image: make them; `None` where the model has no such encoder.
        example_text: what of an example is read, "question" or "question_answer"; of a query it is the question.
    """

    selector: PointerSelector
    text: Encoder | None
    image: Encoder | None
    example_text: str

    @property
    def fingerprints(self) -> dict[str, str]:
        """Part of a table -> fingerprint of the encoder that makes it, in the order of the parts."""
        parts = {"image": self.image, "text": self.text}
        return {name: encoder.fingerprint for name, encoder in parts.items() if encoder is not None}


def load_selector_encoders(
    path: str | Path, device: str | None = None, revision: str | None = None
) -> SelectorEncoders:
    """The parts of a model that was stored with its tokenizer and image processor.

    Args:
        device: where to run it; by default an accelerator if there is one.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        ModelError: it is no such model, or tokenizer or image processor are missing.
    """
    import torch

    if device is None:
        device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    with loading(path):
        model = load_encoding_selector(path, revision).to(device)
        reader = InputReader.of_selector(path, model.config, revision)
    made = {part: SelectorEncoder(str(path), model, reader, part) for part in model.widths}
    return SelectorEncoders(model.selector, made.get("text"), made.get("image"), model.config.example_text)
