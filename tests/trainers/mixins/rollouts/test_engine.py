"""GRPO by the loop of models/decoding learns what it learns by transformers' own."""

import pytest
import torch
from peft import LoraConfig

from models.decoding import rollout
from models.decoding.attention import Step
from models.decoding.engine import RolloutError
from trainers.grpo import GRPOConfig


@pytest.fixture
def forwards(monkeypatch):
    """A list to which each forward of the loop adds its rows."""
    seen = []
    plain = rollout.RollOut._forward

    def noting(self, drafts):
        seen.append(len(drafts))
        return plain(self, drafts)

    monkeypatch.setattr(rollout.RollOut, "_forward", noting)
    return seen


def trained(trainer) -> tuple[dict[str, torch.Tensor], list[dict]]:
    trainer.train()
    logged = [{key: value for key, value in row.items() if "runtime" not in key} for row in trainer.state.log_history]
    return trainer.model.state_dict(), logged


SETTINGS = {"max_steps": 4, "beta": 0.1, "learning_rate": 1e-2, "temperature": 0.9, "logging_steps": 1}
FIGURES = ("completions/mean_length", "reward", "loss", "kl")


@pytest.mark.parametrize(
    "more", [{}, {"rollout_drafts": 3}, {"rollout_drafts": "auto"}, {"rollout_drafts": 3, "rollout_check": True}]
)
def test_runs_learn_the_same(make_grpo, forwards, more):
    plain, expected = trained(make_grpo(**SETTINGS, rollout_engine=False))
    assert forwards == []
    looped, found = trained(make_grpo(**SETTINGS, rollout_engine=True, **more))
    assert len(forwards) > 4
    assert all(torch.equal(plain[name], value) for name, value in looped.items())
    pairs = list(zip(expected, found, strict=True))
    assert all(one[key] == other[key] for one, other in pairs for key in FIGURES if key in one)
    measured = [row["sampling/sampling_logp_difference/mean"] for row in found[:4]]
    assert max(measured) <= 2e-5


def test_the_default_goes_by_the_loop_and_its_own_stream_does_too(make_grpo, forwards):
    make_grpo(max_steps=1).train()
    first = len(forwards)
    assert first
    make_grpo(max_steps=1, rollout_stream="own").train()
    assert len(forwards) > first


@pytest.mark.parametrize("stream", ["transformers", "own"])
def test_the_first_rollout_is_checked(make_grpo, monkeypatch, stream):
    monkeypatch.setattr(Step, "places", property(lambda step: 1 + step.starts.unsqueeze(1)))
    with pytest.raises(RolloutError, match=r"rollout_check: log-probabilities .*; set rollout_engine: false"):
        make_grpo(max_steps=1, rollout_stream=stream, rollout_check=True).train()
    make_grpo(max_steps=1, rollout_engine=False, rollout_check=True).train()


def test_what_is_not_exact_is_left_to_transformers_or_an_error(make_grpo, forwards):
    adapters = LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"])
    with pytest.warns(UserWarning, match=r"shared_prefix: auto\): dropout of 0\.1"):
        make_grpo(init={"peft_config": adapters}, max_steps=1).train()
    beams = {"generation_kwargs": {"num_beams": 2}}
    with pytest.warns(UserWarning, match=r"rollout_engine: auto\): beam sample"):
        make_grpo(max_steps=1, **beams).train()
    assert forwards == []
    with pytest.raises(RolloutError, match=r"rollout_engine: true.*dropout of 0\.1"):
        make_grpo(init={"peft_config": adapters}, max_steps=1, rollout_engine=True).train()


def test_settings_of_no_effect_or_sense_are_errors(make_grpo):
    with pytest.raises(ValueError, match="rollout_drafts: 4: is of rollouts by transformers, found use_vllm: true"):
        GRPOConfig(output_dir="unused", use_cpu=True, bf16=False, use_vllm=True, rollout_drafts=4)
    for wrong in (-1, "many", 2.5):
        with pytest.raises(ValueError, match=f"rollout_drafts: expected auto or a whole .*, found {wrong!r}"):
            make_grpo(rollout_drafts=wrong)
    with pytest.raises(ValueError, match="rollout_engine: expected one of auto, true, false, found 'yes'"):
        make_grpo(rollout_engine="yes")
