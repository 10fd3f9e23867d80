"""Rewards of GRPO that fail: all processes stop together, or the row goes without, as each reward's policy says."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import AutoModelForSequenceClassification

from rewards.scoring.failure_policy import (
    LARGEST_REWARD,
    WHY_NO_LARGER,
    Failure,
    GuardedReward,
    RewardError,
    settle,
)
from rewards.scoring.guards import GuardedGroupReward, guard
from trainers.mixins.rollouts.whole_groups import WholeGroups
from trainers.setup.model import init_kwargs

LIBRARY = logging.getLogger("trl.trainer.grpo_trainer")


def load_reward(reward: Any, args: Any) -> Any:
    """A reward model that is given by its name, which the parent would ask for the policy's revision and class; any
    other reward as it is.

    Args:
        args: the trainer's configuration; its `model_init_kwargs` say how the model is loaded.
    """
    if not isinstance(reward, str):
        return reward
    placed = ("revision", "device_map")  # the parent places it later
    options = {"trust_remote_code": args.trust_remote_code} | init_kwargs(args)
    options = {key: value for key, value in options.items() if key not in placed}
    return AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1, **options)


def _guarded(reward: Callable) -> Callable:
    """The reward with `on_error="raise"`, unless it has a policy already or is a model."""
    if isinstance(reward, GuardedReward | torch.nn.Module):
        return reward
    return guard(reward, getattr(reward, "__name__", type(reward).__name__))


class GuardedRewards:
    """The part of a `trl.GRPOTrainer` that guards its rewards while they score (`rewards.scoring.failure_policy`).

    `reward_funcs` hold what was handed over, as the parent's do.
    """

    _reward_rows = 0
    """Scored so far, on all processes."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._reward_errors: Counter[str] = Counter()
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> torch.Tensor:
        """The parent's, with rewards that score groups called for whole ones; then all processes stop together if a
        reward failed on one of them.

        Raises:
            RewardError: on every process, names reward, rank, row and cause.
        """
        given, called = self.reward_funcs, [_guarded(reward) for reward in self.reward_funcs]
        guarded = [reward for reward in called if isinstance(reward, GuardedReward)]
        by_group = {place: one for place, one in enumerate(called) if isinstance(one, GuardedGroupReward)}
        if by_group:
            groups = self._whole_groups(inputs, prompts, completions, completion_ids_list)
            for place, reward in by_group.items():
                called[place] = groups.scored_by(reward, place)

        def says_more(record: logging.LogRecord) -> bool:
            return not (by_group or any(reward.failures for reward in guarded))

        LIBRARY.addFilter(says_more)  # it would show the row as one that no reward applies to, and not say why
        self.reward_funcs = called
        try:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            LIBRARY.removeFilter(says_more)
            self.reward_funcs = given
        if by_group:
            groups.fill(rewards)
        rank = self.accelerator.process_index
        mine = [replace(failure, rank=rank) for reward in guarded for failure in reward.failures]
        failures: list[Failure] = gather_object(mine)
        self._reward_rows += len(rewards)
        if failures or self._reward_errors:
            settle(guarded, failures, self._reward_errors, self._reward_rows)
            self._log_errors(guarded, failures)
        self._check_magnitude(inputs, rewards)
        return rewards

    def _whole_groups(self, inputs, prompts, completions, completion_ids_list) -> WholeGroups:
        """The groups that rewards score on this process."""
        own = ("prompt", "completion", "completion_ids")  # as the parent hands columns on
        rows = [
            {name: value for name, value in row.items() if name not in own}
            | {"prompts": prompt, "completions": completion, "completion_ids": ids}
            for row, prompt, completion, ids in zip(inputs, prompts, completions, completion_ids_list, strict=True)
        ]
        size = self.num_generations if self.model.training else self.num_generations_eval
        return WholeGroups(rows, size, self.accelerator.process_index)

    def _log_errors(self, guarded: list[GuardedReward], failures: list[Failure]) -> None:
        mode = "train" if self.model.training else "eval"
        for reward in guarded:
            errors = sum(failure.reward == reward.name for failure in failures)
            self._metrics[mode][f"rewards/{reward.name}/errors"].append(float(errors))

    def _check_magnitude(self, inputs: list[dict[str, Any]], rewards: torch.Tensor) -> None:
        """Stops where a weighted reward, or the sum of a row's, is too large to compare; so do models as rewards that
        return what is not finite.

        Args:
            rewards: (N, R) of all processes, NaN where a reward does not apply.

        Raises:
            RewardError: on every process, names reward and row.
        """
        weighted = rewards * self.reward_weights.to(rewards)
        models = [isinstance(reward, torch.nn.Module) for reward in self.reward_funcs]
        unsound = weighted.isnan() & torch.tensor(models, device=weighted.device) | (weighted.abs() > LARGEST_REWARD)
        too_large = weighted.nansum(dim=1).abs() > LARGEST_REWARD
        rows = (unsound.any(dim=1) | too_large).nonzero()
        if not len(rows):
            return
        names = gather_object([str(row.get("id", f"{place} of the batch")) for place, row in enumerate(inputs)])
        row = int(rows[0])
        places = unsound[row].nonzero().flatten().tolist() or range(weighted.shape[1])
        parts = [f"'{self.reward_func_names[place]}' gives {weighted[row, place].item()}" for place in places]
        raise RewardError(
            f"step {self.state.global_step + 1}: row {names[row]}: reward {', '.join(parts)} (times its weight); "
            f"expected finite numbers whose sum is between -1e18 and 1e18: {WHY_NO_LARGER}"
        )

    def reward_state(self) -> dict[str, Any]:
        """The errors so far, for a checkpoint."""
        return {"reward_rows": self._reward_rows, "reward_errors": dict(self._reward_errors)}

    def load_reward_state(self, state: dict[str, Any]) -> None:
        """Restores what `reward_state` returned."""
        self._reward_rows = state["reward_rows"]
        self._reward_errors = Counter(state["reward_errors"])
