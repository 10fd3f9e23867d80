"""`trainer.train(resume_from_checkpoint=...)`: every trainer goes on from whole checkpoints only."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from trainers.factors import FactorTrainer
from trainers.grpo import GRPOTrainer
from trainers.mixins.checkpoints import CompleteCheckpoints
from trainers.offline_grpo import OfflineGRPOTrainer
from trainers.rce import RCETrainer
from trainers.reward import RewardTrainer
from trainers.setup.recipes import RecipeError
from trainers.sft import SelectorSFTTrainer, SFTTrainer

TRAINERS = (GRPOTrainer, SFTTrainer, SelectorSFTTrainer, RCETrainer, OfflineGRPOTrainer, RewardTrainer, FactorTrainer)


class OneWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x=None, return_loss=True):
        return {"loss": self.weight.square().sum()}


class SmallTrainer(CompleteCheckpoints, Trainer):
    pass


def make(folder: Path, **settings) -> SmallTrainer:
    settings = {"max_steps": 4, "save_steps": 2, "report_to": "none", "disable_tqdm": True, **settings}
    args = TrainingArguments(str(folder), use_cpu=True, lr_scheduler_type="constant", **settings)
    return SmallTrainer(OneWeight(), args, train_dataset=[{"x": 1.0}] * 64)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Folder of a run with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("small") / "run"
    make(folder).train()
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("cls", TRAINERS)
def test_every_trainer_verifies_what_it_goes_on_from(cls):
    order = cls.mro()
    assert order.index(CompleteCheckpoints) < order.index(Trainer)
    assert not any("_inner_training_loop" in vars(parent) for parent in order[: order.index(CompleteCheckpoints)])


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_a_damaged_checkpoint_is_named(run, file):
    damage(run / "checkpoint-4" / file)
    message = f"resume_from_checkpoint: {run}/checkpoint-4 is damaged: {file} has another content than was written"
    with pytest.raises(RecipeError, match=message):
        make(run).train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_the_configuration_may_name_it(run):
    trainer = make(run, resume_from_checkpoint=str(run / "checkpoint-2"))
    assert trainer.train().global_step == 4
    damage(run / "checkpoint-2" / "model.safetensors")
    with pytest.raises(RecipeError, match="checkpoint-2 is damaged"):
        make(run, resume_from_checkpoint=str(run / "checkpoint-2")).train()


def test_one_that_was_cut_short_or_does_not_exist(run):
    (run / "checkpoint-4" / "complete.json").unlink()
    with pytest.raises(RecipeError, match=f"resume_from_checkpoint: {run}/checkpoint-4 has no complete.json"):
        make(run).train(run / "checkpoint-4")
    with pytest.raises(RecipeError, match=f"resume_from_checkpoint: no checkpoint in '{run}/checkpoint-5'"):
        make(run).train(str(run / "checkpoint-5"))
    with pytest.raises(RecipeError, match=f"resume_from_checkpoint: no checkpoint in '{run}/none'"):
        make(run / "none").train(resume_from_checkpoint=True)


def test_true_takes_the_newest_whole_one(run, capsys):
    damage(run / "checkpoint-4" / "model.safetensors")
    trainer = make(run, max_steps=6)
    trainer.train(resume_from_checkpoint=True)
    undisturbed = make(run.parent / "other", max_steps=6)
    undisturbed.train()
    assert f"ignoring {run}/checkpoint-4, which is damaged" in capsys.readouterr().out
    assert trainer.state.global_step == 6
    assert torch.equal(trainer.model.weight, undisturbed.model.weight)


def test_weights_alone_are_no_checkpoint_to_go_on_from(tmp_path):
    make(tmp_path, max_steps=2, save_only_model=True).train()
    with pytest.raises(RecipeError, match="save_only_model: .* holds weights without optimizer"):
        make(tmp_path).train(resume_from_checkpoint=True)
