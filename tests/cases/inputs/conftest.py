"""Pictures beside the rows of a test."""

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """With two pictures, 0.png and 1.png, in img/."""
    (tmp_path / "img").mkdir()
    for number in range(2):
        Image.new("RGB", (16, 16), (200 * number, 9, 9)).save(tmp_path / "img" / f"{number}.png")
    return tmp_path
