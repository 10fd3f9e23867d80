"""Configurations of published models give the parameter counts that their pages state."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from models.families.published import PUBLISHED_SHAPES, published_config

PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2.209e9,
    "Qwen/Qwen2-VL-7B-Instruct": 8.291e9,
    "Qwen/Qwen2-VL-72B-Instruct": 73.4e9,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.755e9,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.292e9,
}


def test_every_listed_model_is_tested():
    assert set(PUBLISHED) == set(PUBLISHED_SHAPES)


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_a_model_of_the_configuration_has_the_published_number_of_parameters(name, published):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(published_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED_SHAPES)
def test_image_tokens_are_those_of_the_published_models(name):
    config = published_config(name)
    # <|vision_start|>, <|vision_end|>, <|image_pad|> and <|video_pad|> of Qwen2's vocabulary
    ids = [config.vision_start_token_id, config.vision_end_token_id, config.image_token_id, config.video_token_id]
    assert ids == [151652, 151653, 151655, 151656]
    assert (config.vision_config.patch_size, config.vision_config.spatial_merge_size) == (14, 2)


def test_other_models_are_not_known():
    assert published_config("Qwen/Qwen2-VL-2B") is None
    assert published_config("outputs/tiny") is None
