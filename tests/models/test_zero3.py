"""What one process makes alone is whole under ZeRO-3, which divides the models that all of them make."""

import pytest
from transformers import AutoConfig
from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from models.zero3 import whole_models
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
