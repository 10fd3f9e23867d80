"""Runs stop at the first value that is not finite, before it reaches a file."""

import math
from typing import Any

import torch
from accelerate.utils import gather_object

from data.errors import UserError


class NotFiniteError(UserError):
    """A loss, a gradient norm, an evaluation or a weight is NaN or infinite; the message names the step."""


ADVICE = "nothing of this step was saved; lower learning_rate, or look at the rows and rewards of the steps before"


def is_finite_weight(weight: torch.nn.Parameter) -> bool:
    """Whether all values are finite; of a weight that ZeRO-3 has divided, those of this process."""
    values = getattr(weight, "ds_tensor", weight).detach()
    return not values.is_floating_point() or bool(torch.isfinite(values).all())


class FiniteTraining:
    """Trainer mix-in: stops all processes together where a loss, a gradient norm or a weight is not finite.

    Losses and gradients are looked at in each optimizer step before the update (DeepSpeed makes it earlier, in the
    backward pass), weights before they are saved. The loss scaler of float16 skips updates whose gradients overflow,
    which it is there for; those pass.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.args.logging_nan_inf_filter = False  # it would log the average of earlier losses in place of NaN
        self._unsound_loss: torch.Tensor | None = None  # the first of this optimizer step

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        found = loss.detach()
        earlier = self._unsound_loss
        self._unsound_loss = found if earlier is None else torch.where(torch.isfinite(earlier), found, earlier)
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        loss, self._unsound_loss = self._unsound_loss, None
        found = self.accelerator.gather(loss.float().reshape(1))
        step = self.state.global_step + 1
        for rank, value in enumerate(found.tolist()):
            self._refuse_unless_finite(value, f"step {step}: the loss on rank {rank}")
        if norm is not None and self.accelerator.scaler is None and not self.args.fp16:
            self._refuse_unless_finite(float(norm), f"step {step}: the gradient norm")
        return norm

    @staticmethod
    def _refuse_unless_finite(value: float, what: str) -> None:
        if not math.isfinite(value):
            raise NotFiniteError(f"{what} is {value}; {ADVICE}")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        for name, value in metrics.items():
            if name.endswith("loss"):
                self._refuse_unless_finite(value, f"step {self.state.global_step}: {name}")
        return metrics

    def check_weights(self) -> None:
        """Looks at all weights, on every process.

        Raises:
            NotFiniteError: on every process, names the first weight of the model that is not finite on any of them.
        """
        bad = next((name for name, weight in self.model.named_parameters() if not is_finite_weight(weight)), None)
        for name in gather_object([bad]):
            if name is not None:
                step = self.state.global_step
                raise NotFiniteError(f"step {step}: the weight '{name}' is not finite; {ADVICE}")

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.check_weights()
        super()._save_checkpoint(model, trial)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        self.check_weights()
        super().save_model(*args, **kwargs)
