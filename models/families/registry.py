"""Which family a model or processor is of."""

from typing import Any

from torch import nn

from models.errors import ModelError
from models.families.base import LANGUAGE_MODELS, TOWERS, Family, KnownFamily, backbone_kind, child, not_known
from models.families.gemma import Gemma3, Gemma4
from models.families.idefics import Idefics
from models.families.internvl import InternVL
from models.families.llava_onevision import LlavaOnevision
from models.families.qwen3_5 import Qwen35
from models.families.qwen3_vl import Qwen3VL
from models.families.qwen_vl import QwenVL

FAMILIES: tuple[KnownFamily, ...] = (
    QwenVL(),
    Qwen3VL(),
    Qwen35(),
    InternVL(),
    Idefics(),
    Gemma3(),
    Gemma4(),
    LlavaOnevision(),
)
_BY_TYPE = {name: family for family in FAMILIES for name in family.model_types}
_OTHER = Family()
ASSUMED = FAMILIES[0]
"""What a model is taken for of which nothing is known."""


def family_of(config: Any) -> Family:
    """The family of a model with this configuration, also of a reward model on it."""
    return _BY_TYPE.get(backbone_kind(config), _OTHER)


def known_family_of(config: Any) -> KnownFamily:
    """The family of a model whose prompts are shared.

    Raises:
        ModelError: it is of none that is known.
    """
    family = family_of(config)
    if not isinstance(family, KnownFamily):
        raise ModelError(not_known(config))
    return family


def family_of_processor(processor: Any) -> Family:
    """The family of a processor of transformers', which stands in the folder of a model type."""
    return next((_BY_TYPE[part] for part in type(processor).__module__.split(".") if part in _BY_TYPE), _OTHER)


def family_of_name(name: str) -> KnownFamily | None:
    """The family of a published model by its name alone: the one whose model type stands in it.

    >>> family_of_name("Qwen/Qwen3-VL-4B-Instruct-FP8").model_types
    ('qwen3_vl', 'qwen3_vl_moe')
    """
    plain = _letters(name.rstrip("/").rpartition("/")[2])
    return next((_BY_TYPE[kind] for kind in sorted(_BY_TYPE, key=len, reverse=True) if _letters(kind) in plain), None)


def _letters(name: str) -> str:
    return "".join(one for one in name.lower() if one.isalnum())


def combined_module(model: nn.Module) -> nn.Module | None:
    """The module below which are both a vision tower and a language model, also inside PEFT and other wrappers."""
    both = (one for one in model.modules() if child(one, TOWERS) and child(one, LANGUAGE_MODELS))
    return next(both, None)
