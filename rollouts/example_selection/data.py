"""What making candidates and evaluating selectors share: queries, examples and pools, as records and as tensors."""

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.candidates.embedding_table import EmbeddingTable
from data.candidates.pools import load_pools, pools_without
from data.io.records import RecordError
from data.io.unreadable import Skipping
from data.reports.pool import ItemId
from data.vqa import VqaRecord, load_records, problem_of_scoring, record_ids

MAX_NAMED = 5
"""Ids that a message names; the others are counted."""


@dataclass(frozen=True)
class SelectionData:
    """Queries, each with the examples that it may choose from.

    Attributes:
        queries: in the order of their file.
        examples: every example by its id.
        pools: query id -> ids of its own pool, without the query.
    """

    queries: list[VqaRecord]
    examples: dict[ItemId, VqaRecord]
    pools: dict[ItemId, list[ItemId]]

    def pool_of(self, query: VqaRecord) -> list[ItemId]:
        return self.pools[query.id]


def name_some(ids: Collection[ItemId]) -> str:
    """The first few ids, and how many more there are."""
    shown = ", ".join(repr(item) for item in list(ids)[:MAX_NAMED])
    hidden = len(ids) - MAX_NAMED
    return shown + (f" and {hidden} more" if hidden > 0 else "")


def records_by_id(records: Sequence[VqaRecord], source: str | Path) -> dict[ItemId, VqaRecord]:
    """Records by id, in their order; one without an id goes by its position, from 0.

    Raises:
        RecordError: no records, or a duplicate id.
    """
    if not records:
        raise RecordError([f"{source}: expected at least one record, found none"])
    try:
        ids = record_ids(records)
    except RecordError as error:
        raise error.at(str(source)) from error
    return {
        item: record if record.id is not None else record.model_copy(update={"id": item})
        for item, record in zip(ids, records, strict=True)
    }


def random_pools(
    query_ids: Iterable[ItemId], example_ids: Sequence[ItemId], size: int, seed: int, same_data: bool
) -> dict[ItemId, list[ItemId]]:
    """For each query, `size` examples of its own, drawn with a seed made of `seed` and the query's id.

    Args:
        same_data: the queries are examples too, so that a query has to be kept out of its pool.

    Raises:
        RecordError: fewer examples than `size`.
    """
    available = len(example_ids) - same_data
    if size > available:
        raise RecordError([f"pool size: expected at most {available} (examples beside the query), found {size}"])
    pools = {}
    for query_id in query_ids:
        drawn = random.Random(f"{seed} pool {query_id!r}").sample(example_ids, size + same_data)
        pools[query_id] = [item for item in drawn if not (same_data and item == query_id)][:size]
    return pools


def check_shots(pools: Mapping[ItemId, Sequence[ItemId]], shots: int, source: str | Path) -> None:
    """Raises `RecordError` for pools with fewer examples than are to be shown."""
    short = [query_id for query_id, pool in pools.items() if len(pool) < shots]
    if short:
        raise RecordError(
            [
                f"{source}: {shots} shots need pools of at least {shots} examples beside the query; too small: those "
                f"of the queries {name_some(short)}"
            ]
        )


def load_selection_data(
    queries: tuple[str, str],
    examples: tuple[str, str],
    pools: str | Path | None,
    shots: int,
    pool_size: int | None = None,
    only_pooled: bool = False,
    limit: int | None = None,
    seed: int = 0,
    skipping: Skipping | None = None,
) -> SelectionData:
    """Reads and checks everything that does not need a model.

    Args:
        queries, examples: (file, folder or Hub data set; split).
        pools: a file of candidate pools over the examples, or `None` to draw `pool_size` examples for each query.
        shots: the most examples that will be shown.
        only_pooled: take the queries that have a pool, in the pools' order; otherwise all, and each must have one.
        limit: at most this many queries, the first ones.
        skipping: leaves out queries and examples whose images cannot be read; for given pools.

    Raises:
        RecordError: malformed records, a pool that names an unknown example, a query without a pool or with too small
            a one, or with answers that nothing can match.
    """
    same_data = queries == examples
    skipping = skipping or Skipping(False)
    example_records = records_by_id(load_records(*examples, left_out=skipping.of("examples")), examples[0])
    query_records = example_records
    if not same_data:
        query_records = records_by_id(load_records(*queries, left_out=skipping.of("queries")), queries[0])
    skipping.report()
    if pools is None:
        chosen = list(query_records)[:limit]
        drawn = random_pools(chosen, list(example_records), pool_size, seed, same_data)
    else:
        gone = skipping.ids("examples")
        loaded = load_pools(pools, example_ids=example_records.keys() | gone)
        if only_pooled:
            loaded = dict(list(loaded.items())[:limit])
        loaded = pools_without(loaded, gone if same_data else skipping.ids("queries"), gone)
        chosen = list(loaded if only_pooled else query_records)[:limit]
        if not chosen:
            raise RecordError([f"{pools}: no query is left whose images can be read"])
        having, wanting = (query_records, f"{queries[0]}: no record") if only_pooled else (loaded, f"{pools}: no pool")
        missing = [query_id for query_id in chosen if query_id not in having]
        if missing:
            raise RecordError([f"{wanting} with the query id {name_some(missing)}"])
        drawn = {
            query_id: [item for item in loaded[query_id] if not (same_data and item == query_id)]
            for query_id in chosen
        }
    check_shots(drawn, shots, pools or examples[0])
    scored = {query_id: problem_of_scoring(query_records[query_id]) for query_id in chosen}
    problems = [f"{queries[0]}: query {query_id!r}: {problem}" for query_id, problem in scored.items() if problem]
    if problems:
        raise RecordError(problems)
    return SelectionData([query_records[query_id] for query_id in chosen], example_records, drawn)


