"""A VLM behind an address that is shown solved examples: it answers, but tells no probabilities of given answers."""

from collections.abc import Sequence
from types import SimpleNamespace

from data.io.digests import image_bytes_digest
from data.prompts import in_context_messages
from data.vqa import common_answer
from models.served.vlm import ServedVLM
from models.vlm import Prompt, Sampling
from rollouts.frozen_vlm.requests import InContextRequest, first_answer


class ServedInContextVLM:
    """Answers as `rollouts.frozen_vlm.engine.InContextVLM` does, the likeliest token each time.

    Args:
        prompt_style, system_prompt: see `data.prompts.in_context_messages`.

    Attributes:
        images: gives keys of images, by content.
    """

    first_answer = staticmethod(first_answer)

    def __init__(self, vlm: ServedVLM, prompt_style: str, system_prompt: str | None):
        self.vlm, self.prompt_style, self.system_prompt = vlm, prompt_style, system_prompt
        self.images = SimpleNamespace(key=image_bytes_digest)

    def _prompt(self, request: InContextRequest) -> Prompt:
        records = (*request.examples, request.query)
        shown = [(example.question, common_answer(example)) for example in request.examples]
        counts = [len(record.images) for record in records]
        messages = in_context_messages(request.query.question, shown, self.prompt_style, self.system_prompt, counts)
        return Prompt(messages, [image for record in records for image in record.images], request.query.id)

    def generate(self, requests: Sequence[InContextRequest], max_new_tokens: int = 5) -> list[str]:
        """What the model writes, without special tokens.

        No repetition is penalised, which would punish the words that the examples show.
        """
        size = self.vlm.chunk_size(1)
        texts = []
        for start in range(0, len(requests), size):  # so that few images are open at once
            prompts = [self._prompt(request) for request in requests[start : start + size]]
            found = self.vlm.complete(prompts, Sampling(max_new_tokens), repetition_penalty=1.0)
            texts += [text for [text] in found]
        return texts
