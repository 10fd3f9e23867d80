"""The configurations of reward models: a backbone's, with what the head and the conversation are.

There is one for every type of vision-language model that transformers has, `<Name>RewardConfig` of model type
`<type>_reward`. It is made when it is asked for, from the backbone's own class: `Qwen3VLRewardConfig` of `qwen3_vl`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from models.families.registry import FAMILIES
from models.reward.names import backbone_type, reward_type


@dataclass(kw_only=True)
class RewardSettings:
    """What a reward model's configuration has beyond its backbone's.

    Attributes:
        head_activation: between the two layers of the head, a name of `transformers.activations.ACT2FN`.
        score_min, score_max: bounds of the score; both `None` for none.
        system_prompt: system text of every conversation that is scored; with `None`, the prompt's own.
        language_head: keep the backbone's language-model head, for a language-model loss beside the ranking.
    """

    make_model_class: ClassVar[Callable[[str], type] | None] = None
    """Set by models/reward/model.py. Called with the backbone's type when there is a configuration: `AutoModel` then
    knows the class that goes with it, and the backbone's code is not imported before."""

    head_activation: str = "silu"
    score_min: float | None = -5.0
    score_max: float | None = 5.0
    system_prompt: str | None = None
    language_head: bool = False

    def __post_init__(self, **kwargs):
        self._check()
        super().__post_init__(**kwargs)
        self.num_labels = 1
        if RewardSettings.make_model_class is not None:
            RewardSettings.make_model_class(self.backbone_type)

    def _check(self) -> None:
        if self.head_activation not in ACT2FN:
            known = ", ".join(sorted(ACT2FN))
            raise ValueError(f"head_activation: expected one of {known}, found {self.head_activation!r}")
        if (self.score_min is None) != (self.score_max is None):
            raise ValueError("score_min and score_max: expected both or neither")
        if self.score_min is not None and not self.score_min < self.score_max:
            raise ValueError(f"score_min ({self.score_min}) must be below score_max ({self.score_max})")

    def backbone(self) -> Any:
        """The configuration of the plain vision-language model."""
        ours = (*SETTINGS, "model_type", "architectures", "id2label", "label2id", "quantization_config")
        ours += ("transformers_version",)
        values = {key: value for key, value in self.to_dict().items() if key not in ours}
        return AutoConfig.for_model(self.backbone_type, **values)


SETTINGS = tuple(one.name for one in fields(RewardSettings))

_TYPES = tuple(name for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if name in MODEL_MAPPING_NAMES)
_ENDING = "RewardConfig"


def class_stem(backbone: str) -> str:
    """What the names of a reward model's classes begin with.

    >>> class_stem("qwen3_vl")
    'Qwen3VL'
    """
    return CONFIG_MAPPING_NAMES[backbone].removesuffix("Config")


def type_of_stem(stem: str) -> str | None:
    """The type of the backbone whose classes' names begin so, or `None`.

    >>> type_of_stem("Qwen3VL"), type_of_stem("Bert")
    ('qwen3_vl', None)
    """
    return next((name for name in _TYPES if class_stem(name) == stem), None)


def can_be_backbone(model_type: str) -> bool:
    """Whether there is a reward model on models of this type: those of transformers that read images and texts."""
    return model_type in _TYPES


def reward_config_class(backbone: str) -> type:
    """The configuration of reward models on backbones of a type, known to `AutoConfig` from now on.

    Args:
        backbone: a type of which `can_be_backbone` is true.
    """
    name = f"{class_stem(backbone)}{_ENDING}"
    if name not in globals():  # where pickle looks for it
        values = {
            "__doc__": RewardSettings.__doc__,
            "__module__": __name__,
            "model_type": reward_type(backbone),
            "backbone_type": backbone,
        }
        made = type(name, (RewardSettings, CONFIG_MAPPING[backbone]), values)
        AutoConfig.register(made.model_type, made)
        globals()[name] = made
    return globals()[name]


def read_config(name: str | Path, hub: Mapping[str, Any]) -> Any:
    """The configuration of a model; of a reward model, one of whichever family.

    Args:
        hub: see `models.hub_revisions`.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    stored, _ = PreTrainedConfig.get_config_dict(name, **hub)
    backbone = backbone_type(str(stored.get("model_type")))
    if backbone is not None and can_be_backbone(backbone):
        reward_config_class(backbone)  # AutoConfig knows it from now on
    return AutoConfig.from_pretrained(name, **hub)


def __getattr__(name: str) -> Any:
    backbone = type_of_stem(name.removesuffix(_ENDING)) if name.endswith(_ENDING) else None
    if backbone is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return reward_config_class(backbone)


for _family in FAMILIES:
    for _type in filter(can_be_backbone, _family.model_types):
        reward_config_class(_type)
