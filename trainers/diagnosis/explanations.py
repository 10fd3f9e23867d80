"""Why the sampler's probabilities are not the update's: each reason is tried out, and the one that explains most wins.

Where the sampler tells its log-probabilities, a reason explains as much as the difference shrinks when the update's
are computed with it. Where it does not, it explains as much as the samples become likelier with it, in nats: samples
of the update itself become likelier by more than x nats, under whatever reason, with a probability of at most exp(-x).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.run_folders import MODEL_FILES
from trainers.diagnosis import causes
from trainers.diagnosis.causes import Cause
from trainers.diagnosis.log_probs import (
    UPDATE,
    Variant,
    as_drawn_by_update,
    drawn,
    in_precision,
    other_weights,
    row_logits,
    without_adapters,
)
from trainers.diagnosis.rollout import Observed, Sampling

ROWS = 8
"""Completions that are computed anew for every reason."""
MOST_CHECKPOINTS = 8
SURE = 12.0
"""Nats by which samples must become likelier: one sound rollout in 160,000 does so by chance, for each reason."""
SHRINKS = 0.7
"""What must at most remain of a difference that is explained."""
SHRINKS_SHIFTED = 0.05
"""The same of a shift, which explains all or nothing: sure tokens are alike in any order."""
TEMPERATURES = tuple(2 ** (step / 4) for step in range(-12, 9))
TOP_P = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
TOP_K = (1, 5, 10, 20, 50, 100)
MIN_P = (0.01, 0.02, 0.05, 0.1, 0.2)
PENALTIES = (1.05, 1.1, 1.2, 1.3)
CUT = 10.0
"""Nats that the difference of a token counts at most, such as of one that a cut forbids."""
IMPOSSIBLE = 1e4
"""Nats that stand for the infinitely many by which a cut forbids a token."""


@dataclass(frozen=True)
class Share:
    """What one reason explains.

    Attributes:
        what: the reason, with its value.
        before, after: mean absolute difference in nats a token without and with it; or nats by which all samples are
            less likely than with it, and 0.
    """

    cause: Cause
    what: str
    before: float
    after: float


@dataclass(frozen=True)
class State:
    """A forward pass and how tokens are drawn from it."""

    variant: Variant
    sampling: Sampling


@dataclass
class Trials:
    """Computes what the sampled tokens' log-probabilities would be under any state.

    Args:
        rows: completions that are looked at.
        told: compare with the log-probabilities that the sampler tells; else with how likely the samples are.
        shrinks: what must at most remain of a difference that is explained.
    """

    trainer: Any
    observed: Observed
    rows: Sequence[int]
    told: bool
    shrinks: float = SHRINKS
    _logits: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def logits(self, variant: Variant) -> list[torch.Tensor]:
        if variant.runs not in self._logits:
            self._logits[variant.runs] = row_logits(self.trainer, self.observed, self.rows, variant)
        return self._logits[variant.runs]

    def log_probs(self, state: State) -> torch.Tensor:
        """Of all tokens of all rows, one after the other; NaN where a shift leaves none."""
        found = drawn(self.logits(state.variant), self.observed, self.rows, state.sampling)
        return torch.cat([_shifted(values, state.variant.shift) for values in found])

    def cost(self, state: State) -> float:
        """Mean absolute difference to the sampler's log-probabilities, or how unlikely the samples are, in nats."""
        found = self.log_probs(state)
        if not self.told:
            return -found.clamp(min=-IMPOSSIBLE).sum().item()
        told = torch.tensor([value for row in self.rows for value in self.observed.sampled[row].log_probs or []])
        return (found - told).abs().clamp(max=CUT).nanmean().item()

    @property
    def tied(self) -> float:
        """Costs that differ by less are alike: in nats a token, or of all samples."""
        return 1e-5 if self.told else 1.0

    def explains(self, cause: Cause, before: float, after: float) -> bool:
        """Whether a cost falls by enough."""
        if not self.told:
            return before - after > SURE
        return after < (SHRINKS_SHIFTED if cause is causes.SHIFTED else self.shrinks) * before

    def surprise(self, state: State) -> float:
        """Nats by which the samples are likelier than under the state, if its distributions are made flatter or
        steeper.

        A normal approximation would not do: few tokens of a sure model make most of the variance.
        """
        own = self.log_probs(state)
        if own.isneginf().any():
            return math.inf
        flatter = [replace(state.sampling, temperature=state.sampling.temperature * heat) for heat in TEMPERATURES]
        return max((self.log_probs(replace(state, sampling=one)) - own).nansum().item() for one in flatter)


def _shifted(values: torch.Tensor, shift: int) -> torch.Tensor:
    """The values so many places later, NaN in those that are left."""
    shifted = values.roll(shift)
    if shift:
        shifted[slice(0, shift) if shift > 0 else slice(shift, None)] = torch.nan
    return shifted


# -- what is tried ----------------------------------------------------------------------------------------------------


