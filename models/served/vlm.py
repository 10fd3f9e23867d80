"""A vision-language model behind an address, asked as one that is loaded here."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data.io.images import ImageSource, open_image
from data.io.pixel_bounds import BoundsError, ImageReader, PixelBounds
from data.io.shards import process_state
from models.families.image_counts import ReadAsTheyAre
from models.families.loading import image_reader, image_tokens, load_processor
from models.families.registry import ASSUMED, family_of_name
from models.generation import with_image_blocks, yes_or_no
from models.run_folders import MODEL_FILE
from models.served.errors import ServerError
from models.served.requests import TOP_TOKENS, ChatRequest
from models.served.server import ChatServer
from models.vlm import Prompt, Sampling

_ANY = 2**40
"""A number of pixels that no image has."""
_WAVES = 4
"""Requests that are handed over together, for each that may be under way: some take longer than others."""


class ServedVLM:
    """See `models.vlm.VLM`.

    Args:
        min_pixels, max_pixels: bounds of images, as of a recipe. Images are resized here as for a model that is loaded
            here, so that a server with the same bounds changes nothing; without bounds it resizes them as it will.

    What kind of model it is, and the sides of its patches, its processor says where its folder is on this machine too,
    else its name; a name that says nothing is taken for a Qwen2-VL's, and that is said.

    Raises:
        BoundsError: bounds of pixels, of a family that has them otherwise or not at all.
    """

    def __init__(self, server: ChatServer, min_pixels: int | None = None, max_pixels: int | None = None):
        self.server = server
        self._bounds: ImageReader | None = None
        self._processor: Any = None
        self._family, self._assumed = ASSUMED, False
        self._image_settings: tuple[tuple[str, int], ...] = ()
        if server.model.root and (Path(server.model.root) / MODEL_FILE).is_file():
            self._processor = load_processor(server.model.root, min_pixels, max_pixels)
            self._bounds = image_reader(self._processor)
            self._without: Sequence[str] = image_tokens(self._processor)
        else:
            known = family_of_name(server.model.root) or family_of_name(server.model.name)
            self._family, self._assumed = known or ASSUMED, known is None
            self._without = self._family.image_tokens
            if min_pixels is not None or max_pixels is not None:
                self._check_bounds(min_pixels, max_pixels)
                self._bounds = self._resizing(min_pixels or 0, max_pixels or _ANY)
        bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self._image_settings = tuple((name, value) for name, value in bounds.items() if value is not None)

    def _check_bounds(self, low: int | None, high: int | None) -> None:
        if self._family.patch_size is None:
            bounds = {"min_pixels": low, "max_pixels": high}
            asked = " and ".join(name for name, value in bounds.items() if value is not None)
            raise BoundsError(
                f"{asked}: {self.server.model.name} resizes images by rules of its own; leave it out, and give its "
                "server what it understands"
            )

    def _resizing(self, low: int, high: int) -> ImageReader:
        """Whole patches between two numbers of pixels, by what is known of the model's family."""
        if self._family.patch_size is None:
            return ReadAsTheyAre(None, high)
        if self._assumed and process_state().is_main_process:
            side = 2 * self._family.patch_size
            sys.stderr.write(
                f"note: the server does not say what kind of model {self.server.model.name} is; images get sides of "
                f"whole {side} pixels, as a {self._family.model_types[0]} needs them\n"
            )
            self._assumed = False
        return PixelBounds(low, high, self._family.patch_size)

    def reader(self, most_pixels: int) -> ImageReader:
        if self._processor is not None:
            return image_reader(self._processor, most_pixels)
        return self._resizing(0, most_pixels)

    def chunk_size(self, batch_size: int) -> int:
        return max(batch_size, _WAVES * self.server.settings.concurrency)

    def _open(self, image: ImageSource) -> Image.Image:
        return open_image(image) if self._bounds is None else self._bounds.open(image)

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, repetition_penalty: float | None = None
    ) -> list[list[str]]:
        """Completions. At temperature 0 the repetition penalty is by default that of `generation_config.json`."""
        found = self.server.answers([self.request(prompt, sampling, repetition_penalty) for prompt in prompts])
        return [[completion.text for completion in completions] for completions in found]

    def request(self, prompt: Prompt, sampling: Sampling, repetition_penalty: float | None = None) -> ChatRequest:
        """What is asked for the completions of a prompt; see `complete`."""
        pictures = [self._open(source) for source in prompt.images]
        return ChatRequest(
            with_image_blocks(list(prompt.messages), pictures),
            pictures,
            num_generations=sampling.num_generations,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=random.Random(f"{sampling.seed} {prompt.name!r}").getrandbits(31),
            repetition_penalty=repetition_penalty,
            without=tuple(self._without),
            image_settings=self._image_settings,
        )

    def answers_yes(self, images: Sequence[Image.Image], question: str) -> list[bool]:
        conversation = yes_or_no(question)
        requests = [
            ChatRequest(with_image_blocks(conversation, [image]), [image], max_new_tokens=1, first_tokens=True)
            for image in images
        ]
        return [self._says_yes(found.first_tokens) for [found] in self.server.answers(requests)]

    def _says_yes(self, tokens: Sequence[tuple[str, float]]) -> bool:
        """Whether the likelier of the two words is yes.

        Raises:
            ServerError: neither is among the likeliest tokens.
        """
        for token, _ in sorted(tokens, key=lambda one: -one[1]):
            word = token.strip().lower()
            if word in ("yes", "no"):
                return word == "yes"
        listed = ", ".join(repr(token) for token, _ in tokens[:5])
        raise ServerError(
            f"found neither yes nor no among the {TOP_TOKENS} likeliest first words, which begin with {listed}; "
            "expected a model that answers the question with one of them",
            self.server.address,
        )
