"""P1: settings from Python have the types and ranges that recipes hold them to, whatever the trainer."""

import importlib
import typing
from dataclasses import fields

import numpy
import pytest

from trainers.groups.arguments import GroupArguments
from trainers.grpo import GRPOConfig
from trainers.setup.recipes import DataArguments
from trainers.setup.setting_rules import RANGES, check_settings

CONFIGURATIONS = {
    "GRPOConfig": "grpo",
    "SFTConfig": "sft",
    "SelectorSFTConfig": "sft",
    "RCEConfig": "rce",
    "OfflineGRPOConfig": "offline_grpo",
    "RewardConfig": "reward",
    "FactorTrainingConfig": "factors",
}
WORDS = {bool: "true or false", int: "a whole number", float: "a number"}


@pytest.fixture(params=CONFIGURATIONS)
def configuration(request, tmp_path):
    """A configuration of each method, from Python."""
    cls = getattr(importlib.import_module(f"trainers.{CONFIGURATIONS[request.param]}"), request.param)
    return cls(output_dir=str(tmp_path), use_cpu=True, bf16=False)


def numeric_fields(settings) -> dict[str, set[type]]:
    """Name of each field that is a number or truth value -> its types."""
    hints = typing.get_type_hints(type(settings))
    found = {item.name: set(typing.get_args(hints[item.name]) or [hints[item.name]]) for item in fields(settings)}
    found = {name: types - {type(None)} for name, types in found.items() if name != "resume"}
    return {name: types for name, types in found.items() if types <= {int, float, bool}}


def refused(settings, name: str, value) -> str:
    """The message of `check_settings` with another value, which is put back."""
    kept = getattr(settings, name)
    setattr(settings, name, value)
    with pytest.raises(ValueError, match=f"^{name}: expected ") as caught:
        check_settings(settings)
    setattr(settings, name, kept)
    return str(caught.value)


def test_p01_every_number_and_truth_value_has_its_type(configuration):
    fields = numeric_fields(configuration)
    assert len(fields) > 60
    for name, types in fields.items():
        expected = " or ".join(words for one, words in WORDS.items() if one in types)
        assert refused(configuration, name, "3") == f"{name}: expected {expected}, found '3'"
        assert refused(configuration, name, [1]) == f"{name}: expected {expected}, found [1]"
        if float not in types:
            assert refused(configuration, name, 2.5) == f"{name}: expected {expected}, found 2.5"
        if bool not in types:
            assert refused(configuration, name, True) == f"{name}: expected {expected}, found True"
        if types == {bool}:
            assert refused(configuration, name, 1) == f"{name}: expected true or false, found 1"


def test_p01_every_range_holds_from_python(configuration):
    own = [name for name in numeric_fields(configuration) if name in RANGES]
    assert len(own) > 25
    for name in own:
        allowed = RANGES[name]
        whole = float not in numeric_fields(configuration)[name]
        below = (int if whole else float)(allowed.low if allowed.open_low else allowed.low - 1)
        assert refused(configuration, name, below) == f"{name}: expected {allowed}, found {below}"
        if allowed.high != float("inf"):
            above = (int if whole else float)(allowed.high if allowed.open_high else allowed.high + 1)
            assert refused(configuration, name, above) == f"{name}: expected {allowed}, found {above}"


