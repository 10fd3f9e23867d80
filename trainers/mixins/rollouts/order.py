"""Which prompts come when and which completions stand together, also in a run that was killed in between."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from trainers.mixins.rollouts.batch import Batch, in_order, load_batches, order_of_groups, save_batches

_PLACE = "place"
"""Key of a batch: where each row stands in the rollout, once its groups are shuffled."""


@dataclass
class RolloutOrderArguments:
    """What recipes of GRPO say about the order of completions. Stands before `trl.GRPOConfig`."""

    keep_groups_together: bool = field(
        default=True, metadata={"help": "Shuffle whole groups instead of rows before cutting micro-batches."}
    )


class OrderOfEpoch(Sampler):
    """A sampler whose order depends on the epoch alone, and not on how often it was asked.

    Args:
        sampler: with a `generator` of its own, if it shuffles.
        seed: of its order in epoch 0.
        epoch: returns the number of the epoch that starts.
    """

    def __init__(self, sampler: Sampler, seed: int, epoch: Callable[[], int]):
        self.sampler = sampler
        self.seed = seed
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = getattr(self.sampler, "generator", None)
        if generator is not None:
            generator.manual_seed(self.seed + self.epoch())
        yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)


class WholeGroups(Sampler):
    """Rows in the order of shuffled groups; those of a group follow each other as they are given.

    Args:
        groups: numbers of rows, each in one group.
    """

    def __init__(self, groups: Sequence[Sequence[int]]):
        self.groups = groups
        self.generator = torch.Generator()

    def __iter__(self) -> Iterator[int]:
        for number in torch.randperm(len(self.groups), generator=self.generator).tolist():
            yield from self.groups[number]

    def __len__(self) -> int:
        return sum(map(len, self.groups))


class OrderedRollouts:
    """The part of a `trl.GRPOTrainer` that keeps the completions of a group together, and goes on after a kill with
    the prompts that would have come and the completions that later steps still use.
    """

    _fits = False
    """Whether stored rollouts are cut as this run's are."""

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        """The parent's; a run resumed in its second epoch sees the prompts that it would have seen."""
        sampler = super()._get_train_sampler(dataset)
        return OrderOfEpoch(sampler, self.args.seed, lambda: int(self.state.epoch or 0))

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler:
        """The parent's; each evaluation sees the same order, also where workers persist."""
        return OrderOfEpoch(super()._get_eval_sampler(eval_dataset), self.args.seed, lambda: 0)

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> Batch:
        """The parent's, but for its shuffle: the rows of a group come together again."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before or not self.args.keep_groups_together:
            return inputs
        self._buffered_inputs = in_order(self._buffered_inputs, _PLACE)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _place_groups(self, batch: Batch) -> None:
        """Notes in a batch of training where its rows are to stand."""
        if self.args.keep_groups_together:
            first = self.accelerator.process_index * len(batch["completion_ids"])
            batch[_PLACE] = order_of_groups(len(batch["completion_ids"]), first, self.num_generations)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def rollout_state(self) -> dict[str, Any]:
        """Where in its rollouts the run is, for a checkpoint."""
        return {"micro_steps": self._step, "layout": self._layout()}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        """Restores what `rollout_state` returned."""
        self._fits = state["layout"] == self._layout()
        self._step = state["micro_steps"] if self._fits else self._micro_steps_so_far()

    def _layout(self) -> dict[str, int]:
        """How rollouts are cut into micro-batches; stored ones fit no other."""
        args = self.args
        return {
            "processes": self.accelerator.num_processes,
            "rows": args.per_device_train_batch_size,
            "accumulation": args.gradient_accumulation_steps,
            "steps_per_generation": args.steps_per_generation,
            "iterations": self.num_iterations,
            "group": self.num_generations,
        }

    def _micro_steps_so_far(self) -> int:
        """Where in the order of its micro-batches the run is, under a layout that is not the checkpoint's.

        In the middle of a rollout its prompts are rolled out anew, and those of its micro-batches that are left count.
        """
        accumulation = self.args.gradient_accumulation_steps
        batches = len(self.get_train_dataloader())
        steps = -(-batches // accumulation)
        epochs, step = divmod(self.state.global_step, steps)
        return epochs * batches + step * accumulation

    def _buffer_file(self, folder: Path) -> Path:
        return folder / f"rollouts_{self.accelerator.process_index}.safetensors"

    def save_process_state(self, folder: Path) -> None:
        """Completions that later steps will still use, where the checkpoint falls between two rollouts."""
        in_use = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        if in_use and self._buffered_inputs is not None:
            save_batches(self._buffered_inputs, self._buffer_file(folder))

    def load_process_state(self, folder: Path) -> None:
        stored = self._buffer_file(folder)
        if self._fits and stored.is_file():
            self._buffered_inputs = load_batches(stored, self.accelerator.device)
