"""What reward training logs: sums over the rows of all batches since the last log, and the figures made of them."""

from collections.abc import Iterable, Mapping

import torch

from trainers.losses import preferred, saturated

_EXTREMES = {"score_min": min, "score_max": max}


def row_sums(
    scores: torch.Tensor, ranks: torch.Tensor, valid: torch.Tensor, low: float | None, high: float | None
) -> dict[str, torch.Tensor]:
    """(B,) of each example: counts, sums and extremes of its scores, pairs and gaps.

    Args:
        scores, ranks, valid: (B, G), as for `trainers.losses.preference_loss`.
        low, high: bounds of the scores, `None` for none.
    """
    pairs = preferred(ranks, valid)
    gaps = scores.unsqueeze(2) - scores.unsqueeze(1)
    filled = scores.masked_fill(~valid, 0.0)
    return {
        "pairs": pairs.sum(dim=(1, 2)),
        "accuracy": ((gaps > 0) & pairs).sum(dim=(1, 2)),
        "ties": ((gaps == 0) & pairs).sum(dim=(1, 2)),
        "score_gap": gaps.masked_fill(~pairs, 0.0).sum(dim=(1, 2)),
        "responses": valid.sum(dim=1),
        "score_mean": filled.sum(dim=1),
        "squares": (filled**2).sum(dim=1),
        "saturation": (saturated(scores, low, high) & valid).sum(dim=1),
        "examples": torch.ones(len(scores), device=scores.device),
        "score_min": scores.masked_fill(~valid, torch.inf).amin(dim=1),
        "score_max": scores.masked_fill(~valid, -torch.inf).amax(dim=1),
    }


def add_rows(sums: dict[str, float], names: Iterable[str], table: torch.Tensor) -> None:
    """Adds the rows of a batch, (B, names), to the sums since the last log."""
    for name, column in zip(names, table.T.tolist(), strict=True):
        extreme = _EXTREMES.get(name)
        if extreme is None:
            sums[name] = sums.get(name, 0.0) + sum(column)
        else:
            sums[name] = extreme([*column, sums.get(name, column[0])])


def preference_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """What is logged of the sums; nothing of none."""
    if not sums:
        return {}
    figures = {name: sums[name] / sums["pairs"] for name in ("accuracy", "ties", "score_gap")}
    figures |= {name: sums[name] / sums["responses"] for name in ("score_mean", "saturation")}
    variance = sums["squares"] / sums["responses"] - figures["score_mean"] ** 2
    figures |= {"score_std": max(0.0, variance) ** 0.5, **{name: sums[name] for name in _EXTREMES}}
    return figures | {name: sums[name] / sums["examples"] for name in ("preference_loss", "lm_loss") if name in sums}
