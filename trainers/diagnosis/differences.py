"""Checks of probabilities: the sampler's beside the update's, how likely the samples are, and what explains both."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from models.families.loading import image_token_ids
from trainers.diagnosis import causes
from trainers.diagnosis.causes import Cause
from trainers.diagnosis.explanations import ROWS, SHRINKS, SURE, Share, State, Trials, explain
from trainers.diagnosis.findings import Finding, not_told, wrong
from trainers.diagnosis.log_probs import UPDATE, Variant, as_drawn_by_update
from trainers.diagnosis.rollout import Observed

LIMITS = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-4, 1e-3)}
"""Of the trainer's precision: mean and greatest difference of a token's log-probability, in nats."""
LIMITS_IN_HALF = (0.05, 2.0)
"""The same in 16 bits, where two ways to compute one forward pass differ by so much."""
NOISE = 3.0
"""A difference of up to so many times what rounding makes is put down to it."""
SHRINKS_BESIDE = 0.2
"""What must at most remain of a difference that a reason explains beside one that is known already."""
REST = 0.02
"""Of a difference that is explained: what is left of it is no cause of its own."""
MUCH_SUPPRESSED = 0.05
"""Nats a token that suppressing tokens may change."""


def precision_of(trainer: Any) -> torch.dtype:
    """What the update computes in."""
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}
    own = next(parameter.dtype for parameter in trainer.model.parameters() if parameter.is_floating_point())
    return mixed.get(trainer.accelerator.mixed_precision, own)


def check_log_probs(
    trainer: Any,
    observed: Observed,
    update: Sequence[torch.Tensor],
    variants: Sequence[Variant],
    known: Cause | None = None,
) -> Iterator[Finding]:
    """Differences, their shares, and how likely the samples are.

    Args:
        update: of `log_probs.of_update`.
        variants: forward passes that may explain a difference.
        known: why both sides differ, which other checks have found; it explains what nothing else does.
    """
    observed = without_suppression_if_drawn(observed)
    rows = spread(observed)
    if not rows:
        yield not_told("log-probabilities of sampler and update", "no completion is in the loss: all were cut")
        return
    if any(one.text is not None for one in observed.sampled):
        yield from _check_weights_alone(trainer, observed, rows, variants)
        return
    if any(one.log_probs is None for one in observed.sampled):
        yield not_told("log-probabilities of sampler and update", "the samples are stored without log-probabilities")
        yield from check_likelihood(trainer, observed, rows, variants)
        return
    yield check_suppressed(trainer, observed, rows)
    findings = list(check_difference(trainer, observed, update, rows, variants, known))
    yield from findings
    if known is not causes.OPTION and all(finding.verdict == "ok" for finding in findings):
        yield from check_likelihood(trainer, observed, rows, ())


def without_suppression_if_drawn(observed: Observed) -> Observed:
    """The same, with no token suppressed if one of those was drawn, which `check_completions` tells."""
    banned = set(observed.sampling.suppressed)
    if not any(banned & set(one.completion_ids) for one in observed.sampled):
        return observed
    return replace(observed, sampling=replace(observed.sampling, suppressed=()))


def spread(observed: Observed) -> list[int]:
    """Completions that are looked at closely, of all prompts, none of them twice."""
    row_of = {(*observed.prompt_ids(row), *observed.sampled[row].completion_ids): row for row in observed.counted()}
    rows = sorted(row_of.values())
    return rows[:: max(1, math.ceil(len(rows) / ROWS))]


def check_suppressed(trainer: Any, observed: Observed, rows: Sequence[int]) -> Finding:
    """What it changes that some tokens are never drawn, which the update does not know of."""
    check = "weight of suppressed tokens"
    with_them = as_drawn_by_update(replace(observed.sampling, suppressed=()), trainer.temperature)
    trials = Trials(trainer, observed, rows, told=True)
    without = trials.log_probs(State(UPDATE, as_drawn_by_update(observed.sampling, trainer.temperature)))
    share = (without - trials.log_probs(State(UPDATE, with_them))).abs().mean().item()
    found, limit = f"{share:.2g} nats a token", f"at most {MUCH_SUPPRESSED:g}"
    if share > MUCH_SUPPRESSED and set(observed.sampling.suppressed) > set(image_token_ids(trainer.processing_class)):
        return wrong(check, f"{found}, also of others than vision tokens", limit, causes.OPTION)
    if share > MUCH_SUPPRESSED:
        return Finding(check, found, limit, "note", causes.SUPPRESSED)
    return Finding(check, found, limit)


def check_difference(
    trainer: Any,
    observed: Observed,
    update: Sequence[torch.Tensor],
    rows: Sequence[int],
    variants: Sequence[Variant],
    known: Cause | None = None,
) -> Iterator[Finding]:
    """The sampler's log-probabilities against the update's, but for what suppressed tokens weigh; and what explains
    the difference, each reason told by what is left without it."""
    check = "log-probabilities of sampler and update"
    mean_limit, most_limit = LIMITS.get(precision_of(trainer), LIMITS_IN_HALF)
    trials = Trials(trainer, observed, rows, told=True, shrinks=SHRINKS if known is None else SHRINKS_BESIDE)
    base = State(UPDATE, as_drawn_by_update(observed.sampling, trainer.temperature))
    raw = State(UPDATE, as_drawn_by_update(replace(observed.sampling, suppressed=()), trainer.temperature))
    correction = trials.log_probs(base) - trials.log_probs(raw)
    computed = torch.cat([update[row] for row in rows])
    told = torch.tensor([value for row in rows for value in observed.sampled[row].log_probs or []])
    # A sampler may tell what a token had before others were suppressed, as the update does, or after.
    both = [(told - values).abs().nan_to_num(torch.inf) for values in (computed, computed + correction)]
    apart = min(both, key=lambda values: values.mean().item())
    mean, most = apart.mean().item(), apart.max().item()
    found = f"differ by {mean:.2g} nats a token, at most {most:.2g}"
    limit = f"{mean_limit:g}, at most {most_limit:g}"
    if mean <= mean_limit and most <= most_limit:
        yield Finding(check, found, limit)
        return
    if known is causes.OPTION:  # whose distribution is not computed
        yield wrong(check, found, limit, known)
        return
    shares, state = explain(trials, variants, min(mean_limit, mean / 2))
    rest = trials.cost(state)
    if rest > max(mean_limit, REST * mean if shares else 0.0):
        if known is None:
            shares += what_is_left(trials, variants, state, told, rest)
        else:
            shares.append(Share(known, "what the other checks found", rest, 0.0))
    elif not shares and observed.stale:
        shares = [Share(causes.STALE, "weights that are not at hand", mean, 0.0)]
    if not shares:
        yield wrong(check, found, limit, causes.UNEXPLAINED)
        return
    yield wrong(check, found, limit, shares[0].cause)
    for share in shares:
        left = f"without it {share.after:.2g}"
        left = {"rounding": "as much as rounding to 16 bits makes"}.get(share.what, left)
        yield wrong(f"  of it {share.what}", f"{share.before:.2g} nats a token, {left}", limit, share.cause)


def what_is_left(
    trials: Trials, variants: Sequence[Variant], state: State, told: torch.Tensor, rest: float
) -> list[Share]:
    """The reason of a difference for which none was found that can be tried, if there is one."""
    if trials.observed.stale or not is_rounding(trials, variants, rest):
        if trials.observed.stale or drawn_elsewhere(trials, state, told):
            return [Share(causes.STALE, "weights that are not at hand", rest, 0.0)]
        return []
    return [Share(causes.PRECISION, "rounding", rest, 0.0)]


def drawn_elsewhere(trials: Trials, state: State, told: torch.Tensor) -> bool:
    """Whether the samples are much likelier under what the sampler tells, or under anything else, than under a state.

    Args:
        told: the sampler's log-probabilities.
    """
    gain = (told - trials.log_probs(state)).nansum().item()
    return gain > SURE or trials.surprise(state) > SURE


def is_rounding(trials: Trials, variants: Sequence[Variant], difference: float) -> bool:
    """Whether a difference is about as great as what another precision of the update itself makes."""
    base = as_drawn_by_update(trials.observed.sampling, trials.trainer.temperature)
    own = trials.log_probs(State(UPDATE, base))
    noise = [
        (trials.log_probs(State(variant, base)) - own).abs().mean().item()
        for variant in variants
        if variant.cause is causes.PRECISION
    ]
    return bool(noise) and difference <= NOISE * max(noise)


def check_likelihood(
    trainer: Any, observed: Observed, rows: Sequence[int], variants: Sequence[Variant]
) -> Iterator[Finding]:
    """Whether the samples are what the update's own distribution draws: under no other are they much likelier."""
    check, limit = "likelihood of the samples", f"under no other distribution {SURE:g} nats more"
    trials = Trials(trainer, observed, rows, told=False)
    shares, _ = explain(trials, variants, 0.0)
    for share in shares:
        yield wrong(check, f"{share.before:.3g} nats more under {share.what}", limit, share.cause)
    if not shares:
        yield Finding(check, "no other distribution fits better", limit)


def _check_weights_alone(
    trainer: Any, observed: Observed, rows: Sequence[int], variants: Sequence[Variant]
) -> Iterator[Finding]:
    """Of texts whose tokens are not known exactly: whether other weights are much more likely to have written them."""
    yield not_told("log-probabilities of sampler and update", "texts alone are stored, without token ids")
    check, limit = "likelihood of the samples", f"under no other weights {SURE:g} nats more"
    weights = [variant for variant in variants if variant.cause in (causes.STALE, causes.ADAPTER)]
    if not weights:
        yield not_told(check, "there are no other weights to compare with")
        return
    trials = Trials(trainer, observed, rows, told=False)
    sampling = as_drawn_by_update(observed.sampling, trainer.temperature)
    own = trials.cost(State(UPDATE, sampling))
    gains = {variant: own - trials.cost(State(variant, sampling)) for variant in weights}
    best = max(gains, key=lambda variant: gains[variant])
    if gains[best] > SURE and best.cause is not None:
        yield wrong(check, f"{gains[best]:.3g} nats more under {best.name}", limit, best.cause)
    else:
        yield Finding(check, f"likeliest under the model, of {len(weights) + 1} that were tried", limit)
