"""Images that cannot be used are named before anything runs; the others are resized as Qwen2-VL does it."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.agent_selection import parse_records
from data.io.images import ImageError, image_problems, image_size, open_image
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
    "strip": (_blank(8, 1601), "8x1601 pixels: expected no side more than 200 times the other"),
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
