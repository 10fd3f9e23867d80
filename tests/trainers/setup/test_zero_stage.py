"""Small models are not divided: ZeRO-3 becomes ZeRO-2 for them."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DeepSpeedPlugin
from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from trainers.setup.zero_stage import leave_weights_whole


def settings(stage: int) -> dict:
    offload = {"offload_param": {"device": "cpu"}} if stage == 3 else {}
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage, **offload}}


def launched(stage: int) -> SimpleNamespace:
    """Arguments of a run whose launcher knows of DeepSpeed."""
    plugin = DeepSpeedPlugin(hf_ds_config=settings(stage))
    plugin.set_deepspeed_weakref()
    return SimpleNamespace(deepspeed_plugin=plugin, deepspeed=None)


def named(stage: int) -> SimpleNamespace:
    """Arguments of a run whose recipe names the settings of DeepSpeed."""
    return SimpleNamespace(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=HfDeepSpeedConfig(settings(stage))), deepspeed="zero.json"
    )


@pytest.mark.parametrize("arguments", [launched, named])
def test_t20_zero3_becomes_zero2_wherever_it_is_asked_for(arguments, capsys):
    args = arguments(3)
    assert is_deepspeed_zero3_enabled()
    leave_weights_whole(args, "a selector")
    assert not is_deepspeed_zero3_enabled()
    assert args.deepspeed_plugin.zero_stage == 2
    assert not args.deepspeed_plugin.is_zero3_init_enabled()
    assert not args.deepspeed_plugin.hf_ds_config.is_zero3()
    assert args.deepspeed_plugin.deepspeed_config["zero_optimization"] == {"stage": 2}
    assert capsys.readouterr().out == "note: ZeRO-2 in place of ZeRO-3: a selector is too small to be divided\n"


def test_others_stay_as_they_are(capsys):
    args = launched(2)
    leave_weights_whole(args, "a selector")
    assert args.deepspeed_plugin.deepspeed_config["zero_optimization"] == {"stage": 2}
    leave_weights_whole(SimpleNamespace(deepspeed_plugin=None), "a selector")
    assert capsys.readouterr().out == ""
