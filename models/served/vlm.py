"""A vision-language model behind an address, asked as one that is loaded here."""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.io.images import ImageSource, open_image
from data.io.pixel_bounds import ImageReader, PixelBounds
from models.families.loading import image_reader, image_tokens, load_processor
from models.families.qwen_vl import QwenVL
from models.generation import with_image_blocks, yes_or_no
from models.run_folders import MODEL_FILE
from models.served.errors import ServerError
from models.served.requests import TOP_TOKENS, ChatRequest
from models.served.server import ChatServer
from models.vlm import Prompt, Sampling

PATCH_SIZE = 14
"""Of every published Qwen2-VL and Qwen2.5-VL."""
_WAVES = 4
"""Requests that are handed over together, for each that may be under way: some take longer than others."""


class ServedVLM:
    """See `models.vlm.VLM`.

    Args:
        min_pixels, max_pixels: bounds of images, as of a recipe. Images are resized here as for a model that is loaded
            here, so that a server with the same bounds changes nothing; without bounds it resizes them as it will.

    The sides of patches are those of the served model where its folder is on this machine too, else `PATCH_SIZE`.
    """

    def __init__(self, server: ChatServer, min_pixels: int | None = None, max_pixels: int | None = None):
        self.server = server
        self._bounds: ImageReader | None = None
        self._without: Sequence[str] = QwenVL.image_tokens
        self.patch_size = PATCH_SIZE
        self._image_settings: tuple[tuple[str, int], ...] = ()
        if server.model.root and (Path(server.model.root) / MODEL_FILE).is_file():
            processor = load_processor(server.model.root, min_pixels, max_pixels)
            self._bounds, self._without = image_reader(processor), image_tokens(processor)
            self.patch_size = getattr(self._bounds, "patch_size", PATCH_SIZE)
        elif min_pixels is not None or max_pixels is not None:
            self._bounds = PixelBounds(min_pixels or 0, max_pixels or 2**40)
        bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self._image_settings = tuple((name, value) for name, value in bounds.items() if value is not None)

    def chunk_size(self, batch_size: int) -> int:
        return max(batch_size, _WAVES * self.server.settings.concurrency)

    def _open(self, image: ImageSource) -> Image.Image:
        return open_image(image) if self._bounds is None else self._bounds.open(image)

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, repetition_penalty: float | None = None
    ) -> list[list[str]]:
        """Completions. At temperature 0 the repetition penalty is by default that of `generation_config.json`."""
        found = self.server.answers([self._request(prompt, sampling, repetition_penalty) for prompt in prompts])
        return [[completion.text for completion in completions] for completions in found]

    def _request(self, prompt: Prompt, sampling: Sampling, repetition_penalty: float | None) -> ChatRequest:
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
