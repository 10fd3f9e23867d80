"""Encoders with LoRA are trained along with a selector; tiny random BERT, CLIP and SigLIP stand for real ones."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from data.factor_labels.text_encoder import BUNDLED_MINILM
from models.embeddings import load_encoder
from models.selectors.encoder_inputs import InputReader
from models.selectors.encoding import EncodingSelector, EncodingSelectorConfig
from models.selectors.load import load_encoding_selector, load_selector

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
TEXT = {**TOWER, "vocab_size": 50, "max_position_embeddings": 16}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
SELECTOR = {"hidden_size": 8, "history": "gru", "scorer": "additive"}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders of encoders by name."""
    torch.manual_seed(0)
    dual = {"text_config": {**TEXT, "bos_token_id": 1, "eos_token_id": 2}, "vision_config": VISION}
    made = {
        "bert": BertModel(BertConfig(**TEXT)),
        "clip": CLIPModel(CLIPConfig(**dual, projection_dim=12)),
        "siglip": SiglipModel(SiglipConfig(**dual)),
    }
    folder = tmp_path_factory.mktemp("encoders")
    for name, model in made.items():
        model.save_pretrained(folder / name)
    return {name: folder / name for name in made}


CHOICES = {
    "texts by BERT": ("bert", None, 16),
    "texts by CLIP": ("clip", None, 12),
    "images by CLIP": (None, "clip", 12),
    "both by one CLIP": ("clip", "clip", 24),
    "both by one SigLIP": ("siglip", "siglip", 32),
    "texts by BERT, images by CLIP": ("bert", "clip", 28),
}


@pytest.fixture(params=CHOICES.values(), ids=CHOICES)
def made(request, encoders):
    """A selector on encoders, their folders, and the width of their embeddings."""
    text, image, width = request.param
    folders = encoders.get(text), encoders.get(image)
    return EncodingSelector.from_encoders(*folders, selector=SELECTOR, lora_rank=2), folders, width


def inputs(count: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (count, 6), generator=generator)
    ids[:, 4] = 2  # the end, for CLIP
    mask = torch.ones_like(ids)
    mask[:, 5] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.randn(count, 3, 16, 16, generator=generator),
    }


QUERIES, EXAMPLES = inputs(2, 1), inputs(7, 2)
POOLS = torch.tensor([[0, 1, 2, 3], [6, 5, 4, -1]])
POINTERS = torch.tensor([[[0, 1], [3, -1]], [[2, 0], [1, 2]]])


def test_embeddings_before_training_are_those_of_the_encoders(made):
    model, (text, image), width = made
    with torch.no_grad():
        found = model.eval().embed(QUERIES)
        parts = []
        if image is not None:
            encoder = AutoModel.from_pretrained(image).eval()
            parts.append(encoder.get_image_features(pixel_values=QUERIES["pixel_values"]).pooler_output)
        if text is not None:
            encoder = AutoModel.from_pretrained(text).eval()
            tokens = {name: QUERIES[name] for name in ("input_ids", "attention_mask")}
            if hasattr(encoder, "get_text_features"):
                parts.append(encoder.get_text_features(**tokens).pooler_output)
            else:
                parts.append(encoder(**tokens).last_hidden_state[:, :5].mean(1))
    assert found.shape == (2, width)
    torch.testing.assert_close(found, torch.cat([F.normalize(part, dim=-1) for part in parts], dim=-1))


def test_a_step_trains_adapters_and_selector_and_nothing_else(made):
    model, _, _ = made
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):  # LoRA's second factor starts at zero: the first one moves from the second step on
        optimizer.zero_grad()
        model(QUERIES, EXAMPLES, POOLS, POINTERS).cross_entropy.sum().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        trained = name.startswith("selector.") or ".lora_" in name
        assert parameter.requires_grad == trained, name
        assert torch.equal(parameter, before[name]) != trained or not _is_reached(name), name
    assert any(".lora_" in name for name in before)


def _is_reached(name: str) -> bool:
    """BERT's pooler takes no part in a mean over tokens."""
    return "pooler" not in name


def test_what_is_stored_comes_back(made, tmp_path):
    model, _, _ = made
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    model(QUERIES, EXAMPLES, POOLS, POINTERS).cross_entropy.sum().backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    loaded = load_encoding_selector(tmp_path)
    assert not loaded.training
    assert torch.equal(load_selector(tmp_path).query_proj.weight, model.selector.query_proj.weight)
    trainable = [[name for name, p in one.named_parameters() if p.requires_grad] for one in (model, loaded)]
    assert trainable[0] == trainable[1]
    scored = [one(QUERIES, EXAMPLES, POOLS, POINTERS).log_probs for one in (model, loaded)]
    assert torch.equal(*scored)
    chosen = [one.select(QUERIES, EXAMPLES, POOLS, 2, method="beam", num_beams=3) for one in (model, loaded)]
    assert torch.equal(chosen[0].pointers, chosen[1].pointers)


