"""What learns from stored groups: an example selector from pointers, a vision-language model from completions.

A policy turns groups into batches, and a batch into the log-probability of every step of every candidate, so that
losses need not know what a candidate is. It calls the model once a batch, through whatever wraps it (DDP, DeepSpeed).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from data.io.records import RecordError
from trainers.groups.data import StoredGroup
from trainers.setup.model import ModelInfo

NEW_SELECTOR = "a new selector"
Batch = dict[str, Any]


@dataclass(frozen=True)
class GroupLogProbs:
    """What a policy thinks of the candidates of a batch: B groups, G candidates, T steps.

    Attributes:
        log_probs: (B, G, T) in nats; 0 where `mask` is False.
        mask: (B, G, T), True at the steps that a candidate has.
        cross_entropy: (B, G, T), -log_probs unless labels are smoothed; 0 where `mask` is False.
    """

    log_probs: torch.Tensor
    mask: torch.Tensor
    cross_entropy: torch.Tensor

    def of_candidates(self, values: torch.Tensor, mean: bool) -> torch.Tensor:
        """(B, G): the sum, or the mean, of (B, G, T) values over a candidate's steps."""
        total = values.masked_fill(~self.mask, 0.0).sum(dim=2)
        return total / self.mask.sum(dim=2).clamp(min=1) if mean else total


class GroupPolicy(Protocol):
    """What trainers ask of a policy.

    Attributes:
        mean_over_steps: whether a candidate counts by the mean over its steps, or by their sum.
    """

    mean_over_steps: ClassVar[bool]

    def prepare(self, group: StoredGroup) -> dict[str, Any]:
        """What `collate` needs of a group, looked up once; a `RecordError` if something is missing."""

    def collate(self, items: Sequence[dict[str, Any]]) -> Batch:
        """A batch of prepared groups; `index` (B,) comes first."""

    def group_log_probs(self, model: nn.Module, batch: Batch) -> GroupLogProbs:
        """Scores a batch, through the wrapped model's forward."""


@dataclass(frozen=True)
class PolicySpec:
    """A policy before its weights are loaded.

    Attributes:
        policy: `None` where the model's processor is out of reach, which only validating a recipe allows.
        load: the model.
        by_length: pointers of different lengths are different groups.
        base_model: for the report.
        processor: saved beside the model.
        model: what is known of a VLM; `None` for a selector.
        records: what the policy reads beside the groups, by name.
    """

    policy: GroupPolicy | None
    load: Callable[[], nn.Module]
    by_length: bool
    base_model: str
    processor: Any = None
    model: ModelInfo | None = None
    records: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def prepare_groups(policy: GroupPolicy, groups: Sequence[StoredGroup]) -> list[dict[str, Any]]:
    """What the policy needs of each group.

    Raises:
        RecordError: lists the problems of all groups.
    """
    items, errors = [], []
    for index, group in enumerate(groups):
        try:
            items.append({"index": index, **policy.prepare(group)})
        except RecordError as error:
            errors.append(error)
    if errors:
        raise RecordError.joined(errors)
    return items
