"""Pictures on a canvas keep what is to be judged: their size, their shape, and every pixel."""

import numpy as np
import pytest
from PIL import Image

from models.factors.inputs import IMAGENET_MEAN, IMAGENET_STD, on_canvas, scaled_size


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_pixels(canvas) -> np.ndarray:
    values = canvas.permute(1, 2, 0).numpy() * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    return np.round(values * 255).astype(int)


def test_a_picture_that_fits_lies_in_the_middle_as_it_is():
    picture = noise(10, 6)
    canvas = on_canvas([picture], 16)
    assert canvas.shape == (1, 3, 16, 16)
    assert (as_pixels(canvas[0])[5:11, 3:13] == np.asarray(picture)).all()
    canvas[0, :, 5:11, 3:13] = 0
    assert not canvas.any()


def test_pixels_are_repeated_by_a_whole_factor():
    picture = noise(5, 4)
    found = as_pixels(on_canvas([picture], 16, enlarge=2)[0])[4:12, 3:13]
    assert (found == np.asarray(picture).repeat(2, axis=0).repeat(2, axis=1)).all()


@pytest.mark.parametrize(
    ("size", "enlarge", "found"),
    [((64, 64), 1, (32, 32)), ((200, 50), 1, (32, 8)), ((20, 10), 2, (32, 16)), ((3, 900), 1, (1, 32))],
)
def test_larger_pictures_keep_their_shape(size, enlarge, found):
    assert scaled_size(size, 32, enlarge) == found
    canvas = on_canvas([Image.new("RGB", size, (255, 255, 255))], 32, enlarge=enlarge)
    assert (canvas[0, 0] != 0).sum() == found[0] * found[1]
