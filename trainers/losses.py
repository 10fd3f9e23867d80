"""Arithmetic of groups: tensors in, tensors out. A group is one prompt with G candidates and a reward each.

Groups are ragged: `valid` (B, G) marks candidates that exist and have a reward, `mask` (B, G, T) the steps of a
candidate (tokens of a completion, examples of a pointer).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

STD_EPSILON = 1e-4
"""Added to the standard deviation before dividing, as TRL does."""
EQUAL_TOLERANCE = 1e-6
"""Rewards of a group whose range is at most this share of their size are equal: the rest is float noise."""


def groups_without_contrast(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Which groups have nothing to prefer: all valid rewards are equal, or fewer than two are valid.

    Args:
        rewards: (B, G), any finite value where not valid.
        valid: (B, G), True where the candidate has a reward.

    Returns:
        (B,) bool.
    """
    highest = rewards.masked_fill(~valid, -torch.inf).amax(dim=1)
    lowest = rewards.masked_fill(~valid, torch.inf).amin(dim=1)
    size = rewards.abs().masked_fill(~valid, 0).amax(dim=1).clamp(min=1e-12)
    return (valid.sum(dim=1) < 2) | (highest - lowest <= EQUAL_TOLERANCE * size)


def _deviation(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Unbiased standard deviation of what is not NaN; NaN for fewer than two values. Rounds as TRL's does."""
    count = (~values.isnan()).sum(dim=dim, keepdim=True)
    variance = (values - values.nanmean(dim=dim, keepdim=True)).square().nanmean(dim=dim, keepdim=True)
    return (variance * (count / (count - 1))).sqrt()


def group_advantages(
    rewards: torch.Tensor,
    valid: torch.Tensor,
    scale: str = "group",
    std_floor: float = 0.0,
    clip: float | None = None,
    epsilon: float = STD_EPSILON,
) -> torch.Tensor:
    """How much better each candidate is than its group: (r - mean) / max(std, floor), clamped to [-clip, clip].

    Source: GRPO, arXiv 2402.03300, section 4.1.2; the unbiased standard deviation and its epsilon as in TRL.

    Args:
        rewards: (B, G).
        valid: (B, G), True where the candidate has a reward; the others leave mean and deviation, and get 0.
        scale: "group" divides by the group's deviation, "batch" by that of all valid rewards, "none" by nothing.
        std_floor: smallest deviation to divide by; keeps small differences small.
        clip: largest absolute advantage, or `None`.
        epsilon: added to the deviation.

    Returns:
        (B, G); exactly 0 for every candidate of a group without contrast.
    """
    present = rewards.masked_fill(~valid, torch.nan)
    centred = present - present.nanmean(dim=1, keepdim=True)  # (B, G), NaN where not valid
    if scale == "group":
        std = _deviation(present, dim=1)  # (B, 1)
    elif scale == "batch":
        std = _deviation(present.flatten(), dim=0)  # (1,)
    elif scale == "none":
        std = None
    else:
        raise ValueError(f"scale: expected 'group', 'batch' or 'none', found {scale!r}")
    advantages = centred if std is None else centred / (std.clamp(min=std_floor) + epsilon)
    if clip is not None:
        advantages = advantages.clamp(-clip, clip)
    nothing_to_prefer = groups_without_contrast(rewards, valid).unsqueeze(1)
    return advantages.masked_fill(nothing_to_prefer | ~valid, 0.0)


AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


def compared_rewards(rewards: torch.Tensor, weights: torch.Tensor, aggregation: str = AGGREGATIONS[0]) -> torch.Tensor:
    """What the candidates of a group are compared by where several rewards score them.

    Source: GRPO sums the weighted rewards; GDPO, arXiv 2601.05242, takes each in deviations from its group's mean
    before summing, so that none drowns the others. As in TRL.

    Args:
        rewards: (B, G, R), NaN where a reward does not apply.
        weights: (R,).
        aggregation: "sum_then_normalize", or "normalize_then_sum".

    Returns:
        (B, G); NaN where no reward applies. Normalised ones that cancel throughout a group are exactly 0.
    """
    missing = rewards.isnan().all(dim=2)
    if aggregation == "sum_then_normalize":
        return (rewards * weights).nansum(dim=2).masked_fill(missing, torch.nan)
    if aggregation != "normalize_then_sum":
        raise ValueError(f"aggregation: expected one of {', '.join(AGGREGATIONS)}, found {aggregation!r}")
    by_reward = rewards.transpose(1, 2).flatten(0, 1)  # (B * R, G)
    normalised = group_advantages(by_reward.nan_to_num(), ~by_reward.isnan())
    parts = normalised.unflatten(0, (len(rewards), -1)).transpose(1, 2) * weights  # (B, G, R)
    total = parts.sum(dim=2)
    cancels = total.abs().amax(dim=1) <= EQUAL_TOLERANCE * parts.abs().amax(dim=(1, 2))  # (B,)
    return total.masked_fill(cancels.unsqueeze(1), 0.0).masked_fill(missing, torch.nan)


def advantages_of_compared(
    compared: torch.Tensor,
    aggregation: str = AGGREGATIONS[0],
    scale: str = "group",
    std_floor: float = 0.0,
    clip: float | None = None,
) -> torch.Tensor:
    """Advantages of all groups of a rollout, from what their candidates are compared by (`compared_rewards`).

    Args:
        compared: (B, G), NaN where a candidate has no reward.
        aggregation: sums of normalised rewards are normalised once more, over the whole rollout, whatever `scale`.
        scale, std_floor, clip: see `group_advantages`.

    Returns:
        (B, G); exactly 0 for candidates without a reward and groups without contrast.
    """
    valid = ~compared.isnan()
    if aggregation == "sum_then_normalize":
        return group_advantages(compared.nan_to_num(), valid, scale, std_floor, clip)
    advantages = (compared - compared.nanmean()) / (_deviation(compared.flatten(), dim=0) + STD_EPSILON)
    if clip is not None:
        advantages = advantages.clamp(-clip, clip)
    nothing_to_prefer = groups_without_contrast(compared.nan_to_num(), valid).unsqueeze(1)
    return advantages.masked_fill(nothing_to_prefer | ~valid, 0.0)


def best_of_group(rewards: torch.Tensor, valid: torch.Tensor, k: int) -> torch.Tensor:
    """Marks the k candidates with the highest rewards of each group; of equal ones, the first in the group.

    Args:
        rewards, valid: (B, G).

    Returns:
        (B, G) bool; all valid candidates where there are at most k.
    """
    order = rewards.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1)  # (B, G), 0 = best
    return (ranks < k) & valid


