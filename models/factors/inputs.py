"""Pictures as factor predictors read them, with what is to be judged left in: size, shape and sharpness.

An image backbone gets a square canvas on which a picture lies as it is, scaled down only if it is larger: fitting a
small picture to the canvas would make it look blurred, and squeezing a strip would hide that it is one. All pictures
may be enlarged by one whole factor, by repeating their pixels, for backbones whose first layers drop what is a pixel
wide. A vision tower has its pictures from the image processor of its own model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def scaled_size(size: tuple[int, int], side: int, enlarge: int = 1) -> tuple[int, int]:
    """Width and height, times `enlarge`, or less where that would not fit a square of this side; in proportion.

    >>> scaled_size((200, 50), 100), scaled_size((20, 10), 100), scaled_size((20, 10), 100, enlarge=2)
    ((100, 25), (20, 10), (40, 20))
    """
    scale = min(float(enlarge), side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def on_canvas(
    images: Sequence[Image.Image],
    side: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    enlarge: int = 1,
) -> torch.Tensor:
    """float32 (N, 3, side, side): each RGB picture in the middle of a canvas of the mean colour, normalised."""
    canvas = np.zeros((len(images), side, side, 3), dtype=np.float32)
    for number, image in enumerate(images):
        size = scaled_size(image.size, side, enlarge)
        whole = size == (image.width * enlarge, image.height * enlarge)
        image = image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC)
        pixels = (np.asarray(image, dtype=np.float32) / 255 - np.float32(mean)) / np.float32(std)
        left, top = (side - size[0]) // 2, (side - size[1]) // 2
        canvas[number, top : top + size[1], left : left + size[0]] = pixels
    return torch.from_numpy(canvas).permute(0, 3, 1, 2)
