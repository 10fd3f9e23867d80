"""Exact search for the most similar rows of a large table, with ties in the order of the rows.

FAISS finds candidates in float32. They are scored again in float64, and a query whose answer the float32 rounding
could have changed is searched more widely, so that the result is that of a full comparison in float64. Rows with equal
numbers (a question asked of many images) are compared once.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

QUERY_CHUNK = 512
HASH_CHUNK = 4096
SPARE = 16
"""Candidates found beyond those asked for, to make room for near ties."""
WIDER = 8
"""How many times more candidates the second attempt looks at; the third looks at all."""


def _group_equal_rows(vectors: np.ndarray) -> np.ndarray:
    """(N,) number of the distinct row that each row equals, in order of first appearance."""
    numbers: dict[bytes, int] = {}
    groups = np.empty(len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), HASH_CHUNK):
        block = vectors[start : start + HASH_CHUNK] + np.float32(0)  # makes -0.0 equal to 0.0
        for row, vector in enumerate(block, start=start):
            groups[row] = numbers.setdefault(hashlib.blake2b(vector, digest_size=16).digest(), len(numbers))
    return groups


class ExactSearch:
    """Finds the rows of a table with the largest inner products.

    Args:
        vectors: float32 (N, d). Not copied, unless rows are equal.
    """

    def __init__(self, vectors: np.ndarray):
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        groups = _group_equal_rows(vectors)
        self._total = len(vectors)
        self._members = np.argsort(groups, kind="stable")  # rows, group by group
        self._sizes = np.bincount(groups)
        self._starts = np.cumsum(self._sizes) - self._sizes
        all_differ = len(self._sizes) == len(vectors)
        self._distinct = vectors if all_differ else vectors[self._members[self._starts]]  # (U, d)
        self._longest = float(np.sqrt(np.einsum("nd,nd->n", self._distinct, self._distinct).max(initial=0)))

    def nearest(
        self,
        queries: np.ndarray,
        count: int,
        excluded: Sequence[Sequence[int]] | None = None,
        weights: np.ndarray | None = None,
        title: str = "searching",
    ) -> np.ndarray:
        """int64 (Q, count): for each query its most similar rows, best first, ties by row number.

        Args:
            queries: float32 (Q, d).
            excluded: of each query, rows that it must not get.
            weights: float64 (d,), of the columns; by default all count as they are.

        Raises:
            ValueError: fewer than `count` rows are left for a query.
        """
        weights = np.ones(queries.shape[1]) if weights is None else weights
        excluded = [()] * len(queries) if excluded is None else [np.unique(rows) for rows in excluded]
        for number, rows in enumerate(excluded):
            if self._total - len(rows) < count:
                left = f"{self._total} rows, {len(rows)} of them excluded"
                raise ValueError(f"query {number}: expected {count} candidates, found {left}")
        result = np.empty((len(queries), count), dtype=np.int64)
        with tqdm(total=len(queries), desc=title, unit="query", delay=1) as bar:
            for start in range(0, len(queries), QUERY_CHUNK):
                chunk = np.arange(start, min(start + QUERY_CHUNK, len(queries)))
                weighted = queries[chunk].astype(np.float64) * weights
                result[chunk] = self._of_chunk(weighted, count, [excluded[number] for number in chunk])
                bar.update(len(chunk))
        return result

    def _of_chunk(self, queries: np.ndarray, count: int, excluded: Sequence) -> np.ndarray:
        """Answers float64 queries (Q, d); those that remain uncertain again, each time with more candidates."""
        result = np.empty((len(queries), count), dtype=np.int64)
        wanted = count + max(map(len, excluded))
        todo = np.arange(len(queries))
        for limit in (wanted + SPARE, WIDER * (wanted + SPARE), len(self._distinct)):
            uncertain = []
            for number, found, beyond in self._candidates(queries, todo, min(limit, len(self._distinct))):
                rows = self._ranked(queries[number], found, beyond, count, excluded[number])
                if rows is None:
                    uncertain.append(number)
                else:
                    result[number] = rows
            if not uncertain:
                break
            todo = np.array(uncertain)
        return result

    def _candidates(self, queries: np.ndarray, todo: np.ndarray, limit: int) -> Iterator[tuple]:
        """For each query: its number, `limit` distinct rows, and what the exact score of no other one can exceed."""
        import faiss

        if limit == len(self._distinct):
            for number in todo:
                yield number, np.arange(limit), -np.inf
            return
        rounded = queries[todo].astype(np.float32)
        scores, found = faiss.knn(rounded, self._distinct, limit, metric=faiss.METRIC_INNER_PRODUCT)
        # Rounding the query and summing `width` products in float32 puts a score off by at most (width + 2) * 2^-24
        # times the product of both lengths.
        slips = 1.01 * (queries.shape[1] + 2) * 2.0**-24 * np.linalg.norm(queries[todo], axis=1) * self._longest
        for number, rows, beyond in zip(todo, found, scores[:, -1] + slips, strict=True):
            yield number, rows, beyond

    def _ranked(
        self, query: np.ndarray, found: np.ndarray, beyond: float, count: int, excluded: Sequence[int]
    ) -> np.ndarray | None:
        """The best `count` rows among the groups `found`, or `None` if one that was not found could belong there."""
        scores = self._scores(query, found)
        order = np.argsort(-scores, kind="stable")
        found, scores = found[order], scores[order]
        need = count + len(excluded)
        sizes = np.minimum(self._sizes[found], need)  # no more of equal rows than could be used
        last = int(np.searchsorted(np.cumsum(sizes), need))
        if last == len(found) or scores[last] <= beyond:
            return None
        kept = scores >= scores[last]
        found, scores, sizes = found[kept], scores[kept], sizes[kept]
        rows = np.concatenate(
            [self._members[self._starts[group] :][:size] for group, size in zip(found, sizes, strict=True)]
        )
        rows = rows[np.lexsort((rows, -np.repeat(scores, sizes)))]
        return rows[~np.isin(rows, excluded)][:count]

    def _scores(self, query: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """float64 inner products; each is summed in the same order wherever its row stands."""
        return np.concatenate(
            [
                np.einsum("nd,d->n", self._distinct[groups[start : start + HASH_CHUNK]].astype(np.float64), query)
                for start in range(0, len(groups), HASH_CHUNK)
            ]
        )
