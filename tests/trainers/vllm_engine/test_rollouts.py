"""How the engine of TRL is made with more than TRL gives it. With vLLM itself: tests/vllm."""

import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl.generation import vllm_generation

from models.families.loading import load_processor
from trainers.grpo import GRPOTrainer
from trainers.vllm_engine import rollouts
from trainers.vllm_engine.rollouts import NewestPictures, VLLMRollouts, engine_class, engines_made_by
from trainers.vllm_engine.server import ServerMismatch, forget_all


class Engine:
    def __init__(self, **given):
        self.given = given


class Library:
    """As `trl.GRPOTrainer`: has model, data and processor, then makes its engine or asks its server."""

    def __init__(self, processor, vllm_mode="colocate", info=None):
        self.use_vllm, self.vllm_mode = True, vllm_mode
        client = SimpleNamespace(base_url="http://here", get_server_info=lambda: info, reset_prefix_cache=None)
        self.vllm_generation = SimpleNamespace(vllm_client=client)
        self.accelerator = SimpleNamespace(unwrap_model=lambda model: model, is_main_process=True)
        self.model = SimpleNamespace(dtype=torch.float32)
        self.args = SimpleNamespace(vllm_kwargs={"enforce_eager": True}, bf16=False, fp16=False, seed=7)
        self.processing_class, self.eval_dataset = processor, None
        self.train_dataset = Dataset.from_dict({"prompt": ["a"]})
        if vllm_mode == "colocate":
            self.llm = vllm_generation.LLM(model="somewhere", quantization=None, seed=2)


class Trainer(VLLMRollouts, Library):
    pass


@pytest.fixture
def library(monkeypatch):
    monkeypatch.setattr(vllm_generation, "LLM", Engine, raising=False)
    monkeypatch.setattr(rollouts, "engine_class", lambda processor: Engine)


def test_the_engine_has_arguments_of_both(library, tiny_model):
    processor = load_processor(str(tiny_model), max_pixels=1024)
    given = Trainer(processor).llm.given
    assert given["model"] == "somewhere"
    assert given["dtype"] == "float32"
    assert given["enforce_eager"] is True
    assert given["mm_processor_kwargs"]["size"]["longest_edge"] == 1024
    assert given["seed"] == 9  # of the trainer and of TRL, which tells processes apart
    assert vllm_generation.LLM is Engine  # as before


def test_a_server_is_compared_with_the_trainer(library, tiny_model):
    processor = load_processor(str(tiny_model), max_pixels=1024)
    sizes = {"size": {"shortest_edge": processor.image_processor.size["shortest_edge"], "longest_edge": 1024}}
    info = {"model_config": {"dtype": "torch.float32", "multimodal_config": {"mm_processor_kwargs": sizes}}}
    client = Trainer(processor, "server", info).vllm_generation.vllm_client
    assert client.reset_prefix_cache.func is forget_all
    info["model_config"]["dtype"] = "torch.float16"
    with pytest.raises(ServerMismatch, match="dtype of the server at http://here is float16, of the trainer float32"):
        Trainer(processor, "server", info)


def test_the_engine_is_vllms_with_weights_that_can_be_replaced(monkeypatch, tiny_model):
    class LLM:
        def __init__(self, fails=False):
            self.packed = operators._supports_onednn
            if fails:
                raise RuntimeError

    operators, vllm = SimpleNamespace(_supports_onednn=True), ModuleType("vllm")
    vars(vllm).update(LLM=LLM, _custom_ops=operators)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    processor = load_processor(str(tiny_model))
    engine = engine_class(processor)
    assert engine.image_token == processor.image_token_id
    assert engine().packed is False
    with pytest.raises(RuntimeError):
        engine(fails=True)
    assert operators._supports_onednn is True
    assert issubclass(engine, NewestPictures)


def test_pictures_are_forgotten_with_the_prompts():
    forgotten = []

    class Engine:
        llm_engine = SimpleNamespace(reset_encoder_cache=lambda: forgotten.append("pictures"))

        def reset_prefix_cache(self):
            forgotten.append("prompts")
            return True

    assert type("Both", (NewestPictures, Engine), {})().reset_prefix_cache()
    assert forgotten == ["pictures", "prompts"]


def test_afterwards_all_is_as_before_also_after_an_error(library):
    with pytest.raises(TypeError), engines_made_by(len):
        vllm_generation.LLM()
    assert vllm_generation.LLM is Engine


def test_without_vllm_nothing_is_changed(monkeypatch):
    monkeypatch.delattr(vllm_generation, "LLM", raising=False)
    with engines_made_by(dict):
        assert not hasattr(vllm_generation, "LLM")


def test_trl_makes_and_asks_its_engine_as_is_expected_here():
    source = inspect.getsource(vllm_generation.VLLMGeneration)
    assert "self.llm = LLM(\n" in source
    assert "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)" in source
    assert 'row = {"prompt_token_ids": ids}' in source
    assert issubclass(GRPOTrainer, VLLMRollouts)
