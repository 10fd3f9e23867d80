"""The temperature of GRPO's rollouts: constant, along a line, or led by the KL to the reference."""

from typing import Any

from transformers import PreTrainedModel

from trainers.schedules import kl_temperature, linear_temperature

_LEADING = ("temperature", "temperature_schedule", "temperature_min", "temperature_max")
"""Settings that decide what the temperature may be."""


def _fused_temperature_cell(model: PreTrainedModel):
    """The variable in which TRL's fused LM head keeps the temperature that logits are divided by."""
    function = model.forward.__func__
    names = function.__code__.co_freevars
    if "temperature" not in names:
        raise RuntimeError("this version of TRL keeps the temperature elsewhere: temperature_schedule needs trl 1.16")
    return function.__closure__[names.index("temperature")]


class ScheduledTemperature:
    """The part of a `trl.GRPOTrainer` that moves the temperature as `GRPOConfig.temperature_schedule` says."""

    def _prepare_temperature(self) -> None:
        """Finds what is to be changed; called when the models are there."""
        self._next_temperature = self.args.temperature
        policy = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        heads = [policy] if self.ref_model is None else [policy, self.accelerator.unwrap_model(self.ref_model)]
        changes = self.args.temperature_schedule != "constant"
        self._temperature_cells = [_fused_temperature_cell(head) for head in heads] if changes else []

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
        for cell in self._temperature_cells:
            cell.cell_contents = temperature

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
