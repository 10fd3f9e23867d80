"""Candidate pools: for each query, the examples that may be shown for it. JSONL, a query a line.

    {"query_id": 17, "pool": [512, 33, 7, ...], "sampler": "text_similarity"}

Ids are integers or texts, as in the data sets of VQA records; the order of a pool is kept.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from pydantic import ConfigDict, StrictStr
from tqdm import tqdm

from data.io.field_types import IdList, OneId
from data.io.records import Location, Record, RecordError, parse_row, parsed_rows, read_rows, write_jsonl
from data.reports.pool import ItemId


class PoolRecord(Record):
    """The pool of one query, and the name of what drew it."""

    model_config = ConfigDict(extra="forbid")

    query_id: OneId
    pool: IdList
    sampler: StrictStr | None = None


def load_pools(path: str | Path, example_ids: Container[ItemId] | None = None) -> dict[ItemId, list[ItemId]]:
    """Pools by query id, in the order of the file.

    Args:
        example_ids: of the data set that the pools were drawn from; every id of a pool must be among them.

    Raises:
        RecordError: lists every malformed line, duplicate query, and unknown example.
    """
    pools: dict[ItemId, list[ItemId]] = {}
    problems: list[str] = []
    rows = tqdm(read_rows(path), desc="reading pools", unit="pool", delay=2)
    for location, record in parsed_rows(rows, PoolRecord, problems):
        if record.query_id in pools:
            problems.append(f"{location}: field 'query_id': duplicate {record.query_id!r}")
        if example_ids is not None:
            problems.extend(
                f"{location}: field 'pool': expected ids of the examples' data set, found {item!r}"
                for item in record.pool
                if item not in example_ids
            )
        pools[record.query_id] = record.pool
    if not pools and not problems:
        problems.append(f"{path}: expected at least one pool, found none")
    if problems:
        raise RecordError(problems)
    return pools


def pools_without(
    pools: Mapping[ItemId, list[ItemId]], queries: Container[ItemId], examples: Container[ItemId]
) -> dict[ItemId, list[ItemId]]:
    """The pools of the other queries, with the other examples.

    >>> pools_without({1: [2, 3], 2: [1, 3]}, queries=[2], examples=[2])
    {1: [3]}
    """
    return {
        query: [item for item in pool if item not in examples] for query, pool in pools.items() if query not in queries
    }


def write_pools(path: str | Path, pools: Mapping[ItemId, Iterable[ItemId]], sampler: str) -> None:
    """Writes a line for each query, in the mapping's order, atomically.

    Raises:
        RecordError: a pool that is empty or has an id twice, or an id that is no integer or text.
    """
    rows = ({"query_id": query, "pool": list(pool), "sampler": sampler} for query, pool in pools.items())
    write_jsonl(path, (_checked(path, row) for row in rows))


def _checked(path: str | Path, row: dict) -> dict:
    return parse_row(Location(str(path), row["query_id"], "query"), row, PoolRecord).model_dump()
