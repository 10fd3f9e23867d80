"""Files of every kind of record, broken at random: read with every row, or refused with file and row, and shortly.

One engine breaks all kinds: values, types and fields anywhere in a row, and bytes of the file.
"""

import json
import random
from copy import deepcopy

import numpy as np
import pytest
from PIL import Image

from data import agent_selection
from data.candidate_groups import load_groups
from data.candidates.embedding_table import EmbeddingTable, Part, save_tensors
from data.candidates.pools import load_pools
from data.factors import parse_annotations
from data.io.records import RecordError, base_folder, read_rows
from data.preferences import load_preferences
from data.reports.pool import Pool
from data.tasks import load_rows
from data.vqa import load_records
from rewards.benches.reading import load_scored_bench
from rewards.benches.vl_rewardbench import VL_REWARDBENCH
from rewards.score import load_responses
from rewards.scoring.inputs import read_completions

MUTATIONS = 500
ROWS = 4
ODD = [
    None, True, 0, -1, 1.5, 1e400, float("nan"), 10**30, "", " ", "0", "a\ud83d", "\udc00", [], {}, [[]], [None],
    [0, 0], ["a", "b"], {"bytes": None}, {"path": "https://x.org/a.png"}, "x" * 20_000, ["y"] * 3_000, "<image>",
    "<|image_pad|>", {"type": "text", "text": 5}, "https://x.org/a.png", {"answer": [1]}, "img/none.png", "\x00",
]  # fmt: skip


def _chat(number: int) -> dict:
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    return {"id": number, "prompt": [{"role": "user", "content": parts}], "images": ["0.png"], "answers": ["a", "b"]}


def _preference(number: int) -> dict:
    return {"id": number, "query": "what?", "image": "0.png", "response": ["x", "y"], "human_ranking": [0, 1]}


def _report(number: int) -> dict:
    return {"id": number, "report": "dark", "ground_truth_agents": ["blur_filter"], "images": ["0.png"],
            "ground_truth_filtered_data": [1, "b"], "metadata": {"a": {"b": [1]}}}  # fmt: skip


def _group(number: int) -> dict:
    candidates = [{"pointer": [1, 2], "reward": 0.5, "own": {"a": [1]}}, {"pointer": [2, 3], "vqa_acc_score": 0.3}]
    return {"id": number, "pool": [1, 2, 3], "candidates": candidates}


KINDS = {
    "reports": (_report, agent_selection.load_records),
    "vqa": (
        lambda number: {"id": number, "image": "0.png", "question": "what?", "answers": [{"answer": "a"}, "b"]},
        load_records,
    ),
    "chat": (_chat, lambda path: load_rows(path, "train")),
    "preferences": (_preference, lambda path: load_preferences(path)[0]),
    "scored preferences": (
        lambda number: {**_preference(number), "scores": [0.5, 1.5]},
        lambda path: load_scored_bench(VL_REWARDBENCH, path),
    ),
    "score": (lambda number: {**_preference(number), "note": {"a": 1}}, lambda path: load_responses(path, "test")[0]),
    "eval": (
        lambda number: {"id": number, "completion": [{"role": "assistant", "content": "x"}], "image": "0.png"},
        lambda path: read_completions(str(path), "test", with_images=True),
    ),
    "groups": (_group, load_groups),
    "pools": (lambda number: {"query_id": number, "pool": [1, "b"], "sampler": "random"}, load_pools),
    "items": (
        lambda number: {"id": number, "image": "0.png", "question": "what?", "answers": ["a"]},
        lambda path: Pool(path.parent).items,
    ),
    "factors": (
        lambda number: {"image_path": f"{number}.png", "filter_factor_texts": ["too dark", "blurred"]},
        lambda path: parse_annotations(read_rows(path), base_folder(path), False),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    for number in range(ROWS):
        Image.new("RGB", (16, 16), (40 * number, 9, 9)).save(path / f"{number}.png")
    return path


def _places(value, place=()) -> list[tuple]:
    """Every place below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in ((*place, key), *_places(item, (*place, key)))]


def _break_row(row: dict, rng: random.Random) -> None:
    *parents, last = rng.choice(_places(row) or [("new",)])
    holder = row
    for key in parents:
        holder = holder[key]
    kind = rng.random()
    if kind < 0.15 and isinstance(holder, dict) and last in holder:
        del holder[last]
    elif kind < 0.25 and isinstance(holder, dict):
        holder[rng.choice(["new", "video", "image_path", "completions", "k\ud800"])] = deepcopy(rng.choice(ODD))
    else:
        holder[last] = deepcopy(rng.choice(ODD))


def _break_bytes(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    kind = rng.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + rng.choice([b"\xff\xfe", b"\n", b"\x00", b'"', b"}"]) + content[place:]
    return content + rng.choice([b"[1]\n", b"null\n", b"{}\n", b"\xef\xbb\xbf\n", b'"x"\n'])


def _broken(make, rng: random.Random) -> bytes:
    rows = [make(number) for number in range(ROWS)]
    for _ in range(rng.randint(1, 2)):
        _break_row(rng.choice(rows), rng)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return _break_bytes(content, rng) if rng.random() < 0.25 else content


def _check(path, load, count: int, name: str) -> bool:
    """Whether the file was refused, as it must be."""
    problems, message, read = [], "", []
    try:
        read = load(path)
    except RecordError as error:
        problems, message = error.problems, str(error)
    assert len(message) < 2000, name
    assert all(problem.startswith((str(path), str(path.parent))) for problem in problems), (name, message)
    assert problems or len(read) == count, name
    return bool(problems)


@pytest.mark.parametrize("kind", KINDS)
def test_f12_broken_rows_are_read_whole_or_named(folder, kind):
    make, load = KINDS[kind]
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(make(number)) + "\n" for number in range(ROWS)))
    assert not _check(path, load, ROWS, "unbroken")
    refused = 0
    for seed in range(MUTATIONS):
        content = _broken(make, random.Random(f"{kind} {seed}"))
        path.write_bytes(content)
        lines = sum(bool(line.strip()) and line.strip() != b"\xef\xbb\xbf" for line in content.split(b"\n"))
        refused += _check(path, load, lines, f"{kind}, seed {seed}")
    assert MUTATIONS // 4 < refused < MUTATIONS


def test_f12_broken_embedding_tables_are_read_whole_or_named(folder):
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    parts = [
        part.model_dump()
        for part in (Part(name="image", width=2, encoder="a"), Part(name="text", width=1, encoder="b"))
    ]
    path = folder / "table.safetensors"
    refused = 0
    for seed in range(MUTATIONS):
        rng = random.Random(seed)
        ids, changed, own_parts = [0, 1, "b", "c"], values.copy(), json.loads(json.dumps(parts))
        kind = rng.randrange(5)
        if kind == 0:
            ids[rng.randrange(4)] = rng.choice([odd for odd in ODD if odd != 1.5])
        elif kind == 1:
            changed[rng.randrange(4), rng.randrange(3)] = rng.choice([np.nan, np.inf, 7])
        elif kind == 2:
            _break_row(own_parts[rng.randrange(2)], rng)
        elif kind == 3:
            changed = rng.choice([values[:3], values.astype(np.float64), values[:, :2], values.ravel()])
        metadata = {"ids": json.dumps(ids), "parts": json.dumps(own_parts)}
        save_tensors(path, {"values": np.ascontiguousarray(changed)}, metadata)
        if kind == 4:
            path.write_bytes(_break_bytes(path.read_bytes(), rng))
        refused += _check(path, EmbeddingTable.load, 4, f"seed {seed}")
    assert MUTATIONS // 4 < refused < MUTATIONS
