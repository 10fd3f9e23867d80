"""Scoring rows from a file with rewards: in chunks, on all cores where the rewards read texts only."""

import os
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import partial

from tqdm import tqdm

from data.cli.processes import process_pool
from data.io.digests import rows_digest
from rewards.base import Reward
from rewards.registry import RewardSpec, build_rewards, needed_columns, optional_columns
from rewards.scoring.columns import QUESTIONS
from rewards.scoring.failure_policy import Failure, GuardedReward, settle
from rewards.scoring.guards import GuardedGroupReward, scores_of

CHUNK = 2_048
PARALLEL_FROM = 4 * CHUNK
"""Rows below which starting processes costs more than it saves."""

Scores = dict[str, list[float | None]]


def _columns(rewards: Sequence[GuardedReward], rows: Sequence[dict]) -> dict[str, list]:
    """Columns of the rows; optional ones too that these rows lack, because other rows may have them."""
    names = {name for row in rows for name in row if name != "completion"}
    names |= {name for reward in rewards for name in optional_columns(reward)}
    return {name: [row.get(name) for row in rows] for name in sorted(names)}


def group_labels(rows: Sequence[dict]) -> list[Hashable]:
    """Of each row, equal for completions of one prompt: its `id`; without one, what its prompt and images hold.

    Rows with neither id nor prompt are groups of their own.
    """
    labels: list[Hashable] = []
    for number, row in enumerate(rows):
        asked = {name: row[name] for name in QUESTIONS if row.get(name) is not None}
        if row.get("id") is not None:
            labels.append(("id", row["id"]))
        elif asked:
            labels.append(("prompt", rows_digest([{**asked, "shown": row.get("images")}])))  # files by their paths
        else:
            labels.append(("row", number))
    return labels


def _score_groups(rewards: Sequence[GuardedReward]) -> bool:
    return any(isinstance(reward, GuardedGroupReward) for reward in rewards)


def score_chunk(
    rewards: Sequence[GuardedReward], rows: Sequence[dict], groups: Sequence[Hashable] | None = None
) -> tuple[Scores, list[Failure]]:
    """Scores of some rows by every reward, and the rows that failed.

    Args:
        groups: of each row, for rewards that score groups, which are whole in `rows`; by default `group_labels`.
    """
    if groups is None:
        groups = group_labels(rows) if _score_groups(rewards) else range(len(rows))
    completions = [row["completion"] for row in rows]
    columns = _columns(rewards, rows)
    columns.setdefault("prompts", [row.get("prompt") for row in rows])
    scores, failures = {}, []
    for reward in rewards:
        scores[reward.name] = scores_of(reward, completions, columns, groups)
        failures.extend(reward.failures)
    return scores, failures


def _score_in_worker(specs: list[RewardSpec], agents, rows: list[dict]) -> tuple[Scores, list[Failure]]:
    return score_chunk(_worker_rewards(specs, agents), rows)


_built: dict[str, list[GuardedReward]] = {}


def _worker_rewards(specs: list[RewardSpec], agents) -> list[GuardedReward]:
    key = repr((specs, agents))
    if key not in _built:
        _built[key] = build_rewards(specs, agents)
    return _built[key]


def _is_text_only(reward: GuardedReward) -> bool:
    own = reward.function
    return isinstance(own, Reward) and own.text_only and not own.scores_groups


def _chunks(groups: Sequence[Hashable]) -> list[list[int]]:
    """Numbers of rows, in chunks of whole groups that have at most `CHUNK` rows together.

    Args:
        groups: of each row.
    """
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    chunks: list[list[int]] = []
    for numbers in members.values():
        if not chunks or len(chunks[-1]) + len(numbers) > CHUNK:
            chunks.append([])
        chunks[-1] += numbers
    return chunks


def _only(rows: Sequence[dict], columns: set[str]) -> list[dict]:
    """Rows with nothing but what text rewards need, so that little travels to the workers."""
    return [{name: row[name] for name in columns if name in row} for row in rows]


def score_rows(
    specs: Sequence[RewardSpec],
    agents: Sequence[str | dict] | None,
    rows: Sequence[dict],
    workers: int | None = None,
    rewards: Sequence[GuardedReward] | None = None,
) -> tuple[Scores, list[Failure]]:
    """Scores of all rows, in their order, by reward name; and every failure.

    Args:
        specs, agents: as in a recipe.
        rows: one without `id` is called by its number.
        workers: processes for the rewards that read texts only; by default one a core.
        rewards: those of `specs`, where they are made already.

    Raises:
        RewardError: see `rewards.scoring.failure_policy.settle`.
    """
    rewards = build_rewards(specs, agents) if rewards is None else rewards
    groups = group_labels(rows) if _score_groups(rewards) else range(len(rows))
    rows = [row if row.get("id") is not None else {**row, "id": number} for number, row in enumerate(rows)]
    workers = os.cpu_count() if workers is None else workers
    parallel = [_is_text_only(reward) and workers > 1 and len(rows) >= PARALLEL_FROM for reward in rewards]
    scores: Scores = {reward.name: [None] * len(rows) for reward in rewards}
    failures: list[Failure] = []
    failed: Counter[str] = Counter()

    def collect(numbers: list[int], result: tuple[Scores, list[Failure]]) -> None:
        for name, values in result[0].items():
            for number, value in zip(numbers, values, strict=True):
                scores[name][number] = value
        failures.extend(result[1])
        settle(rewards, result[1], failed, len(rows))

    here = [reward for reward, elsewhere in zip(rewards, parallel, strict=True) if not elsewhere]
    if here:
        for numbers in tqdm(_chunks(groups), desc="scoring", unit="chunk", disable=len(rows) < CHUNK):
            chunk = [rows[number] for number in numbers]
            collect(numbers, score_chunk(here, chunk, [groups[number] for number in numbers]))
    there = [spec for spec, elsewhere in zip(specs, parallel, strict=True) if elsewhere]
    if there:
        columns = {"completion", "id"}
        for reward, elsewhere in zip(rewards, parallel, strict=True):
            columns |= set(needed_columns(reward)) if elsewhere else set()
        chunks = _chunks(range(len(rows)))
        parts = [_only([rows[number] for number in numbers], columns) for numbers in chunks]
        with process_pool(workers) as processes:
            results = processes.map(partial(_score_in_worker, there, agents), parts)
            for numbers, result in zip(
                chunks, tqdm(results, total=len(parts), desc="scoring", unit="chunk"), strict=True
            ):
                collect(numbers, result)
    return scores, failures
