"""Images are resized as qwen-vl-utils does it, counted in visual tokens, and kept up to a number of bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils import fetch_image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from data.io.pixel_bounds import PixelBounds, ResizedImages
from models.families.loading import image_reader, load_processor

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))


@given(
    width=st.integers(56, 1500),
    height=st.integers(56, 1500),
    bounds=st.sampled_from([(0, 512 * 512), (56 * 56, 28 * 28 * 1280), (200_000, 300_000)]),
)
def test_usual_images_are_resized_as_qwen_vl_utils_does(width, height, bounds):
    element = {"image": Image.new("RGB", (width, height)), "min_pixels": bounds[0], "max_pixels": bounds[1]}
    assert PixelBounds(*bounds).size((width, height)) == fetch_image(element).size


def test_pixels_are_those_of_qwen_vl_utils(photo):
    expected = fetch_image({"image": photo, "min_pixels": 56 * 56, "max_pixels": 60 * 60}, image_patch_size=8)
    assert expected.size == (48, 48)
    assert PixelBounds(56 * 56, 60 * 60, 8).open(photo).tobytes() == expected.tobytes()


@given(
    long_side=st.integers(8, 16_384),
    ratio=st.floats(1, 200),
    lying=st.booleans(),
    patch_size_and_bounds=st.sampled_from([(8, 256, 64 * 64), (14, 56 * 56, 28 * 28 * 64), (14, 0, 512 * 512)]),
)
def test_the_processor_changes_nothing_more_for_any_accepted_image(long_side, ratio, lying, patch_size_and_bounds):
    patch_size, low, high = patch_size_and_bounds
    short_side = max(8, -int(-long_side // ratio))
    size = (long_side, short_side) if lying else (short_side, long_side)
    width, height = PixelBounds(low, high, patch_size).size(size)
    assert width * height <= high
    assert smart_resize(height, width, 2 * patch_size, low, high) == (height, width)


def test_a_long_strip_becomes_one_row_of_visual_tokens():
    assert PixelBounds(256, 64 * 64, 8).open(Image.new("RGB", (1600, 8))).size == (256, 16)
    assert PixelBounds(256, 64 * 64, 8).open(Image.new("RGB", (8, 1600))).size == (16, 256)


def test_an_image_read_from_a_path_equals_the_same_image_as_an_object(tmp_path, photo):
    photo.save(tmp_path / "photo.png")
    by_path = PixelBounds(256, 64 * 64, 8).open(str(tmp_path / "photo.png"))
    assert by_path.tobytes() == PixelBounds(256, 64 * 64, 8).open(photo).tobytes()


@pytest.mark.parametrize("size", [(40, 24), (600, 9), (300, 200)])
def test_tokens_are_as_many_as_the_processor_makes_of_the_resized_image(tiny_model, tmp_path, size):
    processor = load_processor(str(tiny_model))
    bounds = image_reader(processor)
    path = tmp_path / "picture.png"
    Image.new("RGB", size).save(path)
    (grid,) = processor.image_processor(images=[bounds.open(path)], return_tensors="np")["image_grid_thw"]
    assert bounds.tokens(path) == grid.prod() // 4


def test_t28_resized_pictures_are_kept_up_to_a_number_of_bytes():
    kept = ResizedImages(max_bytes=3 * 40 * 24 * 4)
    for number in range(3):
        kept.keep((number,), PICTURE)
    assert kept.get((0,)) is PICTURE  # used again: number 1 is now the oldest
    kept.keep((3,), PICTURE)
    assert kept.get((1,)) is None
    assert [kept.get((number,)) is PICTURE for number in (0, 2, 3)] == [True] * 3
    kept.keep((4,), Image.new("RGB", (400, 400)))
    assert kept.get((4,)) is None
    assert kept.used_bytes == 3 * 40 * 24 * 4


def test_t28_a_changed_file_is_read_again(tmp_path):
    bounds = PixelBounds(256, 4096, 8)
    PICTURE.save(tmp_path / "a.png")
    first = bounds.open(str(tmp_path / "a.png"))
    assert bounds.open(str(tmp_path / "a.png")) is first
    PICTURE.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "a.png")
    assert bounds.open(str(tmp_path / "a.png")).tobytes() != first.tobytes()