@dataclass(frozen=True)
class PoolBatch:
    """Queries and the examples of their pools as a selector takes them.

    Attributes:
        queries: (B, d).
        examples: (U, d), each example of the batch once.
        pools: (B, K) rows of `examples`, -1 = padding.
    """

    queries: torch.Tensor
    examples: torch.Tensor
    pools: torch.Tensor

    @classmethod
    def without_embeddings(cls, sizes: Sequence[int]) -> "PoolBatch":
        """Pools of these sizes about which nothing is known: good for choosing by chance."""
        places = torch.arange(max(sizes))
        pools = torch.where(places < torch.tensor(sizes)[:, None], places, -1)
        return cls(torch.zeros(len(sizes), 0), torch.zeros(max(sizes), 0), pools)

    def to(self, device) -> "PoolBatch":
        return PoolBatch(self.queries.to(device), self.examples.to(device), self.pools.to(device))


def pool_batch(
    query_ids: Sequence[ItemId],
    pools: Sequence[Sequence[ItemId]],
    query_table: EmbeddingTable,
    example_table: EmbeddingTable,
) -> PoolBatch:
    """The tensors of some queries; see `PoolBatch`."""
    rows = example_table.rows([item for pool in pools for item in pool])
    unique, places = np.unique(rows, return_inverse=True)
    lengths = np.array([len(pool) for pool in pools])
    padded = np.full((len(pools), lengths.max()), -1, dtype=np.int64)
    padded[np.arange(lengths.max()) < lengths[:, None]] = places.reshape(-1)
    return PoolBatch(
        torch.from_numpy(query_table.values[query_table.rows(list(query_ids))]),
        torch.from_numpy(example_table.values[unique]),
        torch.from_numpy(padded),
    )


def load_tables(
    queries: str | Path, examples: str | Path, data: SelectionData
) -> tuple[EmbeddingTable, EmbeddingTable]:
    """The tables of the queries and of the examples.

    Raises:
        RecordError: a table that cannot be read or lacks a query or an example of a pool, or different encoders.
    """
    query_table = EmbeddingTable.load(queries)
    example_table = query_table if str(examples) == str(queries) else EmbeddingTable.load(examples)
    problems = []
    needed = dict.fromkeys(item for pool in data.pools.values() for item in pool)
    for path, table, ids in ((queries, query_table, data.pools), (examples, example_table, needed)):
        known = set(table.ids)
        if missing := [item for item in ids if item not in known]:
            problems.append(f"{path}: no embedding of the ids {name_some(missing)}")
    if problems:
        raise RecordError(problems)
    query_table.check_same_encoders(example_table)
    return query_table, example_table


def cosines(query: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Cosine similarity of a query (d,) with each example (K, d); a zero vector is similar to nothing."""
    norms = np.linalg.norm(examples, axis=1) * np.linalg.norm(query)
    return np.divide(examples @ query, norms, out=np.zeros(len(examples), dtype=np.float32), where=norms > 0)


def most_similar_sets(similarities: np.ndarray, size: int, count: int) -> list[tuple[int, ...]]:
    """The `count` sets of `size` positions with the largest summed similarity, best first, ties by position.

    Within a set the most similar position comes first. Only the best `size + count` positions can be in such a set.

    >>> most_similar_sets(np.array([0.1, 0.9, 0.5, 0.6]), size=2, count=3)
    [(1, 3), (1, 2), (3, 2)]
    """
    import heapq

    ranked = np.argsort(-similarities, kind="stable")[: size + count].tolist()
    if size > len(ranked) or count < 1:
        return []

    def total(ranks: tuple[int, ...]) -> float:
        return -math.fsum(float(similarities[ranked[rank]]) for rank in ranks)

    first = tuple(range(size))  # ranks, ascending; moving one rank up by 1 never raises the sum
    waiting, seen, found = [(total(first), first)], {first}, []
    while waiting and len(found) < count:
        _, ranks = heapq.heappop(waiting)
        found.append(tuple(ranked[rank] for rank in ranks))
        for place, rank in enumerate(ranks):
            limit = ranks[place + 1] if place + 1 < size else len(ranked)
            if rank + 1 < limit:
                moved = (*ranks[:place], rank + 1, *ranks[place + 1 :])
                if moved not in seen:
                    seen.add(moved)
                    heapq.heappush(waiting, (total(moved), moved))
    return found
