"""ZeRO-3 divides the models that all processes make: one that a process makes alone is whole, and experts load."""

import pytest
import torch
from transformers import AutoConfig
from transformers.core_model_loading import Transpose
from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from models.zero3 import loading_transposed, whole_models
from trainers.setup.memory import count_parameters


@pytest.fixture
def zero3():
    """A run under ZeRO-3, as far as transformers knows."""
    config = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})
    assert is_deepspeed_zero3_enabled()
    yield config
    assert is_deepspeed_zero3_enabled()
    del config


def test_it_is_off_inside_alone(zero3):
    with whole_models():
        assert not is_deepspeed_zero3_enabled()
    with pytest.raises(OSError, match="gone"), whole_models():
        raise OSError("gone")


def test_t20_the_main_process_counts_parameters_alone(zero3, tiny_model):
    config = AutoConfig.from_pretrained(tiny_model)
    with whole_models():
        expected = count_parameters(config)
    assert count_parameters(config) == expected


class Divided(torch.nn.Module):
    """Experts as ZeRO-3 leaves them: the weight is nowhere whole."""

    def __init__(self):
        super().__init__()
        self.experts = torch.nn.Parameter(torch.empty(0))
        self.experts.ds_shape = torch.Size([2, 3, 5])


@pytest.mark.parametrize("stored", [(2, 3, 5), (2, 5, 3)])
def test_experts_are_loaded_whichever_way_round_they_are_stored(stored):
    turning = Transpose(1, 2, check_dims=True)
    weight = torch.arange(30.0).reshape(stored)

    def load():
        told = {"source_patterns": ["experts"], "target_patterns": ["experts"], "full_layer_name": "experts"}
        return turning.convert({"experts": weight}, model=Divided(), **told)["experts"]

    with loading_transposed():
        found = load()
    assert torch.equal(found, weight if stored == (2, 3, 5) else weight.transpose(1, 2))
    assert load().shape == (*stored[:1], stored[2], stored[1])  # as without: any is turned
