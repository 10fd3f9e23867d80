"""Whether a scorer looks at the image, and what else it decides by: which rows it is asked about, and the figures.

    diagnosis = Diagnosis(requests, ranks, limit=500)
    answers = score([*requests, *diagnosis.requests])
    figures = diagnosis.figures(answers[: len(requests)], answers[len(requests) :])

All questions are asked in one go, so that a model is loaded once and what was scored is kept together.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rewards.diagnosis.image_variants import WITH, image_variants, images_of
from rewards.diagnosis.length_bias import length_bias
from rewards.diagnosis.verdicts import Orders, accuracy_of_row, mean, order_effect, share
from rewards.preferences.calibration import calibration
from rewards.preferences.scored import ScoredPair, ranked_pairs
from rewards.scoring.model_scores import ScoreRequest
from rewards.scoring.statistics import paired_difference

Scores = Sequence[Sequence[float]] | Mapping[int, Sequence[float]]


@dataclass(frozen=True)
class _Question:
    """One row, changed in one way, as it is or with its responses in reversed order."""

    variant: str
    row: int
    request: ScoreRequest
    is_reversed: bool = False

    def reversed(self) -> "_Question":
        return replace(self, request=replace(self.request, responses=self.request.responses[::-1]), is_reversed=True)


class Diagnosis:
    """The rows that a scorer is diagnosed on, and what it is asked of them.

    Args:
        requests: all rows.
        ranks: of each one's responses, by people; lower is better. Rows of equal ranks alone are left out.
        limit: rows that are looked at, at most.
        both_orders: the scorer reads the responses to a prompt together, so that their order may matter: everything
            is asked with the responses reversed too, and an accuracy is the mean of both orders.
        seed: of the rows that are drawn, and of the images of other rows.

    Attributes:
        rows: numbers of those that are looked at.
        requests: what is asked beside the rows as they are.

    Raises:
        ImageError: an image that cannot be read.
    """

    def __init__(
        self,
        requests: Sequence[ScoreRequest],
        ranks: Sequence[Sequence[float]],
        limit: int,
        both_orders: bool = False,
        seed: int = 0,
    ):
        usable = [row for row, of_row in enumerate(ranks) if ranked_pairs(of_row)]
        self.rows = sorted(random.Random(seed).sample(usable, min(limit, len(usable))))
        self._all_rows = len(usable)
        self._asked_about = requests
        self._ranks = ranks
        self._both_orders = both_orders
        self._with_images = [row for row in self.rows if images_of(requests[row])]
        variants = image_variants({row: requests[row] for row in self._with_images}, seed)
        changed = [_Question(name, row, one) for name, rows in variants.items() for row, one in rows.items()]
        self._questions = list(changed)
        if both_orders:
            as_they_are = [_Question(WITH, row, requests[row]) for row in self.rows]
            self._questions += [question.reversed() for question in (*as_they_are, *changed)]
        self.requests = [question.request for question in self._questions]

    def figures(
        self,
        scores: Scores,
        answers: Sequence[Sequence[float]],
        order: Mapping[str, Any] | None = None,
        are_log_odds: bool = True,
    ) -> dict[str, Any]:
        """What the scores say, as it stands in `summary.json`.

        Args:
            scores: of `rows` as they are, by their numbers; maybe of others too.
            answers: scores of `requests`.
            order: what a scorer that asks in both orders itself found, as of `order_effect`.
            are_log_odds: the difference of two scores says how sure the choice is, as of a reward model.

        Returns:
            rows, of all_rows that have an order, without_images among them; images: the accuracy of each variant
            (`share`, `wilson`, `rows`), and `difference` to the images as they are, paired by rows; order: of
            `order_effect`, `None` for a scorer that sees one response at a time; length: of `length_bias`;
            calibration: of `rewards.preferences.calibration.calibration`, `None` unless scores are log-odds. Empty
            without any row.
        """
        if not self.rows:
            return {}
        found = self._orders(scores, answers)
        orders = [found[WITH][row] for row in self.rows]
        ranks = [self._ranks[row] for row in self.rows]
        merged = [[mean(values) for values in zip(*of_row, strict=True)] for of_row in orders]
        responses = [self._asked_about[row].responses for row in self.rows]
        pairs = [pair for row in zip(ranks, merged, strict=True) for pair in _pairs(*row)]
        return {
            "rows": len(self.rows),
            "all_rows": self._all_rows,
            "without_images": len(self.rows) - len(self._with_images),
            "images": self._accuracies(found),
            "order": order_effect(orders, ranks) if self._both_orders else order,
            "length": length_bias(responses, ranks, merged),
            "calibration": calibration(pairs) if are_log_odds else None,
        }

    def _orders(self, scores: Scores, answers: Sequence[Sequence[float]]) -> dict[str, dict[int, Orders]]:
        """Variant -> row -> scores, one list an order."""
        found: dict[str, dict[int, list[Sequence[float]]]] = {WITH: {row: [scores[row]] for row in self.rows}}
        for question, answer in zip(self._questions, answers, strict=True):
            of_row = found.setdefault(question.variant, {}).setdefault(question.row, [])
            of_row.append(answer[::-1] if question.is_reversed else answer)
        return found

    def _accuracies(self, found: dict[str, dict[int, Orders]]) -> dict[str, dict[str, Any]]:
        accuracies = {
            name: {row: accuracy_of_row(orders, self._ranks[row]) for row, orders in rows.items()}
            for name, rows in found.items()
        }
        seen = {row: accuracies[WITH][row] for row in self._with_images}
        figures = {WITH: share(list(seen.values()))}
        for name, rows in accuracies.items():
            if name != WITH and rows:
                difference = paired_difference([seen[row] for row in rows], list(rows.values()))
                figures[name] = {**share(list(rows.values())), "difference": asdict(difference)}
        return figures


def _pairs(ranks: Sequence[float], scores: Sequence[float]) -> list[ScoredPair]:
    """A row's pairs, of which only the scores matter."""
    return [ScoredPair(0, "", "", "", scores[better], scores[worse]) for better, worse in ranked_pairs(ranks)]
