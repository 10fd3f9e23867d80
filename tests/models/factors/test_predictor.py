"""Both kinds of factor predictors: one interface, stored thresholds, frozen parts that stay as they are."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from models.factors.model import blocks_of
from models.factors.predictor import (
    from_backbone,
    load_factor_config,
    load_factor_predictor,
    new_predictor,
)
from models.tiny import FAMILIES as TINY

RESNET = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
FACTORS = ["blurry", "dark", "strip"]
FAMILIES = ("qwen2_vl", "qwen3_vl", "gemma3")
OTHERS = tuple(one for one in TINY if one not in FAMILIES)
KINDS = ("resnet", "vit", *FAMILIES)


@pytest.fixture
def make(tiny_family):
    """Function: kind -> a new predictor."""

    def build(kind: str, **settings):
        torch.manual_seed(0)
        if kind in FAMILIES + OTHERS:
            bounds = {"max_pixels": 1024} if kind in ("qwen2_vl", "qwen3_vl") else {}
            return from_backbone(str(tiny_family(kind)), FACTORS, **bounds, head_size=16, **settings)
        vision = RESNET if kind == "resnet" else VIT
        return new_predictor(vision, FACTORS, image_size=32, head_size=16, **settings)

    return build


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (32, 32), (64, 16), (16, 16), (40, 24)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_do_not_depend_on_the_batch(make, pictures, kind):
    model = make(kind)
    together = model.probabilities(pictures)
    assert together.shape == (5, 3)
    assert ((together > 0) & (together < 1)).all()
    assert len(np.unique(together.round(5))) > 5
    np.testing.assert_allclose(model.probabilities(pictures, batch_size=2), together, atol=1e-6)
    assert model.training
    assert model.probabilities([]).shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_predictor_says_the_same(make, pictures, kind, tmp_path):
    model = make(kind, factor_names={"dark": "too dark"})
    model.config.thresholds = [0.0, 1.0, 0.5]
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = load_factor_predictor(str(tmp_path), "cpu")
    assert type(loaded) is type(model)
    assert loaded.config.thresholds == [0.0, 1.0, 0.5]
    assert load_factor_config(str(tmp_path)).factor_names == {"dark": "too dark"}
    np.testing.assert_array_equal(loaded.probabilities(pictures), model.probabilities(pictures))
    assert loaded.predict(pictures) == model.predict(pictures)


def test_thresholds_decide_what_applies(make):
    model = make("resnet")
    found = np.array([[0.6, 0.4, 0.5], [0.2, 0.1, 0.0]])
    assert model.choose(found) == [["blurry", "strip"], []]
    model.config.thresholds = [0.7, 0.1, 0.6]
    assert model.choose(found) == [["dark"], ["dark"]]


def test_images_may_be_paths(make, pictures, tmp_path):
    model = make("resnet")
    pictures[0].save(tmp_path / "a.png")
    np.testing.assert_array_equal(model.probabilities([tmp_path / "a.png"]), model.probabilities(pictures[:1]))
    from data.io.images import ImageError

    with pytest.raises(ImageError, match=r"b\.png: no such image file"):
        model.probabilities([tmp_path / "b.png"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_weighted_cross_entropy(make, pictures, kind):
    model = make(kind, pos_weight=[1.0, 2.0, 3.0]).eval()
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]])
    output = model(labels=labels, **model.config.prepare(pictures))
    p = output.logits.sigmoid()
    expected = -(torch.tensor([1.0, 2.0, 3.0]) * labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    output.loss.backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert [name for name in without if "mask_token" not in name] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained_blocks", [0, 1])
def test_frozen_parts_stay_as_they_are(make, pictures, kind, trained_blocks):
    model = make(kind)
    model.freeze_backbone(trained_blocks)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1.0)
    model(labels=torch.ones(5, 3), **model.config.prepare(pictures)).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    last = max(index for index, _ in enumerate(blocks_of(model.backbone)))
    prefix = next(name for name, module in model.named_modules() if module is blocks_of(model.backbone)[last])
    allowed = ("head.",) if trained_blocks == 0 else ("head.", f"{prefix}.")
    assert all(name.startswith(allowed) for name in changed)
    assert any(name.startswith(f"{prefix}.") for name in changed) == (trained_blocks == 1)


def test_more_blocks_than_there_are_is_an_error(make):
    with pytest.raises(ValueError, match="trained_blocks: expected 0 to 4, found 5"):
        make("resnet").freeze_backbone(5)


def test_a_vision_tower_is_taken_as_it_was_trained(make, tiny_model):
    from transformers import AutoModelForImageTextToText

    from models.families.vision_hooks import vision_tower

    expected = vision_tower(AutoModelForImageTextToText.from_pretrained(str(tiny_model), dtype=torch.float32))
    found = make("qwen2_vl").backbone.state_dict()
    values = {f"visual.{name}": value for name, value in expected.state_dict().items()}
    assert found.keys() == values.keys()
    assert [name for name, value in values.items() if not value.equal(found[name])] == []


def test_a_predictor_that_was_stored_with_a_tower_alone_says_the_same(make, pictures, tmp_path):
    """As folders of earlier versions are: mean, maximum, and logarithms of rows and columns of patches."""
    from safetensors.torch import load_file, save_file

    model = make("qwen2_vl").eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "tower_factor_predictor"
    kind = config["vision"]["model_type"]
    stored = {
        "model_type": "qwen_factor_predictor",
        "backbone_type": kind,
        "vision": config["vision"]["vision_config"],
    }
    del config["image_processor"]["image_processor_type"]
    (tmp_path / "config.json").write_text(json.dumps(config | stored))
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("backbone.visual.", "backbone."): value for name, value in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})

    loaded = load_factor_predictor(str(tmp_path), "cpu")
    np.testing.assert_array_equal(loaded.probabilities(pictures), model.probabilities(pictures))
    [read] = model.config.prepare(pictures[:1])["pictures"]
    with torch.inference_mode():
        tokens = model.backbone.visual(read["pixel_values"], grid_thw=read["image_grid_thw"]).pooler_output
        sizes = read["image_grid_thw"][0, 1:].float().log()
        logits = model.head(torch.cat([tokens.mean(dim=0), tokens.amax(dim=0), sizes]))
    np.testing.assert_allclose(loaded.probabilities(pictures[:1])[0], logits.sigmoid().numpy(), atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    again = load_factor_predictor(str(tmp_path / "again"), "cpu")
    np.testing.assert_array_equal(again.probabilities(pictures), model.probabilities(pictures))


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_other_families_are_trained_and_stored(make, pictures, kind, tmp_path):
    model = make(kind)
    model(labels=torch.ones(5, 3), **model.config.prepare(pictures)).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    model.save_pretrained(tmp_path)
    found = load_factor_predictor(str(tmp_path), "cpu").probabilities(pictures)
    np.testing.assert_array_equal(found, model.probabilities(pictures))


def test_a_family_without_bounds_of_pixels_says_so(tiny_family):
    with pytest.raises(ValueError, match="max_pixels: Gemma3Processor resizes images by rules of its own"):
        from_backbone(str(tiny_family("gemma3")), FACTORS, max_pixels=1024)


def test_a_published_image_model_brings_its_weights_and_normalisation(tmp_path):
    from transformers import AutoModel, ResNetConfig, ViTImageProcessor

    torch.manual_seed(0)
    values = {key: value for key, value in RESNET.items() if key != "model_type"}
    AutoModel.from_config(ResNetConfig(**values)).save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    model = from_backbone(str(tmp_path), FACTORS, image_size=32)
    assert list(model.config.image_mean) == [0.1, 0.2, 0.3]
    stored = AutoModel.from_pretrained(tmp_path).state_dict()
    assert [name for name, value in model.backbone.state_dict().items() if not value.equal(stored[name])] == []


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"hidden_sizes": [8]}, "names no 'model_type'"),
        ({"model_type": "zoom"}, "Unrecognized|zoom"),
        ({"model_type": "bert"}, "expected an image model, found BertModel"),
    ],
)
def test_what_is_no_image_backbone_is_named(vision, message):
    with pytest.raises(ValueError, match=message):
        new_predictor(vision, FACTORS, image_size=32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thresholds": [0.5]}, "thresholds: expected 3 numbers, one a factor, found 1"),
        ({"pos_weight": [1.0, 1.0]}, "pos_weight: expected 3 numbers, one a factor, found 2"),
        ({"dropout": 1.0}, "dropout: expected at least 0 and less than 1, found 1.0"),
        ({"head_size": 0}, "head_size: expected at least 1, found 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        new_predictor(RESNET, FACTORS, **{"image_size": 32, **settings})


def test_another_model_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"expected a factor predictor \(trainers/factors.py\), found 'qwen2_vl'"):
        load_factor_predictor(str(tiny_model))


def test_old_files_without_weights_are_an_error(make, tmp_path):
    make("resnet").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "_processor" not in config
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        load_factor_predictor(str(tmp_path))
