"""GRPOTrainer in the place of TRL's: whatever TRL's class takes, ours takes, and learns the same of it.

Each form is trained by both classes, ours with its additions off, without a processor; the weights are then equal bit
for bit. Models read texts only, but for one. A form in one run is quick; all of them, one by one, are slow tests.
"""

import functools
from types import SimpleNamespace

import pytest
import torch
import trl
from datasets import Dataset, DatasetDict
from grpo_runs import QUIET
from peft import LoraConfig, get_peft_model
from text_models import write_text_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from trainers.grpo import GRPOConfig, GRPOTrainer

OFF = {"advantage_clip": None, "keep_groups_together": False, "shared_prefix": False}
SMALL = QUIET | {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": 4,
    "max_steps": 1,
    "learning_rate": 0.1,
}


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory) -> SimpleNamespace:
    """Folders of a language model and of a reward model."""
    folder = tmp_path_factory.mktemp("as_trl")
    judge = write_text_model(folder / "judge", tiny_model, "Qwen2ForSequenceClassification", num_labels=1)
    return SimpleNamespace(policy=write_text_model(folder / "policy", tiny_model), judge=judge, seeing=str(tiny_model))


# -- rewards ----------------------------------------------------------------------------------------------------------


def length(completions, **columns) -> list[float]:
    return [float(len(str(completion))) for completion in completions]


async def letters(completions, **columns) -> list[float]:
    return [float(len(set(str(completion)))) for completion in completions]


def never(completions, **columns) -> list[None]:
    return [None] * len(completions)


class Nearness:
    """A reward that is an object, and reads a column, the state of the trainer, and what it logs to."""

    def __call__(self, completions, wanted, trainer_state, log_metric, **columns):
        log_metric("step", trainer_state.global_step)
        return [float(-abs(len(str(text)) - want)) for text, want in zip(completions, wanted, strict=True)]


# -- data -------------------------------------------------------------------------------------------------------------


def plain(rows: int = 6) -> Dataset:
    return Dataset.from_dict({"prompt": [f"number {row} is" for row in range(rows)]})


def chats(rows: int = 6) -> Dataset:
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": f"number {row}?"}] for row in range(rows)]})


def wanted(rows: int = 6) -> Dataset:
    return plain(rows).add_column("wanted", list(range(rows)))


# -- forms ------------------------------------------------------------------------------------------------------------


class Counting(TrainerCallback):
    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def loaded(folder: str):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def with_everything(models) -> dict:
    """A name, all kinds of rewards, evaluation sets by name, callbacks."""
    judge = AutoModelForSequenceClassification.from_pretrained(models.judge, num_labels=1, dtype="float32")
    return {
        "model": models.policy,
        "reward_funcs": [length, letters, functools.partial(length), Nearness(), never, judge, models.judge],
        "train_dataset": wanted(),
        "eval_dataset": {"first": wanted(2), "second": wanted(2)},
        "callbacks": [Counting()],
        "settings": {"eval_strategy": "steps", "eval_steps": 1, "reward_weights": [1, 2, 0.5, 1, 1, 1, 1]},
    }


def with_adapters(models) -> dict:
    return {
        "model": loaded(models.policy),
        "reward_funcs": length,
        "train_dataset": chats(),
        "peft_config": LoraConfig(target_modules=["q_proj", "v_proj"]),
    }


def with_optimizer(models) -> dict:
    model = loaded(models.policy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "reward_funcs": length, "train_dataset": plain(), "optimizers": (optimizer, None)}


def with_trained_adapters(models) -> dict:
    torch.manual_seed(0)  # of the adapters
    model = get_peft_model(loaded(models.policy), LoraConfig(target_modules=["q_proj", "v_proj"]))
    return {"model": model, "reward_funcs": length, "train_dataset": plain(), "settings": {"beta": 0.1}}


def with_a_judge_of_chats(models) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(models.judge)
    return {
        "model": models.policy,
        "reward_funcs": models.judge,
        "reward_processing_classes": tokenizer,
        "train_dataset": chats(),
        "eval_dataset": DatasetDict({"first": chats(2)}),
    }


def with_a_stream(models) -> dict:
    return {"model": models.policy, "reward_funcs": [length], "train_dataset": plain().to_iterable_dataset()}


def with_a_reference(models) -> dict:
    settings = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "num_iterations": 2, "max_steps": 2}
    return {"model": models.policy, "reward_funcs": length, "train_dataset": plain(), "settings": settings}


