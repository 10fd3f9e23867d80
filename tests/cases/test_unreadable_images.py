"""Pictures of a source: the same one in two files is one picture, and those that cannot be read are all named."""

import numpy as np
import pytest
from PIL import Image

from data.records import RecordError
from data.sources import load_splits, picture_keys


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["copy.png", "same.bmp", "same.tiff", "same.webp"])
def test_f16_a_picture_in_another_file_has_the_same_key(tmp_path, name):
    _picture(0).save(tmp_path / "a.png")
    _picture(0).save(tmp_path / name, lossless=True)
    _picture(1).save(tmp_path / "other.png")
    first, second, other = picture_keys(str(tmp_path / file) for file in ("a.png", name, "other.png"))
    assert first == second != other


def test_f16_a_picture_in_two_formats_lands_in_one_split(tmp_path):
    for seed in range(12):
        _picture(seed).save(tmp_path / f"{seed}.png")
        _picture(seed).save(tmp_path / f"copy-{seed}.bmp")
    splits = load_splits(str(tmp_path), (0.5, 0.25, 0.25), seed=0)
    pictures = [set(picture_keys(item.image for item in items)) for items in splits.values()]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == 12


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a2_unreadable_images_of_a_folder_are_named_at_once(tmp_path, content):
    _picture(0).save(tmp_path / "good.png")
    for number in range(3):
        (tmp_path / f"bad-{number}.png").write_bytes(content)
    with pytest.raises(RecordError) as caught:
        load_splits(str(tmp_path), (0.5, 0.25, 0.25), seed=0)
    assert len(caught.value.problems) == 3
    assert all(f"bad-{number}.png" in str(caught.value) for number in range(3))
