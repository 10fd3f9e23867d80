"""Which token comes next: what transformers' processors leave of the scores, and two streams of random numbers.

`transformers` draws as `generate` does, by the same numbers: for the same seed the same tokens, and the generator
stands afterwards where `generate` leaves it. `torch.multinomial` draws one token of each row as argmax(p / q), with q
from an exponential distribution for every row and token, rows that have ended included.

`own` draws one uniform number for each row and step at the start. Tokens then depend on the seed, the row and its
logits alone, and not on what else is in the batch; and it is much cheaper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as known

STREAMS = ("transformers", "own")
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


class Draws(Protocol):
    """Picks tokens of rows at their steps."""

    def pick(
        self, scores: torch.Tensor, rows: Sequence[int], steps: Sequence[int], ids: torch.Tensor | None
    ) -> torch.Tensor:
        """(N,), a token for each.

        Args:
            scores: (N, V), or (N, K) of the tokens with these `ids`, likeliest first.
        """

    def forget_before(self, step: int) -> None:
        """No row comes back to an earlier step."""

    def finish(self, steps: int) -> None:
        """The longest row has so many tokens."""


class Likeliest:
    """Draws nothing: the likeliest token comes next."""

    def pick(
        self, scores: torch.Tensor, rows: Sequence[int], steps: Sequence[int], ids: torch.Tensor | None
    ) -> torch.Tensor:
        return _named(scores.argmax(dim=1), ids)

    def forget_before(self, step: int) -> None:
        pass

    def finish(self, steps: int) -> None:
        pass


class AsTransformers:
    """The numbers that `generate` draws.

    Args:
        batch: rows of `generate`; vocabulary: tokens.
    """

    def __init__(self, batch: int, vocabulary: int, device: torch.device):
        self.batch, self.vocabulary, self.device = batch, vocabulary, device
        self._noise: dict[int, torch.Tensor] = {}
        self._states: list[torch.Tensor] = []  # of the generator after each step

    def pick(
        self, scores: torch.Tensor, rows: Sequence[int], steps: Sequence[int], ids: torch.Tensor | None
    ) -> torch.Tensor:
        noise = self._of(rows, steps)
        shares = scores.softmax(dim=1)
        return _named((shares / (noise if ids is None else noise.gather(1, ids))).argmax(dim=1), ids)

    def _of(self, rows: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
        """(N, V)."""
        different = sorted(set(steps))
        for step in different:
            self._draw_to(step)
        if len(different) == 1:
            noise = self._noise[different[0]]
            return noise if list(rows) == list(range(self.batch)) else noise[list(rows)]
        return torch.stack([self._noise[step][row] for row, step in zip(rows, steps, strict=True)])

    def _draw_to(self, step: int) -> None:
        while len(self._states) <= step:
            self._noise[len(self._states)] = torch.empty(self.batch, self.vocabulary, device=self.device).exponential_(
                1
            )
            self._states.append(_generator_state(self.device))

    def forget_before(self, step: int) -> None:
        for old in [one for one in self._noise if one < step]:
            del self._noise[old]

    def finish(self, steps: int) -> None:
        """Drafts may have asked for numbers that `generate` never draws."""
        if self._states:
            _set_generator_state(self._states[steps - 1], self.device)


class OwnNumbers:
    """A uniform number for each row and step, all drawn at the start.

    Args:
        batch: rows; most: steps.
    """

    def __init__(self, batch: int, most: int, device: torch.device):
        self._numbers = torch.rand(batch, most, device=device)

    def pick(
        self, scores: torch.Tensor, rows: Sequence[int], steps: Sequence[int], ids: torch.Tensor | None
    ) -> torch.Tensor:
        sums = scores.softmax(dim=1).cumsum(dim=1)
        numbers = self._numbers[list(rows), list(steps)].unsqueeze(1) * sums[:, -1:]
        places = torch.searchsorted(sums, numbers, right=True).squeeze(1)
        return _named(places.clamp(max=sums.shape[1] - 1), ids)

    def forget_before(self, step: int) -> None:
        pass

    def finish(self, steps: int) -> None:
        pass


def _named(places: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """The tokens at these places (N,)."""
    return places if ids is None else ids.gather(1, places.unsqueeze(1)).squeeze(1)


def _generator_state(device: torch.device) -> torch.Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def _set_generator_state(state: torch.Tensor, device: torch.device) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
