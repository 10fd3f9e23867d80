"""Small preference data and runs, for the tests of the reward trainer and the processes that they start."""

import json
from pathlib import Path

from PIL import Image

COLOURS = ("red", "green", "blue", "black")
QUERY = "what color is the shape?"


def write_preferences(folder: Path, rows: int = 16, without_image: tuple[int, ...] = ()) -> Path:
    """Rows of two responses each: the right colour is better. Images have two sizes; texts differ in length."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (32, 32 if number % 2 else 16), colour).save(folder / f"{colour}.png")
    lines = []
    for number in range(rows):
        right, wrong = COLOURS[number % 4], COLOURS[(number + 1 + number // 4 % 3) % 4]
        row = {"id": number, "query": QUERY + " please" * (number % 3)}
        if number not in without_image:
            row["image"] = f"{right}.png"
        row |= {"response": [f"The color is {wrong}.", f"It is {right}."], "human_ranking": [1, 0]}
        lines.append(json.dumps(row))
    for split, asked in (("train", QUERY), ("validation", QUERY.capitalize())):
        text = "".join(line.replace(QUERY, asked) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_ranked(folder: Path) -> Path:
    """Rows of three responses, one with a tie."""
    write_preferences(folder)
    rows = []
    for number, colour in enumerate(COLOURS):
        responses = [f"It is {colour}.", "It is a color.", "I do not know."]
        ranking = [0, 1, 1] if number == 3 else [0, 1, 2]
        rows.append({"query": QUERY, "image": f"{colour}.png", "response": responses, "human_ranking": ranking})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return folder


def settings(**changes) -> dict:
    """Of `RewardConfig`, for a run on a CPU."""
    return {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **changes,
    }
