"""What commands ask of a vision-language model, wherever it is: completions of prompts, and yes or no."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from PIL import Image

from data.io.images import ImageSource
from data.io.pixel_bounds import ImageReader


@dataclass(frozen=True)
class Sampling:
    """How completions are made.

    Attributes:
        num_generations: completions of a prompt.
        temperature: 0 takes the most likely token each time.
        seed: with the names of prompts it decides what is sampled, whatever was sampled before.
    """

    max_new_tokens: int = 256
    num_generations: int = 1
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Prompt:
    """What is completed.

    Attributes:
        messages: end with the user's turn.
        images: as in the data; they are resized to the model's bounds.
        name: by which its samples differ from those of others.
    """

    messages: Sequence[dict[str, Any]]
    images: Sequence[ImageSource]
    name: Any


class VLM(Protocol):
    """A model that is ready."""

    def reader(self, most_pixels: int) -> ImageReader:
        """How images are read for it of which none may have more pixels."""

    def chunk_size(self, batch_size: int) -> int:
        """How many prompts to hand over at once, where it is loaded for `batch_size` of them."""

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        """Of each prompt, `sampling.num_generations` texts without special tokens."""

    def answers_yes(self, images: Sequence[Image.Image], question: str) -> list[bool]:
        """For each image, whether "yes" is a more likely first word than "no"."""


class LocalVLM:
    """A model in this process; see `VLM`."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor

    @classmethod
    def from_name(
        cls,
        name: str,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        device: Any = None,
        revision: str | None = None,
    ) -> "LocalVLM":
        """See `models.families.loading`."""
        from models.families.loading import load_processor, load_vlm

        processor = load_processor(name, min_pixels, max_pixels, revision=revision)  # bounds may be wrong: first
        model, _ = load_vlm(name, device=device, revision=revision)
        return cls(model, processor)

    def reader(self, most_pixels: int) -> ImageReader:
        from models.families.loading import image_reader

        return image_reader(self.processor, most_pixels)

    @cached_property
    def _bounds(self):
        from models.families.loading import image_reader

        return image_reader(self.processor)

    def chunk_size(self, batch_size: int) -> int:
        return batch_size

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        import torch

        from models.generation import check_texts, generate

        for prompt in prompts:
            check_texts(self.processor, prompt.messages, f"prompt {prompt.name!r}")
        images = [[self._bounds.open(image) for image in prompt.images] for prompt in prompts]
        torch.manual_seed(random.Random(f"{sampling.seed} {[prompt.name for prompt in prompts]!r}").getrandbits(63))
        return generate(
            self.model,
            self.processor,
            [list(prompt.messages) for prompt in prompts],
            images,
            sampling.max_new_tokens,
            sampling.num_generations,
            sampling.temperature,
        )

    def answers_yes(self, images: Sequence[Image.Image], question: str) -> list[bool]:
        from models.generation import answers_yes

        return answers_yes(self.model, self.processor, images, question)
