"""Arithmetic of groups: tensors in, tensors out. A group is one prompt with G candidates and a reward each."""

import torch

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
) -> torch.Tensor:
    """How much better each candidate is than its group: (r - mean) / max(std, floor), clamped to [-clip, clip].

    Source: GRPO, arXiv 2402.03300, section 4.1.2; the unbiased standard deviation and its epsilon as in TRL.

    Args:
        rewards: (B, G).
        valid: (B, G), True where the candidate has a reward; the others leave mean and deviation, and get 0.
        scale: "group" divides by the group's deviation, "batch" by that of all valid rewards, "none" by nothing.
        std_floor: smallest deviation to divide by; keeps small differences small.
        clip: largest absolute advantage, or `None`.

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
    advantages = centred if std is None else centred / (std.clamp(min=std_floor) + STD_EPSILON)
    if clip is not None:
        advantages = advantages.clamp(-clip, clip)
    nothing_to_prefer = groups_without_contrast(rewards, valid).unsqueeze(1)
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
