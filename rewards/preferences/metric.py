"""Preference accuracy as an `evaluate.Metric`.

>>> PreferenceAccuracyMetric().compute(predictions=[[1.5, -0.5]], references=[[0, 1]])["overall"]
100.0
"""

import datasets
import evaluate

from rewards.benches.vl_rewardbench import GROUPS, preference_accuracy
from rewards.preferences.scored import ScoredPair, ranked_pairs

_DESCRIPTION = "Accuracy of scores of responses against human preferences, by the rule of VL-RewardBench's evaluator."
_INPUTS = """
predictions: for each query, the scores of its responses.
references: for each query, the ranks of its responses; a lower rank is better.
ids (optional): VL-RewardBench's, which say the group of a query.
queries, responses (optional): with ids, so that repeated items count once, as in VL-RewardBench.
Returns `overall`, `strict_overall` (ties are wrong), `coverage` (share of pairs that are no ties) and `items`; with
ids also `macro` and the accuracy of each group. Percent, two decimals; `None` where no pair was decided.
"""
_CITATION = """
@article{li2024vlrewardbench, title={VL-RewardBench: A Challenging Benchmark for Vision-Language Generative Reward
Models}, author={Li, Lei and others}, journal={arXiv:2411.17451}, year={2024}}
"""


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


class PreferenceAccuracyMetric(evaluate.Metric):
    """See the module's docstring."""

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": numbers, "references": numbers}),
            reference_urls=["https://vl-rewardbench.github.io", "https://arxiv.org/abs/2411.17451"],
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        ids: list[str] | None = None,
        queries: list[str] | None = None,
        responses: list[list[str]] | None = None,
    ) -> dict:
        for number, (scores, ranks) in enumerate(zip(predictions, references, strict=True)):
            if len(scores) != len(ranks):
                raise ValueError(f"query {number}: expected {len(ranks)} scores, one a rank, found {len(scores)}")
        rows = range(len(predictions))
        ids_given = ids is not None
        ids = [str(row) for row in rows] if ids is None else ids
        queries = [str(row) for row in rows] if queries is None else queries
        if responses is None:  # every response differs from all others
            responses = [[f"{row}.{place}" for place in range(len(predictions[row]))] for row in rows]
        pairs = [
            ScoredPair(item, query, texts[better], texts[worse], scores[better], scores[worse])
            for item, query, texts, scores, ranks in zip(ids, queries, responses, predictions, references, strict=True)
            for better, worse in ranked_pairs(ranks)
        ]
        found = preference_accuracy(pairs)
        result = {name: _percent(found[name]) for name in ("overall", "strict_overall", "coverage")}
        result["items"] = found["items"]
        if ids_given:
            result["macro"] = _percent(found["macro"])
            result |= {group: _percent(found["groups"][group]["accuracy"]) for group in GROUPS}
        return result
