"""Exact search, held against sums without rounding."""

import math

import numpy as np
import pytest

from rollouts.retrieval import nearest
from rollouts.retrieval.nearest import ExactSearch


def exact(vectors: np.ndarray, query: np.ndarray, count: int, excluded=()) -> list[int]:
    """By definition: correctly rounded inner products, ties by row."""
    scores = [math.fsum((row * query).tolist()) for row in vectors.astype(np.float64)]
    order = sorted(range(len(vectors)), key=lambda row: (-scores[row], row))
    return [row for row in order if row not in set(excluded)][:count]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made(kind: str, rows: int, width: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "all differ":
        return unit(rng.standard_normal((rows, width)))
    if kind == "many copies":
        return unit(rng.standard_normal((max(2, rows // 10), width)))[rng.integers(0, max(2, rows // 10), rows)]
    if kind == "many equal scores":
        return rng.integers(-1, 2, (rows, width)).astype(np.float32)
    assert kind == "nearly copies"  # differences far below what a float32 sum resolves
    base = unit(rng.standard_normal((4, width)))[rng.integers(0, 4, rows)]
    return (base * (1 + rng.integers(-2, 3, (rows, width)) * 2.0**-23)).astype(np.float32)


@pytest.mark.parametrize("kind", ["all differ", "many copies", "many equal scores", "nearly copies"])
def test_results_are_exact(kind):
    rng = np.random.default_rng(3)
    for _ in range(12):
        rows, width = int(rng.integers(60, 500)), int(rng.integers(2, 40))
        vectors = made(kind, rows, width, rng)
        asked = rng.integers(0, rows, 25)
        excluded = [sorted(set(rng.integers(0, rows, rng.integers(0, 6)).tolist())) for _ in asked]
        count = int(rng.integers(1, 50))
        found = ExactSearch(vectors).nearest(vectors[asked], count, excluded)
        expected = [exact(vectors, vectors[row], count, rows) for row, rows in zip(asked, excluded, strict=True)]
        assert found.tolist() == expected


def test_weights_of_columns_are_exact():
    """0.3 and 0.7 have no exact float32: rounding them before the search would reorder near ties."""
    rng = np.random.default_rng(5)
    vectors = made("nearly copies", 300, 12, rng)
    weights = np.repeat([0.3, 0.7], 6)
    found = ExactSearch(vectors).nearest(vectors[:20], 30, weights=weights)
    assert found.tolist() == [exact(vectors, vectors[row].astype(np.float64) * weights, 30) for row in range(20)]


def test_float32_alone_would_not_be_exact():
    """The hard case above is one: FAISS's own order differs from the exact one."""
    import faiss

    vectors = made("nearly copies", 400, 32, np.random.default_rng(0))
    expected = [exact(vectors, vectors[row], 20) for row in range(10)]
    plain = faiss.knn(vectors[:10], vectors, 20, metric=faiss.METRIC_INNER_PRODUCT)[1].tolist()
    assert plain != expected
    assert ExactSearch(vectors).nearest(vectors[:10], 20).tolist() == expected


def test_a_large_table_of_which_most_is_never_scored_again(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((20_000, 24)))
    scored = []
    original = ExactSearch._scores
    monkeypatch.setattr(
        ExactSearch, "_scores", lambda self, query, groups: scored.append(len(groups)) or original(self, query, groups)
    )
    found = ExactSearch(vectors).nearest(vectors[:600], 64, [[row] for row in range(600)])  # more than one chunk
    assert max(scored) <= nearest.WIDER * (65 + nearest.SPARE)
    for row in (0, 7, 511, 512, 599):
        assert found[row].tolist() == exact(vectors, vectors[row], 64, [row])


def test_copies_of_the_query_are_candidates_and_the_query_is_not():
    vectors = unit(np.array([[1, 0], [0, 1], [1, 0], [1, 0], [1, 1]], dtype=np.float32))
    search = ExactSearch(vectors)
    assert search.nearest(vectors[[2]], 4, [[2]]).tolist() == [[0, 3, 4, 1]]
    assert search.nearest(vectors[[2]], 5).tolist() == [[0, 2, 3, 4, 1]]


def test_zero_has_one_sign():
    vectors = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    search = ExactSearch(vectors)
    assert len(search._distinct) == 1
    assert search.nearest(vectors[:1], 3).tolist() == [[0, 1, 2]]


def test_too_few_rows_are_an_error():
    vectors = np.eye(4, dtype=np.float32)
    assert sorted(ExactSearch(vectors).nearest(vectors[:1], 3, [[0]])[0]) == [1, 2, 3]
    with pytest.raises(ValueError, match="query 1: expected 4 candidates, found 4 rows, 1 of them excluded"):
        ExactSearch(vectors).nearest(vectors[:2], 4, [[], [1, 1]])
