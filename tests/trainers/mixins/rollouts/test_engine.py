"""GRPO by the loop of models/decoding learns what it learns by transformers' own."""

import pytest
import torch
from peft import LoraConfig

from data.errors import UserError
from models.decoding.engine import RolloutError
from models.decoding.forward.forwards import Forwards
from models.decoding.forward.layers import Rotation
from models.tiny import FAMILIES
from trainers.grpo import GRPOConfig


@pytest.fixture
def forwards(monkeypatch):
    """A list to which each forward of the loop adds its rows."""
    seen = []
    plain = Forwards.logits

    def noting(self, rows, ids, starts):
        seen.append(len(rows))
        return plain(self, rows, ids, starts)

    monkeypatch.setattr(Forwards, "logits", noting)
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


def test_ends_that_trl_does_not_know_leave_padding_that_is_not_compared(make_grpo):
    ends = {"generation_kwargs": {"eos_token_id": [*range(100, 200)]}}
    trainer = make_grpo(max_steps=2, rollout_engine=True, **ends)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert max(row["sampling/sampling_logp_difference/max"] for row in rows) <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_the_trainers_in_every_family(make_grpo, family):
    """As the trainer computes them for its loss, of the tokens that the loop sampled, with drafts where there are."""
    trainer = make_grpo(family=family, max_steps=3, temperature=0.7, rollout_engine=True, rollout_drafts=4)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 3
    assert max(row["sampling/sampling_logp_difference/max"] for row in logged) <= 2e-5


def test_the_default_goes_by_the_loop_and_its_own_stream_does_too(make_grpo, forwards):
    make_grpo(max_steps=1).train()
    first = len(forwards)
    assert first
    make_grpo(max_steps=1, rollout_stream="own").train()
    assert len(forwards) > first


def test_runs_learn_the_same_with_fewer_rows_at_once(make_grpo, forwards):
    own = {**SETTINGS, "rollout_stream": "own", "rollout_engine": True}
    all_at_once, expected = trained(make_grpo(**own))
    most = max(forwards)
    forwards.clear()
    three, found = trained(make_grpo(**own, rollout_slots=3, rollout_drafts=2, rollout_check=True))
    assert max(forwards) == 3 < most
    for name, value in three.items():
        torch.testing.assert_close(value, all_at_once[name], atol=1e-5, rtol=0)
    lengths = [[row.get("completions/mean_length") for row in logged] for logged in (found, expected)]
    assert lengths[0] == lengths[1]


def test_processors_that_look_at_all_rows_need_all_at_once(make_grpo):
    with pytest.raises(UserError, match=r"rollout_slots: 3: rows at .* found RepetitionPenaltyLogitsProcessor"):
        make_grpo(max_steps=1, repetition_penalty=1.2, rollout_stream="own", rollout_slots=3).train()


WARM = """\
model_name_or_path: {model}
dtype: float32
dataset_name: {data}
max_pixels: 1024
output_dir: {output}
use_cpu: true
bf16: false
gradient_checkpointing: false
per_device_train_batch_size: 8
max_steps: 90
learning_rate: 1.0e-2
save_strategy: "no"
report_to: none
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def warm_model(tiny_model, report_data, tmp_path_factory, run_warm):
    """Folder of a model whose answers have a form, so that they end at many places and drafts are right."""
    folder = tmp_path_factory.mktemp("warm")
    recipe, output = folder / "recipe.yaml", folder / "run"
    recipe.write_text(WARM.format(model=tiny_model, data=report_data, output=output), encoding="utf-8")
    done = run_warm("trainers/sft.py", "--config", recipe)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


AS_QUICK_START = {
    "per_device_train_batch_size": 32,
    "num_generations": 8,
    "max_completion_length": 144,
    "temperature": 0.6,
    "learning_rate": 1e-3,
    "max_steps": 32,
}


@pytest.mark.slow
def test_a_thousand_completions_are_the_same_while_weights_move(make_grpo, warm_model):
    """All 1,024 of three runs, the generator's state after each rollout, and the weights at the end."""

    def run(**settings) -> tuple:
        noted, states = [], []

        def vowels(completions, completion_ids, **columns) -> list[float]:
            noted.extend(completion_ids)
            states.append(torch.get_rng_state())
            return [sum(letter in "aeiou" for letter in one[0]["content"]) / 100 for one in completions]

        trainer = make_grpo(model=str(warm_model), rewards=vowels, **AS_QUICK_START, **settings)
        trainer.train()
        return noted, states, trainer

    expected, states, plain = run(rollout_engine=False)
    weights = plain.model.state_dict()
    assert len(expected) == 1024
    assert min(row["grad_norm"] for row in plain.state.log_history if "grad_norm" in row) > 0
    assert len(set(map(len, expected))) > 20
    for drafts in (0, 4):
        found, after, looped = run(rollout_engine=True, rollout_drafts=drafts)
        assert sum(one == other for one, other in zip(found, expected, strict=True)) == 1024
        assert all(map(torch.equal, after, states))
        assert all(torch.equal(weights[name], value) for name, value in looped.model.state_dict().items())
        counts = looped.engine.decoding.last.counts
        assert counts.drafted == 0 if drafts == 0 else counts.accepted > 0.3 * counts.drafted > 100


@pytest.mark.parametrize("stream", ["transformers", "own"])
def test_the_first_rollout_is_checked(make_grpo, monkeypatch, stream):
    monkeypatch.setattr(Rotation, "turn", lambda _, states: states)
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
    for name in ("rollout_drafts", "rollout_slots"):
        with pytest.raises(ValueError, match=f"{name}: 4: is of rollouts by transformers, found use_vllm: true"):
            GRPOConfig(output_dir="unused", use_cpu=True, bf16=False, use_vllm=True, **{name: 4})
    with pytest.raises(ValueError, match="rollout_graphs: true: expected a CUDA device, found cpu"):
        make_grpo(rollout_graphs=True)
    with pytest.raises(ValueError, match="rollout_graphs: true: rows .* found rollout_slots: 4"):
        make_grpo(rollout_graphs=True, rollout_slots=4, rollout_stream="own")
    for wrong in (-1, "many", 2.5):
        with pytest.raises(ValueError, match=f"rollout_drafts: expected auto or a whole .*, found {wrong!r}"):
            make_grpo(rollout_drafts=wrong)
    for wrong in (0, -3):
        with pytest.raises(ValueError, match=f"rollout_slots: expected at least 1, found {wrong}"):
            make_grpo(rollout_slots=wrong, rollout_stream="own")
    with pytest.raises(ValueError, match="rollout_slots: 8: needs rollout_stream: own, found 'transformers'"):
        make_grpo(rollout_slots=8)
    with pytest.raises(ValueError, match="rollout_engine: expected one of auto, true, false, found 'yes'"):
        make_grpo(rollout_engine="yes")
