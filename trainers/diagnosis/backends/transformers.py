"""Completions by the trainer's own generation with transformers, and what each of their tokens was drawn from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from models.decoding.custom_generate import Decoding
from models.decoding.engine import generating_by
from trainers.diagnosis.backends.new_samples import NewSamples
from trainers.diagnosis.rollout import Prompts, Sampled, config_of


class TransformersRollouts(NewSamples):
    """What a training step samples where the recipe does not use vLLM."""

    name = "transformers"

    def generate(self, trainer: Any, generate: Callable, prompts: Prompts, size: int) -> list[Sampled]:
        """Completions of all prompts, in their order."""
        with noting_scores(self.sampler(trainer)) as noted:
            completions, _ = generate(prompts.ids, prompts.images, prompts.fields)
        return [
            Sampled(list(ids), list(prompt), log_probs.tolist()[: len(ids)], images)
            for ids, prompt, log_probs, images in zip(
                completions, prompts.ids, noted[0], prompts.images_of_rows(config_of(trainer.model)), strict=True
            )
        ]

    @staticmethod
    def sampler(trainer: Any) -> nn.Module:
        """The model whose `generate` is called."""
        return trainer.accelerator.unwrap_model(trainer.model_wrapped)


@contextmanager
def noting_scores(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within it `model.generate` also notes the log-probability of each token under what it was drawn from.

    Yields:
        (rows, tokens) in nats of each call, float32 on the CPU.
    """
    noted: list[torch.Tensor] = []

    def noting(generate: Callable, *args: Any, generation_config: GenerationConfig, **kwargs: Any) -> torch.Tensor:
        if isinstance(loop := kwargs.get("custom_generate"), Decoding):
            loop.notes_drawn = True
            output = generate(*args, generation_config=generation_config, **kwargs)
            noted.append(pad_sequence([torch.tensor(of_row) for of_row in loop.last.drawn], batch_first=True))
            return output
        telling = copy(generation_config)
        telling.return_dict_in_generate = telling.output_scores = True
        output = generate(*args, generation_config=telling, **kwargs)
        drawn = output.sequences[:, -len(output.scores) :]  # (rows, tokens)
        of_steps = [
            torch.log_softmax(scores.float(), dim=-1).gather(1, drawn[:, step : step + 1])
            for step, scores in enumerate(output.scores)
        ]
        noted.append(torch.cat(of_steps, dim=1).cpu())
        return output.sequences

    with generating_by(model, noting):
        yield noted
