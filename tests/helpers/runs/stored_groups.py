"""Small stored groups: pointers with tables of embeddings, and completions of agent-selection prompts."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.candidates.embedding_table import EmbeddingTable

WIDTH = 8
POOL = 10


def write_pointer_groups(folder: Path, queries: int = 12, shots: Sequence[int] = (2,), seed: int = 0) -> Path:
    """Groups of 1 to 5 pointers whose reward is how well a hidden rotation of the query fits the chosen examples.

    Writes train.jsonl, validation.jsonl (a third), queries.safetensors and examples.safetensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    examples = _unit(rng.normal(size=(30, WIDTH)))
    asked = _unit(rng.normal(size=(queries, WIDTH)))
    rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    ids = [f"e{number}" for number in range(len(examples))]
    EmbeddingTable(ids, examples).save(folder / "examples.safetensors")
    EmbeddingTable(list(range(queries)), asked).save(folder / "queries.safetensors")
    rows = []
    for query in range(queries):
        pool = rng.choice(len(examples), POOL - query % 3, replace=False)
        fit = examples[pool] @ rotation @ asked[query]
        for count in shots:
            pointers = {tuple(rng.choice(len(pool), count, replace=False).tolist()) for _ in range(1 + query % 5)}
            candidates = [
                {
                    "pointer": [ids[pool[place]] for place in pointer],
                    "reward": round(float(fit[list(pointer)].mean()), 3),
                    "beam_score": round(float(fit[list(pointer)].sum()), 3),
                    "vqa_acc_score": float(fit[list(pointer)].mean() > 0),
                    "vqa_correct": int(fit[list(pointer)].mean() > 0),
                }
                for pointer in sorted(pointers)
            ]
            row = {"id": query, "shots": count, "pool": [ids[place] for place in pool], "candidates": candidates}
            rows.append(row)
    cut = len(rows) * 2 // 3
    for name, part in (("train", rows[:cut]), ("validation", rows[cut:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder


def _unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def write_completion_groups(folder: Path, rows: Sequence[dict], without_image: Sequence[int] = ()) -> Path:
    """Groups of 1 to 4 completions for rows of a task: the right answer among them, and parts of it.

    Writes train.jsonl and validation.jsonl (the same answers to prompts that end in another word).
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        gold = row["gold"]
        texts = [gold, gold[: len(gold) // 3], "none", gold[-20:]][: 1 + number % 4]
        candidates = [
            {"completion": text, "reward": len(text) / len(gold), "scores": {"length": float(len(text))}}
            for text in texts
        ]
        images = [] if number in without_image else row["images"]
        lines.append({"id": number, "prompt": row["prompt"], "images": images, "candidates": candidates})
    for name, ending in (("train", ""), ("validation", " Please.")):
        content = "".join(json.dumps({**line, "prompt": _ending_in(line["prompt"], ending)}) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(content, encoding="utf-8")
    return folder


def _ending_in(prompt: list[dict], ending: str) -> list[dict]:
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + ending}]


def selector_trainer(folder: Path, cls, args, groups=None, eval_groups=None, selector=None, model=None, shots=None):
    """A trainer of a new selector on the training groups of a folder that `write_pointer_groups` wrote."""
    from models.selectors.pointer import PointerSelector, PointerSelectorConfig
    from trainers.groups.arguments import GroupArguments
    from trainers.groups.data import load_stored_groups
    from trainers.groups.selector_policy import SelectorPolicy

    if groups is None:
        groups = load_stored_groups(GroupArguments(dataset_name=str(folder), shots=shots), "train")
    tables = [EmbeddingTable.load(folder / f"{name}.safetensors") for name in ("queries", "examples")]
    if model is None:
        config = {"embedding_size": WIDTH, "hidden_size": 16, "num_heads": 2, "num_layers": 1, **(selector or {})}
        model = PointerSelector(PointerSelectorConfig(**config))
    policy = SelectorPolicy(*tables, label_smoothing=args.label_smoothing_factor)
    return cls(model, args, groups, eval_groups, policy=policy)


def vlm_trainer(folder: Path, name: str, cls, args, groups=None, eval_groups=None, model=None):
    """A trainer of a VLM on the training groups of a folder that `write_completion_groups` wrote."""
    from models.families.loading import image_reader, load_processor, load_vlm
    from trainers.groups.arguments import GroupArguments
    from trainers.groups.data import load_stored_groups
    from trainers.groups.vlm_policy import VLMPolicy

    processor = load_processor(name, max_pixels=1024)
    if groups is None:
        groups = load_stored_groups(GroupArguments(dataset_name=str(folder), policy="vlm"), "train")
    model = load_vlm(name, device="cpu", dtype="float32")[0] if model is None else model
    policy = VLMPolicy(processor, image_reader(processor))
    return cls(model, args, groups, eval_groups, processor, policy=policy)


def write_groups(folder: Path, *groups: dict) -> str:
    """A folder whose training split is these groups."""
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(group) + "\n" for group in groups), encoding="utf-8")
    return str(folder)


POINTERS = {
    "id": 1,
    "pool": ["a", "b", "c"],
    "candidates": [
        {"pointer": ["a"], "reward": 1.0, "vqa_correct": 1, "vqa_acc_score": 0.6, "scores": {"mine": 5}},
        {"pointer": ["b", "a"], "reward": None, "vqa_correct": 0, "vqa_acc_score": 0.0},
        {"pointer": ["c", "b"], "reward": 0.25, "vqa_correct": 0, "vqa_acc_score": 0.3},
    ],
}
"""A query whose candidates have rewards of every kind, and one has none."""