def ends_of_group(rewards: torch.Tensor, valid: torch.Tensor, k: int) -> torch.Tensor:
    """Marks the k best and the k worst candidates of each group, so that what is left still has contrast.

    Args:
        rewards, valid: (B, G).

    Returns:
        (B, G) bool; all valid candidates where there are at most 2k.
    """
    return best_of_group(rewards, valid, k) | best_of_group(-rewards, valid, k)


NORMALISATIONS = ("raw", "z_score", "z_score_clamp", "rank")


def _ranks(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B, G): how many valid candidates are better; equal ones share the mean of their places."""
    pairs = valid.unsqueeze(1) & valid.unsqueeze(2)  # (B, G, G)
    better = (rewards.unsqueeze(1) > rewards.unsqueeze(2)) & pairs
    equal = (rewards.unsqueeze(1) == rewards.unsqueeze(2)) & pairs
    return better.sum(dim=2) + (equal.sum(dim=2) - 1) / 2


def normalise_rewards(
    rewards: torch.Tensor, valid: torch.Tensor, method: str = "z_score_clamp", clamp: float = 3.0
) -> torch.Tensor:
    """Rewards of each group on one scale.

    Args:
        rewards, valid: (B, G).
        method: "raw" leaves them; "z_score" is (r - mean) / std (unbiased); "z_score_clamp" clamps that; "rank" is
            linear in the place, 1 for the best to -1 for the worst, equal ones alike.
        clamp: largest absolute value of "z_score_clamp".

    Returns:
        (B, G); 0 where not valid, and, but for "raw", exactly 0 in groups without contrast.
    """
    if method == "raw":
        return rewards.masked_fill(~valid, 0.0)
    if method == "rank":
        count = valid.sum(dim=1, keepdim=True)
        scaled = 1 - 2 * _ranks(rewards, valid) / (count - 1).clamp(min=1)
        return scaled.masked_fill(groups_without_contrast(rewards, valid).unsqueeze(1) | ~valid, 0.0).to(rewards.dtype)
    if method not in NORMALISATIONS:
        raise ValueError(f"method: expected one of {', '.join(NORMALISATIONS)}, found {method!r}")
    return group_advantages(rewards, valid, clip=clamp if method == "z_score_clamp" else None, epsilon=0.0)


def softmax_weights(rewards: torch.Tensor, valid: torch.Tensor, temperature: float) -> torch.Tensor:
    """(B, G) softmax of rewards / temperature over the valid candidates; all 0 where a group has none."""
    scaled = (rewards / temperature).masked_fill(~valid, -torch.inf)
    scaled = scaled.masked_fill(~valid.any(dim=1, keepdim=True), 0.0)
    return scaled.softmax(dim=1).masked_fill(~valid, 0.0)


def best_weights(rewards: torch.Tensor, valid: torch.Tensor, k: int) -> torch.Tensor:
    """(B, G) weights that are equal for the k best candidates of a group, sum to 1, and are 0 for the others."""
    best = best_of_group(rewards, valid, k)
    return best / best.sum(dim=1, keepdim=True).clamp(min=1)


def weighted_cross_entropy(cross_entropy: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B,): sum over the candidates of weight * cross-entropy; what has no weight may be anything, NaN too.

    Args:
        cross_entropy, weights: (B, G).
    """
    return (cross_entropy.masked_fill(weights == 0, 0.0) * weights).sum(dim=1)


