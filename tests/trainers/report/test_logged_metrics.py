"""What an evaluation logs is what `metric_for_best_model` may name; other methods have this in tests of their own."""

import pytest
from evaluated import check_listed
from grpo_runs import as_reward, make_trainer, questions

from trainers.groups.arguments import GroupArguments
from trainers.groups.data import load_stored_groups
from trainers.offline_grpo import OfflineGRPOConfig, OfflineGRPOTrainer
from trainers.rce import RCEConfig, RCETrainer
from trainers.sft import SelectorSFTConfig, SelectorSFTTrainer


@pytest.mark.parametrize(
    "settings",
    [{"loss_type": "dapo"}, {"loss_type": "cispo", "beta": 0.1}, {"loss_type": "sapo"}, {"loss_type": "vespo"}],
    ids=str,
)
def test_grpo(tiny_model, tmp_path, settings):
    settings |= {"per_device_eval_batch_size": 4, "max_completion_length": 2}
    rewards, held_out = [as_reward("a"), as_reward("b")], {"eval_dataset": questions(2)}
    trainer = make_trainer(str(tiny_model), tmp_path, rewards, init=held_out, **settings)
    check_listed("GRPO", trainer.evaluate(), trainer.args, ["a", "b"])


@pytest.mark.parametrize(
    ("method", "cls", "config"),
    [
        ("RCE", RCETrainer, RCEConfig),
        ("offline GRPO", OfflineGRPOTrainer, OfflineGRPOConfig),
        ("selector SFT", SelectorSFTTrainer, SelectorSFTConfig),
    ],
)
def test_stored_groups(make_selector_trainer, pointer_groups, method, cls, config):
    held_out = load_stored_groups(GroupArguments(dataset_name=str(pointer_groups)), "validation")
    before = make_selector_trainer(cls, config, eval_groups=held_out).evaluate()
    check_listed(method, before)
    trainer = make_selector_trainer(cls, config, eval_groups=held_out, eval_on_start=True, eval_strategy="no")
    trainer.train()
    assert trainer.state.log_history[0]["eval_accuracy"] == pytest.approx(before["eval_accuracy"])
