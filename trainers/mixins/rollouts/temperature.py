"""The temperature of GRPO's rollouts: constant, along a line, or led by the KL to the reference."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from trl.trainer.utils import add_fused_lm_head

from trainers.schedules import kl_temperature, linear_temperature

_LEADING = ("temperature", "temperature_schedule", "temperature_min", "temperature_max")
"""Settings that decide what the temperature may be."""


@dataclass
class TemperatureArguments:
    """What recipes of GRPO say about the temperature of rollouts. Stands before `trl.GRPOConfig`."""

    temperature_schedule: Literal["constant", "linear", "kl"] = field(
        default="constant",
        metadata={"help": "How the rollout temperature moves from `temperature`: linear to `temperature_end` over the "
                  "run, or cooler above `kl_target_max` and hotter below `kl_target_min`."},
    )  # fmt: skip
    temperature_end: float = field(default=1.0, metadata={"help": "Temperature at the last step (linear)."})
    temperature_factor: float = field(default=1.05, metadata={"help": "Factor of a change of temperature (kl)."})
    temperature_min: float = field(default=0.5, metadata={"help": "Lowest temperature (kl)."})
    temperature_max: float = field(default=1.5, metadata={"help": "Highest temperature (kl)."})

    def __post_init__(self):
        super().__post_init__()
        if self.temperature_min > self.temperature_max:
            raise ValueError(
                f"temperature_min ({self.temperature_min}) must not exceed temperature_max ({self.temperature_max})"
            )
        if self.temperature_schedule == "kl" and self.beta == 0:
            raise ValueError("temperature_schedule: kl needs the KL to a reference model: set beta above 0")


class ScheduledTemperature:
    """The part of a `trl.GRPOTrainer` that moves the temperature as `TemperatureArguments` say."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._next_temperature = self.args.temperature
        self._forwards: list[tuple[nn.Module, Callable]] = []  # of policy and reference, at their first temperature

    def temperature_state(self) -> dict[str, Any]:
        """For a checkpoint, with the settings that it follows from."""
        settings = {name: getattr(self.args, name) for name in _LEADING}
        return {
            "temperature": self.temperature,
            "next_temperature": self._next_temperature,
            "temperature_settings": settings,
        }

    def load_temperature_state(self, state: dict[str, Any]) -> None:
        """Restores what `temperature_state` returned; a recipe with other settings starts from its own temperature."""
        if state["temperature_settings"] == {name: getattr(self.args, name) for name in _LEADING}:
            self._next_temperature = state["next_temperature"]
            if self.args.temperature_schedule != "constant":
                self._apply_temperature(state["temperature"])

    def _set_temperature(self) -> None:
        """Moves the temperature of sampling, and of the log-probabilities of what is sampled, along its schedule."""
        if self.args.temperature_schedule == "constant":
            return
        if self.args.temperature_schedule == "linear":
            self._next_temperature = linear_temperature(
                self.state.global_step, self.state.max_steps, self.args.temperature, self.args.temperature_end
            )
        self._apply_temperature(self._next_temperature)
        self._metrics["train"]["rollout_temperature"].append(self.temperature)

    def _apply_temperature(self, temperature: float) -> None:
        self.temperature = temperature
        if self.use_vllm:
            self.vllm_generation.temperature = temperature
        else:
            self.generation_config.temperature = temperature
        self._divide_logits_by(temperature)

    def _divide_logits_by(self, temperature: float) -> None:
        """Gives policy and reference heads that compute log-probabilities at a temperature, in place of their last."""
        if not self._forwards:
            policy = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            heads = [policy] if self.ref_model is None else [policy, self.accelerator.unwrap_model(self.ref_model)]
            self._forwards = [(head, head.forward) for head in heads]
        for place, (head, forward) in enumerate(self._forwards):
            head.forward = forward
            outputs = ("log_probs",) if place else ("log_probs", "entropy")  # as the parent asks for them
            add_fused_lm_head(head, temperature, self.args.cast_lm_head_to_fp32, outputs)

    def _decide_temperature(self, kl: float) -> None:
        """Of the next rollout, where the mean KL of a step leads it."""
        args = self.args
        if args.temperature_schedule == "kl":
            self._next_temperature = kl_temperature(
                self._next_temperature,
                kl,
                args.kl_target_min,
                args.kl_target_max,
                args.temperature_factor,
                args.temperature_min,
                args.temperature_max,
            )
