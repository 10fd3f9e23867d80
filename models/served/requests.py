"""What can be asked of a server, and how a request says it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

TOP_TOKENS = 20
"""First tokens whose log-probabilities are asked for: as many as servers give."""
_UNCHANGED = {"min_p": 0.0, "repetition_penalty": 1.0}
_WHOLE_DISTRIBUTION = {"vllm": {"top_k": 0, **_UNCHANGED}, "sglang": {"top_k": -1, **_UNCHANGED}}
"""Owner in the list of models -> settings by which the model's own distribution is sampled from. These servers would
take them from the model's generation_config.json; others may not know them."""


@dataclass(frozen=True, eq=False)
class ChatRequest:
    """A conversation to be completed.

    Attributes:
        conversation: ends with the user's turn; a part of type "image" is the place of each image.
        images: in the order of their places, as they are to be seen.
        num_generations: completions.
        temperature: 0 takes the most likely token each time.
        seed: of sampling; without meaning at temperature 0.
        repetition_penalty: where the server takes it; by default none in samples, at temperature 0 the model's own.
        without: texts that completions must not hold, where the server can rule them out.
        first_tokens: ask for the log-probabilities of the likeliest first tokens.
        image_settings: keywords of the processor of images, where the server takes them.
    """

    conversation: Sequence[dict[str, Any]]
    images: Sequence[Image.Image] = ()
    num_generations: int = 1
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float | None = None
    without: tuple[str, ...] = ()
    first_tokens: bool = False
    image_settings: tuple[tuple[str, int], ...] = ()

    def settings(self, model: str, owner: str) -> dict[str, Any]:
        """All that decides the answer beside the messages, by the names of OpenAI's API and of the server's own.

        Args:
            owner: what the server calls itself in its list of models.
        """
        body: dict[str, Any] = {
            "model": model,
            "n": self.num_generations,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        if self.temperature > 0:
            body |= {"seed": self.seed, **_WHOLE_DISTRIBUTION.get(owner, {})}
        if self.first_tokens:
            body |= {"logprobs": True, "top_logprobs": TOP_TOKENS}
        if owner in _WHOLE_DISTRIBUTION and self.repetition_penalty is not None:
            body["repetition_penalty"] = self.repetition_penalty
        if owner == "vllm" and self.without:
            body["bad_words"] = list(self.without)
        if owner == "vllm" and self.image_settings:
            body["mm_processor_kwargs"] = dict(self.image_settings)
        return body
