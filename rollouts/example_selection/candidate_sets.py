"""Sets of examples that are worth trying for a query: a selector's beams and samples, retrieval, and chance.

Everything of a selector comes from its own search and its own forward pass, for a batch of queries at once.
"""

import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from data.reports.pool import ItemId
from rollouts.example_selection.data import PoolBatch, cosines, most_similar_sets
from rollouts.example_selection.proposal_settings import ProposalSettings

Positions = tuple[int, ...]
"""Places in the query's pool, in the order of selection."""


@dataclass(frozen=True)
class Proposal:
    """One tuple of examples and where it comes from.

    Attributes:
        pointer: positions in the pool, in the order of selection.
        method: "beam", "retrieval", "sample" or "random".
        about: further fields of a candidate (`beam_rank`, `temperature`, ...), those that apply.
    """

    pointer: Positions
    method: str
    about: dict = field(default_factory=dict)


def distinct_key(pointer: Positions, distinct: str) -> Positions:
    """What two tuples share if they count as one candidate."""
    return tuple(sorted(pointer)) if distinct == "sets" else tuple(pointer)


def _selected(selections) -> list[list[tuple[Positions, float]]]:
    """For each query, the tuples of `Selections` with their log-probabilities, up to STOP; those that do not exist
    are left out.
    """
    pointers, log_probs = selections.pointers.tolist(), selections.log_probs.tolist()
    return [
        [
            (tuple(position for position in pointer if position >= 0), score)
            for pointer, score in zip(row, scores, strict=True)
            if score > -math.inf
        ]
        for row, scores in zip(pointers, log_probs, strict=True)
    ]


def retrieval_proposals(query: np.ndarray, pool: np.ndarray, shots: int, count: int) -> list[Proposal]:
    """The sets of a pool (K, d) with the largest summed cosine to the query; `similarity_score` is their mean."""
    similarities = cosines(query, pool)
    return [
        Proposal(found, "retrieval", {"similarity_score": float(similarities[list(found)].mean())})
        for found in most_similar_sets(similarities, shots, count)
    ]


def random_tuples(
    pool_size: int,
    shots: int,
    count: int,
    rng: random.Random,
    distinct: str = "sets",
    taken: Collection[Positions] = (),
) -> Iterator[Positions]:
    """`count` tuples unlike each other and unlike those taken (by their keys), or as many as there are."""
    taken = set(taken)
    possible = math.comb(pool_size, shots) if distinct == "sets" else math.perm(pool_size, shots)
    left = possible - sum(len(key) == shots for key in taken)
    for _ in range(min(count, left)):
        while True:
            pointer = tuple(rng.sample(range(pool_size), shots))
            key = distinct_key(pointer, distinct)
            if key not in taken:
                break
        taken.add(key)
        yield pointer


