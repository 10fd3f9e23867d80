"""Gemma 3 and 4: bounds, tokens of images, and what tokens of one row see."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from data.io.pixel_bounds import BoundsError
from models.families.loading import load_processor
from models.families.registry import family_of
from models.families.vision_hooks import nothing_of_a_blank_image
from models.shared_prefix.sharing import reason_not_shared

FAMILIES = ["gemma3", "gemma4"]
TOKEN = (8 * 3) ** 2
"""Pixels of a token of the tiny Gemma 4."""


@pytest.fixture(scope="module")
def loaded(tiny_family):
    """Function: family -> model and processor."""
    return lambda name: (
        AutoModelForImageTextToText.from_pretrained(tiny_family(name), dtype=torch.float32),
        load_processor(str(tiny_family(name))),
    )


@pytest.mark.parametrize(("most", "tokens"), [(70 * TOKEN, 70), (279 * TOKEN, 140), (10**9, 1120)])
def test_an_upper_bound_is_the_most_tokens_that_fit_it(tiny_family, most, tokens):
    processor = load_processor(str(tiny_family("gemma4")), max_pixels=most)
    pixels = processor.image_processor(images=[Image.new("RGB", (300, 200))], return_tensors="pt")
    assert tokens * 0.8 < pixels["num_soft_tokens_per_image"][0] <= tokens
    assert pixels["pixel_values"].shape[1] == tokens * 9


def test_bounds_that_gemma_4_cannot_keep(tiny_family):
    with pytest.raises(BoundsError, match=rf"max_pixels: expected at least {70 * TOKEN}, .*found {70 * TOKEN - 1}"):
        load_processor(str(tiny_family("gemma4")), max_pixels=70 * TOKEN - 1)
    with pytest.raises(BoundsError, match="min_pixels: Gemma4Processor .* leave it out"):
        load_processor(str(tiny_family("gemma4")), min_pixels=100, max_pixels=10**9)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_have_as_many_tokens_as_the_processor_writes(loaded, name):
    model, processor = loaded(name)
    family, images = family_of(model.config), [Image.new("RGB", size) for size in ((60, 20), (20, 90), (64, 64))]
    text = f"{processor.tokenizer.boi_token if name == 'gemma3' else processor.image_token}x" * 3
    inputs = processor(text=[text], images=[images], return_tensors="pt")
    found = family.split(inputs)
    assert len(found) == 3
    tokens = sum(family.visual_tokens(model.model.config, image) for image in found)
    assert tokens == int(family.token_types(model.model.config, inputs["input_ids"]).sum()) > 0
    joined = family.join(found)
    assert all(torch.equal(joined[key], inputs[key]) for key in family.image_inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_blank_image_goes_through_the_whole_tower(loaded, name):
    model = loaded(name)[0]
    nothing = nothing_of_a_blank_image(model.model, torch.zeros(1, 1))
    nothing.backward()
    beside = model.model.multi_modal_projector if name == "gemma3" else model.model.embed_vision
    used = [parameter.grad for part in (model.model.vision_tower, beside) for parameter in part.parameters()]
    assert nothing == 0
    assert all(gradient is not None and not gradient.any() for gradient in used)


@pytest.mark.parametrize(("name", "everything"), [("gemma3", True), ("gemma4", "all")])
def test_a_model_whose_tokens_see_those_behind_them_is_not_shared(loaded, name, everything):
    model = loaded(name)[0]
    assert reason_not_shared(model) is None
    model.config.get_text_config().use_bidirectional_attention = everything
    assert "sees those behind it" in reason_not_shared(model)
