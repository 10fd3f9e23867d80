"""Scores of next tokens, and what transformers' processors leave of them."""

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.decoding.sampling import Cuts


def processors(cuts: Cuts) -> LogitsProcessorList:
    """Transformers' own, in its order."""
    found = LogitsProcessorList()
    if cuts.suppressed:
        found.append(SuppressTokensLogitsProcessor(list(cuts.suppressed)))
    if cuts.temperature != 1.0:
        found.append(TemperatureLogitsWarper(cuts.temperature))
    for value, kind in (
        (cuts.top_k, TopKLogitsWarper),
        (cuts.top_p, TopPLogitsWarper),
        (cuts.min_p, MinPLogitsWarper),
    ):
        if value is not None:
            found.append(kind(value))
    return found


def logits_of(vocabulary: int, spread: float, rows: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocabulary)
    return torch.randn(rows, vocabulary, generator=generator) * spread


def left_by(cuts: Cuts, logits: torch.Tensor) -> torch.Tensor:
    """(N, V), scores with -inf where tokens are cut."""
    scores = cuts.scores(logits)
    if not cuts.cuts:
        return scores
    values, ids = cuts.kept(scores)
    assert bool((values[:, 1:] <= values[:, :-1]).all())  # likeliest first
    return torch.full_like(scores, -torch.inf).scatter(1, ids, values)