OWN = [
    ("rce", "RCEConfig", {"temperature_start": 0.0}, "temperature_start: expected a number above 0, found 0.0"),
    ("rce", "RCEConfig", {"temperature_end": "0.5"}, "temperature_end: expected a number, found '0.5'"),
    ("rce", "RCEConfig", {"top1": 1}, "top1: expected true or false, found 1"),
    ("rce", "RCEConfig", {"reward_clamp": -1.0}, "reward_clamp: expected a number above 0, found -1.0"),
    ("sft", "SelectorSFTConfig", {"best_beams": 0}, "best_beams: expected at least 1, found 0"),
    ("grpo", "GRPOConfig", {"curriculum_top_k": 2.5}, "curriculum_top_k: expected a whole number, found 2.5"),
    ("grpo", "GRPOConfig", {"num_generations": True}, "num_generations: expected a whole number, found True"),
    ("offline_grpo", "OfflineGRPOConfig", {"curriculum_top_k": 2.5}, "curriculum_top_k: expected a whole number"),
    ("offline_grpo", "OfflineGRPOConfig", {"clip_epsilon_high": 0}, "clip_epsilon_high: expected a number above 0"),
    ("offline_grpo", "OfflineGRPOConfig", {"kl_factor": "2"}, "kl_factor: expected a number, found '2'"),
    ("offline_grpo", "OfflineGRPOConfig", {"beta_min": 20.0}, "beta_min .20.0. must not exceed beta_max"),
    ("offline_grpo", "OfflineGRPOConfig", {"advantage_std_floor": -1}, "advantage_std_floor: expected at least 0"),
    ("factors", "FactorTrainingConfig", {"image_size": 4}, "image_size: expected at least 8, found 4"),
    ("factors", "FactorTrainingConfig", {"head_dropout": 1.0}, "head_dropout: expected a number from 0 to below 1"),
    ("factors", "FactorTrainingConfig", {"trained_blocks": -1}, "trained_blocks: expected at least 0, found -1"),
    ("factors", "FactorTrainingConfig", {"early_stopping_patience": 1.5}, "early_stopping_patience: expected a whole"),
    ("sft", "SFTConfig", {"max_pixels": "100"}, "max_pixels: expected a whole number, found '100'"),
    ("factors", "FactorTrainingConfig", {"min_pixels": 9, "max_pixels": 4}, "min_pixels .9. must not exceed max_pix"),
    ("reward", "RewardConfig", {"margin": "wide"}, "margin: expected a number, found 'wide'"),
]


@pytest.mark.parametrize(("module", "name", "settings", "message"), OWN)
def test_p01_own_settings_from_python(tmp_path, module, name, settings, message):
    cls = getattr(importlib.import_module(f"trainers.{module}"), name)
    with pytest.raises(ValueError, match=f"^{message}"):
        cls(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_p01_a_warm_up_may_be_a_share_of_the_steps(configuration):
    cls, given = type(configuration), {"output_dir": configuration.output_dir, "use_cpu": True, "bf16": False}
    args = cls(**given, warmup_ratio=0.1)
    assert (args.get_warmup_steps(200), args.get_warmup_steps(5), args.warmup_steps) == (20, 1, 0.1)
    assert cls(**given, warmup_ratio=0.1, warmup_steps=0).get_warmup_steps(200) == 20
    message = "^warmup_ratio: 0.1, and warmup_steps is 20: set one of them"
    with pytest.raises(ValueError, match=message):
        cls(**given, warmup_ratio=0.1, warmup_steps=20)
    with pytest.raises(ValueError, match="^warmup_ratio: expected a number from 0 to below 1, found 1.0"):
        cls(**given, warmup_ratio=1.0)


@pytest.mark.parametrize(("metric", "greater"), [("eval_kl", False), ("kl", False), ("eval_loss", False), ("x", True)])
def test_p01_the_best_model_has_the_smallest_kl(tmp_path, metric, greater):
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "beta": 0.1,
    }
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": metric, "num_generations_eval": 8}
    assert GRPOConfig(str(tmp_path), **settings).greater_is_better is greater
    assert GRPOConfig(str(tmp_path), **settings, greater_is_better=True).greater_is_better is True


def test_p01_settings_of_the_data_from_python():
    for cls in (DataArguments, GroupArguments):
        with pytest.raises(ValueError, match="^answer_tags: expected true or false, found 'yes'$"):
            cls(dataset_name="x", answer_tags="yes")
        with pytest.raises(ValueError, match="^eval_share: expected a number from above 0 to below 1, found 1$"):
            cls(dataset_name="x", eval_share=1)


def test_p01_whole_numbers_may_be_written_as_floats_or_come_from_numpy(tmp_path):
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, max_steps=4.0, curriculum_top_k=numpy.int64(2))
    assert (args.max_steps, type(args.max_steps), args.curriculum_top_k) == (4, int, 2)
