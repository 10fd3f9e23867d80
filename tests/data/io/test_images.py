"""Images that cannot be used are named before anything runs; the others are resized as Qwen2-VL does it."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils import fetch_image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from data.agent_selection import parse_records
from data.io.images import ImageError, image_problems, image_size, load_for_qwen, open_image, qwen_size
from data.io.records import RecordError, read_rows
from data.tasks import load_rows


def _encoded(image: Image.Image, file_format: str) -> bytes:
    content = io.BytesIO()
    image.save(content, file_format)
    return content.getvalue()


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _blank(width: int, height: int) -> bytes:
    return _encoded(Image.new("RGB", (width, height)), "PNG")


def _with_broken_header() -> bytes:
    content = bytearray(_blank(20, 20))
    content[8:12] = (3).to_bytes(4, "big")  # the header chunk says that it is 3 bytes long
    return bytes(content)


UNUSABLE = {
    "missing": (None, "no such image file"),
    "truncated png": (_encoded(_noise(64, 64), "PNG")[:4000], "cannot be decoded ("),
    "truncated jpeg": (_encoded(_noise(64, 64), "JPEG")[:1500], "cannot be decoded ("),
    "broken header": (_with_broken_header(), "cannot be decoded ("),
    "text": (b"<html>404</html>", "not an image, or of an unknown format"),
    "empty": (b"", "empty, 0 bytes"),
    "one pixel": (_blank(1, 1), "1x1 pixels: expected at least 8 pixels a side"),
    "seven pixels high": (_blank(100, 7), "100x7 pixels: expected at least 8 pixels a side"),
    "huge": (_blank(20_000, 100), "20000x100 pixels: expected at most 16384 pixels a side; scale it down first"),
    "strip": (_blank(8, 1601), "8x1601 pixels: one side is more than 200 times the other, which Qwen2-VL refuses"),
}

ROWS = {
    "agent selection": {"report": "r", "ground_truth_agents": ["a"], "ground_truth_filtered_data": [1]},
    "question": {"question": "q", "answers": ["a"]},
    "chat": {"prompt": [{"role": "user", "content": "p"}]},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("content", "problem"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_image_is_named_with_line_and_field(write_lines, tmp_path, photo, row, content, problem):
    photo.save(tmp_path / "good.png")
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    path = write_lines("rows.jsonl", {**row, "images": ["good.png"]}, {**row, "images": ["good.png", "bad.png"]})
    with pytest.raises(RecordError) as caught:
        load_rows(path, "train")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}:2: field 'images': {tmp_path / 'bad.png'}: {problem}")


def test_every_unusable_image_is_listed(write_lines, tmp_path):
    row = ROWS["agent selection"]
    path = write_lines("rows.jsonl", *({**row, "images": [f"{number}.png"]} for number in range(40)))
    with pytest.raises(RecordError) as caught:
        parse_records(read_rows(path), tmp_path)
    assert caught.value.problems == [
        f"{path}:{number + 1}: field 'images': {tmp_path / f'{number}.png'}: no such image file"
        for number in range(40)
    ]


@pytest.mark.parametrize("size", [(8, 8), (8, 1600), (1600, 8), (16_384, 82)])
def test_sizes_at_the_limits_are_accepted(size):
    assert open_image({"bytes": _blank(*size)}).size == size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_images_of_every_mode_become_rgb(mode):
    assert open_image(Image.new(mode, (9, 9))).mode == "RGB"


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_every_usual_format_is_read(tmp_path, photo, file_format):
    photo.save(tmp_path / "image", file_format)
    assert open_image(tmp_path / "image").size == photo.size


def test_an_image_may_come_as_path_bytes_or_object(tmp_path, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    sources = [str(path), path, {"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}, photo]
    assert {open_image(source).tobytes() for source in sources} == {photo.tobytes()}
    assert {image_size(source) for source in sources} == {(96, 96)}


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (5, "an image given as int: expected a path, bytes, a dict with bytes or a path, or a PIL image"),
        (None, "an image given as NoneType: expected a path, bytes, a dict with bytes or a path, or a PIL image"),
        ({}, "an image given as dict: expected the keys 'bytes' or 'path', found []"),
        ({"path": None}, "an image given as dict: expected the keys 'bytes' or 'path', found ['path']"),
        ({1: 2, "url": 3}, "an image given as dict: expected the keys 'bytes' or 'path', found [1, 'url']"),
        ({"bytes": "text"}, "an image given as dict: field 'bytes': expected bytes, found str"),
        ({"path": "nowhere.png"}, "nowhere.png: no such image file"),
        ("a\x00.png", "a\x00.png: cannot be read (embedded null byte)"),
    ],
)
def test_what_is_no_image_is_described(source, problem):
    with pytest.raises(ImageError) as caught:
        open_image(source)
    assert str(caught.value) == problem
    assert image_problems([source]) == [problem]


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageError, match="expected an image file, found a folder"):
        open_image(tmp_path)


@given(position=st.integers(0, 20_000), value=st.integers(0, 255), cut=st.integers(0, 20_000), start=st.integers(0, 2))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(position, value, cut, start):
    content = bytearray(DAMAGED_BELOW[start])
    content[position % min(len(content), 200)] = value
    try:
        image = open_image({"bytes": bytes(content[: max(1, cut)])})
    except ImageError:
        return
    assert image.mode == "RGB"


DAMAGED_BELOW = [_encoded(_noise(40, 50), file_format) for file_format in ("PNG", "JPEG", "GIF")]


@given(
    width=st.integers(56, 1500),
    height=st.integers(56, 1500),
    bounds=st.sampled_from([(0, 512 * 512), (56 * 56, 28 * 28 * 1280), (200_000, 300_000)]),
)
def test_usual_images_are_resized_as_qwen_vl_utils_does(width, height, bounds):
    element = {"image": Image.new("RGB", (width, height)), "min_pixels": bounds[0], "max_pixels": bounds[1]}
    assert qwen_size((width, height), *bounds) == fetch_image(element).size


def test_pixels_are_those_of_qwen_vl_utils(photo):
    expected = fetch_image({"image": photo, "min_pixels": 56 * 56, "max_pixels": 60 * 60}, image_patch_size=8)
    assert expected.size == (48, 48)
    assert load_for_qwen(photo, 56 * 56, 60 * 60, 8).tobytes() == expected.tobytes()


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
    width, height = qwen_size(size, low, high, patch_size)
    assert width * height <= high
    assert smart_resize(height, width, 2 * patch_size, low, high) == (height, width)


def test_a_long_strip_becomes_one_row_of_visual_tokens():
    assert load_for_qwen(Image.new("RGB", (1600, 8)), 256, 64 * 64, 8).size == (256, 16)
    assert load_for_qwen(Image.new("RGB", (8, 1600)), 256, 64 * 64, 8).size == (16, 256)


def test_an_image_read_from_a_path_equals_the_same_image_as_an_object(tmp_path, photo):
    photo.save(tmp_path / "photo.png")
    by_path = load_for_qwen(str(tmp_path / "photo.png"), 256, 64 * 64, 8)
    assert by_path.tobytes() == load_for_qwen(photo, 256, 64 * 64, 8).tobytes()
