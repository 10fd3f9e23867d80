"""Each measurement answers to what it is meant for; copies are found; stored figures are those of a fresh run."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from data.io.records import RecordError
from data.reports import measurements
from data.reports.measurements import (
    HEALTHY,
    Bounds,
    Measurement,
    exact_copies,
    measure_blur,
    measure_image,
    measure_items,
    measure_pixel_block,
    measure_pool,
    median_side,
    near_copies,
    store_measurements,
)
from data.reports.pool import Item, Pool

FIGURES = {"blur": 0.5, "brightness": 0.5, "clipping": 0.0, "side": 64.0, "aspect": 1.0, "hash": "0" * 64}


def _enlarged(image: Image.Image, block: int) -> Image.Image:
    """Every pixel of a smaller version repeated, so that the size stays about the same."""
    small = image.resize((image.width // block, image.height // block), Image.Resampling.BOX)
    return small.resize((small.width * block, small.height * block), Image.Resampling.NEAREST)


def test_blur_grows_with_the_radius(photo):
    blurs = [measure_blur(photo.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 0.5, 1, 2, 3, 4)]
    assert blurs == sorted(set(blurs))
    assert blurs[0] < HEALTHY["blur"].maximum < blurs[3]


def test_blur_is_comparable_between_sizes():
    from skimage import data as photographs

    large = Image.fromarray(photographs.astronaut())
    assert abs(measure_blur(large) - measure_blur(large.resize((256, 256), Image.Resampling.LANCZOS))) < 0.01


def test_an_image_with_nothing_to_see_counts_as_blurred():
    assert measure_blur(Image.new("RGB", (64, 64), "white")) == 1.0


def test_brightness_is_the_mean_luminance():
    picture = Image.new("RGB", (10, 10), "white")
    picture.paste((0, 0, 0), (0, 0, 10, 3))
    assert measure_image(picture)["brightness"] == 0.7
    assert measure_image(Image.new("RGB", (10, 10), (51, 51, 51)))["brightness"] == 0.2


def test_brightness_falls_with_underexposure(photo):
    values = [measure_image(ImageEnhance.Brightness(photo).enhance(gain))["brightness"] for gain in (1, 0.5, 0.2, 0.1)]
    assert values == sorted(set(values), reverse=True)
    assert values[0] > HEALTHY["brightness"].minimum > values[2]


def test_clipping_is_the_share_of_white_pixels():
    picture = Image.new("RGB", (10, 10), (252, 252, 252))
    picture.paste((251, 251, 251), (0, 0, 10, 4))
    assert measure_image(picture)["clipping"] == 0.6


def test_clipping_grows_with_overexposure(photo):
    values = [measure_image(ImageEnhance.Brightness(photo).enhance(gain))["clipping"] for gain in (1, 1.5, 2, 4, 10)]
    assert values == sorted(set(values))
    assert values[0] < HEALTHY["clipping"].maximum < values[-1]


@pytest.mark.parametrize("block", [2, 3, 4, 5, 6, 7, 8])
def test_the_effective_side_shrinks_with_the_size_of_repeated_pixels(photo, block):
    enlarged = _enlarged(photo, block)
    assert measure_pixel_block(enlarged) == block
    assert measure_image(enlarged)["side"] == 96 // block


def test_a_photograph_has_no_repeated_pixels(photo):
    assert measure_pixel_block(photo) == 1
    assert measure_pixel_block(photo.resize((192, 192), Image.Resampling.BICUBIC)) == 1


def test_pixels_repeated_in_one_direction_only_are_no_enlargement(photo):
    assert measure_pixel_block(photo.resize((192, 96), Image.Resampling.NEAREST)) == 1


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (21, 9)])
def test_small_images_can_be_measured(size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    figures = measure_image(picture)
    assert figures["side"] == min(size)
    assert figures["aspect"] == round(max(size) / min(size), 4)


def test_pixels_are_the_hash_of_size_and_content(photo):
    assert measure_image(photo)["pixels"] == hashlib.sha256(b"(96, 96)" + photo.tobytes()).hexdigest()
    changed = photo.copy()
    changed.putpixel((5, 5), (1, 2, 3))
    assert measure_image(changed)["pixels"] != measure_image(photo)["pixels"]
    black = [measure_image(Image.new("RGB", size))["pixels"] for size in ((8, 16), (16, 8))]
    assert black[0] != black[1]


def _measured(items: list[Item], pixels: str = "", hashes: list[str] | None = None) -> list[Measurement]:
    pixels = pixels or "abcdefghijklmnop"[: len(items)]
    hashes = hashes or ["0" * 64] * len(items)
    figures = [{**FIGURES, "pixels": own, "hash": code} for own, code in zip(pixels, hashes, strict=True)]
    return measure_items(items, figures)


def _item(number: int, question: str = "", *answers: str) -> Item:
    return Item(id=number, image=f"{number}.png", question=question, answers=answers)


def test_words_are_counted_in_the_question_and_the_longest_answer():
    rows = _measured([_item(1, " What  is\nthis? ", "one", "one two three"), _item(2)])
    assert [(row.question_words, row.answer_words) for row in rows] == [(3, 3), (0, 0)]


@pytest.mark.parametrize(
    ("answers", "agreement"),
    [
        ((), 1.0),
        (("red",), 1.0),
        (("red", "Red ", "RED"), 1.0),
        (("red", "red", "blue"), 0.6667),
        (("red", "red", "blue", "green"), 0.5),
        (("red", "blue", "green", "pink"), 0.25),
    ],
)
def test_agreement_is_the_share_of_the_most_common_answer(answers, agreement):
    (row,) = _measured([_item(1, "What colour?", *answers)])
    assert row.agreement == agreement


def test_agreement_falls_with_the_number_of_contradicting_answers():
    rows = _measured([_item(wrong, "?", *["red"] * 6, *["blue", "pink", "grey"][:wrong]) for wrong in range(4)])
    assert [row.agreement for row in rows] == [1.0, 0.8571, 0.75, 0.6667]


def test_answers_to_one_question_about_one_picture_are_taken_together():
    items = [
        _item(1, "What colour?", "red"),
        _item(2, "what  COLOUR?", "red"),
        _item(3, "What colour?", "blue"),  # in the minority: 0
        _item(4, "What colour?"),  # says nothing: 1
        _item(5, "Which shape?", "blue"),  # another question
        _item(6, "What colour?", "blue"),  # another picture
    ]
    rows = _measured(items, pixels="aaaaab")
    assert [row.agreement for row in rows] == [0.6667, 0.6667, 0.0, 1.0, 1.0, 1.0]


def test_exact_copies_are_the_later_of_equal_items():
    items = [
        _item(1, "What?", "a", "b"),
        _item(2, "what? ", "b", "A"),  # equal but for case, spaces and order
        _item(3, "What?", "a"),  # other answers
        _item(4, "Why?", "a", "b"),  # other question
        _item(5, "What?", "a", "b"),  # other picture
        _item(6, "What?", "a", "b"),
    ]
    assert exact_copies(items, _measured(items, pixels="aaaaba")) == [2, 6]


def _with_bits(count: int) -> str:
    """256 bits in hexadecimal, `count` of them set."""
    return f"{(1 << count) - 1:064x}"


def test_near_copies_differ_in_few_bits_of_the_hash_and_ask_the_same():
    items = [_item(1, "A?"), _item(2, "a? "), _item(3, "A?"), _item(4, "B?"), _item(5, "B?")]
    rows = _measured(items, hashes=[_with_bits(bits) for bits in (0, 25, 26, 0, 0)])
    # a tenth of 256 bits is 25.6: 25 differing bits make a copy of item 1, 26 do not
    assert near_copies(items, rows, 0.1) == [2, 5]


def test_near_copies_are_compared_with_what_is_kept():
    items = [_item(1), _item(2), _item(3)]
    rows = _measured(items, hashes=[_with_bits(bits) for bits in (0, 20, 40)])
    assert near_copies(items, rows, 0.1) == [2]  # item 3 resembles item 2, which is dropped, but not item 1


@pytest.mark.parametrize(("distance", "copies"), [(0.0, [2]), (0.05, [2, 3]), (0.5, [2, 3, 4]), (1.0, [2, 3, 4, 5])])
def test_more_items_are_near_copies_at_a_larger_distance(distance, copies):
    items = [_item(number) for number in range(1, 6)]
    rows = _measured(items, hashes=[_with_bits(bits) for bits in (0, 0, 10, 100, 200)])
    assert near_copies(items, rows, distance) == copies


def test_a_recompressed_picture_is_a_near_copy_but_no_exact_one(photo, tmp_path):
    photo.save(tmp_path / "again.jpg", quality=90)
    again = Image.open(tmp_path / "again.jpg").convert("RGB")
    items = [_item(1), _item(2), _item(3)]
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rows = measure_items(items, [measure_image(picture) for picture in (photo, again, other)])
    assert exact_copies(items, rows) == []
    assert near_copies(items, rows, HEALTHY["distance"].maximum) == [2]


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (Bounds(1, 2), (1, 1.5, 2), (0.999, 2.001)),
        (Bounds(minimum=1), (1, 1e9), (0.999,)),
        (Bounds(maximum=2), (-1e9, 2), (2.001,)),
        (Bounds(), (-1e9, 1e9), ()),
        (HEALTHY["blur"], (0, 0.75), (0.7501, 1)),
        (HEALTHY["brightness"], (0.15, 1), (0, 0.1499)),
        (HEALTHY["clipping"], (0, 0.7), (0.7001,)),
        (HEALTHY["aspect"], (1, 2), (2.0001,)),
        (HEALTHY["question_words"], (3, 40), (2, 41)),
        (HEALTHY["answer_words"], (0, 20), (21,)),
        (HEALTHY["agreement"], (0.6, 1), (0.5999,)),
    ],
)
def test_bounds_include_their_ends(bounds, inside, outside):
    assert all(bounds.contains(value) for value in inside)
    assert not any(bounds.contains(value) for value in outside)


def test_the_median_side_is_that_of_the_pool():
    rows = measure_items(
        [_item(n) for n in range(3)], [{**FIGURES, "pixels": "", "side": s} for s in (8.0, 64.0, 32.0)]
    )
    assert median_side(rows) == 32.0


@pytest.fixture
def pool(make_pool, photo) -> Pool:
    texts = [{"question": "What is it?", "answers": ("a woman",)}, {"question": "Why?", "answers": ("so", "no")}, {}]
    return make_pool([photo, photo.rotate(90), photo.resize((50, 40))], texts)


def test_stored_figures_equal_those_of_a_fresh_run(pool):
    fresh = measure_pool(pool)
    stored = measure_pool(Pool(pool.folder))
    (pool.folder / "measurements.json").unlink()
    assert fresh == stored == measure_pool(pool, workers=2)
    assert [row.id for row in fresh] == [0, 1, 2]
    assert [row.side for row in fresh] == [96.0, 96.0, 40.0]
    assert [row.agreement for row in fresh] == [1.0, 0.5, 1.0]


def test_an_unchanged_pool_is_not_measured_again(pool, monkeypatch):
    fresh = measure_pool(pool)
    monkeypatch.setattr(measurements, "measure_image", None)
    assert measure_pool(pool) == fresh


def test_a_pool_that_was_copied_is_not_measured_again(pool, monkeypatch, tmp_path):
    fresh = measure_pool(pool)
    shutil.copytree(pool.folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)  # files are as new as can be
    monkeypatch.setattr(measurements, "measure_image", None)
    assert measure_pool(Pool(tmp_path / "elsewhere")) == fresh


def test_a_changed_picture_is_measured_again(pool):
    before = measure_pool(pool)
    Image.new("RGB", (30, 60)).save(pool.image_path(pool.items[1]))
    after = measure_pool(pool)
    assert (after[0], after[2]) == (before[0], before[2])
    assert (after[1].side, after[1].aspect, after[1].brightness) == (30.0, 2.0, 0.0)


def test_a_picture_replaced_by_one_of_the_same_size_is_measured_again(pool):
    path = pool.image_path(pool.items[0])
    brightness = []
    for time, colour in ((1_000, "black"), (2_000, "white")):
        Image.new("RGB", (20, 20), colour).save(path, "BMP")
        os.utime(path, (time, time))
        brightness.append((path.stat().st_size, measure_pool(pool)[0].brightness))
    assert brightness == [(1254, 0.0), (1254, 1.0)]


def test_a_changed_text_is_measured_again(pool):
    measure_pool(pool)
    items = [item.model_copy(update={"question": "one two"}) for item in pool.items]
    assert [row.question_words for row in measure_pool(Pool(pool.folder, items))] == [2, 2, 2]


def test_another_version_of_the_formulas_measures_again(pool, monkeypatch):
    fresh = measure_pool(pool)
    content = json.loads((pool.folder / "measurements.json").read_text())
    content["items"][0]["blur"] = 0.123
    (pool.folder / "measurements.json").write_text(json.dumps(content))
    assert measure_pool(pool)[0].blur == 0.123
    monkeypatch.setattr(measurements, "VERSION", measurements.VERSION + 1)
    assert measure_pool(pool) == fresh


def test_figures_that_were_handed_in_are_read_back(pool):
    rows = measure_pool(pool)
    (pool.folder / "measurements.json").unlink()
    store_measurements(pool, rows)
    assert json.loads((pool.folder / "measurements.json").read_text())["items"][2]["side"] == 40.0
    assert measure_pool(pool) == rows


@pytest.mark.parametrize("workers", [1, 2])
def test_a_missing_or_broken_picture_is_named(pool, workers):
    path = pool.image_path(pool.items[2])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RecordError, match=f"{path}: cannot be decoded"):
        measure_pool(pool, workers)
    path.unlink()
    with pytest.raises(RecordError, match=f"{path}: no such image file"):
        measure_pool(pool, workers)
