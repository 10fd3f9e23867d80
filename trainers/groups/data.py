"""Stored groups as trainers read them: candidates of one query with a reward each, ready for a policy.

Where the reward comes from is the recipe's choice: what is stored as `reward`, another stored field
(`reward_field`), or rewards of the registry that score the candidates anew (`reward_funcs`).
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.candidate_groups import Candidate, CandidateGroup, load_groups
from data.candidates.pools import load_pools
from data.io.records import RecordError
from data.reports.pool import ItemId
from rewards.registry import build_rewards, with_tables
from rewards.scoring.columns import check_columns
from rewards.scoring.failure_policy import GuardedReward, settle
from rewards.scoring.guards import scores_of
from trainers.groups.arguments import GroupArguments
from trainers.losses import groups_without_contrast
from trainers.setup.recipes import DataArguments
from trainers.setup.task_data import load_task_rows

logger = logging.getLogger(__name__)

KINDS = {"selector": "pointer", "vlm": "completion"}
"""Which candidates each policy learns from."""


@dataclass(frozen=True)
class HeldOutId:
    """A query of the evaluation, where those have a table of their own: a query of training may have the same id."""

    id: ItemId

    def __repr__(self) -> str:
        return f"{self.id!r} (of the evaluation)"


@dataclass(frozen=True)
class StoredGroup:
    """Candidates that are compared with each other.

    Attributes:
        id: of the query, as in its table.
        where: the group, for messages.
        candidates: pointers of one selector, or completions.
        rewards: of each, `None` where none applies.
        accuracies: what `eval_accuracy` averages.
        pool: ids that a pointer could choose from.
        columns: of the query: `prompt`, `images`, ...
    """

    id: ItemId | HeldOutId
    where: str
    candidates: Sequence[Candidate]
    rewards: Sequence[float | None]
    accuracies: Sequence[float | None]
    pool: Sequence[ItemId] | None = None
    columns: dict[str, Any] | None = None


class RewardTable:
    """Rewards of all groups of a run.

    Attributes:
        rewards, accuracies: (N, G), 0 where there is none.
        valid: (N, G), True where a candidate has a reward.
        measured: (N, G), True where it has an accuracy.
    """

    def __init__(self, groups: Sequence[StoredGroup]):
        size = max(len(group.candidates) for group in groups)
        self.rewards, self.valid = _padded([group.rewards for group in groups], size)
        self.accuracies, self.measured = _padded([group.accuracies for group in groups], size)

    def rows(self, index: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, size) rewards, and which are valid, on the device of `index` (B,)."""
        at = index.cpu()
        return self.rewards[at, :size].to(index.device), self.valid[at, :size].to(index.device)

    def accuracy_rows(self, index: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of what `eval_accuracy` averages."""
        at = index.cpu()
        return self.accuracies[at, :size].to(index.device), self.measured[at, :size].to(index.device)


def _padded(rows: Sequence[Sequence[float | None]], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    filled = [[*row, *[None] * (size - len(row))] for row in rows]
    values = torch.tensor([[0.0 if value is None else value for value in row] for row in filled])
    return values, torch.tensor([[value is not None for value in row] for row in filled])


# -- reading ----------------------------------------------------------------------------------------------------------


def load_stored_groups(arguments: GroupArguments, split: str, by_length: bool = True) -> list[StoredGroup]:
    """Groups of a split with their rewards.

    Args:
        by_length: pointers of different lengths are different groups, because a selector that is told how many
            examples to choose never has to prefer one length to another.

    Raises:
        RecordError: malformed groups, candidates of another kind than the policy's, no pool, no prompt, no rewards.
        RewardError: a reward failed.
    """
    return stored_groups(load_groups(arguments.dataset_name, split), arguments, split, by_length)


def stored_groups(
    groups: Sequence[CandidateGroup], arguments: GroupArguments, split: str = "train", by_length: bool = True
) -> list[StoredGroup]:
    """The same of groups that have been read (`data.candidate_groups.load_groups`).

    Args:
        arguments: what is said of the groups; their `dataset_name` stands in messages.
        split: of `task_data`.
    """
    source = arguments.dataset_name
    expected = KINDS[arguments.policy]
    if groups[0].kind != expected:
        other = next(name for name, kind in KINDS.items() if kind != expected)
        raise RecordError(
            [
                f"{source}: field 'candidates': policy: {arguments.policy} learns from {expected}s, found "
                f"{groups[0].kind}s (for policy: {other})"
            ]
        )
    columns = _columns(arguments, split, groups)
    rewards = _rewards(arguments, groups, columns)
    accuracies = rewards
    if arguments.accuracy_field is not None:
        accuracies = [[_field(one, arguments.accuracy_field) for one in group.candidates] for group in groups]
        _check_any(accuracies, f"{source}: accuracy_field: no candidate has a field '{arguments.accuracy_field}'")
    pools = _pools(arguments, groups)
    stored = [
        StoredGroup(group.id, f"{source}: group {group.name}", group.candidates, scores, measured, pool, given)
        for group, scores, measured, pool, given in zip(groups, rewards, accuracies, pools, columns, strict=True)
    ]
    if arguments.policy == "selector":
        stored = [part for group in stored for part in _parts(group, arguments.shots, by_length)]
        if not stored:
            raise RecordError([f"{source}: no candidate has {arguments.shots} examples (shots)"])
    return _with_rewards(stored, source, arguments.shots)


def _field(candidate: Candidate, name: str) -> float | None:
    """A number that is stored with a candidate, in a field or in its scores."""
    value = (
        getattr(candidate, name, None) if name in Candidate.model_fields else (candidate.model_extra or {}).get(name)
    )
    if value is None and candidate.scores is not None:
        value = candidate.scores.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError([f"field '{name}' of a candidate: expected a number, found {value!r:.80}"])
    return float(value)


def _check_any(values: Sequence[Sequence[float | None]], message: str) -> None:
    if all(value is None for row in values for value in row):
        raise RecordError([message])


def _columns(arguments: GroupArguments, split: str, groups: Sequence[CandidateGroup]) -> list[dict[str, Any]]:
    """What is known of each query: the columns of the task's data set, and those of its group."""
    own = [dict(group.model_extra or {}) for group in groups]
    if arguments.policy == "selector":
        return own
    tasks: dict[ItemId, dict] = {}
    if arguments.task_data is not None:
        task_arguments = DataArguments(
            dataset_name=arguments.task_data, agents=arguments.agents, answer_tags=arguments.answer_tags
        )
        tasks = {row["id"]: row for row in load_task_rows(task_arguments, split, check_files=True)}
    source = arguments.task_data or "task_data is not set, and the group has none"
    joined, problems = [], []
    for group, given in zip(groups, own, strict=True):
        columns, problem = _joined(tasks.get(group.id, {}), given, source)
        joined.append(columns)
        if problem is not None:
            problems.append(f"{arguments.dataset_name}: group {group.name}: {problem}")
    if problems:
        raise RecordError(problems)
    return joined


def _joined(task: dict[str, Any], given: dict[str, Any], source: str) -> tuple[dict[str, Any], str | None]:
    """(columns of a query, what is wrong with them): those of the task's row, and those of the group over them.

    Args:
        source: of the task's row, for messages.
    """
    if given.get("prompt") is not None:  # its images are placed in it already
        return {**task, **given}, None
    images, others = (
        given.get("images"),
        {name: one for name, one in given.items() if name not in ("prompt", "images")},
    )
    columns = {"images": [], **task, **others}
    if columns.get("prompt") is None:
        return columns, f"field 'prompt': expected a text or chat messages, found None ({source})"
    if images and images != columns["images"]:
        problem = f"field 'images': expected none, or those of the prompt of {source}, found {images!r:.80}"
        return columns, problem
    return columns, None


def _pools(arguments: GroupArguments, groups: Sequence[CandidateGroup]) -> list[Sequence[ItemId] | None]:
    if arguments.policy == "vlm":
        return [None] * len(groups)
    stored = load_pools(arguments.pools) if arguments.pools is not None else {}
    found, problems = [], []
    for group in groups:
        pool = group.pool if group.pool is not None else stored.get(group.id)
        where = f"{arguments.dataset_name}: group {group.name}"
        if pool is None:
            hint = (
                f"{arguments.pools} has none for it" if arguments.pools else "set pools to a file of candidate pools"
            )
            problems.append(f"{where}: field 'pool': missing, so what the query could choose from is unknown; {hint}")
        elif group.pool is None:
            inside = set(pool)
            outside = [item for one in group.candidates for item in one.pointer or () if item not in inside]
            if outside:
                problems.append(f"{where}: field 'pointer': {outside[0]!r} is not in the pool of {arguments.pools}")
        found.append(pool)
    if problems:
        raise RecordError(problems)
    return found


def _parts(group: StoredGroup, shots: Sequence[int] | None, by_length: bool) -> Iterator[StoredGroup]:
    """The candidates that are learned from, and compared with each other."""
    lengths = [len(candidate.pointer or ()) for candidate in group.candidates]
    wanted = sorted({length for length in lengths if shots is None or length in shots})
    for chosen in [[length] for length in wanted] if by_length else [wanted]:
        kept = [place for place, length in enumerate(lengths) if length in chosen]
        if kept:
            rows = (
                [values[place] for place in kept] for values in (group.candidates, group.rewards, group.accuracies)
            )
            yield StoredGroup(group.id, group.where, *rows, group.pool, group.columns)


def _with_rewards(groups: Sequence[StoredGroup], source: str, shots: Sequence[int] | None) -> list[StoredGroup]:
    """The groups in which some candidate has a reward.

    Raises:
        RecordError: none is left; `shots` has left out all candidates that have one.
    """
    kept = [group for group in groups if any(reward is not None for reward in group.rewards)]
    if not kept:
        raise RecordError([f"{source}: shots: no candidate with a reward is left among those of {shots} examples"])
    if len(kept) < len(groups):
        logger.warning(
            "%s: %d of %d groups have no reward and are left out", source, len(groups) - len(kept), len(groups)
        )
    table = RewardTable(kept)
    flat = groups_without_contrast(table.rewards, table.valid)
    if flat.all():
        logger.warning("%s: the rewards of every group are all equal: there is nothing to prefer", source)
    return kept


# -- rewards ----------------------------------------------------------------------------------------------------------


def _rewards(
    arguments: GroupArguments, groups: Sequence[CandidateGroup], columns: Sequence[dict]
) -> list[list[float | None]]:
    source = arguments.dataset_name
    if arguments.reward_funcs:
        rewards = build_rewards(with_tables(arguments.reward_funcs, vars(arguments)), arguments.agents)
        weights = arguments.reward_weights or [1.0] * len(rewards)
        scored = _scored(rewards, weights, groups, columns, source)
        names = ", ".join(reward.name for reward in rewards)
        _check_any(scored, f"{source}: reward_funcs: {names} applies to no candidate")
        return scored
    name = arguments.reward_field or "reward"
    stored = [[_field(candidate, name) for candidate in group.candidates] for group in groups]
    hint = "reward_field names another one, reward_funcs score the candidates"
    _check_any(stored, f"{source}: no candidate has a '{name}' to learn from; {hint}")
    return stored


def _scored(
    rewards: Sequence[GuardedReward],
    weights: Sequence[float],
    groups: Sequence[CandidateGroup],
    columns: Sequence[dict],
    source: str,
) -> list[list[float | None]]:
    """Weighted sum of the rewards that apply to each candidate."""
    rows = [
        _reward_row(group, given, one)
        for group, given in zip(groups, columns, strict=True)
        for one in group.candidates
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    table = {name: [row.get(name) for row in rows] for name in names}
    check_columns(rewards, [{name: row.get(name) for name in names} for row in rows], source)
    completions = [one.completion or "" for group in groups for one in group.candidates]
    members = [number for number, group in enumerate(groups) for _ in group.candidates]
    totals: list[float | None] = [None] * len(rows)
    for reward, weight in zip(rewards, weights, strict=True):
        for place, score in enumerate(_checked_scores(reward, completions, table, members)):
            if score is not None:
                totals[place] = (totals[place] or 0.0) + weight * score
    scores = iter(totals)
    return [[next(scores) for _ in group.candidates] for group in groups]


def _reward_row(group: CandidateGroup, columns: dict, candidate: Candidate) -> dict[str, Any]:
    """What rewards may read of a candidate: its query's columns, its own fields, and each of its scores."""
    fields = {name: getattr(candidate, name) for name in Candidate.model_fields if name != "completion"}
    return {**columns, **fields, **(candidate.model_extra or {}), "id": group.id}


def _checked_scores(
    reward: GuardedReward, completions: list[str], table: dict[str, list], members: list[int]
) -> list[float | None]:
    scores = scores_of(reward, completions, table, members)
    settle([reward], reward.failures, Counter(), len(completions))
    if reward.failures:
        logger.warning("reward '%s' failed for %d candidates, which have none", reward.name, len(reward.failures))
    return scores
