"""Scoring rows from a file with rewards: in chunks, on all cores where the rewards read texts only."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from tqdm import tqdm

from data.cli.processes import process_pool
from rewards.base import Reward
from rewards.registry import RewardSpec, build_rewards, needed_columns, optional_columns
from rewards.scoring.failure_policy import Failure, GuardedAsyncReward, GuardedReward, settle

CHUNK = 2_048
PARALLEL_FROM = 4 * CHUNK
"""Rows below which starting processes costs more than it saves."""

Scores = dict[str, list[float | None]]


def _columns(rewards: Sequence[GuardedReward], rows: Sequence[dict]) -> dict[str, list]:
    """Columns of the rows; optional ones too that these rows lack, because other rows may have them."""
    names = {name for row in rows for name in row if name != "completion"}
    names |= {name for reward in rewards for name in optional_columns(reward)}
    return {name: [row.get(name) for row in rows] for name in sorted(names)}


def score_chunk(rewards: Sequence[GuardedReward], rows: Sequence[dict]) -> tuple[Scores, list[Failure]]:
    """Scores of some rows by every reward, and the rows that failed."""
    completions = [row["completion"] for row in rows]
    columns = _columns(rewards, rows)
    columns.setdefault("prompts", [row.get("prompt") for row in rows])
    scores, failures = {}, []
    for reward in rewards:
        result = reward(completions, **columns)
        scores[reward.name] = asyncio.run(result) if isinstance(reward, GuardedAsyncReward) else result
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
    return isinstance(reward.function, Reward) and reward.function.text_only


def _chunks(rows: Sequence[dict]) -> Iterator[list[dict]]:
    return (list(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK))


def _only(rows: list[dict], columns: set[str]) -> list[dict]:
    """Rows with nothing but what text rewards need, so that little travels to the workers."""
    return [{name: row[name] for name in columns if name in row} for row in rows]


def score_rows(
    specs: Sequence[RewardSpec],
    agents: Sequence[str | dict] | None,
    rows: Sequence[dict],
    workers: int | None = None,
) -> tuple[Scores, list[Failure]]:
    """Scores of all rows, in their order, by reward name; and every failure.

    Args:
        specs, agents: as in a recipe.
        rows: one without `id` is called by its number.
        workers: processes for the rewards that read texts only; by default one a core.

    Raises:
        RewardError: see `rewards.scoring.failure_policy.settle`.
    """
    rewards = build_rewards(specs, agents)
    rows = [row if row.get("id") is not None else {**row, "id": number} for number, row in enumerate(rows)]
    workers = os.cpu_count() if workers is None else workers
    parallel = [_is_text_only(reward) and workers > 1 and len(rows) >= PARALLEL_FROM for reward in rewards]
    scores: Scores = {reward.name: [] for reward in rewards}
    failures: list[Failure] = []
    failed: Counter[str] = Counter()

    def collect(result: tuple[Scores, list[Failure]]) -> None:
        for name, values in result[0].items():
            scores[name].extend(values)
        failures.extend(result[1])
        settle(rewards, result[1], failed, len(rows))

    here = [reward for reward, elsewhere in zip(rewards, parallel, strict=True) if not elsewhere]
    if here:
        for chunk in tqdm(list(_chunks(rows)), desc="scoring", unit="chunk", disable=len(rows) < CHUNK):
            collect(score_chunk(here, chunk))
    there = [spec for spec, elsewhere in zip(specs, parallel, strict=True) if elsewhere]
    if there:
        columns = {"completion", "id"}
        for reward, elsewhere in zip(rewards, parallel, strict=True):
            columns |= set(needed_columns(reward)) if elsewhere else set()
        chunks = [_only(chunk, columns) for chunk in _chunks(rows)]
        with process_pool(workers) as processes:
            results = processes.map(partial(_score_in_worker, there, agents), chunks)
            for result in tqdm(results, total=len(chunks), desc="scoring", unit="chunk"):
                collect(result)
    return scores, failures
