"""LLaVA-OneVision: a picture alone in its prompt and the same one among others are two images."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from models.families.base import different_images
from models.families.llava_onevision import LlavaOnevision
from models.families.loading import load_processor
from models.families.vision_hooks import install_vision_hooks, nothing_of_a_blank_image

FAMILY = LlavaOnevision()
SIZES = ((60, 20), (20, 90), (64, 64), (33, 32), (200, 190))


@pytest.fixture(scope="module")
def processor(tiny_family):
    return load_processor(str(tiny_family("llava_onevision")))


@pytest.fixture
def model(tiny_family):
    return AutoModelForImageTextToText.from_pretrained(tiny_family("llava_onevision"), dtype=torch.float32)


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    return [Image.effect_noise(size, 60).convert("RGB") for size in sizes]


def read(processor, rows: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
    texts = ["a" + processor.image_token * len(row) for row in rows]
    return dict(processor(text=texts, images=rows, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_images_have_as_many_tokens_as_the_processor_writes(model, processor, size, count):
    inputs = read(processor, [pictures(*[size] * count)])
    counts = [FAMILY.visual_tokens(model.config, image) for image in FAMILY.split(inputs)]
    assert len(counts) == count
    assert sum(counts) == int((inputs["input_ids"] == model.config.image_token_id).sum())


def test_the_only_picture_of_a_prompt_is_another_image_than_one_of_several(processor):
    one, other = pictures((64, 64), (60, 20))
    images = FAMILY.split(read(processor, [[one], [one, one], [other, one]]))
    assert [len(image["pixel_values"]) > 1 for image in images] == [True, False, False, False, False]
    assert different_images(images)[0] == [0, 1, 1, 2, 1]


def test_what_a_processor_says_of_prompts_is_found_in_the_pixels(model, processor):
    """TRL hands on pixels and sizes alone."""
    inputs = read(processor, [pictures((60, 20)), pictures((64, 64), (20, 90)), pictures((64, 64)), []])
    with torch.no_grad():
        expected = model(**inputs).logits
        del inputs["batch_num_images"]
        with pytest.raises((RuntimeError, ValueError)):
            model(**inputs)
        install_vision_hooks(model, distributed=False)
        assert torch.equal(model(**inputs).logits, expected)


def test_one_of_several_may_stand_alone_between_others(model, processor):
    """As it does where each different image is encoded once."""
    with torch.no_grad():
        images = FAMILY.split(read(processor, [pictures((60, 20)), pictures((64, 64), (20, 90)), pictures((64, 64))]))
        install_vision_hooks(model, distributed=False)
        whole = model.model.get_image_features(**FAMILY.join(images), return_dict=True).pooler_output
        kept = [0, 1, 3]
        some = model.model.get_image_features(**FAMILY.join([images[number] for number in kept]), return_dict=True)
    for number, features in zip(kept, some.pooler_output, strict=True):
        torch.testing.assert_close(features, whole[number], rtol=0, atol=1e-5)


def test_a_blank_image_goes_through_the_whole_tower(model):
    nothing = nothing_of_a_blank_image(model.model, torch.zeros(1, 1))
    nothing.backward()
    assert nothing == 0
    parts = [*model.model.multi_modal_projector.parameters(), *model.model.vision_tower.embeddings.parameters()]
    assert all(one.grad is not None and not one.grad.any() for one in [*parts, model.model.image_newline])
