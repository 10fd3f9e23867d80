"""Trainers made from Python as TRL's are: by position, with a parent's configuration or none, of models of texts."""

import json

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from grpo_runs import QUIET, SMALL, as_reward, make_trainer, questions
from text_models import write_text_model

from data.io.records import RecordError
from trainers.factors import FactorTrainer
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import load_stored_groups
from trainers.grpo import GRPOConfig, GRPOTrainer
from trainers.offline_grpo import OfflineGRPOTrainer
from trainers.rce import RCETrainer
from trainers.reward import RewardTrainer
from trainers.setup.default_config import config_or_default
from trainers.setup.recipes import RecipeError
from trainers.sft import SelectorSFTTrainer, SFTTrainer

A = as_reward("a")


@pytest.fixture(scope="session")
def text_model(tiny_model, tmp_path_factory) -> str:
    """Folder of a tiny language model that reads texts only, with its tokenizer."""
    return write_text_model(tmp_path_factory.mktemp("text"), tiny_model)


# -- T23, T29: data that cannot make a step ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (1, {"per_device_train_batch_size": 8}, "1 to train on, expected at least 2: .*8 / 4"),
        (3, {}, "3 to train on, expected at least 4: .*16 / 4"),
        (3, {"per_device_train_batch_size": 4, "steps_per_generation": 4}, "expected at least 4"),
    ],
)
def test_t23_fewer_rows_than_one_rollout_needs(tiny_model, tmp_path, rows, settings, message):
    trainer = make_trainer(str(tiny_model), tmp_path, A, questions(rows), **settings)
    with pytest.raises(RecipeError, match=message):
        trainer.train()


@pytest.mark.parametrize("rows", [1, 3])
def test_t23_streamed_data_that_end_before_the_first_rollout(tiny_model, tmp_path, rows):
    trainer = make_trainer(str(tiny_model), tmp_path, A, questions(rows).to_iterable_dataset())
    with pytest.raises(RecipeError, match="no step was trained, expected at least 4 rows"):
        trainer.train()


def chats(count: int) -> Dataset:
    turn = [{"role": "assistant", "content": "yes"}]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": "well?"}], "completion": turn}] * count)


def test_t23_supervised_batches_that_are_all_left_out(text_model, tmp_path):
    args = trl.SFTConfig(str(tmp_path / "run"), max_length=None, dataloader_drop_last=True, max_steps=1, **QUIET)
    trainer = SFTTrainer(text_model, args, None, chats(3))
    with pytest.raises(RecipeError, match="3 to train on, expected at least 8: dataloader_drop_last"):
        trainer.train()


def test_t29_streamed_data_train(tiny_model, tmp_path):
    trainer = make_trainer(str(tiny_model), tmp_path, A, questions(12).to_iterable_dataset())
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("rounds", [1, 3])
def test_t29_dynamic_sampling_of_streamed_data_is_an_error_at_the_start(tiny_model, tmp_path, rounds):
    with pytest.raises(ValueError, match=f"dynamic_sampling_rounds: expected 0 with a streamed .*, found {rounds}"):
        make_trainer(str(tiny_model), tmp_path, A, questions(12).to_iterable_dataset(), dynamic_sampling_rounds=rounds)


# -- T7: filters that leave nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [[1], [3], [1, 3]])
def test_t07_shots_that_leave_only_candidates_without_reward(tmp_path, shots):
    candidates = [{"pointer": ["a"]}, {"pointer": ["a", "b", "c"]}, {"pointer": ["a", "b"], "reward": 1.0}]
    row = {"id": 1, "pool": ["a", "b", "c"], "candidates": candidates}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match="shots: no candidate with a reward is left among those of"):
        load_stored_groups(GroupArguments(dataset_name=str(tmp_path), shots=shots), "train")


# -- P11: who gives the reward ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rewards", [None, []])
def test_p11_without_any_reward_trls_error_at_construction(tiny_model, tmp_path, rewards):
    with pytest.raises(ValueError, match="No reward source provided"):
        make_trainer(str(tiny_model), tmp_path, rewards)


