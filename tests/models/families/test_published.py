"""Configurations of published models give the parameter counts that their pages state."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from data.io.pixel_bounds import BoundsError
from models.families.published import PUBLISHED_SHAPES, published_config, published_reader

STORED = {
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen3.5-0.8B": 873_438_784,
    "Qwen/Qwen3.5-2B": 2_274_069_824,
    "Qwen/Qwen3.5-4B": 4_659_865_088,
    "Qwen/Qwen3.5-9B": 9_653_104_368,
    "Qwen/Qwen3.5-27B": 27_781_427_952,
    "OpenGVLab/InternVL3_5-1B-HF": 1_060_897_792,
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-27b-it": 27_432_406_640,
    "google/gemma-4-E2B-it": 5_123_178_051,
    "google/gemma-4-E4B-it": 7_996_156_490,
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": 256_484_928,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": 2_246_784_880,
}
"""What the Hub counts in the files of weights."""
STATED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2.209e9,
    "Qwen/Qwen2-VL-7B-Instruct": 8.291e9,
    "Qwen/Qwen2-VL-72B-Instruct": 73.4e9,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.755e9,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.292e9,
    "Qwen/Qwen3-VL-32B-Instruct": 33.4e9,
    "OpenGVLab/InternVL3-1B-hf": 0.938e9,
    "OpenGVLab/InternVL3-2B-hf": 2.09e9,
    "OpenGVLab/InternVL3-8B-hf": 7.94e9,
    "OpenGVLab/InternVL3_5-8B-HF": 8.5e9,
    "google/gemma-4-26B-A4B-it": 25.2e9 + 0.55e9,  # language model and vision tower, as its card has them
    "google/gemma-4-31B-it": 30.7e9 + 0.55e9,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 0.507e9,
    "HuggingFaceM4/Idefics3-8B-Llama3": 8.46e9,
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": 0.894e9,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": 8.03e9,
}
"""What pages and papers say, rounded."""


def test_every_listed_model_is_tested():
    assert set(STORED) | set(STATED) == set(PUBLISHED_SHAPES)


def parameters(config) -> int:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def of_further_tokens(text) -> int:
    """Parameters of the layer that predicts further tokens, which is stored beside Qwen3.5."""
    hidden, head = text.hidden_size, text.head_dim
    attention = head * (3 * text.num_attention_heads + 2 * text.num_key_value_heads) * hidden + 2 * head
    return attention + 3 * hidden * text.intermediate_size + 2 * hidden**2 + 5 * hidden


def of_shared_layers(text) -> int:
    """Keys, values and norms that are stored for Gemma 4's layers which use those of earlier layers."""
    shared = text.per_layer_config[-text.num_kv_shared_layers :]
    return sum(layer.head_dim * (2 * text.hidden_size * layer.num_key_value_heads + 1) for layer in shared)


NOT_LOADED = {"qwen3_5": of_further_tokens, "gemma4": of_shared_layers}
"""By model type: parameters that are stored, and left out by transformers."""


def test_the_layer_that_is_not_loaded_is_as_large_as_in_the_file():
    # As measured in the published files of the models.
    assert of_further_tokens(published_config("Qwen/Qwen3.5-2B").get_text_config()) == 60_828_160
    assert of_further_tokens(published_config("Qwen/Qwen3.5-4B").get_text_config()) == 120_599_552


@pytest.mark.parametrize(("name", "stored"), STORED.items())
def test_a_model_of_the_configuration_has_as_many_parameters_as_are_stored(name, stored):
    config = published_config(name)
    left_out = NOT_LOADED.get(config.model_type, lambda text: 0)(config.get_text_config())
    assert parameters(config) == pytest.approx(stored - left_out, rel=1e-6)


@pytest.mark.parametrize(("name", "stated"), STATED.items())
def test_a_model_of_the_configuration_has_as_many_parameters_as_are_stated(name, stated):
    assert parameters(published_config(name)) == pytest.approx(stated, rel=1e-2)


@pytest.mark.parametrize("name", [name for name in PUBLISHED_SHAPES if "Qwen2" in name])
def test_image_tokens_are_those_of_the_published_models(name):
    config = published_config(name)
    # <|vision_start|>, <|vision_end|>, <|image_pad|> and <|video_pad|> of Qwen2's vocabulary
    ids = [config.vision_start_token_id, config.vision_end_token_id, config.image_token_id, config.video_token_id]
    assert ids == [151652, 151653, 151655, 151656]
    assert (config.vision_config.patch_size, config.vision_config.spatial_merge_size) == (14, 2)


def test_other_models_are_not_known():
    assert published_config("Qwen/Qwen2-VL-2B") is None
    assert published_config("outputs/tiny") is None


@pytest.mark.parametrize("name", PUBLISHED_SHAPES)
def test_images_of_a_model_out_of_reach_have_an_upper_bound(name):
    reader = published_reader(name, None, None)
    large, small = (reader.tokens(Image.new("RGB", size)) for size in ((2000, 1500), (200, 150)))
    assert large >= small > 0


def test_bounds_are_in_the_patches_of_the_model():
    image = Image.new("RGB", (2000, 2000))
    assert published_reader("Qwen/Qwen2-VL-2B-Instruct", None, 28 * 28 * 256).tokens(image) == 256
    assert published_reader("Qwen/Qwen3-VL-4B-Instruct", None, 32 * 32 * 256).tokens(image) == 256
    assert published_reader("someone/unknown", 28 * 28 * 4, 28 * 28 * 256).tokens(image) == 256
    assert published_reader("Qwen/Qwen3-VL-4B-Instruct", None, 1024).maximum == 256 * 256  # never below the lowest


def test_bounds_that_a_processor_does_not_have():
    assert published_reader("google/gemma-4-E2B-it", None, 48 * 48 * 1120).tokens(None) == 1122
    for name, low, high in [("google/gemma-3-4b-it", None, 500), ("google/gemma-4-E2B-it", 100, None)]:
        with pytest.raises(BoundsError, match=rf"^{'min' if low else 'max'}_pixels: the processor of {name} .* leave"):
            published_reader(name, low, high)