def with_generation_options(models) -> dict:
    settings = {"top_p": 0.9, "top_k": 5, "generation_kwargs": {"num_beams": 2}, "loss_type": "dr_grpo"}
    return {"model": models.policy, "reward_funcs": length, "train_dataset": plain(), "settings": settings}


def of_texts_by_a_model_that_sees(models) -> dict:
    suppressed = {"suppress_tokens": [2, 3, 4, 5, 6, 7]}
    settings = {"generation_kwargs": suppressed, "model_init_kwargs": {"dtype": "float32"}}
    return {"model": models.seeing, "reward_funcs": length, "train_dataset": chats(), "settings": settings}


FORMS = [
    with_a_judge_of_chats,
    with_a_reference,
    with_a_stream,
    with_adapters,
    with_generation_options,
    with_optimizer,
    with_trained_adapters,
    of_texts_by_a_model_that_sees,
]


def trained(cls: type, config: type, form: dict, tmp_path, **off) -> trl.GRPOTrainer:
    settings = SMALL | form.pop("settings", {}) | off
    trainer = cls(args=config(str(tmp_path / cls.__module__), **settings), **form)
    trainer.train()
    return trainer


def logged(trainer: trl.GRPOTrainer) -> list[set[str]]:
    return [set(entry) for entry in trainer.state.log_history]


MEASURED = {f"sampling/sampling_logp_difference/{name}" for name in ("mean", "max")}
"""Figures that TRL has of vLLM's rollouts alone."""


def check_equals_trl(form, models, tmp_path) -> trl.GRPOTrainer:
    theirs = trained(trl.GRPOTrainer, trl.GRPOConfig, form(models), tmp_path)
    ours = trained(GRPOTrainer, GRPOConfig, form(models), tmp_path, **OFF)
    expected = theirs.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.model.state_dict().items())
    assert [entry - MEASURED for entry in logged(ours)] == logged(theirs)
    assert ours.reward_func_names == theirs.reward_func_names
    return ours


def test_it_learns_what_trls_learns_with_all_kinds_of_rewards_and_sets(models, tmp_path):
    trainer = check_equals_trl(with_everything, models, tmp_path)
    assert trainer.reward_funcs[:2] == [length, letters]
    assert {"eval_first_loss", "step"} <= set().union(*logged(trainer))
    assert next(one for one in trainer.callback_handler.callbacks if isinstance(one, Counting)).steps == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_it_learns_what_trls_learns(form, models, tmp_path):
    check_equals_trl(form, models, tmp_path)


def test_rewards_of_environments_can_be_called_by_hand(models, tmp_path, monkeypatch):
    class Game:
        def reset(self, **row):
            return "Guess."

        def get_reward(self) -> float:
            return 1.0

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setattr("trl.trainer.grpo_trainer.supports_tool_calling", lambda processor: True)
    trainer = GRPOTrainer(models.policy, args=GRPOConfig(str(tmp_path), **SMALL), environment_factory=Game)
    assert trainer.reward_func_names == ["Game"]
    assert trainer.reward_funcs[0](environments=[Game(), object()]) == [1.0, None]


def test_environments_read_columns_of_their_own(models, tmp_path, monkeypatch):
    class Riddle:
        def reset(self, secret: str, **row) -> str:
            return f"Which letter comes after {secret}?"

        def get_reward(self) -> float:
            return 1.0

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setattr("trl.trainer.grpo_trainer.supports_tool_calling", lambda processor: True)
    rows, args = Dataset.from_dict({"secret": ["a", "b"]}), GRPOConfig(str(tmp_path), **SMALL)
    trainer = GRPOTrainer(models.policy, args=args, train_dataset=rows, environment_factory=Riddle)
    assert trainer.train_dataset.column_names == ["secret"]
    with pytest.raises(ValueError, match="train_dataset: expected a column of prompt, .*, found secret"):
        GRPOTrainer(models.policy, length, args, rows)


def test_a_wrong_number_of_rewards_is_the_error_that_trls_is(models, tmp_path):
    trainer = GRPOTrainer(
        models.policy, lambda completions, **columns: [1.0], GRPOConfig(str(tmp_path), **SMALL), plain()
    )
    with pytest.raises(ValueError, match="returned 1 rewards"):
        trainer.train()
