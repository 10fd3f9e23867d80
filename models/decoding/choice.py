"""The next tokens of some rows, from the model's logits, and how likely they were."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList

from models.decoding.sampling import Cuts
from models.decoding.streams import Draws


@dataclass(frozen=True)
class Chosen:
    """Tokens, and their log-probabilities in nats: before anything was cut off the distribution, and, where that is
    wanted, of what they were drawn from."""

    tokens: list[int]
    log_probs: list[float]
    drawn: list[float] | None = None


class ByCuts:
    """By temperature, top-k, top-p and min-p, of any rows at any steps."""

    def __init__(self, cuts: Cuts, draws: Draws, notes_drawn: bool = False):
        self.cuts, self.draws = cuts, draws
        self.temperature = cuts.temperature
        self.notes_drawn = notes_drawn

    def choose(self, logits: torch.Tensor, rows: Sequence[int], steps: Sequence[int]) -> Chosen:
        """Of logits (N, V), after the tokens of these rows before these steps."""
        scores = self.cuts.scores(logits)
        scores, ids = self.cuts.kept(scores) if self.cuts.cuts else (scores, None)
        tokens = self.draws.pick(scores, rows, steps, ids)
        return _chosen(tokens, logits, self.temperature, _of_drawn(scores, ids, tokens) if self.notes_drawn else None)


class ByProcessors:
    """By any of transformers' processors, which see all rows of the batch and what these have so far, as `generate`
    shows it to them. Scores of rows that have ended are 0: nothing is computed for them.

    Args:
        ids: (B, P), prompts; pad: what stands behind the end of a row.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        draws: Draws,
        temperature: float,
        ids: torch.Tensor,
        pad: int,
        notes_drawn: bool = False,
    ):
        self.processors, self.draws, self.temperature, self.ids, self.pad = processors, draws, temperature, ids, pad
        self.notes_drawn = notes_drawn

    def choose(self, logits: torch.Tensor, rows: Sequence[int], steps: Sequence[int]) -> Chosen:
        """Of logits (N, V); all rows are at the same step."""
        all_rows = logits.new_zeros(len(self.ids), logits.shape[1], dtype=torch.float32)
        all_rows[list(rows)] = logits.float()
        scores = self.processors(self.ids, all_rows)[list(rows)]
        tokens = self.draws.pick(scores, rows, steps, None)
        return _chosen(tokens, logits, self.temperature, _of_drawn(scores, None, tokens) if self.notes_drawn else None)

    def note(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """The next token of some rows; all others have ended."""
        column = self.ids.new_full((len(self.ids), 1), self.pad)
        column[list(rows), 0] = torch.tensor(tokens, device=self.ids.device)
        self.ids = torch.cat([self.ids, column], dim=1)


def _chosen(
    tokens: torch.Tensor, logits: torch.Tensor, temperature: float, drawn: torch.Tensor | None = None
) -> Chosen:
    log_probs = _of_drawn(logits.float() / temperature, None, tokens)
    return Chosen(tokens.tolist(), log_probs.tolist(), None if drawn is None else drawn.tolist())


def _of_drawn(scores: torch.Tensor, ids: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """(N,), log-probabilities of tokens under scores (N, V), or (N, K) of the tokens with these `ids`."""
    places = tokens.unsqueeze(1)
    if ids is not None:
        places = (ids == places).int().argmax(dim=1, keepdim=True)
    return scores.gather(1, places).squeeze(1) - scores.logsumexp(dim=1)
