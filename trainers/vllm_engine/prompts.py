"""Prompts with images as vLLM takes them, and proof that it reads the same tokens as the trainer.

The trainer's processor has put one token for each visual token in the place of an image, and TRL hands those on. vLLM
expects one token for the whole image, and puts the visual tokens there itself. In a prompt that has them already it
replaces the first by all of its image, the second by all of the next image, and keeps the others: the rollout would
see another prompt than the update, without a word.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from PIL import Image
from transformers import ProcessorMixin

from data.errors import UserError
from trainers.setup.recipes import RecipeError


class PromptMismatch(UserError, RuntimeError):
    """vLLM has read another prompt than the trainer."""


def one_token_an_image(token_ids: Sequence[int], image_token: int) -> list[int]:
    """The prompt with one token for each image.

    >>> one_token_an_image([1, 9, 9, 9, 2, 9, 9], image_token=9)
    [1, 9, 2, 9]
    """
    return [
        token
        for value, run in groupby(token_ids)
        for token in ([value] if value == image_token else run)
    ]  # fmt: skip


def check_images_are_runs(processor: Any) -> None:
    """Raises `RecipeError` for a processor whose images are not `one_token_an_image` away from its chat template.

    Others put rows, borders or line breaks around an image, which vLLM would put there once more.
    """
    if not isinstance(processor, ProcessorMixin) or processor.chat_template is None:  # no images in its prompts
        return
    image = Image.new("RGB", (64, 64))
    chat = [[{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "?"}]}]]
    rendered = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    short = processor.tokenizer(rendered, add_special_tokens=False)["input_ids"][0]
    long = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    token = getattr(processor, "image_token_id", None)
    if token is None or one_token_an_image(list(long["input_ids"][0]), token) != list(short):
        raise RecipeError(
            f"use_vllm: true: the prompts of {type(processor).__name__} hold more of an image than a run of one "
            "token, which TRL cannot hand over to vLLM; expected use_vllm: false, or a Qwen-VL model"
        )


def as_vllm_takes_it(prompt: Any, image_token: int) -> Any:
    """A prompt of TRL, whose images stand beside its tokens; one without images is left as it is."""
    if not isinstance(prompt, Mapping) or "multi_modal_data" not in prompt:
        return prompt
    return {**prompt, "prompt_token_ids": one_token_an_image(prompt["prompt_token_ids"], image_token)}


def check_same_prompts(prompts: Sequence[Any], read: Sequence[Sequence[int]], image_token: int) -> None:
    """Raises `PromptMismatch` for the first prompt of which vLLM has read other tokens.

    Args:
        prompts: of TRL.
        read: tokens of each, as vLLM has put the images in.
    """
    for place, (prompt, found) in enumerate(zip(prompts, read, strict=True)):
        expected = prompt["prompt_token_ids"]
        if list(expected) != list(found):
            raise PromptMismatch(
                f"use_vllm: prompt {place} of the rollout: the trainer reads {len(expected)} tokens, "
                f"{list(expected).count(image_token)} of them visual, vLLM {len(found)}, "
                f"{list(found).count(image_token)} of them visual; the update would not see what the rollout saw. "
                "Expected equal tokens: both need the same processor with the same min_pixels and max_pixels"
            )


class ExpandedPrompts:
    """The part of a `vllm.LLM` that takes prompts with images as the trainer's processor has written them.

    Attributes:
        image_token: id of the token that stands for a part of an image; `None` for a model that sees none.
    """

    image_token: int | None = None

    def generate(self, prompts: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """The parent's."""
        token = self.image_token
        if token is None:
            return super().generate(prompts, *args, **kwargs)
        outputs = super().generate([as_vllm_takes_it(one, token) for one in prompts], *args, **kwargs)
        check_same_prompts(prompts, [output.prompt_token_ids for output in outputs], token)
        return outputs