def test_p11_one_reward_or_a_list_that_stays_as_it_was(tiny_model, tmp_path):
    rewards = [A]
    trainer = make_trainer(str(tiny_model), tmp_path, rewards)
    assert rewards == [A]
    assert trainer.reward_func_names == make_trainer(str(tiny_model), tmp_path, A).reward_func_names == ["a"]


# -- P14, P15: as TRL's constructors ----------------------------------------------------------------------------------


def test_p14_a_model_of_texts_without_a_processing_class(text_model, tmp_path):
    trainer = make_trainer(text_model, tmp_path, A)
    trainer.train()
    assert isinstance(trainer.processing_class, transformers.PreTrainedTokenizerBase)
    assert trainer.state.global_step == 2


def test_p14_a_loaded_model_of_texts_by_supervision(text_model, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(text_model, dtype=torch.float32)
    args = trl.SFTConfig(str(tmp_path / "run"), max_length=None, max_steps=1, **QUIET)
    trainer = SFTTrainer(model, args, train_dataset=chats(8))
    trainer.train()
    assert trainer.state.global_step == 1


def test_p14_a_model_of_texts_has_no_vision_tower_to_freeze(text_model, tmp_path):
    with pytest.raises(ValueError, match="freeze_vision_tower: Qwen2ForCausalLM reads texts only"):
        make_trainer(text_model, tmp_path, A, freeze_vision_tower=True)


def test_p15_trls_configuration_by_position(tiny_model, tmp_path):
    settings = SMALL | {"output_dir": str(tmp_path / "run"), "beta": 0.1, "generation_batch_size": 32}
    trainer = GRPOTrainer(str(tiny_model), A, trl.GRPOConfig(**settings), questions(12))
    assert isinstance(trainer.args, GRPOConfig)
    assert (trainer.args.beta, trainer.args.steps_per_generation, trainer.args.advantage_clip) == (0.1, 2, 5.0)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("model", ["Qwen/Qwen2-VL-2B-Instruct", "here/Qwen2-VL-2B-Instruct/"])
def test_p15_no_configuration(model):
    def config(output_dir):
        return GRPOConfig(output_dir, use_cpu=True, bf16=False)

    assert config_or_default(None, config, model, "GRPO").output_dir == "Qwen2-VL-2B-Instruct-GRPO"


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (GRPOTrainer, "trainers.grpo.GRPOConfig"),
        (SFTTrainer, "trainers.sft.SFTConfig"),
        (RCETrainer, "trainers.rce.RCEConfig"),
        (OfflineGRPOTrainer, "trainers.offline_grpo.OfflineGRPOConfig"),
        (SelectorSFTTrainer, "trainers.sft.SelectorSFTConfig"),
        (FactorTrainer, "trainers.factors.FactorTrainingConfig"),
        (RewardTrainer, "trainers.reward.RewardConfig"),
    ],
)
def test_p15_another_configuration_is_an_error_that_names_the_right_one(tiny_model, tmp_path, cls, expected):
    for args in (transformers.TrainingArguments(str(tmp_path), use_cpu=True), {"beta": 0.1}):
        arguments = (A, args) if cls is GRPOTrainer else (args, None, None, None)
        with pytest.raises(TypeError, match=f"args: expected a {expected}, found"):
            cls(str(tiny_model), *arguments)


def test_p15_a_setting_of_the_parent_that_cuts_images(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="max_length cuts images in two"):
        SFTTrainer(str(tiny_model), trl.SFTConfig(str(tmp_path), use_cpu=True, bf16=False))


@pytest.mark.parametrize(
    "key", ["advantage_clip", "advantage_std_floor", "temperature_factor", "kl_target_max", "beta"]
)
def test_t25_a_setting_that_is_not_a_number_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match=f"^{key}: expected .*found nan$"):
        GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **{key: float("nan")})
