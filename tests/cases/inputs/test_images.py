"""Pictures of every mode and container are read as a person sees them, by every reader; anything else is an error."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.io.digests import image_bytes_digest, image_digest
from data.io.images import (
    ImageError,
    image_size,
    open_image,
    resolve_images,
)
from data.io.pixel_bounds import PixelBounds
from data.reports.measurements import measure_image

SIZE = (40, 24)
ORIENTATION = 0x0112


def _noise(*channels: int, seed: int = 0, dtype=np.uint8) -> np.ndarray:
    shape = (SIZE[1], SIZE[0], *channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _grey(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _encoded(image: Image.Image, file_format: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()


def _reread(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


RGB = Image.fromarray(_noise(3))
RGBA = Image.fromarray(_noise(4))
GREY = Image.fromarray(_noise())
LA = Image.merge("LA", (GREY, Image.fromarray(_noise(seed=1))))
PALETTE = RGB.quantize(16)
SIXTEEN = _noise(dtype=np.uint16)
EIGHT_OF_SIXTEEN = np.rint(SIXTEEN / 65535 * 255)
UNIT = _noise(seed=2) / np.float32(255)


def _with_key(image: Image.Image, key) -> Image.Image:
    image = image.copy()
    image.info["transparency"] = key
    return image


def _palette_with_alpha() -> Image.Image:
    return _with_key(PALETTE, bytes(range(0, 256, 16)))


def _keyed_grey16() -> tuple[bytes, Image.Image]:
    levels = SIXTEEN.copy()
    levels[:5] = 3000
    expected = np.rint(levels / 65535 * 255)
    expected[levels == 3000] = 255
    return _encoded(Image.fromarray(levels), "PNG", transparency=3000), _grey(expected)


def _pgm16() -> tuple[bytes, Image.Image]:
    levels = SIXTEEN // 300  # dark, and still sixteen bits: the file says so
    header = f"P5 {SIZE[0]} {SIZE[1]} 65535\n".encode()
    return header + levels.astype(">u2").tobytes(), _grey(np.rint(levels / 65535 * 255))


def _four_bit_with_key() -> tuple[bytes, Image.Image]:
    levels = np.tile(np.arange(8, dtype=np.uint8), (SIZE[1], SIZE[0] // 8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = (levels[:, ::2] << 4) | levels[:, 1::2]
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 4, 0, 0, 0, 0))
    png += chunk(b"tRNS", struct.pack(">H", 3)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    expected = levels * 17
    expected[levels == 3] = 255
    return png, _grey(expected)


def _rotated(orientation: int, file_format: str = "JPEG") -> tuple[bytes, Image.Image]:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = _encoded(RGB, file_format, exif=exif)
    return content, ImageOps.exif_transpose(_reread(content)).convert("RGB")


def _animated(file_format: str, first: Image.Image, **options) -> tuple[bytes, Image.Image]:
    others = [Image.new(first.mode, SIZE, 0) for _ in range(2)]
    content = _encoded(first, file_format, save_all=True, append_images=others, **options)
    return content, _on_white(_reread(content))


def _file(image: Image.Image, file_format: str, expected: Image.Image | None = None, **options):
    content = _encoded(image, file_format, **options)
    return content, _reread(content).convert("RGB") if expected is None else expected


CASES = {
    # modes, as objects
    "1": (GREY.convert("1"), GREY.convert("1").convert("RGB")),
    "L": (GREY, GREY.convert("RGB")),
    "L with key": (_with_key(GREY, 7), _on_white(_with_key(GREY, 7))),
    "LA": (LA, _on_white(LA)),
    "La": (LA.convert("La"), _on_white(LA.convert("La").convert("LA"))),
    "P": (PALETTE, PALETTE.convert("RGB")),
    "P with one transparent colour": (_with_key(PALETTE, 3), _on_white(_with_key(PALETTE, 3))),
    "P with alpha of each colour": (_palette_with_alpha(), _on_white(_palette_with_alpha())),
    "PA": (RGBA.convert("PA"), _on_white(RGBA.convert("PA"))),
    "RGB": (RGB, RGB),
    "RGB with key": (_with_key(RGB, RGB.getpixel((3, 3))), _on_white(_with_key(RGB, RGB.getpixel((3, 3))))),
    "RGBA": (RGBA, _on_white(RGBA)),
    "RGBa": (RGBA.convert("RGBa"), _on_white(RGBA.convert("RGBa").convert("RGBA"))),
    "RGBX": (RGB.convert("RGBX"), RGB),
    "CMYK": (RGB.convert("CMYK"), RGB.convert("CMYK").convert("RGB")),
    "YCbCr": (RGB.convert("YCbCr"), RGB.convert("YCbCr").convert("RGB")),
    "HSV": (RGB.convert("HSV"), RGB.convert("HSV").convert("RGB")),
    "LAB": (RGB.convert("LAB"), RGB.convert("LAB").convert("RGB")),
    "I;16": (Image.fromarray(SIXTEEN), _grey(EIGHT_OF_SIXTEEN)),
    "I;16B": (
        Image.frombytes("I;16B", SIZE, SIXTEEN.astype(">u2").tobytes()),
        _grey(EIGHT_OF_SIXTEEN),
    ),
    "I;16L": (Image.frombytes("I;16L", SIZE, SIXTEEN.astype("<u2").tobytes()), _grey(EIGHT_OF_SIXTEEN)),
    "I of 16 bits": (Image.fromarray(SIXTEEN.astype(np.int32)), _grey(EIGHT_OF_SIXTEEN)),
    "I of 8 bits": (GREY.convert("I"), GREY.convert("RGB")),
    "F of 0 to 1": (Image.fromarray(UNIT), _grey(np.rint(UNIT * 255))),
    "F of 0 to 255": (Image.fromarray(UNIT * 255), _grey(np.rint(UNIT * 255))),
    # containers
    "PNG": _file(RGB, "PNG"),
    "PNG RGBA": _file(RGBA, "PNG", _on_white(RGBA)),
    "PNG 16 bits": _file(Image.fromarray(SIXTEEN), "PNG", _grey(EIGHT_OF_SIXTEEN)),
    "PNG 16 bits with key": _keyed_grey16(),
    "PNG 4 bits with key": _four_bit_with_key(),
    "PNG RGB with key": _file(RGB, "PNG", _on_white(_with_key(RGB, (1, 2, 3))), transparency=(1, 2, 3)),
    "JPEG": _file(RGB, "JPEG"),
    "JPEG CMYK": _file(RGB.convert("CMYK"), "JPEG"),
    "MPO": _file(RGB, "MPO", save_all=True, append_images=[GREY.convert("RGB")]),
    "BMP": _file(RGB, "BMP"),
    "GIF with transparency": _animated("GIF", _with_key(PALETTE, 3), transparency=3),
    "animated GIF": _animated("GIF", RGB),
    "animated WebP": _animated("WEBP", RGBA, lossless=True),
    "APNG": _animated("PNG", RGBA),
    "TIFF of several pages": _animated("TIFF", RGB),
    "TIFF 16 bits": _file(Image.fromarray(SIXTEEN), "TIFF", _grey(EIGHT_OF_SIXTEEN)),
    "TIFF 16 bits, big-endian": _file(
        Image.frombytes("I;16B", SIZE, SIXTEEN.astype(">u2").tobytes()), "TIFF", _grey(EIGHT_OF_SIXTEEN)
    ),
    "TIFF F": _file(Image.fromarray(UNIT), "TIFF", _grey(np.rint(UNIT * 255))),
    "PGM 16 bits": _pgm16(),
    "TGA": _file(RGBA, "TGA", _on_white(RGBA)),
    **{f"JPEG turned {number}": _rotated(number) for number in range(1, 9)},
    **{f"{name} turned": _rotated(6, name) for name in ("PNG", "WEBP", "TIFF", "MPO")},
}


def _source(given) -> object:
    return {"bytes": given, "path": None} if isinstance(given, bytes) else given


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES)
def test_f03_a_picture_is_what_a_person_sees(given, expected):
    source = _source(given)
    seen = open_image(source)
    assert (seen.mode, seen.size) == ("RGB", expected.size)
    assert np.array_equal(np.asarray(seen), np.asarray(expected))
    assert image_size(source) == seen.size
    assert open_image(seen).tobytes() == seen.tobytes()  # nothing is turned or made white twice


def test_f03_the_model_sees_the_same_pixels(tiny_model):
    from models.families.loading import image_reader, load_processor
    from trainers.setup.task_data import to_dataset

    processor = load_processor(str(tiny_model))
    rows = [
        {"id": number, "prompt": [], "images": [_source(given)]} for number, (given, _) in enumerate(CASES.values())
    ]
    bounds = image_reader(processor)
    loaded = to_dataset(rows, bounds)[: len(rows)]["images"]
    for name, [seen], (_, expected) in zip(CASES, loaded, CASES.values(), strict=True):
        ours = processor.image_processor(images=[seen], return_tensors="pt")
        theirs = bounds.open(Image.fromarray(np.asarray(expected)))
        theirs = processor.image_processor(images=[theirs], return_tensors="pt")
        assert ours["pixel_values"].equal(theirs["pixel_values"]), name
        assert ours["image_grid_thw"].equal(theirs["image_grid_thw"]), name


READERS_SEE = ("RGBA", "PNG 16 bits", "JPEG turned 6", "LA", "P with alpha of each colour")


@pytest.mark.parametrize("name", READERS_SEE)
def test_f03_figures_and_reward_inputs_are_those_of_the_seen_picture(name, tiny_model):
    from models.families.loading import load_processor
    from models.reward.encoding import encode_groups
    from models.reward.inputs import ResponseGroup

    given, expected = CASES[name]
    assert measure_image(open_image(_source(given))) == measure_image(expected)
    processor = load_processor(str(tiny_model))
    ours, theirs = (
        encode_groups(processor, [ResponseGroup("what?", [image], ["a", "b"])]) for image in (_source(given), expected)
    )
    assert ours["pixel_values"].equal(theirs["pixel_values"])


SEEN_BY_ENCODERS = (*READERS_SEE, "P with one transparent colour", "PNG 16 bits with key", "TIFF 16 bits", "RGBA")
"""Transparent pictures and those of sixteen bits, and turned ones."""


def test_f03_embeddings_are_those_of_the_picture_that_the_vlm_sees(tiny_model):
    from models.embeddings import load_encoder
    from models.families.loading import load_processor, load_vlm
    from rollouts.frozen_vlm.image_features import ImageFeatures
    from rollouts.retrieval.embedding_cache import embed_images

    encoder = load_encoder(str(tiny_model), "cpu")
    sources = [_source(CASES[name][0]) for name in SEEN_BY_ENCODERS]
    found = embed_images(encoder, [[source] for source in sources])
    seen = encoder.encode_images([CASES[name][1] for name in SEEN_BY_ENCODERS[:-1]])  # the last is the first again
    np.testing.assert_array_equal(found[:-1], seen)
    np.testing.assert_array_equal(found[-1], found[0])
    features = ImageFeatures(load_vlm(str(tiny_model))[0], load_processor(str(tiny_model)), cache_bytes=2**20)
    for source, vector in zip(sources, found, strict=True):
        mean = features([features.key(source)]).float().mean(dim=0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.full((24, 40), np.nan, np.float32), "values that are NaN or infinite"),
        (np.full((24, 40), np.inf, np.float32), "values that are NaN or infinite"),
        (np.full((24, 40), -0.5, np.float32), "floating-point values from -0.5 to -0.5"),
        (np.full((24, 40), 1.7, np.float32), "floating-point values from 1.7 to 1.7"),
        (np.full((24, 40), 1000, np.float32), "floating-point values from 1000 to 1000"),
        (np.full((24, 40), 70_000, np.int32), "32-bit values from 70000 to 70000"),
        (np.full((24, 40), -1, np.int32), "32-bit values from -1 to -1"),
    ],
)
def test_f03_values_without_a_white_are_an_error(values, problem):
    with pytest.raises(ImageError, match=problem):
        open_image(Image.fromarray(values))


def test_f03_the_orientation_behind_the_pixels_of_a_png_counts():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = _encoded(RGB, "PNG", exif=exif)
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    assert image_size(moved) == open_image(moved).size == (24, 40)


@pytest.mark.parametrize("form", [str, Path, lambda path: {"path": path}, lambda path: {"bytes": None, "path": path}])
def test_f14_paths_are_beside_the_data_file(tmp_path, monkeypatch, form):
    (tmp_path / "img").mkdir()
    RGB.save(tmp_path / "img" / "0.png")
    monkeypatch.chdir(tmp_path.parent)
    assert resolve_images([form("img/0.png"), [form("img/0.png")]], tmp_path) == [
        str(tmp_path / "img" / "0.png"),
        [str(tmp_path / "img" / "0.png")],
    ]


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_f15_bytes_are_an_image(form):
    content = form(_encoded(RGB, "PNG"))
    assert open_image(content).tobytes() == RGB.tobytes()
    assert image_size(content) == SIZE
    assert open_image(resolve_images([content], Path("/"))[0]).tobytes() == RGB.tobytes()
    assert open_image(np.asarray(RGB)).tobytes() == RGB.tobytes()


def test_f16_one_picture_has_one_digest_under_any_name_and_in_any_lossless_file(tmp_path):
    RGB.save(tmp_path / "a.png")
    RGB.save(tmp_path / "b.bmp")
    (tmp_path / "c.png").symlink_to(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    names = [str(tmp_path / name) for name in ("a.png", "b.bmp", "c.png")]
    same = [*names, tmp_path / "a.png", {"bytes": content, "path": None}, {"path": names[0]}, content, RGB]
    assert len({image_digest(source) for source in same}) == 1
    assert image_digest(RGBA) != image_digest(RGB) != image_digest(RGB.rotate(180))
    assert image_digest(Image.new("RGB", (8, 16))) != image_digest(Image.new("RGB", (16, 8)))
    assert (
        image_bytes_digest(names[0])
        == image_bytes_digest(content)
        == image_bytes_digest({"bytes": content})
        != image_bytes_digest(names[1])
    )


def test_f16_a_pool_lacks_the_picture_of_the_query_under_other_names(tmp_path):
    from data.vqa import VqaRecord
    from rollouts.pools import excluded_rows

    for name, picture in (("q.png", RGB), ("copy.png", RGB), ("copy.bmp", RGB), ("other.png", GREY)):
        picture.save(tmp_path / name)
    records = [
        VqaRecord(id=name, question="?", answers=["a"], images=[str(tmp_path / name)])
        for name in ("q.png", "copy.png", "copy.bmp", "other.png")
    ]
    assert excluded_rows(records[:1], records, same_image=True) == [[0, 1, 2]]


@pytest.mark.parametrize("broken", [("q.png", "b.png"), ("a.png", "b.png"), ("q.png", "a.png", "b.png")])
def test_a2_all_unreadable_images_of_queries_and_examples_are_named(tmp_path, broken):
    from data.io.records import RecordError
    from data.vqa import VqaRecord
    from rollouts.pools import excluded_rows

    for name in ("q.png", "a.png", "b.png"):
        RGB.save(tmp_path / name)
    for name in broken:
        (tmp_path / name).write_bytes(b"no picture")
    query, *examples = [
        VqaRecord(id=name, question="?", answers=["a"], images=[str(tmp_path / name)])
        for name in ("q.png", "a.png", "b.png")
    ]
    with pytest.raises(RecordError) as error:
        excluded_rows([query], examples, same_image=True)
    assert [problem.split(": ")[0] for problem in error.value.problems] == [str(tmp_path / name) for name in broken]


def test_f19_images_inside_of_messages_stay_bytes(tmp_path):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    from data.io.records import read_rows

    part = {"type": Value("string"), "image": ImageFeature()}
    features = Features(
        {"prompt": List({"role": Value("string"), "content": List(part)}), "meta": {"x": ImageFeature()}}
    )
    broken = {"bytes": _encoded(RGB, "PNG")[:200], "path": None}
    row = {"prompt": [{"role": "user", "content": [{"type": "image", "image": broken}]}], "meta": {"x": broken}}
    Dataset.from_list([row], features=features).to_parquet(tmp_path / "rows.parquet")
    [(_, found)] = read_rows(tmp_path / "rows.parquet")
    for image in (found["prompt"][0]["content"][0]["image"], found["meta"]["x"]):
        with pytest.raises(ImageError, match="cannot be decoded"):
            open_image(image)


def test_a1_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.relpath(tmp_path / "socket.png"))
    kinds = {
        "pipe.png": "expected an image file, found a named pipe",
        "link.png": "expected an image file, found a named pipe",
        "socket.png": "expected an image file, found a socket",
        ".": "expected an image file, found a folder",
        "empty.png": "empty, 0 bytes",
        "none.png": "no such image file",
    }
    for read in (
        open_image,
        image_size,
        image_digest,
        image_bytes_digest,
        PixelBounds(256, 4096, 8).open,
    ):
        for name, problem in kinds.items():
            with pytest.raises(ImageError, match=problem):
                read(str(tmp_path / name))
    with pytest.raises(ImageError, match="found a device"):
        open_image("/dev/zero")
    listening.close()


@pytest.mark.parametrize(
    "address",
    ["http://x.org/a.png", "HTTPS://x.org/a.png", "file:///a.png", "s3://b/a.png", "data:image/png;base64,AA"],
)
@pytest.mark.parametrize("form", [str, lambda address: {"bytes": None, "path": address}])
def test_a1_addresses_are_not_fetched(address, form):
    for source in (form(address), resolve_images([form(address)], Path("/data"))[0]):
        for read in (open_image, image_size, image_digest, image_bytes_digest):
            with pytest.raises(ImageError) as caught:
                read(source)
            expected = "an address, which is not fetched: download the image and give its path"
            assert str(caught.value) == f"{address}: {expected}"


def test_a1_large_pictures_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr("data.io.images.MAX_PIXELS", 900)
    with pytest.raises(ImageError, match="40x24 pixels: expected at most 900 pixels"):
        open_image(RGB)
    with pytest.raises(ImageError, match="expected at most 900 pixels"):
        image_size(_encoded(RGB, "PNG"))
    monkeypatch.setattr("data.io.images.MAX_FILE_BYTES", 10)
    with pytest.raises(ImageError, match="bytes: expected at most 10"):
        open_image(_encoded(RGB, "PNG"))


def test_a2_all_unreadable_images_of_a_pool_are_named(tmp_path):
    from data.io.records import RecordError
    from data.reports.measurements import measure_pool
    from data.reports.pool import Item, Pool

    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    RGB.save(tmp_path / "3.png")
    items = [Item(id=number, image=f"{number}.png") for number in range(4)]
    with pytest.raises(RecordError) as caught:
        measure_pool(Pool(tmp_path, items))
    assert len(caught.value.problems) == 3
    assert all(f"{number}.png: not an image" in str(caught.value) for number in range(3))
