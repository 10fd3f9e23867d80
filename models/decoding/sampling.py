"""What transformers' processors leave of the scores of the next token."""

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as known

FEW = 64
"""Most likely tokens among which is usually all that top-p and min-p leave."""


@dataclass(frozen=True)
class Cuts:
    """What is left of a distribution: temperature, then top-k, top-p and min-p, as transformers applies them.

    Attributes:
        suppressed: ids of tokens that never come.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    suppressed: tuple[int, ...] = ()

    @classmethod
    def of(cls, processors: LogitsProcessorList) -> "Cuts | None":
        """What these processors do; `None` where others are among them."""
        order = (
            known.SuppressTokensLogitsProcessor,
            known.TemperatureLogitsWarper,
            known.TopKLogitsWarper,
            known.TopPLogitsWarper,
            known.MinPLogitsWarper,
        )
        kinds = [type(one) for one in processors]
        if any(kind not in order for kind in kinds) or sorted(kinds, key=order.index) != kinds:
            return None
        if len(set(kinds)) < len(kinds) or not all(map(_is_plain, processors)):
            return None
        found: dict[str, Any] = {}
        for one in processors:
            match one:
                case known.SuppressTokensLogitsProcessor():
                    found["suppressed"] = tuple(one.suppress_tokens.tolist())
                case known.TemperatureLogitsWarper():
                    found["temperature"] = one.temperature
                case known.TopKLogitsWarper():
                    found["top_k"] = one.top_k
                case known.TopPLogitsWarper():
                    found["top_p"] = one.top_p
                case known.MinPLogitsWarper():
                    found["min_p"] = one.min_p
        return cls(**found)

    @property
    def cuts(self) -> bool:
        return self.top_k is not None or self.top_p is not None or self.min_p is not None

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, V) float32, before anything is cut but suppressed tokens."""
        scores = logits.float()
        if self.suppressed:
            scores = scores.index_fill(1, torch.tensor(self.suppressed, device=scores.device), -inf)
        return scores if self.temperature == 1.0 else scores / self.temperature

    def kept(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The kept tokens, likeliest first: scores, -inf where cut, and ids, (N, K) each."""
        size = min((self.top_k or 0) + FEW, scores.shape[1])
        found = self._kept_of(scores, size)
        return self._kept_of(scores, scores.shape[1]) if found is None else found

    def _kept_of(self, scores: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of the `size` likeliest tokens; `None` if more might be kept, or be as likely as the last that is."""
        values, ids = _likeliest_first(scores, size)
        left = values
        if self.top_k is not None:  # with all that are as likely as the last of them
            left = values.masked_fill(values < values[:, min(self.top_k, size) - 1].unsqueeze(1), -inf)
        total = (left if self.top_k is not None else scores).logsumexp(dim=1, keepdim=True)
        shares = (left - total).exp()
        before = shares.cumsum(dim=1) - shares
        cut = left.isneginf()
        if self.top_p is not None:
            cut |= before >= self.top_p
        if self.min_p is not None:
            cut |= shares < self.min_p * shares[:, :1]
        cut[:, 0] = False
        if size < scores.shape[1]:
            last = values.masked_fill(cut, inf).amin(dim=1)
            if not bool((values[:, -1] < last).all()):
                return None
        return values.masked_fill(cut, -inf), ids


def _likeliest_first(scores: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `size` likeliest tokens, scores and ids, (N, size) each. Equally likely ones, as logits of few digits often
    are, stand in the order of their ids, however many are asked for."""
    values, ids = scores.topk(size, dim=1)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        ids = ids.sort(dim=1).values
        values, places = scores.gather(1, ids).sort(dim=1, descending=True, stable=True)
        ids = ids.gather(1, places)
    return values, ids


def _is_plain(processor: LogitsProcessor) -> bool:
    """Whether a processor keeps as few as its cut says, and lets nothing come that it cuts."""
    return getattr(processor, "min_tokens_to_keep", 1) == 1 and getattr(processor, "filter_value", -inf) == -inf
