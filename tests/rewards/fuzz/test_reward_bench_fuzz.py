"""Rows of scores that are broken at random: they are evaluated, or refused with file, line and field."""

import json
import random
import re

import pytest

from data.io.records import RecordError, write_jsonl
from rewards.benches.reading import load_scored_bench
from rewards.benches.summary import summarise
from rewards.benches.vl_rewardbench import VL_REWARDBENCH
from rewards.reward_bench import response_rows

ODD = [
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, "", "0", "\ud83d", [], {}, [[]], [None], [0, 0],
    [1, 0, 2], ["a", "b"], {"bytes": None}, "x" * 10_000,
]  # fmt: skip


def _mutated(rng: random.Random) -> dict:
    row = {"id": "mmmu_1", "query": "how many?", "response": ["two", "three"], "human_ranking": [1, 0],
           "scores": [0.5, 1.5]}  # fmt: skip
    for _ in range(rng.randint(1, 2)):
        field = rng.choice(list(row))
        kind = rng.random()
        if kind < 0.2:
            del row[field]
            row.setdefault("other", 1)
        elif kind < 0.6 or not isinstance(row[field], list) or not row[field]:
            row[field] = rng.choice(ODD)
        else:
            row[field] = list(row[field])
            row[field][rng.randrange(len(row[field]))] = rng.choice(ODD)
    return row


def _problems(path) -> list[str]:
    """Of a file; or, where it has none, checks that it can be evaluated."""
    try:
        preferences = load_scored_bench(VL_REWARDBENCH, path)
    except RecordError as error:
        return error.problems
    if any(preference.pairs() for preference in preferences):
        summary = summarise(VL_REWARDBENCH, preferences, str(path))
        assert summary["items"] >= 1
        assert 0 <= summary["coverage"] <= 1
    write_jsonl(path.with_name("rows.jsonl"), response_rows(preferences))
    return []


@pytest.mark.parametrize("seed", range(60))
def test_a_row_is_used_or_named(seed, tmp_path):
    rng = random.Random(seed)
    lines = [json.dumps(_mutated(rng)) + "\n" for _ in range(5)]  # escapes what UTF-8 cannot hold
    path, alone = tmp_path / "scores.jsonl", tmp_path / "alone.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    expected = []
    for number, line in enumerate(lines, start=1):
        alone.write_text(line, encoding="utf-8")
        problems = _problems(alone)
        assert all(re.match(r".*alone\.jsonl:1: (field '|not readable)", problem) for problem in problems)
        expected += [problem.replace("alone.jsonl:1:", f"scores.jsonl:{number}:") for problem in problems]
    assert _problems(path) == expected
