"""T2: a run stops at the first value that is not finite, before it reaches the weights or a file."""

import math

import pytest
import torch
from grpo_runs import make_trainer
from torch import nn
from transformers import Trainer, TrainingArguments

from rewards.scoring.failure_policy import RewardError
from trainers.mixins.non_finite import FiniteTraining, NotFiniteError


class OneWeight(nn.Module):
    """The loss is what `loss` makes of the weight."""

    def __init__(self, loss):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.loss = loss

    def forward(self, x=None, return_loss=True):
        return {"loss": self.loss(self.weight), "logits": self.weight}


class FiniteTrainer(FiniteTraining, Trainer):
    pass


def _trainer(tmp_path, loss, **settings):
    args = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
        report_to="none",
        max_steps=3,
        save_steps=1,
        disable_tqdm=True,
        **settings,
    )
    return FiniteTrainer(OneWeight(loss), args, train_dataset=[{"x": 1.0}] * 8, eval_dataset=[{"x": 1.0}] * 2)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda weight: weight.sum() * math.nan, "step 1: the loss on rank 0 is nan"),
        (lambda weight: weight.sum() * 1e39, "step 1: the loss on rank 0 is inf"),
        (lambda weight: -weight.sum() * 1e39, "step 1: the loss on rank 0 is -inf"),
        (lambda weight: (weight - 1).sum().sqrt(), "step 1: the gradient norm is (nan|inf)"),
        (lambda weight: (weight.log() ** 0.5).sum(), "step 1: the gradient norm is (nan|inf)"),
    ],
)
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_t02_losses_and_gradients_stop_the_run(tmp_path, loss, message, max_grad_norm):
    trainer = _trainer(tmp_path, loss, max_grad_norm=max_grad_norm)
    with pytest.raises(NotFiniteError, match=message):
        trainer.train()
    assert trainer.model.weight.tolist() == [1, 1]  # the update was not made
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_t02_weights_are_not_saved(tmp_path, value):
    trainer = _trainer(tmp_path, lambda weight: weight.sum())
    with torch.no_grad():
        trainer.model.weight[1] = value
    with pytest.raises(NotFiniteError, match="step 0: the weight 'weight' is not finite"):
        trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_t02_an_update_that_overflows_is_not_saved(tmp_path):
    trainer = _trainer(tmp_path, lambda weight: 10 * weight.sum(), learning_rate=3e38, max_grad_norm=0.0, optim="sgd")
    with pytest.raises(NotFiniteError, match="step 1: the weight 'weight' is not finite"):
        trainer.train()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_t02_evaluation_losses_stop_the_run(tmp_path):
    trainer = _trainer(tmp_path, lambda weight: weight.sum() * math.nan)
    with pytest.raises(NotFiniteError, match="step 0: eval_loss is nan"):
        trainer.evaluate()


def _rewards(value):
    def fine(completions, **_):
        return [0.5 * (number % 2) for number in range(len(completions))]

    def large(completions, **_):
        return [value if number == 5 else 1.0 for number in range(len(completions))]

    return [fine, large]


@pytest.mark.parametrize("value", [1e39, -1e39, 1e300, 1e30, math.inf, math.nan])
def test_t02_rewards_name_reward_and_row(tiny_model, tmp_path, value):
    trainer = make_trainer(str(tiny_model), tmp_path, _rewards(value), max_steps=1)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    with pytest.raises(RewardError, match=r"reward 'large' failed.* at row 'r\d+'"):
        trainer.train()
    assert all(torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters())


def test_t02_weights_of_rewards_that_overflow_name_reward_and_row(tiny_model, tmp_path):
    trainer = make_trainer(str(tiny_model), tmp_path, _rewards(1e15), max_steps=1, reward_weights=[1.0, 1e10])
    with pytest.raises(RewardError, match=r"step 1: row r\d+: reward 'large' gives 1e\+25|9\.99.*e\+24"):
        trainer.train()


@pytest.mark.parametrize("value", [1e39, -1e39, 1e300])
def test_t02_stored_rewards_are_refused_when_they_are_read(value):
    from pydantic import ValidationError

    from data.candidate_groups import Candidate

    for field in ({"reward": value}, {"scores": {"a": value}}):
        with pytest.raises(ValidationError, match="than or equal to -?1000000000000000000"):
            Candidate.model_validate({"completion": "a", **field})


def test_t02_every_trainer_stops():
    from trainers.factors import FactorTrainer
    from trainers.grpo import GRPOTrainer
    from trainers.offline_grpo import OfflineGRPOTrainer
    from trainers.rce import RCETrainer
    from trainers.reward import RewardTrainer
    from trainers.sft import SelectorSFTTrainer, SFTTrainer

    for trainer in (
        FactorTrainer,
        GRPOTrainer,
        OfflineGRPOTrainer,
        RCETrainer,
        RewardTrainer,
        SelectorSFTTrainer,
        SFTTrainer,
    ):
        order = trainer.__mro__
        assert order.index(FiniteTraining) < order.index(Trainer)
        assert all("save_model" not in cls.__dict__ for cls in order[: order.index(FiniteTraining)])
