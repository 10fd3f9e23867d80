"""Checks of the update's own forward pass: the same twice, without dropout, and that of the reference at step 0."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from models.generation import evaluating
from trainers.diagnosis import causes
from trainers.diagnosis.differences import LIMITS, LIMITS_IN_HALF, precision_of
from trainers.diagnosis.findings import Finding, not_told, wrong
from trainers.diagnosis.log_probs import cut, of_update
from trainers.diagnosis.rollout import Observed

KL_LIMITS = {torch.float32: 1e-9, torch.float64: 1e-9}
KL_LIMIT_IN_HALF = 1e-4


def active_dropout(model: nn.Module) -> list[str]:
    """Modules of a model that drop something in training."""
    return [
        name
        for name, module in model.named_modules()
        if float(getattr(module, "p", 0) or 0) > 0
        and "Dropout" in type(module).__name__
        or float(getattr(module, "attention_dropout", 0) or 0) > 0
    ]


def check_repeatable(trainer: Any, observed: Observed, update: Sequence[torch.Tensor]) -> Finding:
    """The update's log-probabilities are the same again, and the same as without dropout.

    Args:
        update: computed in training mode.
    """
    check = "update in training and in evaluation mode"
    if not observed.counted():
        return not_told(check, "no completion is in the loss")
    again = of_update(trainer, observed)
    with evaluating(trainer.model):
        quiet = of_update(trainer, observed)
    limit, _ = LIMITS.get(precision_of(trainer), LIMITS_IN_HALF)
    apart = [_mean_apart(update, other) for other in (again, quiet)]
    dropping = active_dropout(trainer.model)
    said = f"differ by {max(apart):.2g} nats a token"
    if max(apart) > limit:
        cause = causes.DROPOUT if dropping else causes.NOT_ON_POLICY
        return wrong(check, f"{said}; {len(dropping)} modules with dropout", f"at most {limit:g}", cause)
    if dropping:
        found = f"{said}, but {len(dropping)} modules have dropout, which will act when their weights are not 0"
        return Finding(check, found, f"at most {limit:g}", "note", causes.DROPOUT)
    return Finding(check, said, f"at most {limit:g}")


def _mean_apart(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    return (torch.cat(list(one)) - torch.cat(list(other))).abs().mean().item()


def check_reference(trainer: Any, observed: Observed) -> Iterator[Finding]:
    """At step 0 the KL to the reference is 0."""
    check = "KL to the reference at step 0"
    reference = observed.batch.get("ref_per_token_logps")
    if reference is None:
        yield Finding(check, "no reference: beta is 0", "0")
        return
    if not observed.counted():
        yield not_told(check, "no completion is in the loss")
        return
    far = torch.cat(cut(reference, observed)).double()
    near = torch.cat(of_update(trainer, observed)).double()
    kl = (torch.exp(far - near) - (far - near) - 1).mean().item()  # Schulman's k3, as TRL has it
    limit = KL_LIMITS.get(precision_of(trainer), KL_LIMIT_IN_HALF)
    if kl > limit:
        cause = causes.DROPOUT if active_dropout(trainer.model) and trainer.model.training else causes.REFERENCE
        with evaluating(trainer.model):
            quiet = torch.cat(of_update(trainer, observed)).double()
        if cause is causes.DROPOUT and (far - quiet).abs().mean() > limit**0.5:
            cause = causes.REFERENCE
        yield wrong(check, f"{kl:.3g} nats a token", "0", cause)
        return
    yield Finding(check, f"{kl:.3g} nats a token", "0")
