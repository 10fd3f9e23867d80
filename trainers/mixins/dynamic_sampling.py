"""Which groups are drawn anew when their rewards leave nothing to learn, and where the new ones go.

Groups are numbered over all processes; process p holds the completions p * rows to (p + 1) * rows, so a group may lie
on two of them. All processes must generate equally many completions, or collective operations would not match.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset

from trainers.losses import groups_without_contrast
from trainers.mixins.rollouts.batch import Batch, replace_rows, rows_in


@dataclass(frozen=True)
class Redraw:
    """A plan that is the same on every process.

    Attributes:
        groups: number of each group that is drawn, in the order of the new completions over all processes.
        per_process: groups that each process draws by itself, or `None` if groups lie across processes and every
            completion of the batch is drawn.
    """

    groups: list[int]
    per_process: int | None


def plan_redraw(flat: torch.Tensor, rows: int, size: int) -> Redraw:
    """Draws the flat groups anew, and as many others as it takes for all processes to draw equally many.

    Args:
        flat: (groups,) True where all rewards are equal.
        rows: completions on each process.
        size: completions of a group.
    """
    if rows % size:
        return Redraw(list(range(len(flat))), None)
    by_process = flat.view(-1, rows // size)  # (processes, groups of one)
    count = int(by_process.sum(dim=1).max())
    flat_first = by_process.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    offsets = torch.arange(len(by_process), device=flat.device).unsqueeze(1) * (rows // size)
    return Redraw((flat_first + offsets).flatten().tolist(), count)


def rows_to_draw(plan: Redraw, process: int, rows: int, size: int) -> list[int]:
    """For each completion that a process draws, the position in `plan.groups` of its group."""
    if plan.per_process is None:
        return [(process * rows + row) // size for row in range(rows)]
    first = process * plan.per_process
    return [first + group for group in range(plan.per_process) for _ in range(size)]


def rows_to_replace(
    plan: Redraw, accepted: list[bool], process: int, rows: int, size: int
) -> tuple[list[int], list[int]]:
    """Local rows of the batch that are replaced, and the rows of the new completions that replace them.

    Args:
        accepted: for each of `plan.groups`, whether the new group takes the old one's place.
    """
    drawn = rows_to_draw(plan, process, rows, size)
    replaced, replacements = [], []
    for new_row, position in enumerate(drawn):
        if accepted[position]:
            within = new_row if plan.per_process is None else new_row % size
            old_row = within if plan.per_process is None else plan.groups[position] * size - process * rows + within
            replaced.append(old_row)
            replacements.append(new_row)
    return replaced, replacements


def without_contrast(rewards: torch.Tensor) -> torch.Tensor:
    """(groups,) of rewards (groups, G): see `groups_without_contrast`; NaN marks candidates without a reward."""
    return groups_without_contrast(rewards.nan_to_num(), ~rewards.isnan())


@dataclass
class Rollout:
    """One round of generated and scored completions.

    Attributes:
        inputs: rows of the data set, one a local completion.
        batch: of this process.
        rewards: (groups, G, R) of all processes, NaN where a reward does not apply.
    """

    inputs: list[dict[str, Any]]
    batch: Batch
    rewards: torch.Tensor


@dataclass
class DynamicSamplingArguments:
    """What recipes of GRPO say about groups without contrast. Stands before `trl.GRPOConfig`."""

    dynamic_sampling_rounds: int = field(
        default=0,
        metadata={"help": "How often groups whose rewards are all equal are replaced by groups of other prompts."},
    )


class DynamicSampling:
    """The part of a `trl.GRPOTrainer` that replaces groups without contrast.

    The trainer has `_roll_out`, and `_compared`: what the candidates of a rollout are compared by.

    Raises:
        ValueError: other prompts cannot be looked up in the training data.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.dynamic_sampling_rounds and not isinstance(self.train_dataset, Dataset):
            raise ValueError(
                f"dynamic_sampling_rounds: expected 0 with a streamed {type(self.train_dataset).__name__}, found "
                f"{self.args.dynamic_sampling_rounds}: other rows are looked up by number, which needs a Dataset"
            )

    def _draw_until_contrast(self, rollout: Rollout) -> Rollout:
        """Replaces groups without contrast by groups of other prompts, a limited number of times."""
        drawn = 0
        flat = without_contrast(self._compared(rollout.rewards))
        for attempt in range(self.args.dynamic_sampling_rounds):
            if not flat.any():
                break
            plan = plan_redraw(flat, rows_in(rollout.batch), self.num_generations)
            rollout = self._redraw(rollout, flat, plan, attempt)
            flat = without_contrast(self._compared(rollout.rewards))
            drawn += len(plan.groups)
        self._metrics["train"]["dynamic_sampling/groups_drawn"].append(float(drawn))
        self._metrics["train"]["dynamic_sampling/frac_zero_std_left"].append(flat.float().mean().item())
        return rollout

    def _redraw(self, rollout: Rollout, flat: torch.Tensor, plan: Redraw, attempt: int) -> Rollout:
        process, rows, size = self.accelerator.process_index, rows_in(rollout.batch), self.num_generations
        # The prompts depend on seed, step and attempt alone: the same on every process, and after resuming.
        generator = torch.Generator().manual_seed(self.args.seed + 1_000_003 * (self._step + 1) + attempt)
        picks = torch.randint(len(self.train_dataset), (len(plan.groups),), generator=generator).tolist()
        prompts = {index: self.train_dataset[index] for index in set(picks)}
        drawn_rows = rows_to_draw(plan, process, rows, size)
        with self._without_logging():
            drawn = self._roll_out([dict(prompts[picks[position]]) for position in drawn_rows])
        drawn_flat = without_contrast(self._compared(drawn.rewards))
        accepted = [bool(flat[group]) and not drawn_flat[place] for place, group in enumerate(plan.groups)]
        rewards, inputs = rollout.rewards.clone(), list(rollout.inputs)
        for place, group in enumerate(plan.groups):
            if accepted[place]:
                rewards[group] = drawn.rewards[place]
        replaced, replacements = rows_to_replace(plan, accepted, process, rows, size)
        for row, new_row in zip(replaced, replacements, strict=True):
            inputs[row] = drawn.inputs[new_row]
        pad = self.model.config.get_text_config().pad_token_id
        return Rollout(inputs, replace_rows(rollout.batch, replaced, drawn.batch, replacements, pad), rewards)

    @contextmanager
    def _without_logging(self) -> Iterator[None]:
        """Leaves the logged figures those of the prompts as they came, which no selection has touched.

        Errors of rewards are counted all the same.
        """
        metrics, logs = self._metrics["train"], self._logs
        self._metrics["train"] = defaultdict(list)
        self._logs: dict[str, Any] = {
            key: defaultdict(list) if isinstance(value, dict) else [] for key, value in logs.items()
        }
        try:
            yield
        finally:
            drawn, self._metrics["train"], self._logs = self._metrics["train"], metrics, logs
            for key, values in drawn.items():
                if key.startswith("rewards/") and key.endswith("/errors"):
                    metrics[key][-1:] = [sum([*metrics[key][-1:], *values])]
