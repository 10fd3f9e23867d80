"""Small labelled data sets and predictors for tests of the factor trainer."""

import json
import random
from pathlib import Path

from PIL import Image

FACTORS = ("bright", "red", "wide")
BACKBONE = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
}


def draw(rng: random.Random) -> tuple[Image.Image, list[str]]:
    """A picture of one colour, which may be bright, red or wide."""
    bright, red, wide = (rng.random() < 0.5 for _ in FACTORS)
    level = rng.randint(200, 250) if bright else rng.randint(40, 90)
    colour = (level, 0, 0) if red else (0, level, level)
    size = (30, 15) if wide else (20, 20)
    applies = [name for name, found in zip(FACTORS, (bright, red, wide), strict=True) if found]
    return Image.new("RGB", size, colour), applies


def write_labelled(folder: Path, pictures: int = 48) -> Path:
    """A data set as `data.factors` writes it: `pictures` to train on, half as many for validation and test each."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", pictures), ("validation", pictures // 2), ("test", pictures // 2)):
        rows = []
        for number in range(size):
            picture, factors = draw(rng)
            name = f"{split}_{number}.png"
            picture.save(folder / name)
            rows.append({"image_path": name, "filter_factor_texts": factors, "factors": factors})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    factors = [{"id": name, "name": name, "texts": [name]} for name in FACTORS]
    content = {"encoder": "by hand", "threshold": 0.5, "factors": factors}
    (folder / "factors.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def labelled_images(folder: Path):
    """Training, validation and test data of the folder."""
    from data.factors import load_labelled
    from trainers.labels.data import LabelledImages

    splits = ("train", "validation", "test")
    return [LabelledImages(load_labelled(folder, split, FACTORS), FACTORS) for split in splits]


def small_predictor(tiny_model: str | None = None, seed: int = 0):
    """A new predictor: a small ResNet, or the vision tower of `tiny_model`."""
    import torch

    from models.factors.predictor import from_backbone, new_predictor

    torch.manual_seed(seed)
    settings = {"head_size": 16, "dropout": 0.0}
    if tiny_model is None:
        return new_predictor(BACKBONE, FACTORS, image_size=32, **settings)
    bounds = {"max_pixels": 1024} if Path(tiny_model).name in ("tiny", "qwen3_vl") else {}
    return from_backbone(tiny_model, FACTORS, **bounds, **settings)
