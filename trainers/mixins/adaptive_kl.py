"""A KL coefficient that follows the KL: what recipes say of it, and what trainers do after each optimizer step."""

import math
from dataclasses import dataclass, field
from typing import Any

from trainers.schedules import adaptive_kl_beta

_LEADING = ("beta", "adaptive_kl", "beta_min", "beta_max")
"""Settings that decide what the coefficient may be."""


@dataclass
class AdaptiveKLArguments:
    """What the recipes of trainers with a KL to a reference say. Stands before `transformers.TrainingArguments`."""

    adaptive_kl: bool = field(
        default=False, metadata={"help": "Change `beta` after each optimizer step to hold the KL within its target."}
    )
    kl_target_min: float = field(
        default=0.01, metadata={"help": "KL, in nats a token (or pointer), below which beta shrinks."}
    )
    kl_target_max: float = field(
        default=0.1, metadata={"help": "KL, in nats a token (or pointer), above which beta grows."}
    )
    kl_factor: float = field(default=1.5, metadata={"help": "Factor by which beta grows or shrinks."})
    beta_min: float = field(default=0.001, metadata={"help": "Smallest beta under `adaptive_kl`."})
    beta_max: float = field(default=10.0, metadata={"help": "Largest beta under `adaptive_kl`."})

    def __post_init__(self):
        super().__post_init__()
        for low, high in (("kl_target_min", "kl_target_max"), ("beta_min", "beta_max")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} ({getattr(self, low)}) must not exceed {high} ({getattr(self, high)})")
        if self.adaptive_kl and self.beta == 0:
            raise ValueError("adaptive_kl needs the KL to a reference model: set beta above 0")


class AdaptiveKL:
    """The part of a trainer that notes the KL, and changes its `beta` as `AdaptiveKLArguments` say."""

    _step_kls: tuple[float, ...] = ()
    """Of the micro-batches since the last optimizer step."""

    def kl_state(self) -> dict[str, Any]:
        """The KL coefficient, for a checkpoint, with the settings that it follows from."""
        settings = {name: getattr(self.args, name) for name in _LEADING}
        return {"beta": self.beta, "beta_settings": settings, "step_kls": list(self._step_kls)}

    def load_kl_state(self, state: dict[str, Any]) -> None:
        """Restores what `kl_state` returned; a recipe with other settings starts from its own coefficient."""
        if state["beta_settings"] == {name: getattr(self.args, name) for name in _LEADING}:
            self.beta = state["beta"]
        self._step_kls = tuple(state["step_kls"])

    def note_kl(self, kl: float) -> float | None:
        """Collects the KL of micro-batches, and adapts beta after the last one of a step.

        Args:
            kl: NaN for a micro-batch that has none.

        Returns:
            The mean KL of the step when it is complete, `None` before, and where no micro-batch had any.
        """
        if not math.isnan(kl):
            self._step_kls = (*self._step_kls, kl)
        if not self.accelerator.sync_gradients or not self._step_kls:
            return None
        mean = sum(self._step_kls) / len(self._step_kls)
        self._step_kls = ()
        args = self.args
        if args.adaptive_kl:
            self.beta = adaptive_kl_beta(
                self.beta, mean, args.kl_target_min, args.kl_target_max, args.kl_factor, args.beta_min, args.beta_max
            )
        return mean
