"""What a vision-language model makes of pictures, without its language model.

That is its vision tower with whatever leads from there into the language model: the same features, of which each
family has its own number and width. Pictures are read by the family's own image processor.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from models.errors import ModelError
from models.families.base import LANGUAGE_MODELS
from models.families.registry import family_of

Picture = dict[str, torch.Tensor]
"""What `get_image_features` takes of one picture."""


def _model_class(config: Any) -> Any:
    """The class of transformers' that takes both pixels and tokens; `None` for models of another kind."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING

    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return None
    found = MODEL_MAPPING.get(type(config), None)
    return found if hasattr(found, "get_image_features") and not hasattr(found, "get_text_features") else None


def has_vision_tower(config: Any) -> bool:
    """Whether a configuration is that of a model whose language model reads features of pictures."""
    return _model_class(config) is not None


def _vision_class(config: Any) -> Any:
    """That class, whose models have no language model. It keeps its name, by which stored weights are renamed."""
    whole = _model_class(config)

    def __init__(self: Any, config: Any) -> None:
        whole.__init__(self, config)
        for name, _ in list(self.named_children()):
            if name in LANGUAGE_MODELS or "audio" in name:
                delattr(self, name)

    ignored = [rf"(^|\.)({'|'.join(LANGUAGE_MODELS)}|lm_head|\w*audio\w*)\.", r"^model\.(layers|norm|embed_tokens)\."]
    return type(whole.__name__, (whole,), {"__init__": __init__, "_keys_to_ignore_on_load_unexpected": ignored})


def build_vision(config: Any) -> nn.Module:
    """The part for a configuration, without weights: they are on the device "meta"."""
    with torch.device("meta"):
        return _vision_class(config)(config)


def load_vision(name: str, config: Any, device: str, dtype: Any, revision: str | None = None) -> nn.Module:
    """The part of a folder or Hub id, in evaluation mode; weights of the language model are never held.

    Raises:
        ModelError: weights are missing.
    """
    part, report = _vision_class(config).from_pretrained(
        name, config=config, dtype=dtype, output_loading_info=True, revision=revision
    )
    if report["missing_keys"]:
        raise ModelError(f"{name}: weights of the vision tower are missing: {sorted(report['missing_keys'])[:5]}")
    return part.to(device).eval()


def read_pictures(config: Any, image_processor: Any, images: Sequence[Any]) -> list[Picture]:
    """RGB pictures as the model of a configuration takes them."""
    taken = inspect.signature(_model_class(config).get_image_features).parameters
    found = (image_processor(images=[image], return_tensors="pt") for image in images)
    return [{name: value for name, value in one.items() if name in taken} for one in found]


def features_of(vision: nn.Module, pictures: Sequence[Picture]) -> list[torch.Tensor]:
    """Of each picture, (tokens, layers, width): see `Family.features_of_pictures`."""
    return family_of(vision.config).features_of_pictures(vision, pictures)
