"""Completions by vLLM as the recipe uses it, and what its engine read of each prompt."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from models.families.base import ImageTensors, KnownFamily
from models.families.loading import load_processor
from models.families.registry import family_of_processor
from trainers.diagnosis.backends.new_samples import NewSamples
from trainers.diagnosis.rollout import Prompts, Sampled


class VLLMSamples(NewSamples):
    """What a training step samples where the recipe uses vLLM: in the trainer's processes, or at its server."""

    name = "vllm"

    def generate(self, trainer: Any, generate: Callable, prompts: Prompts, size: int) -> list[Sampled]:
        """Completions of all prompts, in their order."""
        with noting_prompts(trainer.vllm_generation) as read:
            completions, told = generate(prompts.ids, prompts.images, prompts.fields)
        images = [as_engine_reads(trainer.vllm_generation, of_row) for of_row in prompts.images or [None] * len(read)]
        return [
            Sampled(list(ids), list(prompt), None if None in log_probs else list(log_probs), of_row)
            for ids, prompt, log_probs, of_row in zip(completions, read, told, images, strict=True)
        ]


def as_engine_reads(generation: Any, images: Sequence[Any] | None) -> list[ImageTensors] | None:
    """What the engine's own processor makes of the images of a prompt; `None` of a server, which tells none.

    Args:
        generation: a `trl.generation.vllm_generation.VLLMGeneration`.
    """
    if not images:
        return []
    if generation.mode != "colocate":
        return None
    config = generation.llm.model_config
    options = config.multimodal_config.mm_processor_kwargs or {}
    processor = load_processor(config.model)
    found = processor.image_processor(images=[list(images)], return_tensors="pt", **options)
    family = family_of_processor(processor)
    return family.split(found) if isinstance(family, KnownFamily) else None


@contextmanager
def noting_prompts(generation: Any) -> Iterator[list[list[int]]]:
    """Within it TRL's connection to vLLM also notes the tokens that the engine read of each prompt.

    Args:
        generation: a `trl.generation.vllm_generation.VLLMGeneration`.
    """
    generate, noted = generation.generate, []

    def noting(*args: Any, **kwargs: Any) -> tuple:
        prompt_ids, *others = generate(*args, **kwargs)
        noted[:] = prompt_ids
        return prompt_ids, *others

    generation.generate = noting
    try:
        yield noted
    finally:
        del generation.generate
