"""Rows of every task, and what reads them."""

import json

import pytest

from data import agent_selection
from data.candidate_groups import load_groups
from data.io.records import RecordError
from data.preferences import load_preferences
from data.tasks import load_rows
from data.vqa import load_records
from rewards.score import load_responses
from rewards.scoring.inputs import read_completions

TEN = ["red"] * 10
HALF = "what \ud83d?"
PREFERENCE = {"id": "a", "query": "what?", "response": ["x", "y"], "human_ranking": [0, 1]}
VQA = {"id": "a", "question": "what?", "answers": TEN}
CHAT = {"id": "a", "prompt": [{"role": "user", "content": "what?"}], "answers": TEN}
SCORE = {"id": "a", "query": "what?", "response": ["x", "y"]}
REPORT = {"id": "a", "report": "dark", "ground_truth_agents": ["blur_filter"], "ground_truth_filtered_data": [1]}
SCORED = {**PREFERENCE, "scores": [0.5, 1.5]}
EVAL = {"id": "a", "completion": "red", "answers": TEN}
GROUP = {**CHAT, "candidates": [{"completion": "red", "reward": 1.0}, {"completion": "blue", "reward": 0.0}]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LOADERS = {
    "preferences": (PREFERENCE, lambda path: load_preferences(path)[0]),
    "vqa": (VQA, load_records),
    "chat": (CHAT, lambda path: load_rows(path, "train")),
    "score": (SCORE, lambda path: load_responses(path, "test")[1]),
    "report": (REPORT, agent_selection.load_records),
    "eval": (EVAL, lambda path: read_completions(str(path), "test", with_images=True)),
    "groups": (GROUP, load_groups),
}
"""Kinds of rows with images: a row without them, and how a file is read."""


def images_of(record) -> list:
    return list(record["images"] if isinstance(record, dict) else record.images)


def problem_of(path, load) -> str:
    with pytest.raises(RecordError) as caught:
        load(path)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def user(*content):
    return [{"role": "user", "content": list(content)}]


PLACE, TEXT = {"type": "image"}, {"type": "text", "text": "what?"}
FIRST = {"type": "image", "image": "img/0.png"}


def chat(folder, **fields):
    return load_rows(write(folder / "a.jsonl", {**CHAT, **fields}), "train")[0]


def group(folder, **fields):
    return load_groups(write(folder / "a.jsonl", {**GROUP, **fields}))[0].model_extra


ROWS_WITH_PROMPTS = (chat, group)
