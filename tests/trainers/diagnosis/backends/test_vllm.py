"""vLLM in the doctor, with an engine that only says what it is asked; `make test-vllm` runs the real one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainers.diagnosis import causes
from trainers.diagnosis.backends.transformers import TransformersRollouts
from trainers.diagnosis.backends.vllm import VLLMSamples, as_engine_reads
from trainers.diagnosis.methods.grpo import diagnose, sampling_of
from trainers.diagnosis.rollout import Prompts, observe


class Connection:
    """What TRL holds of an engine, which here draws as the trainer's own generation does.

    Args:
        model: folder of the engine's processor.
        options: of the engine's processor.
    """

    def __init__(self, model: str, mode: str = "colocate", **options: Any):
        self.mode = mode
        config = SimpleNamespace(model=model, multimodal_config=SimpleNamespace(mm_processor_kwargs=options))
        self.llm = SimpleNamespace(model_config=config)
        self.drop_first_token = False

    def generate(self, prompts: list[list[int]], **_: Any) -> tuple:
        found = [(ids[1:] if self.drop_first_token else ids) for ids in prompts]
        return found, None, None, None


@pytest.fixture(scope="module")
def trainer_and_rows(diagnosed):
    return diagnosed(num_generations=2)


def rolled_out(trainer_and_rows, connection: Connection):
    """A rollout whose tokens transformers draws, and whose prompts the connection reads."""
    trainer, rows = trainer_and_rows

    class Backend(VLLMSamples):
        def generate(self, trainer: Any, generate: Any, prompts: Prompts, size: int) -> list:
            drawn = TransformersRollouts().generate(trainer, generate, prompts, size)

            def by_engine(ids: list, images: list, fields: dict) -> tuple:
                trainer.vllm_generation.generate(prompts=ids)
                return [one.completion_ids for one in drawn], [one.log_probs for one in drawn]

            return super().generate(trainer, by_engine, prompts, size)

    torch.manual_seed(0)
    trainer.vllm_generation = connection
    observed = observe(trainer, Backend(), rows, sampling_of(trainer))
    return {one.cause for one in diagnose(trainer, observed) if one.verdict == "wrong"}, observed


def test_an_engine_that_reads_and_resizes_as_the_trainer(trainer_and_rows, lively_model):
    sizes = {"size": {"shortest_edge": 256, "longest_edge": 1024}}
    wrong, observed = rolled_out(trainer_and_rows, Connection(str(lively_model), **sizes))
    assert wrong == set()
    assert all(one.images and one.prompt_ids for one in observed.sampled)


def test_an_engine_that_resizes_otherwise(trainer_and_rows, lively_model):
    larger = {"size": {"shortest_edge": 4096, "longest_edge": 8192}}
    wrong, _ = rolled_out(trainer_and_rows, Connection(str(lively_model), **larger))
    assert wrong == {causes.PIXEL_BOUNDS}


def test_an_engine_that_reads_another_prompt(trainer_and_rows, lively_model):
    connection = Connection(str(lively_model), size={"shortest_edge": 256, "longest_edge": 1024})
    connection.drop_first_token = True
    wrong, _ = rolled_out(trainer_and_rows, connection)
    assert causes.DOUBLE_BOS in wrong or causes.TEMPLATE in wrong


def test_a_server_does_not_tell_its_images(trainer_and_rows, lively_model):
    assert as_engine_reads(Connection(str(lively_model), mode="server"), [object()]) is None
    assert as_engine_reads(Connection(str(lively_model)), []) == []
