"""GRPO whose rollouts come from vLLM, in the trainer's process."""

import pytest
import torch
from grpo_runs import make_trainer, picture, questions, record

EAGER = {"enforce_eager": True, "limit_mm_per_prompt": {"image": 2}, "skip_mm_profiling": True}
"""Options of an engine that starts in seconds: it compiles nothing, and tries no largest image."""
BY_VLLM = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.05}
BY_VLLM |= {"vllm_max_model_length": 512, "vllm_kwargs": EAGER}


def rows(images: tuple[int, ...] = (1, 2, 0)):
    """Twelve rows with so many images each, in turn."""
    return questions(12, images=lambda number: picture(number) * images[number % len(images)])


def vowels(completions, **columns) -> list[float]:
    """A reward with contrast even for the gibberish of an untrained model: the share of vowels."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


@pytest.fixture
def make_grpo(tiny_model, tmp_path):
    """Function: settings of `GRPOConfig` -> a trainer with rollouts by vLLM."""

    def make(given=None, rewards=vowels, init=None, **settings):
        return make_trainer(
            str(tiny_model), tmp_path, rewards, rows() if given is None else given, init=init, **BY_VLLM, **settings
        )

    return make


def test_rows_with_different_numbers_of_images_train(make_grpo):
    trainer = make_grpo(max_steps=1)
    before = trainer.model.get_input_embeddings().weight.detach().clone()
    found = record(trainer)
    trainer.train()
    assert not torch.equal(trainer.model.get_input_embeddings().weight, before)
    assert {key for key in found.rollouts[0] if key.startswith("sampling_")} == {"sampling_per_token_logps"}
