"""Rows of each bench with a field broken at random: refused by row and published field, or counted; never dropped."""

import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from data.io.records import RecordError
from rewards.benches.base import Bench
from rewards.benches.reading import load_bench, load_scored_bench
from rewards.benches.registry import BENCHES
from rewards.benches.summary import summarise
from rewards.preferences.scored import all_pairs

ROWS = {
    "multimodal_rewardbench": {
        "ID": "mathvista_1", "Text": "How many?", "Image": "grey.png", "Output1": "Two.", "Output2": "Three.",
        "Better": "Output1", "Category": "reasoning", "scores": [1.0, 0.0],
    },
    "mm_rlhf_rewardbench": {
        "id": "a", "image": "grey.png", "prompt": "How many?", "chosen": "Two.", "rejected": "Three.",
        "chosen_reason": "It is two.", "rejected_reason": "It is two.", "scores": [1.0, 0.0],
    },
    "mr2bench": {
        "id": "a", "prompt": "How many?", "responses": ["Two.", "Three.", "Four."], "rankings": [1, 2, 2],
        "image": "grey.png", "scores": [1.0, 0.0, 2.0],
    },
    "vl_rewardbench": {
        "id": "mmmu_1", "query": "How many?", "response": ["Two.", "Three."], "human_ranking": [0, 1],
        "image": "grey.png", "scores": [1.0, 0.0],
    },
}  # fmt: skip
"""A good row of each bench whose own tests break none."""
ODD = [
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, "", " ", "0", "\ud83d", "Output2", "safety", "Text.",
    [], {}, [[]], [None], [0, 0], [1, 1, 1], [1, 0, 2], ["a", "b"], ["a", "b", "c"], {"path": None}, "no.png",
    "<image>", "<image> <image 2>", "<|image_pad|>", "video/1.mp4", "x" * 1000, {"Category": 3},
]  # fmt: skip
MUTATIONS = 300


def _mutated(row: dict, rng: random.Random) -> dict:
    """The row with one field, or one entry of it, replaced or taken away."""
    field = rng.choice(list(row))
    if rng.random() < 0.15:
        return {name: value for name, value in row.items() if name != field}
    if isinstance(row[field], list) and rng.random() < 0.5:
        values = list(row[field])
        values[rng.randrange(len(values))] = rng.choice(ODD)
        return {**row, field: values}
    if rng.random() < 0.1:
        return {**row, rng.choice(["video", "images", "Meta", "question", "category"]): rng.choice(ODD)}
    return {**row, field: rng.choice(ODD)}


def _check_problems(problems: list[str], path: Path, row: dict) -> None:
    fields = {*ROWS[path.stem], *row, "the row", "video", "images"}
    for problem in problems:
        named = re.match(rf"{re.escape(str(path))}:2: (field '(?P<field>[^'.]*)|not readable)", problem)
        assert named, problem
        assert named["field"] is None or named["field"] in fields, problem


def _check_counted(bench: Bench, path: Path) -> None:
    """Every pair (or prompt) of both rows is in the figures, or is said to be a tie of the ranks or a repetition."""
    rows = load_scored_bench(bench, path)
    found = summarise(bench, rows, str(path))
    ranked = [row for row in rows if len(set(row.human_ranking)) > 1]
    expected = len(ranked) if bench.unit == "prompts" else len(all_pairs(rows))
    assert found["rows"] == len(rows) == 2
    assert found["items"] + found.get("duplicates", 0) == expected
    assert len(ranked) == 2 or found["equal_ranks"] > 0


@pytest.mark.parametrize("name", ROWS)
def test_a_mutated_row_is_refused_by_its_field_or_counted(name, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "grey.png")
    rng, bench, path = random.Random(0), BENCHES[name], tmp_path / f"{name}.jsonl"
    refused = 0
    for _ in range(MUTATIONS):
        row = _mutated(ROWS[name], rng)
        lines = [json.dumps(one) + "\n" for one in (ROWS[name], row)]  # escapes what UTF-8 cannot hold
        path.write_text("".join(lines), encoding="utf-8")
        try:
            _check_counted(bench, path)
        except RecordError as error:
            refused += 1
            _check_problems(error.problems, path, row)
        try:
            records, counts = load_bench(bench, path)
        except RecordError as error:
            _check_problems(error.problems, path, row)
        else:
            assert len(records) + counts.tied_records == counts.rows == 2
    assert MUTATIONS // 4 < refused < MUTATIONS