def other_samplings(now: Sampling, declared: Sampling) -> Iterator[tuple[Cause, str, Sampling]]:
    """Each way to draw that differs in one thing: what the recipe says first, then usual values."""
    grids: tuple[tuple[Cause, str, Sequence[float]], ...] = (
        (causes.TOP_P, "top_p", (declared.top_p, *TOP_P)),
        (causes.TOP_K, "top_k", (declared.top_k, *TOP_K)),
        (causes.MIN_P, "min_p", (declared.min_p, *MIN_P)),
        (causes.REPETITION, "repetition_penalty", (declared.repetition_penalty, *PENALTIES)),
    )
    declared_first = [(cause, name, values[0]) for cause, name, values in grids]
    others = [(cause, name, value) for cause, name, values in grids for value in values[1:]]
    for cause, name, value in dict.fromkeys(declared_first + others):
        if value != getattr(Sampling(), name) and getattr(now, name) == getattr(Sampling(), name):
            yield cause, f"{name} {value:g}", replace(now, **{name: value})


def other_variants(trainer: Any, folders: Sequence[str]) -> list[Variant]:
    """Each forward pass that differs in one thing.

    Args:
        folders: of other weights.
    """
    model, found = trainer.model, [Variant("without images", causes.UNSEEN, images=False)]
    for shift in (-1, 1):
        found.append(Variant(f"shifted by {shift}", causes.SHIFTED, shift=shift))
    if hasattr(model, "disable_adapter"):
        found.append(Variant("the model without adapters", causes.ADAPTER, partial(without_adapters, model)))
    found += [Variant(folder, causes.STALE, partial(other_weights, model, folder)) for folder in folders]
    own = next(model.parameters()).dtype
    for dtype in (torch.bfloat16, torch.float16):
        if dtype != own:
            name = str(dtype).removeprefix("torch.")
            found.append(Variant(name, causes.PRECISION, partial(in_precision, model, dtype)))
    return found


def checkpoint_folders(places: Sequence[str | Path], now: str) -> list[str]:
    """Folders of other weights beside the model: checkpoints of its run and of the recipe's, the newest first."""
    found: list[Path] = []
    for place in map(Path, places):
        run = place.parent if place.name.startswith("checkpoint-") else place
        steps = sorted(run.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        found += [place, run, *steps]
    folders = [
        path
        for path in dict.fromkeys(path.resolve() for path in found)
        if any((path / name).is_file() for name in MODEL_FILES)
    ]
    return [str(path) for path in folders if path != Path(now).resolve()][:MOST_CHECKPOINTS]


# -- what explains it -------------------------------------------------------------------------------------------------


def explain(trials: Trials, variants: Sequence[Variant], limit: float) -> tuple[list[Share], State]:
    """The reasons that explain the difference, the greatest share first, and the state that has them all.

    Args:
        limit: mean difference in nats that needs no reason.
    """
    declared = trials.observed.sampling
    state = State(UPDATE, as_drawn_by_update(declared, trials.trainer.temperature))
    now, shares = trials.cost(state), list[Share]()
    while len(shares) < 4 and (now > limit or not trials.told):
        tried = list(_tried(trials, state, variants))
        costs = [trials.cost(other) for _, _, other in tried]
        explaining = [
            number for number, (cause, _, _) in enumerate(tried) if trials.explains(cause, now, costs[number])
        ]
        if not explaining:
            break
        least = min(costs[number] for number in explaining)
        best = next(
            number for number in explaining if costs[number] <= least + trials.tied
        )  # what is declared is first
        cause, what, state = tried[best]
        before, after = (now, costs[best]) if trials.told else (now - costs[best], 0.0)
        shares.append(Share(cause, what, before, after))
        now = costs[best]
    return shares, state


def _tried(trials: Trials, state: State, variants: Sequence[Variant]) -> Iterator[tuple[Cause, str, State]]:
    """Every state that differs from one in one more thing."""
    for cause, what, sampling in other_samplings(state.sampling, trials.observed.sampling):
        yield cause, what, replace(state, sampling=sampling)
    if state.sampling.temperature == trials.trainer.temperature:
        best = best_temperature(
            lambda value: trials.cost(replace(state, sampling=replace(state.sampling, temperature=value)))
        )
        yield (
            causes.TEMPERATURE,
            f"temperature {best:.3g}",
            replace(state, sampling=replace(state.sampling, temperature=best)),
        )
    if state.variant is UPDATE:
        for variant in variants:
            if variant.cause is not None and (trials.told or variant.shift == 0):
                yield variant.cause, variant.name, replace(state, variant=variant)


def best_temperature(cost: Callable[[float], float]) -> float:
    """The temperature with the least cost: of a grid first, then between its neighbours (golden section)."""
    costs = [cost(value) for value in TEMPERATURES]
    best = min(range(len(costs)), key=costs.__getitem__)
    low, high = TEMPERATURES[max(best - 1, 0)], TEMPERATURES[min(best + 1, len(costs) - 1)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(24):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if cost(left) < cost(right) else (left, high)
    middle = (low + high) / 2
    return min((middle, TEMPERATURES[best]), key=cost)
