"""Reward models loaded from a folder or the Hub: trained ones, and new ones on a backbone."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from models.errors import ModelError
from models.families.base import backbone_kind
from models.families.loading import load_processor
from models.hub_revisions import AdapterBase, adapter_base, hub_options
from models.model_paths import loading
from models.reward.config import SETTINGS, can_be_backbone, read_config
from models.reward.model import reward_model_class
from models.reward.names import backbone_type
from models.run_folders import find_model


def reward_model_kind(config: Any, name: str | Path) -> type:
    """The class for a backbone or reward model with this configuration.

    Raises:
        ModelError: it is none that reads images and texts and writes texts.
    """
    kind = backbone_kind(config)
    if not can_be_backbone(kind) or config.is_encoder_decoder:
        raise ModelError(
            f"{name}: config.json: model_type: expected that of a vision-language model with one decoder, such as "
            f"qwen3_vl, or of a reward model on one; found {config.model_type!r}"
        )
    return reward_model_class(kind)


def reward_model_of(config: Any, settings: dict[str, Any] | None = None) -> Any:
    """A reward model with random weights, of the configuration of a backbone or reward model, which stays as it is."""
    model = reward_model_kind(config, config.name_or_path)
    return model(model.config_with(deepcopy(config), settings))


def from_backbone(name: str | Path, settings: dict[str, Any] | None = None, **kwargs: Any):
    """`from_backbone` of the class that fits."""
    return reward_model_kind(read_config(name, hub_options(kwargs)), name).from_backbone(name, settings, **kwargs)


def adapted_backbone(base: AdapterBase, stored: Any, settings: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
    """The reward model that adapters are put on, with a new head.

    Args:
        stored: configuration beside the adapters.
        settings: fields that differ from it.
        kwargs: of `from_pretrained`.
    """
    kept = {name: getattr(stored, name) for name in SETTINGS}
    model = from_backbone(base.name, kept | dict(settings or {}), **{**kwargs, "revision": base.revision})
    model.score_head.float()  # as it was trained and stored
    return model


def load_reward_model(path: str | Path, device: Any = None, dtype: Any = "auto", revision: str | None = None):
    """Model and processor of a trained reward model: a folder (of a run too, or of adapters) or Hub id.

    Args:
        device: where to put it; by default an accelerator if there is one.
        revision: branch, tag or commit of a Hub repository.

    Returns:
        The model in eval mode with its processor attached, and the processor.

    Raises:
        ModelError: there is no such model.
        ValueError: it is no reward model, or its weights are not exactly those of its configuration; lists them.
    """
    with loading(path):
        path = find_model(path)
        config = read_config(path, {"revision": revision})
    if backbone_type(config.model_type) is None:
        expected = "expected that of a reward model, such as qwen2_vl_reward"
        raise ModelError(f"{path}: config.json: model_type: {expected}, found {config.model_type!r}")
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator or "cpu"
    base = adapter_base(path, revision)
    if base is not None:
        model = _with_adapters(path, revision, base, config, device, dtype)
    else:
        model = from_backbone(path, dtype=dtype, revision=revision).to(device)
    processor = load_processor(path, revision=revision)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    plain.processor = processor
    return model.eval(), processor


def _with_adapters(path: str, revision: str | None, base: AdapterBase, config: Any, device: Any, dtype: Any):
    """Adapters, and the head that was trained with them, on their backbone."""
    from peft import PeftModel

    options: dict[str, Any] = {"dtype": dtype}
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        from transformers import BitsAndBytesConfig

        values = quantization if isinstance(quantization, dict) else quantization.to_dict()
        options |= {"quantization_config": BitsAndBytesConfig.from_dict(values), "device_map": {"": device}}
    model = adapted_backbone(base, config, **options)
    if quantization is None:
        model.to(device)
    return PeftModel.from_pretrained(model, path, revision=revision)
