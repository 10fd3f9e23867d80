"""The log-probabilities that `generate` samples with, which it does not give."""

from math import nan

import torch
from transformers import LogitsProcessor


class SampledLogProbs(LogitsProcessor):
    """Notes the log-probability of each token that `generate` samples, and changes nothing.

    A token is known when the next call is made, which shows it as the last of `input_ids`. So the logits of one step
    are kept for one step, and one number of them for each row.

    Args:
        temperature: that the logits are divided by after this processor. Cuts (`top_p`, ..) come after it too, and
            are not part of what is noted.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature
        self._noted: list[torch.Tensor] = []  # (B,) for each step but the last
        self._logits: torch.Tensor | None = None  # (B, V) of the last step
        self._told: list[list[float]] | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._logits is not None:
            self._noted.append(self._of_tokens(input_ids[:, -1]))
        self._logits = scores
        return scores

    def _of_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B,) of the tokens (B,) that were sampled from the last logits."""
        logits = self._logits.float() / self.temperature
        return logits.gather(1, tokens.to(logits.device)[:, None]).squeeze(1) - logits.logsumexp(dim=1)

    def tell(self, log_probs: list[list[float]]) -> None:
        """Notes them of a whole rollout, of which this was shown nothing."""
        self._told = log_probs

    def of_completions(self, completions: list[list[int]]) -> list[list[float]] | None:
        """The log-probability of each token of each completion, in nats; `None` where nothing was noted of them, as
        when a program puts a function of its own in the place of `generate`. NaN for tokens of which a rollout told
        nothing: padding, to those who do not know what ended a row.
        """
        if self._told is not None:
            return [
                [*of_row, *[nan] * (len(ids) - len(of_row))][: len(ids)]
                for of_row, ids in zip(self._told, completions, strict=True)
            ]
        longest = max(map(len, completions), default=0)
        if self._logits is None or len(self._logits) != len(completions) or len(self._noted) + 1 < longest:
            return None
        last = len(self._noted)
        final = [ids[last] if len(ids) > last else 0 for ids in completions]
        noted = torch.stack([*self._noted, self._of_tokens(torch.tensor(final))], dim=1).tolist()  # (B, steps)
        return [of_row[: len(ids)] for of_row, ids in zip(noted, completions, strict=True)]
