"""Tiny random encoders with their tokenizers and image processors, and VQA records for them."""

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from data.io.records import write_jsonl

COLOURS = ("red", "green", "blue", "yellow")
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "what",
    "color",
    "is",
    "the",
    "shape",
    "?",
    *COLOURS,
    *"abcdefgh",
)
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
TEXT = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 16}


def write_encoders(folder: Path) -> dict[str, str]:
    """Folders `bert` (texts, with the dropout of a published one) and `clip` (both)."""
    torch.manual_seed(0)
    dual = {
        "text_config": {**TEXT, "bos_token_id": 2, "eos_token_id": 3},
        "vision_config": {**TOWER, "image_size": 16, "patch_size": 8},
    }
    models = {
        "bert": BertModel(BertConfig(**TEXT, initializer_range=0.5)),
        "clip": CLIPModel(CLIPConfig(**dual, projection_dim=12)),
    }
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS), encoding="utf-8")
    tokenizer = BertTokenizer(str(vocabulary), model_max_length=512)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    small = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=small).save_pretrained(folder / "clip")
    return {name: str(folder / name) for name in models}


def write_coloured_records(folder: Path, queries: int = 12, examples: int = 20) -> Path:
    """train.jsonl (the examples e0, e1, ... and queries) and validation.jsonl (the last third of the queries)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(examples + queries):
        name = f"e{number}" if number < examples else f"q{number - examples}"
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", (20, 16 + number % 3), colour).save(folder / f"{name}.png")
        question = f"what color is the shape {'abcdefgh'[number % 8]} ?"
        rows.append({"id": name, "image": f"{name}.png", "question": question, "answers": [colour] * 10})
    cut = examples + queries * 2 // 3
    write_jsonl(folder / "train.jsonl", rows[:cut])
    write_jsonl(folder / "validation.jsonl", rows[cut:])
    return folder


def write_coloured_groups(folder: Path, records: Path, pool: int = 8) -> Path:
    """Groups of the queries: every pointer of one example, and some of two; rewarded by how many share the query's
    colour. Writes train.jsonl and validation.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        split: [json.loads(line) for line in (records / f"{split}.jsonl").open()] for split in ("train", "validation")
    }
    colours = {row["id"]: row["answers"][0] for part in rows.values() for row in part}
    examples = [name for name in colours if name.startswith("e")]
    for split, part in rows.items():
        groups = []
        for number, row in enumerate(row for row in part if row["id"].startswith("q")):
            own = [examples[(number + 3 * place) % len(examples)] for place in range(pool - number % 2)]
            pairs = [[own[place], own[place - 1]] for place in range(1 + number % 3)]
            candidates = [
                {
                    "pointer": pointer,
                    "reward": sum(colours[item] == row["answers"][0] for item in pointer) / len(pointer),
                }
                for pointer in [*([item] for item in own), *pairs]
            ]
            groups.append({"id": row["id"], "pool": own, "candidates": candidates})
        write_jsonl(folder / f"{split}.jsonl", groups)
    return folder
