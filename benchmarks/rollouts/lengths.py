"""Completions of given lengths, by transformers' loop and by ours.

Both are shown the same logits, changed in the same way, so that one does no other work than the other. `generate`
takes a processor for that. In the loop, a processor that it does not know goes the slower way of those that look at
whole rows, so the logits are changed on their way to what chooses tokens.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from transformers import LogitsProcessor

from models.decoding.choice import ByCuts

SPREADS = ("equal", "varied")
_MEAN = 0.6275
"""Of an exponential distribution which, cut at 1, has the mean 0.5."""


def lengths_of(spread: str, rows: int, most: int) -> list[int]:
    """Of `rows` completions: `equal`, all `most`; `varied`, exponentially distributed and cut at `most`, half of it
    on average, in an order that is always the same."""
    if spread == "equal":
        return [most] * rows
    shares = [(row + 0.5) / rows for row in range(rows)]
    lengths = [min(most, max(1, round(-_MEAN * most * math.log1p(-share)))) for share in shares]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return [lengths[row] for row in order]


class Lengths(LogitsProcessor):
    """Lets each row end when it has so many tokens, and not before.

    Args:
        end: the token that ends a row.
        prompt: tokens of a prompt, with its padding.
    """

    def __init__(self, lengths: Sequence[int], end: int, prompt: int):
        self.lengths, self.end, self.prompt = lengths, end, prompt

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        rows = len(scores)
        return self.ended(scores, range(rows), [input_ids.shape[1] - self.prompt] * rows)

    def ended(self, logits: torch.Tensor, rows: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
        """Logits (N, V) after the tokens of these rows before these steps, with the end where it must come."""
        last = [step + 1 == self.lengths[row] for row, step in zip(rows, steps, strict=True)]
        logits = logits.masked_fill(torch.tensor(last).unsqueeze(1), -math.inf)
        logits[:, self.end] = torch.where(torch.tensor(last), 0.0, -math.inf)
        return logits

    @contextmanager
    def in_the_loop(self) -> Iterator[None]:
        choose = ByCuts.choose

        def choose_ended(choice: ByCuts, logits: torch.Tensor, rows: Sequence[int], steps: Sequence[int]):
            return choose(choice, self.ended(logits, rows, steps), rows, steps)

        with mock.patch.object(ByCuts, "choose", choose_ended):
            yield