class Proposer:
    """Proposals for the queries of one batch, for any number of shots; the selector reads the batch once.

    Args:
        selector: without one there are neither beams nor samples, and no `logprob_score`.
        batch: the queries with their pools.
        query_ids: of the batch; random tuples depend on the seed and the query's id, samples on the whole batch.
    """

    def __init__(self, selector, batch: PoolBatch, query_ids: Sequence[ItemId], settings: ProposalSettings):
        self.selector = selector
        self.batch = batch
        self.query_ids = query_ids
        self.settings = settings
        self.sizes = (batch.pools >= 0).sum(dim=1).tolist()
        self._encoded = None
        if selector is not None:
            batch = batch.to(selector.device)
            with torch.inference_mode():
                self._encoded = selector.encode(batch.queries, batch.examples, batch.pools)

    def propose(self, shots: int, given: Sequence[Sequence[Proposal]] | None = None) -> list[list[Proposal]]:
        """Distinct tuples of `shots` examples (fewer where the selector stops) for each query.

        Args:
            given: for each query, proposals from elsewhere, such as beams that a VLM scored.

        Returns:
            For each query, about `num_beams + len(temperatures) * num_samples + num_retrieval + num_random`
            proposals. Of equal ones the first in this order stays: given, beams, retrieval, samples, random.
            `logprob_score` is the log-probability that the selector's `forward` gives to the tuple.
        """
        settings = self.settings
        kinds = [given or [[] for _ in self.query_ids], self._beams(shots), self._retrieval(shots)]
        kinds += [self._samples(shots, temperature) for temperature in settings.temperatures]
        proposals = []
        for number, query_id in enumerate(self.query_ids):
            kept: dict[Positions, Proposal] = {}
            for item in (item for kind in kinds for item in kind[number]):
                kept.setdefault(distinct_key(item.pointer, settings.distinct), item)
            rng = random.Random(f"{settings.seed} {query_id!r} {shots}")
            drawn = random_tuples(self.sizes[number], shots, settings.num_random, rng, settings.distinct, kept)
            proposals.append([*kept.values(), *(Proposal(pointer, "random") for pointer in drawn)])
        return proposals if self.selector is None else self._with_log_probs(proposals)

    def _nothing(self) -> list[list[Proposal]]:
        return [[] for _ in self.query_ids]

    def _beams(self, shots: int) -> list[list[Proposal]]:
        if self.selector is None or not self.settings.num_beams:
            return self._nothing()
        chosen = self.selector.choose(self._encoded, shots, method="beam", num_beams=self.settings.num_beams)
        return [
            [
                Proposal(pointer, "beam", {"beam_rank": rank, "beam_score": score, "logprob_score": score})
                for rank, (pointer, score) in enumerate(beams)
            ]
            for beams in _selected(chosen)
        ]

    def _samples(self, shots: int, temperature: float) -> list[list[Proposal]]:
        if self.selector is None or not self.settings.num_samples:
            return self._nothing()
        generator = torch.Generator(self.selector.device)
        seed = f"{self.settings.seed} {self.query_ids[0]!r} {shots} {temperature!r}"
        generator.manual_seed(random.Random(seed).getrandbits(63))
        chosen = self.selector.choose(
            self._encoded,
            shots,
            method="sample",
            num_samples=self.settings.num_samples,
            temperature=temperature,
            generator=generator,
        )
        return [
            [
                Proposal(pointer, "sample", {"temperature": temperature, "logprob_score": score})
                for pointer, score in samples
            ]
            for samples in _selected(chosen)
        ]

    def _retrieval(self, shots: int) -> list[list[Proposal]]:
        if not self.settings.num_retrieval:
            return self._nothing()
        batch = self.batch
        queries, examples, pools = (part.cpu().numpy() for part in (batch.queries, batch.examples, batch.pools))
        return [
            retrieval_proposals(query, examples[pool[:size]], shots, self.settings.num_retrieval)
            for query, pool, size in zip(queries, pools, self.sizes, strict=True)
        ]

    def _with_log_probs(self, proposals: list[list[Proposal]]) -> list[list[Proposal]]:
        """Adds `logprob_score` where it is missing, by one teacher-forced pass over the batch."""
        missing = [[item for item in group if "logprob_score" not in item.about] for group in proposals]
        width = max(map(len, missing))
        if not width:
            return proposals
        length = max(len(item.pointer) for group in missing for item in group)
        nothing = [-1] * length
        rows = [[[*item.pointer, *nothing][:length] for item in group] for group in missing]
        padded = [group + [nothing] * (width - len(group)) for group in rows]  # (B, width, length)
        with torch.inference_mode():
            pointers = torch.tensor(padded, device=self.selector.device)
            totals = self.selector.score(self._encoded, pointers).log_probs.sum(dim=-1).tolist()
        for group, scores in zip(missing, totals, strict=True):
            for item, score in zip(group, scores, strict=False):  # the rest is padding
                item.about["logprob_score"] = score
        return proposals
