"""What learns from stored groups: an example selector from pointers, a vision-language model from completions.

A policy turns groups into batches, and a batch into the log-probability of every step of every candidate, so that
losses need not know what a candidate is. It calls the model once a batch, through whatever wraps it (DDP, DeepSpeed).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import nn

from data.io.records import RecordError
from trainers.groups.data import StoredGroup
from trainers.setup.evaluation_rows import Content
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


Kind = Literal["selector", "vlm"]


class GroupPolicy(Protocol):
    """What trainers ask of a policy.

    Attributes:
        kind: as recipes call it.
        mean_over_steps: whether a candidate counts by the mean over its steps, or by their sum.
    """

    kind: ClassVar[Kind]
    mean_over_steps: ClassVar[bool]

    def check_settings(self, args: Any) -> None:
        """Raises `RecipeError` for settings of the trainer that the policy does not read, or says otherwise itself."""

    def check_groups(self, groups: Sequence[StoredGroup], name: str, args: Any) -> None:
        """Raises `RecordError` for groups that the trainer's settings do not allow; `name` is that of the data."""

    def compares_lengths(self, model: nn.Module) -> bool:
        """Whether candidates of different lengths belong to one group."""

    def load(
        self, name: str, args: Any, options: Mapping[str, Any], quantization: Any = None, adapters: Any = None
    ) -> nn.Module:
        """The model of a folder or Hub id, to be trained.

        Args:
            args: of the trainer; their `model_init_kwargs` are taken out.
            options: of `from_pretrained`.
            adapters: PEFT configuration of new ones; by default of all linear layers.

        Raises:
            RecipeError: adapters or quantisation of a selector.
            ValueError: another kind of model than the policy's.
        """

    def set_up(self, model: nn.Module, args: Any) -> None:
        """Makes policy and model what the trainer's settings say, before there is an optimizer."""

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
        query_content: what makes the queries of two groups the same.
        processor: saved beside the model.
        model: what is known of a VLM; `None` for a selector.
        records: what the policy reads beside the groups, by name.
    """

    policy: GroupPolicy | None
    load: Callable[[], nn.Module]
    by_length: bool
    base_model: str
    query_content: Content
    processor: Any = None
    model: ModelInfo | None = None
    records: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def prepare_groups(policy: GroupPolicy, groups: Sequence[StoredGroup]) -> list[dict[str, Any]]:
    """What the policy needs of each group, and its place among them as `index`.

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
