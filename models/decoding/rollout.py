"""The loop that rolls out completions of prompts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import StoppingCriteriaList

from data.errors import UserError
from models.decoding.cache import RolloutCache
from models.decoding.choice import ByCuts, ByProcessors
from models.decoding.drafts.drafting import Drafting, RowDrafts
from models.decoding.forward.forwards import Forwards, RecordedForwards, reason_not_recorded
from models.decoding.live_rows import LiveRows
from models.decoding.prompts import WaitingRows, different_prompts
from models.families.vision_hooks import CACHES, given_cache, vision_language_model


@dataclass(frozen=True)
class Ends:
    """When a completion ends.

    Attributes:
        tokens: it ends with any of these.
        most: tokens of a completion.
        criteria: transformers' others, which see all rows of the batch.
        together: without ends of rows, `generate` samples on for all of them until the last is ended by `criteria`.
    """

    tokens: frozenset[int]
    most: int
    criteria: StoppingCriteriaList | None = None
    together: bool = False


@dataclass
class Counts:
    """What a rollout cost.

    Attributes:
        forwards: after the prompts were read; rows: of all of them; places: tokens that they computed.
        drafted, accepted: tokens.
    """

    forwards: int = 0
    rows: int = 0
    places: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass
class Completions:
    """Of each row: tokens, with the one that ended it, and their log-probabilities in nats; `drawn` are those of what
    they were drawn from, where that was wanted."""

    ids: list[list[int]]
    log_probs: list[list[float]]
    drawn: list[list[float]]
    counts: Counts = field(default_factory=Counts)


class RollOut:
    """One rollout of a batch.

    Args:
        model: with a language-model head.
        inputs: what its forward takes of the batch, with an empty cache that grows.
        choice: of the next tokens.
        drafting, slots: not where `choice` or `ends` look at whole rows; `slots` are the rows that are computed at
            once, `None` is all.
        graphs: record forwards and replay them; not with `slots`.

    Raises:
        UserError: forwards of the model cannot be recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        choice: ByCuts | ByProcessors,
        ends: Ends,
        drafting: Drafting | None = None,
        slots: int | None = None,
        graphs: bool = False,
    ):
        self.choice, self.ends, self.graphs = choice, ends, graphs
        self.prompts = different_prompts(inputs, vision_language_model(model).config)
        rows = len(self.prompts.of_row)
        self.slots = rows if slots is None else slots
        self.waiting = WaitingRows(model, self.prompts)
        most_drafted = 0 if drafting is None else drafting.most
        width = ends.most + most_drafted
        self.cache = RolloutCache(given_cache(inputs).layers, width)
        reason = reason_not_recorded(model, self.cache) if graphs else None
        if reason is not None:
            raise UserError(f"rollout_graphs: true: {reason}")
        self.live = LiveRows(self.prompts, self.cache)
        made_of = (model, self.cache, next(name for name in CACHES if name in inputs), self.live, self.prompts.width)
        self.forwards = RecordedForwards(*made_of, width) if graphs else Forwards(*made_of)
        self.found = Completions(*([[] for _ in range(rows)] for _ in range(3)))
        self.ended = [False] * rows
        self.drafts = None
        if drafting is not None and not self.cache.has_states:
            self.drafts = RowDrafts(drafting, [self.prompts.tokens[number] for number in self.prompts.of_row])

    @torch.no_grad()
    def run(self) -> Completions:
        while rows := self._fill():
            drafts = self._drafted(rows)
            began = time.perf_counter()
            logits = self._forward(rows, drafts)
            self._take(logits, rows, drafts)
            if self.drafts is not None:
                places = len(rows) * (1 + max(map(len, drafts)))
                self.drafts.note_forward(places, time.perf_counter() - began)
        self.choice.draws.finish(max(map(len, self.found.ids)))
        return self.found

    def _fill(self) -> list[int]:
        """Lets rows go that have ended, and others begin in their places: the rows that go on."""
        self._leave()
        while self.waiting.rows and len(self.live.rows) < self.slots:
            begun = self.waiting.begin(self.slots - len(self.live.rows))
            self.live.enter(begun)
            self._take(begun.logits, begun.rows, [[] for _ in begun.rows])
            self._leave()
        return [row for row in self.live.rows if self.ends.together or not self.ended[row]]

    def _leave(self) -> None:
        """Where forwards are recorded, all rows stay until the last has ended."""
        stays = (self.ends.together or self.graphs) and not all(self.ended)
        tokens = self.found.ids
        self.live.leave(lambda row: self.ended[row] and not stays, lambda row: len(tokens[row]) - 1, self.waiting.rows)

    def _drafted(self, rows: Sequence[int]) -> list[list[int]]:
        """Of each row, what may come after the token that is not in the cache yet."""
        if self.drafts is None:
            return [[] for _ in rows]
        return self.drafts.of_rows(rows, [self.ends.most - len(self.found.ids[row]) - 1 for row in rows])

    def _forward(self, rows: Sequence[int], drafts: Sequence[Sequence[int]]) -> torch.Tensor:
        """(N, V), logits after the last token of each row and after each drafted one."""
        longest = max(map(len, drafts))
        if self.graphs and longest:
            longest = self.drafts.most  # each number of tokens would be recorded
        tokens = 1 + longest
        ids = [
            [self.found.ids[row][-1], *draft, *[0] * (tokens - 1 - len(draft))]
            for row, draft in zip(rows, drafts, strict=True)
        ]
        logits = self.forwards.logits(rows, ids, [len(self.found.ids[row]) - 1 for row in rows])
        counts = self.found.counts
        counts.forwards, counts.rows = counts.forwards + 1, counts.rows + len(rows)
        counts.places += len(rows) * tokens
        if tokens == 1:
            return logits[:, 0]
        real = [number * tokens + place for number, draft in enumerate(drafts) for place in range(len(draft) + 1)]
        return logits.flatten(0, 1)[torch.tensor(real, device=logits.device)]

    def _take(self, logits: torch.Tensor, rows: Sequence[int], drafts: Sequence[Sequence[int]]) -> None:
        """Samples after each token, and keeps it while that is what was drafted."""
        drafted = list(zip(rows, drafts, strict=True))
        of_row = [row for row, draft in drafted for _ in range(len(draft) + 1)]
        steps = [len(self.found.ids[row]) + place for row, draft in drafted for place in range(len(draft) + 1)]
        chosen = self.choice.choose(logits, of_row, steps)
        kept, counts = [], self.found.counts
        first = 0
        for row, draft in drafted:
            tokens = self._kept(chosen.tokens[first : first + len(draft) + 1], draft)
            kept.append(tokens)
            self.found.ids[row] += tokens
            self.found.log_probs[row] += chosen.log_probs[first : first + len(tokens)]
            self.found.drawn[row] += (chosen.drawn or [])[first : first + len(tokens)]
            counts.drafted, counts.accepted = counts.drafted + len(draft), counts.accepted + len(tokens) - 1
            first += len(draft) + 1
        self._note(rows, kept)

    def _kept(self, sampled: Sequence[int], draft: Sequence[int]) -> list[int]:
        """Sampled tokens up to the first that was not drafted, or that ends the row."""
        for place, token in enumerate(sampled):
            if token in self.ends.tokens or place == len(draft) or token != draft[place]:
                return list(sampled[: place + 1])
        return []

    def _note(self, rows: Sequence[int], kept: Sequence[Sequence[int]]) -> None:
        """What follows from the tokens that rows have got."""
        for row, tokens in zip(rows, kept, strict=True):
            self.ended[row] |= tokens[-1] in self.ends.tokens or len(self.found.ids[row]) >= self.ends.most
        if self.drafts is not None:
            self.drafts.note(rows, kept)
        if isinstance(self.choice, ByProcessors):
            self.choice.note(rows, [tokens[-1] for tokens in kept])
            if self.ends.criteria is not None:
                over = self.ends.criteria(self.choice.ids, None).tolist()
                self.ended = [one or other for one, other in zip(self.ended, over, strict=True)]
        lengths = [len(ids) for ids, ended in zip(self.found.ids, self.ended, strict=True) if not ended]
        self.choice.draws.forget_before(min(lengths, default=0))