def rce_loss(
    cross_entropy: torch.Tensor,
    rewards: torch.Tensor,
    valid: torch.Tensor,
    temperature: float,
    top1: bool = False,
    per_group: bool = False,
) -> torch.Tensor:
    """Reward-weighted cross-entropy: the mean over groups of sum_g softmax(r / temperature)_g * CE_g.

    Source: the earlier selector's warm-up ("RCE"); reward-weighted regression, Peters and Schaal 2007.

    Args:
        cross_entropy: (B, G) of each candidate, summed over its steps.
        rewards, valid: (B, G).
        temperature: above 0; the lower, the more the best candidate counts.
        top1: the best candidate alone counts.
        per_group: leave out the mean.

    Returns:
        Scalar, or (B,). Groups without any valid candidate count as 0.
    """
    weights = best_weights(rewards, valid, 1) if top1 else softmax_weights(rewards, valid, temperature)
    losses = weighted_cross_entropy(cross_entropy, weights)
    return losses if per_group else losses.mean()


def kl_k3(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The k3 estimate of the KL divergence at each element: r - 1 - log r with r = exp(log_probs - reference).

    Never negative, and 0 exactly where both are equal. For candidates drawn from the reference, its mean estimates
    KL(reference || policy). Source: Schulman 2020, "Approximating KL divergence".
    """
    difference = log_probs - reference
    return torch.expm1(difference) - difference


def per_step_or_sequence(
    log_probs: torch.Tensor, mask: torch.Tensor, level: str, mean: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of what a ratio is taken of, and which of them exist.

    Args:
        log_probs, mask: (B, G, T).
        level: "step" leaves them; "sequence" makes one of each candidate's steps.
        mean: by their mean (as GSPO has it, arXiv 2507.18071) instead of their sum.

    Returns:
        (B, G, T) or (B, G, 1), twice.
    """
    if level == "step":
        return log_probs.masked_fill(~mask, 0.0), mask
    if level != "sequence":
        raise ValueError(f"level: expected 'sequence' or 'step', found {level!r}")
    total = log_probs.masked_fill(~mask, 0.0).sum(dim=2, keepdim=True)
    if mean:
        total = total / mask.sum(dim=2, keepdim=True).clamp(min=1)
    return total, mask.any(dim=2, keepdim=True)


@dataclass(frozen=True)
class GRPOTerms:
    """What `grpo_loss` is made of; each a mean over the groups.

    Attributes:
        loss: policy + beta * kl, (B,), a value a group; train on its mean.
        policy: (B,) clipped objective, negated.
        kl: (B,) k3 to the reference.
        ratio: (B,) mean probability ratio to the old policy.
        clipped: (B,) share of the steps whose gradient the clip cut off.
    """

    loss: torch.Tensor
    policy: torch.Tensor
    kl: torch.Tensor
    ratio: torch.Tensor
    clipped: torch.Tensor


def _group_mean(values: torch.Tensor, mask: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """(B,): mean over a candidate's steps, then over the candidates that count; 0 for a group without any."""
    of_candidate = values.masked_fill(~mask, 0.0).sum(dim=2) / mask.sum(dim=2).clamp(min=1)  # (B, G)
    return of_candidate.masked_fill(~counted, 0.0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def grpo_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    reference_log_probs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    counted: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.0,
) -> GRPOTerms:
    """Clipped policy gradient with a KL penalty: -min(r A, clip(r, 1 - low, 1 + high) A) + beta * k3.

    Averaged over the steps of a candidate, then over the candidates of a group. Source: GRPO, arXiv 2402.03300,
    equation 3; PPO, arXiv 1707.06347, equation 7.

    Args:
        log_probs, old_log_probs, reference_log_probs: (B, G, T) of steps, or (B, G, 1) of sequences
            (`per_step_or_sequence`). Without a reference, the KL is 0.
        advantages: (B, G).
        mask: as `log_probs`.
        counted: (B, G), the candidates that take part.
        clip_low, clip_high: how far below and above 1 a ratio may leave.
        beta: weight of the KL.
    """
    mask = mask & counted.unsqueeze(2)
    ratio = (log_probs - old_log_probs).masked_fill(~mask, 0.0).exp()
    free = ratio * advantages.unsqueeze(2)
    held = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages.unsqueeze(2)
    policy = _group_mean(-torch.minimum(free, held), mask, counted)
    if reference_log_probs is None:
        kl = torch.zeros_like(policy)
    else:
        apart = kl_k3(log_probs.masked_fill(~mask, 0.0), reference_log_probs.masked_fill(~mask, 0.0))
        kl = _group_mean(apart, mask, counted)
    with torch.no_grad():
        clipped = _group_mean((held < free).to(ratio.dtype), mask, counted)
        mean_ratio = _group_mean(ratio.detach(), mask, counted)
    return GRPOTerms(policy + beta * kl, policy, kl, mean_ratio, clipped)


# -- preferences ------------------------------------------------------------------------------------------------------

PREFERENCE_LOSSES = ("bradley_terry", "hinge", "plackett_luce")


def preferred(ranks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B, G, G) bool: [b, i, j] says that response i is preferred to response j.

    Args:
        ranks: (B, G), lower is better; equal ones are not compared.
        valid: (B, G).
    """
    return (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & valid.unsqueeze(2) & valid.unsqueeze(1)


def _mean_over_pairs(values: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """(B,): mean of (B, G, G) values over a group's pairs; 0 for a group without any."""
    return values.masked_fill(~pairs, 0.0).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


def preference_loss(
    scores: torch.Tensor,
    ranks: torch.Tensor,
    valid: torch.Tensor,
    loss_type: str = "bradley_terry",
    margin: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """(B,): how badly scores agree with the ranking of each group.

    With d = score of the better - score of the worse response, averaged over a group's pairs of unequal rank:

        bradley_terry    -log sigmoid(d - margin)          Bradley and Terry 1952; the margin as in Llama 2, eq. 2
        hinge            max(0, margin - d)

    and of the whole ranking, best first:

        plackett_luce    -sum_i log(exp s_i / (exp s_i + sum over all worse j of exp s_j))    Plackett 1975

    which equals bradley_terry for two responses. Responses of equal rank are not compared with each other.

    Args:
        scores: (B, G), any finite value where not valid.
        ranks: (B, G), lower is better.
        valid: (B, G).
        margin: one for all, or (B,).
    """
    if loss_type not in PREFERENCE_LOSSES:
        raise ValueError(f"loss_type: expected one of {', '.join(PREFERENCE_LOSSES)}, found {loss_type!r}")
    pairs = preferred(ranks, valid)
    if loss_type == "plackett_luce":
        others = scores.unsqueeze(1).expand_as(pairs).masked_fill(~pairs, -torch.inf)  # [b, i, j]: worse than i
        against = torch.cat([scores.unsqueeze(2), others], dim=2).logsumexp(dim=2)  # (B, G)
        return (against - scores).masked_fill(~pairs.any(dim=2), 0.0).sum(dim=1)
    gaps = scores.unsqueeze(2) - scores.unsqueeze(1)  # (B, G, G)
    margins = torch.as_tensor(margin, dtype=scores.dtype, device=scores.device).reshape(-1, 1, 1)
    each = F.softplus(margins - gaps) if loss_type == "bradley_terry" else (margins - gaps).clamp(min=0)
    return _mean_over_pairs(each, pairs)


def centring_penalty(scores: torch.Tensor, ranks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B,): mean over a group's pairs of (score of the better + score of the worse)^2, which draws scores to 0.

    Source: arXiv 2312.09244, equation 2, as in TRL.
    """
    return _mean_over_pairs((scores.unsqueeze(2) + scores.unsqueeze(1)) ** 2, preferred(ranks, valid))


def saturated(scores: torch.Tensor, low: float | None, high: float | None, share: float = 0.02) -> torch.Tensor:
    """Bool, as `scores`: within `share` of the range from a bound; never without bounds."""
    if low is None or high is None:
        return torch.zeros_like(scores, dtype=torch.bool)
    near = share * (high - low)
    return (scores <= low + near) | (scores >= high - near)
