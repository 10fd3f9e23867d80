"""Pictures are encoded once each, told apart by content, and come out the same to the last bit whatever is around."""

import pytest
import torch
import vlm_cases as cases

from data.io.images import ImageError
from data.vqa import VqaRecord
from models.families.vision_hooks import vision_tower
from rollouts.frozen_vlm import image_features
from rollouts.frozen_vlm.engine import InContextVLM
from rollouts.frozen_vlm.image_features import ImageFeatures
from rollouts.frozen_vlm.requests import InContextRequest

PICTURES = [
    cases.picture(colour, size)
    for colour, size in zip(cases.COLOURS, ((64, 64), (96, 32), (32, 64), (48, 48)) * 2, strict=True)
]


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def tiny(request):
    return cases.build_qwen2() if request.param == "qwen2_vl" else cases.build_qwen25()


def _alone(tiny, picture) -> torch.Tensor:
    model, processor = tiny
    inputs = processor.image_processor(images=[picture], return_tensors="pt")
    with torch.no_grad():
        return vision_tower(model)(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output


def test_features_are_the_towers_own(tiny):
    images = ImageFeatures(*tiny, 2**20)
    keys = [images.key(picture) for picture in PICTURES]
    expected = torch.cat([_alone(tiny, picture) for picture in PICTURES])
    assert torch.allclose(images(keys), expected, atol=1e-5)
    assert [images.grid(key) for key in keys[:4]] == [(4, 4), (2, 6), (4, 2), (3, 3)]


def test_a_picture_is_encoded_once_whatever_it_is_given_as(tiny, tmp_path):
    images = ImageFeatures(*tiny, 2**20)
    PICTURES[0].save(tmp_path / "a.png")
    PICTURES[0].save(tmp_path / "copy.png")
    content = (tmp_path / "a.png").read_bytes()
    sources = [str(tmp_path / "a.png"), tmp_path / "copy.png", {"bytes": content, "path": None}]
    assert len({images.key(source) for source in sources}) == 1
    for source in sources:
        images([images.key(source)] * 2)
    assert images.encoded == 1


def test_requests_encode_each_of_their_pictures_once(tiny):
    records = cases.records()
    vlm = InContextVLM(*tiny)
    requests = [
        InContextRequest(query, (first, second), "red")
        for query in records[:3]
        for first, second in zip(records[3:], records[4:], strict=False)
    ]
    vlm.answer_probabilities(requests)
    vlm.generate(requests)
    assert vlm.images.encoded == len({image.tobytes() for record in records for image in record.images})


def test_a_small_cache_forgets_what_was_not_used_for_longest_and_changes_nothing(tiny):
    width = _alone(tiny, PICTURES[0]).nbytes
    images = ImageFeatures(*tiny, 2 * width)
    large = ImageFeatures(*tiny, 2**20)
    keys = [images.key(picture) for picture in PICTURES]
    for picture in PICTURES:
        large.key(picture)
    for key in [keys[0], keys[4], keys[0], keys[2], keys[3], keys[0]]:
        assert torch.equal(images([key]), large([key]))
    assert torch.equal(images(keys), large(keys))
    before = images.encoded
    images([keys[-1]])
    assert images.encoded == before
    images([keys[0]])
    assert images.encoded == before + 1


@pytest.mark.parametrize("limits", [(32, 16_384), (3, 16_384), (32, 100)], ids=["one", "threes", "patches"])
def test_prepared_pictures_are_the_same_to_the_last_bit_in_any_order(tiny, limits, monkeypatch):
    monkeypatch.setattr(image_features, "GROUP_IMAGES", limits[0])
    monkeypatch.setattr(image_features, "GROUP_PATCHES", limits[1])
    results = []
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [6, 2, 7, 0], [3]):
        images = ImageFeatures(*tiny, 2**20)
        images.prepare(PICTURES)
        keys = [images.key(picture) for picture in PICTURES]
        for number in order:
            images([keys[number]])
        results.append(images(keys))
        assert images.encoded == len(PICTURES)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    expected = torch.cat([_alone(tiny, picture) for picture in PICTURES])
    assert torch.allclose(results[0], expected, atol=1e-5)


def test_a_missing_picture_is_named(tiny, tmp_path):
    images = ImageFeatures(*tiny, 2**20)
    with pytest.raises(ImageError, match=r"gone.png: no such image file"):
        images.key(str(tmp_path / "gone.png"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text.png: not an image"):
        images.key(str(tmp_path / "text.png"))


def test_an_image_token_in_a_question_is_refused(tiny):
    record = VqaRecord(question="what is <|image_pad|>?", answers=["a"], images=[PICTURES[0]])
    with pytest.raises(ValueError, match=r"image tokens: expected 1, one an image, found 2"):
        InContextVLM(*tiny).generate([InContextRequest(record)])
