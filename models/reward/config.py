"""The configuration of a reward model: its backbone's, with what the head and the conversation are."""

from dataclasses import dataclass, fields
from typing import Any

from transformers import AutoConfig, Qwen2_5_VLConfig, Qwen2VLConfig
from transformers.activations import ACT2FN


@dataclass(kw_only=True)
class _RewardConfig:
    """What a reward model's configuration has beyond its backbone's.

    Attributes:
        head_activation: between the two layers of the head, a name of `transformers.activations.ACT2FN`.
        score_min, score_max: bounds of the score; both `None` for none.
        system_prompt: system text of every conversation that is scored; with `None`, the prompt's own.
        language_head: keep the backbone's language-model head, for a language-model loss beside the ranking.
    """

    head_activation: str = "silu"
    score_min: float | None = -5.0
    score_max: float | None = 5.0
    system_prompt: str | None = None
    language_head: bool = False

    def __post_init__(self, **kwargs):
        self._check()
        super().__post_init__(**kwargs)
        self.num_labels = 1

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


SETTINGS = tuple(one.name for one in fields(_RewardConfig))


class Qwen2VLRewardConfig(_RewardConfig, Qwen2VLConfig):
    __doc__ = _RewardConfig.__doc__
    model_type = "qwen2_vl_reward"
    backbone_type = "qwen2_vl"


class Qwen2_5_VLRewardConfig(_RewardConfig, Qwen2_5_VLConfig):
    __doc__ = _RewardConfig.__doc__
    model_type = "qwen2_5_vl_reward"
    backbone_type = "qwen2_5_vl"
