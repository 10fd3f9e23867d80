"""The part of a vision-language model that looks at pictures is the whole model's own, in every family."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText

from models.embeddings import described, fingerprint_of, load_encoder
from models.families.vision_hooks import vision_language_model, vision_tower
from models.tiny import FAMILIES
from models.vision_towers import build_vision, features_of, has_vision_tower, load_vision, read_pictures

SIZES = ((64, 64), (96, 32), (20, 50))


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_that_the_language_model_sees(family, tiny_family):
    """Each picture's own, however many are read together."""
    folder = str(tiny_family(family))
    config, processor = AutoConfig.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    vision = load_vision(folder, config, "cpu", torch.float32)
    assert not [name for name, _ in vision.named_parameters() if "language_model" in name or "lm_head" in name]
    read = read_pictures(config, processor, pictures())
    whole = vision_language_model(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)).eval()
    with torch.inference_mode():
        found = features_of(vision, read)
        for own, picture in zip(found, read, strict=True):
            features = whole.get_image_features(**picture, return_dict=True)
            layers = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
            assert own.shape[1:] == (len(layers), config.get_text_config().hidden_size)
            for number, layer in enumerate(layers):
                expected = torch.cat([part.reshape(-1, own.shape[2]) for part in layer])
                assert torch.allclose(own[:, number], expected, atol=1e-5)
    assert len({round(one.mean().item(), 6) for one in found}) == len(SIZES)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_the_means_of_these_features(family, tiny_family):
    folder = str(tiny_family(family))
    encoder = load_encoder(folder, "cpu")
    assert (encoder.can_text, encoder.can_images, encoder.width) == (False, True, 32)
    vectors = encoder.encode_images(pictures())
    with torch.inference_mode():
        found = features_of(encoder._model, read_pictures(encoder._model.config, encoder._processor, pictures()))
    expected = torch.nn.functional.normalize(torch.stack([one[:, 0].mean(dim=0) for one in found]), dim=1)
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-6)
    assert load_encoder(folder, "cpu").fingerprint == encoder.fingerprint


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "gemma3"])
def test_weights_of_the_language_model_are_left_out_without_a_word(family, tiny_family, caplog):
    """Published names of Qwen2-VL's are others than those in memory."""
    load_encoder(str(tiny_family(family)), "cpu")
    assert "UNEXPECTED" not in caplog.text


def test_the_fingerprint_of_a_tower_that_needs_no_further_part_is_that_of_the_tower(tiny_model):
    """As tables of embeddings that were stored earlier name it."""
    folder = str(tiny_model)
    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    settings = [described(AutoConfig.from_pretrained(folder).vision_config)]
    expected = fingerprint_of(vision_tower(whole), settings, [AutoImageProcessor.from_pretrained(folder)])
    assert load_encoder(folder, "cpu").fingerprint == expected


def test_a_part_without_weights_takes_no_memory(tiny_family):
    config = AutoConfig.from_pretrained(str(tiny_family("gemma3")))
    assert {value.device.type for value in build_vision(config).parameters()} == {"meta"}
    assert has_vision_tower(config)
    assert not has_vision_tower(config.text_config)
