"""Small data of every kind that the trainers of vision-language models read, of rows with 0, 1 and 2 images."""

import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

COLOURS = ("red", "green", "blue", "black")
SIZES = ((32, 32), (48, 24), (20, 40))
ROWS = 6
PROMPTS = 3
"""Different ones, with 0, 1 and 2 images: prompts repeat."""
QUESTION = "what color is the shape?"


def write_data(folder: Path) -> Path:
    """Folders of `chat`, `groups`, `preferences`, `vqa` (no row without an image) and `responses` in a folder."""
    pictures = list(_draw(folder / "pictures"))
    asked = [(number, pictures[: number % PROMPTS]) for number in range(ROWS)]
    _write(folder / "chat", (_chat(*row) for row in asked))
    _write(folder / "groups", (_group(*row) for row in asked))
    _write(folder / "preferences", (_preference(*row) for row in asked))
    _write(folder / "responses", (_preference(*row) for row in asked))
    _write(folder / "vqa", (_question(number, images) for number, images in asked if images))
    return folder


def _draw(folder: Path) -> Iterable[str]:
    folder.mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        path = folder / f"{colour}.png"
        Image.new("RGB", SIZES[number % len(SIZES)], colour).save(path)
        yield str(path)


def _write(folder: Path, rows: Iterable[dict]) -> None:
    """Equal splits, whose questions differ: what is trained on is not evaluated."""
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for split, question in (("train", QUESTION), ("test", QUESTION.capitalize())):
        (folder / f"{split}.jsonl").write_text(lines.replace(QUESTION, question), encoding="utf-8")


def _prompt(number: int) -> list[dict]:
    return [{"role": "user", "content": QUESTION + " please" * (number % PROMPTS)}]


def _chat(number: int, images: list[str]) -> dict:
    answer = COLOURS[number % len(COLOURS)]
    return {
        "id": number,
        "prompt": _prompt(number),
        "images": images,
        "completion": answer,
        "answers": [answer] * 10,
    }


def _group(number: int, images: list[str]) -> dict:
    candidates = [{"completion": f"It is {colour}.", "reward": place / 2} for place, colour in enumerate(COLOURS[:3])]
    return {"id": number, "prompt": _prompt(number), "images": images, "candidates": candidates}


def _preference(number: int, images: list[str]) -> dict:
    responses = [f"The color is {COLOURS[number % 4]}.", f"It is {COLOURS[(number + 1) % 4]}."]
    row = {"id": number, "query": _prompt(number)[0]["content"], "response": responses, "human_ranking": [0, 1]}
    return row | ({"images": images} if images else {})


def _question(number: int, images: list[str]) -> dict:
    return {"id": number, "question": QUESTION, "answers": [COLOURS[number % 4]] * 10, "images": images}