def test_what_is_no_selector_is_an_error(encoders):
    with pytest.raises(ValueError, match="model_type: expected encoding_selector, found bert"):
        load_encoding_selector(encoders["bert"])
    with pytest.raises(
        ValueError, match="expected pointer_selector or gpt2_selector or encoding_selector, found bert"
    ):
        load_selector(encoders["bert"])


def test_the_bundled_encoder_makes_the_embeddings_that_its_package_makes():
    """Mean pooling, the same tokens, the same longest text."""
    model = EncodingSelector.from_encoders(BUNDLED_MINILM, selector=SELECTOR).eval()
    texts = ["what color is the circle?", "is there a red shape", "word " * 400]
    tokens = InputReader.of_encoders(BUNDLED_MINILM, None).read_texts(texts)
    assert tokens["input_ids"].shape == (3, 256)
    with torch.no_grad():
        found = model.embed(tokens)
    expected = load_encoder(BUNDLED_MINILM, "cpu").encode_texts(texts)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": True}, "pools by cls; expected the mean"),
        (["Transformer", "Pooling"], {"pooling_mode": ["mean", "max"]}, "pools by mean and max; expected the mean"),
        (["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"}, "modules.json: expected .*found .*Dense in"),
    ],
)
def test_text_encoders_that_pool_otherwise_are_refused(encoders, tmp_path, modules, pooling, message):
    folder = tmp_path / "sentences"
    shutil.copytree(encoders["bert"], folder)
    described = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{place}_{kind}" if place else ""}
        for place, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ValueError, match=message):
        EncodingSelector.from_encoders(folder)


def test_the_second_tower_of_a_dual_encoder_gets_no_adapters(encoders):
    model = EncodingSelector.from_encoders(image_encoder=encoders["clip"], selector=SELECTOR)
    adapted = [name for name, _ in model.named_parameters() if ".lora_" in name]
    assert adapted
    assert all(".vision_model." in name for name in adapted)


def test_missing_inputs_are_an_error(encoders):
    model = EncodingSelector.from_encoders(image_encoder=encoders["clip"], selector=SELECTOR)
    with pytest.raises(ValueError, match="inputs: expected pixel_values, found input_ids"):
        model.embed({"input_ids": QUERIES["input_ids"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected at least one of them, found neither"),
        ({"text_encoder": "image_encoder"}, "found 'image_encoder' without an image encoder"),
        ({"text_encoder": "clip", "image_encoder": {"model_type": "clip"}}, "or 'image_encoder', found 'clip'"),
        ({"text_encoder": {"model_type": "bert"}, "lora_rank": 0}, "lora_rank: expected at least 1, found 0"),
        ({"text_encoder": {"model_type": "bert"}, "lora_dropout": 1.0}, "lora_dropout: .* less than 1, found 1.0"),
        ({"text_encoder": {"model_type": "bert"}, "example_text": "all"}, "example_text: expected one of question, q"),
        ({"text_encoder": {"model_type": "bert"}, "lora_rang": 4}, "lora_rang: unknown field"),
    ],
)
def test_a_wrong_configuration_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        EncodingSelectorConfig(**options)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_the_vision_tower_of_any_family_encodes_images(tiny_family, encoders, tmp_path, family):
    """Before training as tables of embeddings have them; adapters are trained, and what is stored says the same."""
    folder = str(tiny_family(family))
    pictures = [Image.new("RGB", size, colour) for size, colour in (((40, 30), "red"), ((64, 64), "teal"))]
    model = EncodingSelector.from_encoders(encoders["bert"], folder, selector=SELECTOR, lora_rank=2)
    reader = InputReader.of_encoders(None, folder)
    expected = load_encoder(folder, "cpu").encode_images(pictures)
    with torch.no_grad():
        found = model.eval().embed_images(reader.read_images(pictures))
    torch.testing.assert_close(found, torch.from_numpy(expected))

    model.train()
    model.embed_images(reader.read_images(pictures))[:, 0].sum().backward()
    moved = [name for name, value in model.named_parameters() if value.grad is not None]
    assert all(".lora_" in name for name in moved)
    adapters = [name for name, _ in model.named_parameters() if "image_encoder" in name and ".lora_" in name]
    assert sorted(moved) == sorted(adapters)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_" in name:
                value += 0.1
        changed = model.eval().embed_images(reader.read_images(pictures))
    assert (changed - found).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    reader.save_pretrained(tmp_path)
    loaded = load_encoding_selector(tmp_path)
    again = InputReader.of_selector(tmp_path, EncodingSelectorConfig(image_encoder=loaded.config.image_encoder))
    with torch.no_grad():
        torch.testing.assert_close(loaded.embed_images(again.read_images(pictures)), changed)
    with pytest.raises(ValueError, match="text_encoder: expected an encoder of texts, or a CLIP or SigLIP"):
        EncodingSelector.from_encoders(folder, folder)


def test_an_image_encoder_that_cannot_see_is_an_error(encoders):
    with pytest.raises(ValueError, match="image_encoder: expected a CLIP, a SigLIP or a .* model, found BertModel"):
        EncodingSelector.from_encoders(image_encoder=encoders["bert"])
