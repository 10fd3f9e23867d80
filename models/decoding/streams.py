"""Two streams of random numbers by which tokens are drawn, and none.

`transformers` draws as `generate` does, by the same numbers: for the same seed the same tokens, and the generator
stands afterwards where `generate` leaves it. `torch.multinomial` draws one token of each row as argmax(p / q), with q
from an exponential distribution for every row and token, rows that have ended included.

`own` draws one uniform number for each row and step at the start. Tokens then depend on the seed, the row and its
logits alone, and not on what else is in the batch; and it is much cheaper.
"""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch

STREAMS = ("transformers", "own")


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
        self._by_uniforms = exponentials_are_of_uniforms(device)
        self._drawn: dict[int, torch.Tensor] = {}
        self._states: list[torch.Tensor] = []  # of the generator after each step

    def pick(
        self, scores: torch.Tensor, rows: Sequence[int], steps: Sequence[int], ids: torch.Tensor | None
    ) -> torch.Tensor:
        shares = scores.softmax(dim=1)
        return _named((shares / self._noise(rows, steps, ids)).argmax(dim=1), ids)

    def _noise(self, rows: Sequence[int], steps: Sequence[int], ids: torch.Tensor | None) -> torch.Tensor:
        """(N, V) from an exponential distribution, or (N, K) of the tokens with these `ids`."""
        drawn = self._of(rows, steps)
        drawn = drawn if ids is None else drawn.gather(1, ids)
        return _exponentials_of(drawn) if self._by_uniforms else drawn

    def _of(self, rows: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
        """(N, V), what was drawn for them."""
        different = sorted(set(steps))
        for step in different:
            self._draw_to(step)
        if len(different) == 1:
            drawn = self._drawn[different[0]]
            return drawn if list(rows) == list(range(self.batch)) else drawn[list(rows)]
        return torch.stack([self._drawn[step][row] for row, step in zip(rows, steps, strict=True)])

    def _draw_to(self, step: int) -> None:
        while len(self._states) <= step:
            size = (self.batch, self.vocabulary)
            if self._by_uniforms:
                drawn = torch.empty(size, dtype=torch.float64, device=self.device).uniform_()
            else:
                drawn = torch.empty(size, device=self.device).exponential_(1)
            self._drawn[len(self._states)] = drawn
            self._states.append(generator_state(self.device))

    def forget_before(self, step: int) -> None:
        for old in [one for one in self._drawn if one < step]:
            del self._drawn[old]

    def finish(self, steps: int) -> None:
        """Drafts may have asked for numbers that `generate` never draws."""
        if self._states:
            set_generator_state(self._states[steps - 1], self.device)


@cache
def exponentials_are_of_uniforms(device: torch.device) -> bool:
    """Whether `exponential_` draws as many uniform numbers as it gives, and is the logarithm of them.

    So it is on a CPU, where it takes most of the time of sampling from a small model: then only the numbers that are
    used need their logarithm. Found by trying, with a generator of its own.
    """
    if device.type != "cpu":
        return False
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    exponentials = torch.empty(4096).exponential_(1, generator=one)
    uniforms = torch.empty(4096, dtype=torch.float64).uniform_(generator=other)
    same_state = torch.equal(one.get_state(), other.get_state())
    return same_state and torch.equal(exponentials, _exponentials_of(uniforms))


def _exponentials_of(uniforms: torch.Tensor) -> torch.Tensor:
    """float32."""
    return torch.log1p(-uniforms).neg_().float()


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


def generator_state(device: torch.device) -> torch.Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def set_generator_state(state: torch.Tensor, device: torch.device) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
