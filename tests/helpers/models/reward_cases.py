"""Conversations with responses to score, and reward models whose scores differ enough to be compared."""

import torch
from PIL import Image, ImageDraw

from models.families.loading import load_processor
from models.reward.load import from_backbone


def picture(width: int, height: int, colour: str) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill=colour)
    return image


# Mixed lengths, numbers of images and grids.
CASES = [
    ("what color is the shape?", [picture(64, 64, "red")], "The shape is red."),
    ("what color is the shape, if there is any that you can see at all?", [picture(64, 16, "blue")], "blue"),
    ("no image here?", [], "There is none, and so I cannot say what it looks like."),
    ("which is larger?", [picture(32, 48, "teal"), picture(64, 64, "gray"), picture(16, 16, "red")], "The second."),
    ("is it red?", [picture(48, 48, "red"), picture(16, 64, "red")], "yes"),
    ("?", [], "no"),
]


def make(folder, **settings):
    """A reward model whose head is wide awake: scores differ by tenths."""
    torch.manual_seed(1)
    model = from_backbone(folder, settings)
    torch.nn.init.normal_(model.score_head.dense.weight, std=0.5)
    torch.nn.init.normal_(model.score_head.out.weight, std=0.5)
    model.processor = load_processor(str(folder))
    return model.eval()


def score(model, cases=CASES, **options):
    prompts, images, responses = zip(*cases, strict=True)
    return model.score(prompts, images, responses, **options)
