"""Candidates of a query that a VLM has answered with: sets of examples are proposed, shown, and scored officially."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from data.candidate_groups import Candidate, CandidateGroup
from data.candidates.embedding_table import EmbeddingTable
from data.io.records import RecordError
from data.reports.pool import ItemId
from data.vqa import VqaRecord
from rewards.relevance import relevance
from rollouts.example_selection.candidate_sets import Proposal, Proposer
from rollouts.example_selection.data import PoolBatch, SelectionData, pool_batch
from rollouts.example_selection.proposal_settings import ProposalSettings
from rollouts.frozen_vlm.answers import AnswerBook, accuracies
from rollouts.frozen_vlm.requests import InContextRequest, shown_order

GIVEN_FIELDS = ("beam_rank", "beam_score", "step_scores", "logprob_score", "temperature", "similarity_score")
"""What a given candidate keeps; it is answered and scored anew."""

GivenCandidates = Mapping[ItemId, Sequence[Candidate]]
"""Query id -> candidates that are there already."""


def given_candidates(
    groups: Sequence[CandidateGroup], source: str, data: SelectionData, left_out: Container[ItemId] = ()
) -> GivenCandidates:
    """The pointers of stored groups, such as beams, by query.

    Args:
        left_out: examples whose pointers are passed over.

    Raises:
        RecordError: completions in place of pointers, or a pointer with examples outside the query's pool.
    """
    found: dict[ItemId, list[Candidate]] = {}
    problems = []
    for group in groups:
        pool = set(data.pools.get(group.id, ()))
        for number, candidate in enumerate(group.candidates):
            place = f"{source}: group {group.id!r}, candidate {number}"
            if candidate.pointer is None:
                problems.append(f"{place}: expected a pointer, found a completion")
            elif any(item in left_out for item in candidate.pointer):
                continue
            elif group.id in data.pools and not pool.issuperset(candidate.pointer):
                outside = [item for item in candidate.pointer if item not in pool]
                problems.append(f"{place}: expected examples of the query's pool, found {outside!r:.80}")
            else:
                found.setdefault(group.id, []).append(candidate)
    if problems:
        raise RecordError(problems)
    return found


@dataclass
class CandidateMaker:
    """Makes the groups of some queries.

    Attributes:
        data: queries, examples and pools.
        book: the VLM that answers.
        settings: how many proposals of which kind.
        shots: numbers of examples; a group for each.
        tables: of queries and examples; without them only random and given candidates can be made.
        selector: a trained selector, if there is one.
        given: candidates that are there already.
        construct_order: how a pointer becomes the order in which examples are shown.
        gt_prob: also ask for the probability of the right answers.
        relevance: also measure how like the right answers the VLM's answers are.
    """

    data: SelectionData
    book: AnswerBook
    settings: ProposalSettings
    shots: Sequence[int]
    tables: tuple[EmbeddingTable, EmbeddingTable] | None = None
    selector: object = None
    given: GivenCandidates = field(default_factory=dict)
    construct_order: str = "left"
    gt_prob: bool = False
    relevance: bool = False

    def groups(self, queries: Sequence[VqaRecord]) -> list[list[dict]]:
        """For each query its groups, one for each number of shots, as rows of `data.candidate_groups`."""
        proposed = self._propose(queries)
        asked = [
            (query, item)
            for query, by_shots in zip(queries, proposed, strict=True)
            for items in by_shots
            for item in items
        ]
        scored = iter(self._score(asked))
        return [
            [
                {
                    "id": query.id,
                    "shots": shots,
                    "question": query.question,
                    "answers": query.answers,
                    "pool": self.data.pools[query.id],
                    "candidates": [next(scored) for _ in items],
                }
                for shots, items in zip(self.shots, by_shots, strict=True)
            ]
            for query, by_shots in zip(queries, proposed, strict=True)
        ]

    def _propose(self, queries: Sequence[VqaRecord]) -> list[list[list[Proposal]]]:
        """For each query, for each number of shots, its proposals."""
        ids = [query.id for query in queries]
        pools = [self.data.pools[item] for item in ids]
        proposer = Proposer(self.selector, self._batch(ids, pools), ids, self.settings)
        by_shots = [proposer.propose(shots, self._given(ids, pools, shots)) for shots in self.shots]
        return [list(of_query) for of_query in zip(*by_shots, strict=True)]

    def _batch(self, ids: Sequence[ItemId], pools: Sequence[Sequence[ItemId]]) -> PoolBatch:
        if self.tables is None:
            return PoolBatch.without_embeddings([len(pool) for pool in pools])
        return pool_batch(ids, pools, *self.tables)

    def _given(self, ids: Sequence[ItemId], pools: Sequence[Sequence[ItemId]], shots: int) -> list[list[Proposal]]:
        """The given candidates with this many examples, as positions in the pools."""
        found = []
        for query_id, pool in zip(ids, pools, strict=True):
            candidates = [item for item in self.given.get(query_id, ()) if len(item.pointer) == shots]
            place = {item: position for position, item in enumerate(pool)} if candidates else {}
            found.append(
                [
                    Proposal(
                        tuple(place[example] for example in candidate.pointer),
                        candidate.gen_method or "given",
                        candidate.model_dump(include=set(GIVEN_FIELDS), exclude_none=True),
                    )
                    for candidate in candidates
                ]
            )
        return found

    def _score(self, asked: Sequence[tuple[VqaRecord, Proposal]]) -> list[dict]:
        """A candidate for each proposal, with the VLM's answer to its query and how right that is."""
        pointers, requests = [], []
        for query, item in asked:
            pool = self.data.pools[query.id]
            pointers.append([pool[position] for position in item.pointer])
            shown = shown_order(pointers[-1], self.construct_order)
            requests.append(InContextRequest(query, tuple(self.data.examples[example] for example in shown)))
        answers = self.book.answers(requests)
        rows = []
        for (_, item), pointer, answer, accuracy in zip(
            asked, pointers, answers, accuracies(answers, requests), strict=True
        ):
            rows.append(
                {
                    "pointer": pointer,
                    "reward": accuracy,
                    "gen_method": item.method,
                    **item.about,
                    "vqa_raw_generation": answer.raw,
                    "vqa_pred_answer": answer.text,
                    "vqa_correct": int(accuracy > 0),
                    "vqa_acc_score": accuracy,
                }
            )
        if self.gt_prob:
            for row, probability in zip(rows, self.book.right_answer_probabilities(requests), strict=True):
                row["vqa_gt_prob"] = probability
        if self.relevance:
            for row, (query, _) in zip(rows, asked, strict=True):
                found = relevance(row["vqa_pred_answer"], query.answers)
                row["vqa_rel_token_f1"], row["vqa_rel_edit_sim"] = found.token_f1, found.edit_sim
                row["vqa_rel_score"] = found.score
        return rows


def share_of_positive(group: Mapping) -> float:
    """The share of a group's candidates that the VLM was right with."""
    return sum(candidate["vqa_correct"] for candidate in group["candidates"]) / len(group["candidates"])
