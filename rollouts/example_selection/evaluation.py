"""Evaluation of ways to choose examples: choose for every query, ask the VLM, score officially."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from data.candidates.embedding_table import EmbeddingTable
from data.vqa import VqaRecord
from rollouts.example_selection.data import SelectionData
from rollouts.example_selection.selection_methods import ZERO_SHOT, Choice, Method, make_chooser, random_sets
from rollouts.frozen_vlm.answers import Answer, AnswerBook, accuracies
from rollouts.frozen_vlm.requests import InContextRequest, shown_order

BEST_OF, MEAN_OF = "best_of_", "mean_of_"
"""Names of what is known from random sets, before their number."""


@dataclass
class Outcome:
    """What one method did at one number of shots, for every query in order.

    Attributes:
        method: its name.
        shots: number of examples asked for (0 for zero-shot).
        choices: ids of the examples, in the order of selection.
        answers, accuracies: of the VLM that saw them; empty until it was asked.
    """

    method: str
    shots: int
    choices: list[Choice]
    answers: list[Answer]
    accuracies: list[float]


@dataclass
class BestOf:
    """Random sets at one number of shots: for every query in order, one outcome a set."""

    shots: int
    count: int
    choices: list[list[Choice]]
    answers: list[list[Answer]]
    accuracies: list[list[float]]

    @property
    def name(self) -> str:
        return f"{BEST_OF}{self.count}"

    @property
    def best(self) -> list[float]:
        """The highest accuracy of each query: what no choice among these sets can pass."""
        return [max(row) for row in self.accuracies]

    @property
    def mean(self) -> list[float]:
        """The mean accuracy of each query: a random set, without the luck of the draw."""
        return [sum(row) / len(row) for row in self.accuracies]


class Evaluation:
    """The choices of several methods for the same queries, and what came of them.

    Args:
        data: queries, examples and pools.
        shots: numbers of examples.
        construct_order: how a choice becomes the order in which examples are shown.
        seed: of random choices.
    """

    def __init__(self, data: SelectionData, shots: Sequence[int], construct_order: str = "left", seed: int = 0):
        self.data = data
        self.shots = list(shots)
        self.construct_order = construct_order
        self.seed = seed
        self.methods: list[Method] = []
        self.outcomes: list[Outcome] = []
        self.best_of: list[BestOf] = []
        self.counts: dict[str, int] = {}

    def choose(
        self, methods: Sequence[Method], tables: tuple[EmbeddingTable, EmbeddingTable] | None, device=None
    ) -> None:
        """Lets every method choose, before anything is asked."""
        self.methods = list(methods)
        for method in methods:
            chooser = make_chooser(method, self.data, tables, max(self.shots), self.seed, device)
            for shots in [0] if method.name == ZERO_SHOT else self.shots:
                self.outcomes.append(Outcome(method.name, shots, chooser(shots), [], []))

    def choose_random_sets(self, count: int) -> None:
        """Draws `count` sets for each query and number of shots, for the reference of the best of them."""
        for shots in self.shots:
            sets = random_sets(self.data, shots, count, self.seed)
            self.best_of.append(BestOf(shots, count, sets, [], []))

    def answer(self, book: AnswerBook) -> None:
        """Asks the VLM everything, each distinct question once, and scores the answers."""
        queries = self.data.queries
        asked = [self._requests(zip(queries, outcome.choices, strict=True)) for outcome in self.outcomes]
        for best in self.best_of:
            rows = zip(queries, best.choices, strict=True)
            asked.append(self._requests((query, choice) for query, row in rows for choice in row))
        book.prepare([request for requests in asked for request in requests])
        answers = [book.answers(requests) for requests in asked]
        scores = [accuracies(*pair) for pair in zip(answers, asked, strict=True)]
        for outcome, found, scored in zip(self.outcomes, answers, scores, strict=False):  # the rest is of best_of
            outcome.answers, outcome.accuracies = found, scored
        start = len(self.outcomes)
        for best, found, scored in zip(self.best_of, answers[start:], scores[start:], strict=True):
            answers_left, scores_left = iter(found), iter(scored)
            best.answers = [list(islice(answers_left, len(row))) for row in best.choices]
            best.accuracies = [list(islice(scores_left, len(row))) for row in best.choices]
        self.counts = dict(book.counts)

    def _requests(self, pairs: Iterable[tuple[VqaRecord, Choice]]) -> list[InContextRequest]:
        examples = self.data.examples
        return [
            InContextRequest(query, tuple(examples[item] for item in shown_order(choice, self.construct_order)))
            for query, choice in pairs
        ]
