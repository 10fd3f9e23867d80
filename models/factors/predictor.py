"""Which factors apply to an image: predictors made on a backbone, or loaded.

model = load_factor_predictor("outputs/factors/damages_model")
model.predict(["photo.png"])        # [["blurry_image"]]
model.probabilities(["photo.png"])  # (1, factors)
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from models.embeddings import described
from models.errors import ModelError
from models.factors.model import (
    FactorConfig,
    FactorPredictor,
    FirstTowerFactorConfig,
    ImageFactorConfig,
    ImageFactorPredictor,
    TowerFactorConfig,
    TowerFactorPredictor,
    pooled,
    vision_config,
)
from models.families.loading import load_processor
from models.model_paths import loading
from models.run_folders import find_model
from models.vision_towers import features_of, has_vision_tower, load_vision, read_pictures


def _feature_size(backbone: nn.Module, side: int) -> int:
    with torch.inference_mode():
        return pooled(backbone.eval()(torch.zeros(1, 3, side, side, dtype=backbone.dtype))).shape[1]


def _check_keys(vision: Mapping[str, Any]) -> None:
    """Raises `ModelError` for a key that the configuration of the model type does not have, and would only store."""
    default = vision_config(ImageFactorConfig(vision={"model_type": vision.get("model_type")}))
    for key in vision:
        if key != "model_type" and not hasattr(default, key):
            close = " or ".join(map(repr, difflib.get_close_matches(key, vars(default))))
            raise ModelError(f"unknown key '{key}'{f'; did you mean {close}?' if close else ''}")


def new_predictor(vision: dict[str, Any], factors: Sequence[str], **settings: Any) -> ImageFactorPredictor:
    """A predictor with random weights.

    Args:
        vision: configuration of an image backbone, with its `model_type`; ResNet-18 is {model_type: resnet,
            layer_type: basic, depths: [2, 2, 2, 2], hidden_sizes: [64, 128, 256, 512], embedding_size: 64}.
        settings: further fields of `ImageFactorConfig`.

    Raises:
        ValueError: an unknown model type, or one that does not look at images; a key that it does not have.
    """
    config = ImageFactorConfig(vision=dict(vision), factors=list(factors), **settings)
    _check_keys(vision)
    try:
        with torch.random.fork_rng(devices=[]):
            backbone = AutoModel.from_config(vision_config(config))
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"backbone {vision}: cannot be built: {error}") from error
    if backbone.main_input_name != "pixel_values":
        raise ModelError(f"backbone {vision}: expected an image model, found {type(backbone).__name__}")
    config.feature_size = _feature_size(backbone, config.image_size)
    return ImageFactorPredictor(config)


def from_backbone(
    name: str,
    factors: Sequence[str],
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    revision: str | None = None,
    **settings: Any,
) -> FactorPredictor:
    """A predictor with a new head on a published backbone: an image model, or the vision tower of a
    vision-language model.

    Args:
        name: folder or Hub id.
        min_pixels, max_pixels: bounds of width * height for a vision tower; by default its processor's.
        revision: branch, tag or commit of a Hub repository.
        settings: further fields of the configuration.

    Raises:
        OSError: no such folder or Hub id, or its files are incomplete.
        ValueError: a model of another kind.
    """
    config = AutoConfig.from_pretrained(name, revision=revision)
    if has_vision_tower(config):
        return _from_vision_tower(name, config, factors, min_pixels, max_pixels, revision, settings)
    backbone = AutoModel.from_pretrained(name, dtype=torch.float32, revision=revision)
    if backbone.main_input_name != "pixel_values":
        raise ModelError(f"{name}: expected an image model or a vision-language model, found '{config.model_type}'")
    processor = AutoImageProcessor.from_pretrained(name, revision=revision)
    settings = {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)} | settings
    vision = config.to_dict()
    predictor_config = ImageFactorConfig(vision=vision, factors=list(factors), **settings)
    predictor_config.feature_size = _feature_size(backbone, predictor_config.image_size)
    model = ImageFactorPredictor(predictor_config)
    model.backbone = backbone
    return model


def _from_vision_tower(
    name: str,
    config: Any,
    factors: Sequence[str],
    min_pixels: int | None,
    max_pixels: int | None,
    revision: str | None,
    settings: dict,
) -> TowerFactorPredictor:
    processor = load_processor(name, min_pixels, max_pixels, revision).image_processor
    vision = load_vision(name, config, "cpu", torch.float32, revision)
    settings = {key: value for key, value in settings.items() if key not in ("image_size", "enlarge")}
    predictor_config = TowerFactorConfig(
        vision=described(config), image_processor=described(processor), factors=list(factors), **settings
    )
    blank = read_pictures(config, processor, [Image.new("RGB", (64, 64))])
    with torch.inference_mode():
        predictor_config.feature_size = 2 * features_of(vision, blank)[0][0].numel() + 2
    model = TowerFactorPredictor(predictor_config)
    model.backbone = vision
    return model.train()


def load_factor_config(name: str, revision: str | None = None) -> FactorConfig:
    """The configuration of a predictor.

    Raises:
        ModelError: no such folder or Hub id, or a model of another kind.
    """
    with loading(name):
        config = AutoConfig.from_pretrained(find_model(name), revision=revision)
    if not isinstance(config, FactorConfig):
        raise ModelError(f"{name}: expected a factor predictor (trainers/factors.py), found '{config.model_type}'")
    return config


def load_factor_predictor(name: str, device: str | None = None, revision: str | None = None) -> FactorPredictor:
    """The predictor of a folder, of the newest complete checkpoint in it, or of a Hub id, ready to predict.

    Args:
        device: by default an accelerator if there is one.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        ModelError: no such folder or Hub id, a model of another kind, or one that is not whole.
    """
    if device is None:
        device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    config = load_factor_config(name, revision)
    options: dict[str, Any] = {"dtype": torch.float32, "revision": revision}
    if isinstance(config, FirstTowerFactorConfig):
        options["key_mapping"] = {r"^backbone\.(?!visual\.)": "backbone.visual."}
    with loading(name):
        return AutoModel.from_pretrained(find_model(name), **options).to(device).eval()
