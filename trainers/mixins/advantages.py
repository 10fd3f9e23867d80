"""Advantages of GRPO: what the completions of a group are compared by, and which of them take part in the loss."""

from dataclasses import dataclass, field
from typing import Any

import torch

from trainers.losses import advantages_of_compared, best_of_group, compared_rewards
from trainers.mixins.dynamic_sampling import Rollout
from trainers.mixins.rollouts.batch import Batch, rows_in
from trainers.schedules import Curriculum

_MEAN_OVER_ROWS = ("grpo", "sapo", "luspo", "dr_grpo")
"""Loss types that average over rows, so that rows that left the loss must leave the average too."""


@dataclass
class AdvantageArguments:
    """What recipes of GRPO say about advantages. Stands before `trl.GRPOConfig`."""

    advantage_clip: float | None = field(
        default=5.0, metadata={"help": "Largest absolute advantage, in standard deviations of the group; null: none."}
    )
    advantage_std_floor: float = field(
        default=0.0, metadata={"help": "Smallest standard deviation of a group's rewards to divide by."}
    )
    curriculum_top_k: int | None = field(
        default=None,
        metadata={"help": "Completions of a group, best first, that count in the first part of training."},
    )
    curriculum_share: float = field(
        default=0.3, metadata={"help": "Share of the optimizer steps that are the first part of training."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.multi_objective_aggregation != "sum_then_normalize" and self.advantage_std_floor > 0:
            raise ValueError("advantage_std_floor needs multi_objective_aggregation: sum_then_normalize")


class GroupAdvantages:
    """The part of a `trl.GRPOTrainer` that computes advantages by `trainers.losses`, and takes rows out of the loss:
    those without any reward, and under a curriculum all but the best of their group.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.curriculum = Curriculum(self.args.curriculum_top_k, self.args.curriculum_share)

    def _compared(self, rewards: torch.Tensor) -> torch.Tensor:
        """(groups, G): what candidates with rewards (groups, G, R) are compared by, NaN where none has any."""
        weights = self.reward_weights.to(rewards.device)
        return compared_rewards(rewards, weights, self.multi_objective_aggregation)

    def _advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        """(groups, G) advantages of all processes."""
        floor, clip = self.args.advantage_std_floor, self.args.advantage_clip
        compared = self._compared(rewards)
        return advantages_of_compared(compared, self.multi_objective_aggregation, self.scale_rewards, floor, clip)

    def _counted_rows(self, rewards: torch.Tensor, mode: str) -> torch.Tensor:
        """(groups, G): the rows that take part in the loss."""
        compared = self._compared(rewards)
        valid = ~compared.isnan()
        k = self.curriculum.k_at(self.state.global_step, self.state.max_steps) if mode == "train" else None
        return valid if k is None else best_of_group(compared.nan_to_num(), valid, k)

    def _finish(self, rollout: Rollout, mode: str) -> None:
        """Puts advantages into the batch, and takes the rows that do not count out of its loss."""
        batch, rows = rollout.batch, rows_in(rollout.batch)
        local = slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)
        batch["advantages"] = self._advantages(rollout.rewards).flatten()[local].to(batch["advantages"].dtype)
        counted = self._counted_rows(rollout.rewards, mode)
        if not counted.all():
            kept = counted.flatten()[local].unsqueeze(1).to(batch["completion_mask"].dtype)  # (rows, 1)
            batch["tool_mask"] = batch.get("tool_mask", torch.ones_like(batch["completion_mask"])) * kept
            batch["row_scale"] = 1 / counted.float().mean().clamp(min=1 / counted.numel())
        loss_mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        batch["num_items_in_batch"] = self.accelerator.gather(loss_mask.sum()).sum()

    def _relog_advantages(self, rewards: torch.Tensor) -> None:
        """Puts this trainer's advantages into the parent's log of completions in place of its own."""
        values = self._advantages(rewards).flatten().tolist()
        log = self._logs["advantages"]
        for _ in range(min(len(values), len(log))):
            log.pop()
        log.extend(values)

    def _compute_loss(self, model, inputs: Batch) -> torch.Tensor:
        """The parent's; rows that left the loss also leave its average.

        Such rows count as zeros in a mean over rows of policy and KL, which are therefore scaled up, by way of
        advantages and beta. The entropy bonus and the load-balancing loss are means over tokens, and stay as they are.
        """
        if "row_scale" not in inputs or self.loss_type not in _MEAN_OVER_ROWS:
            return super()._compute_loss(model, inputs)
        beta, scale = self.beta, inputs["row_scale"]
        self.beta = beta * scale.item()
        try:
            return super()._compute_loss(model, {**inputs, "advantages": inputs["advantages"] * scale})
        finally:
            self.beta = beta
