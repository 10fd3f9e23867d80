"""Images taken away: blank ones of equal size, those of other rows by a fixed derangement, and none."""

import random
from collections import Counter

import pytest
from PIL import Image

from data.io.digests import image_digest
from data.io.images import image_size, open_image
from rewards.diagnosis.image_variants import BLANK, OTHER, WITHOUT, image_variants, images_of, other_images
from rewards.scoring.model_scores import ScoreRequest


def picture(shade: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (shade, 0, 0))


def digests(images) -> list[str]:
    return [image_digest(image) for image in images]


def asked(images, prompt="what is it?") -> ScoreRequest:
    return ScoreRequest(prompt, images, ["a", "b"])


@pytest.mark.parametrize("seed", range(20))
def test_no_row_keeps_a_picture_of_its_own_and_each_picture_is_given_once(seed):
    rng = random.Random(seed)
    # Ten kinds of pictures for 60 places: most pictures stand in several rows, none in more than half of the places.
    images = {row: [picture(rng.randrange(10)) for _ in range(rng.randint(1, 2))] for row in range(40)}
    given = other_images(images, seed)
    assert {row: len(found) for row, found in given.items()} == {row: len(own) for row, own in images.items()}
    for row, found in given.items():
        assert set(digests(found)).isdisjoint(digests(images[row]))
    before, after = (Counter(digest for own in rows.values() for digest in digests(own)) for rows in (images, given))
    assert before == after
    assert digests(sum(given.values(), [])) == digests(sum(other_images(images, seed).values(), []))
    assert digests(sum(given.values(), [])) != digests(sum(other_images(images, seed + 1).values(), []))


def test_a_picture_in_exactly_half_of_the_places_goes_to_the_other_half():
    images = {row: [picture(row % 2)] for row in range(30)}
    for seed in range(20):
        assert [digests(found) for found in other_images(images, seed).values()] == [
            digests([picture(1 - row % 2)]) for row in range(30)
        ]


def test_a_picture_in_most_places_is_replaced_by_any_other():
    images = {row: [picture(1 if row < 8 else row)] for row in range(10)}
    given = other_images(images, 0)
    assert len(given) == 10
    assert all(digests(given[row]) != digests(images[row]) for row in images)


def test_equal_pictures_in_other_files_are_no_other_pictures(tmp_path):
    for name in ("a.png", "b.bmp"):
        picture(7).save(tmp_path / name)
    rows = {0: [str(tmp_path / "a.png")], 1: [str(tmp_path / "b.bmp")]}
    assert other_images(rows, 0) == {}
    assert OTHER in image_variants({row: asked(images) for row, images in rows.items()}, 0)


def test_blank_images_are_grey_and_as_large(tmp_path):
    picture(9, (40, 24)).save(tmp_path / "wide.png")
    variants = image_variants({3: asked([str(tmp_path / "wide.png"), picture(0, (8, 100))])}, 0)
    blank = variants[BLANK][3].images
    assert [image_size(image) for image in blank] == [(40, 24), (8, 100)]
    assert [open_image(image).getcolors() for image in blank] == [[(960, (128,) * 3)], [(800, (128,) * 3)]]
    assert variants[BLANK][3].responses == ["a", "b"]


def test_a_prompt_without_images_has_no_places_for_them():
    turns = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}, {"type": "image"}]},
    ]
    variants = image_variants({0: asked([picture(0), picture(1)], turns), 1: asked([picture(2)])}, 0)
    assert list(variants[WITHOUT].values()) == [
        ScoreRequest(
            [turns[0], {"role": "user", "content": [{"type": "text", "text": "what is it?"}]}], (), ["a", "b"]
        ),
        ScoreRequest("what is it?", (), ["a", "b"]),
    ]


def test_images_of_responses_are_taken_away_too():
    def drawn(shade: int, text: str) -> list[dict]:
        return [{"type": "text", "text": text}, {"type": "image", "image": picture(shade, (8, 8 + shade))}]

    rows = {row: ScoreRequest("draw", [], [drawn(4 * row, "here"), drawn(4 * row + 1, "there")]) for row in range(3)}
    variants = image_variants(rows, 0)
    for row, request in rows.items():
        blank, other = (images_of(variants[name][row]) for name in (BLANK, OTHER))
        assert [image_size(image) for image in blank] == [(8, 8 + 4 * row), (8, 9 + 4 * row)]
        assert set(digests(other)).isdisjoint(digests(images_of(request)))
        assert variants[BLANK][row].responses[1][0] == {"type": "text", "text": "there"}
        assert variants[WITHOUT][row].responses == ["here", "there"]
    mute = ScoreRequest("draw", [], [drawn(0, "here")[1:], "nothing"])
    assert image_variants({0: mute}, 0)[WITHOUT] == {}


def test_a_turn_of_images_alone_cannot_lose_them():
    turns = [{"role": "user", "content": [{"type": "image"}]}]
    assert image_variants({0: asked([picture(0)], turns)}, 0)[WITHOUT] == {}
