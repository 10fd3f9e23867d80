"""VQA accuracy as an `evaluate.Metric`.

>>> VqaAccuracyMetric().compute(predictions=["yes"], references=[["yes"] * 10])["overall"]
100.0
"""

from collections import defaultdict
from typing import Any

import datasets
import evaluate

from rewards.vqa_accuracy import vqa_accuracy

_DESCRIPTION = "Accuracy of answers to questions about images, by the rule of the official VQAv2 evaluator."
_INPUTS = """
predictions: answers as written.
references: for each prediction, the answers of the annotators, usually ten.
question_types, answer_types (optional): for each prediction, its group.
Returns `overall`, and `perQuestionType` and `perAnswerType` where types are given: percent, two decimals.
"""
_CITATION = """
@inproceedings{goyal2017making, title={Making the V in VQA Matter}, author={Goyal, Yash and Khot, Tejas and
Summers-Stay, Douglas and Batra, Dhruv and Parikh, Devi}, booktitle={CVPR}, year={2017}}
"""


def _percent(accuracies: list[float]) -> float:
    return round(100 * sum(accuracies) / len(accuracies), 2)


def _by_group(accuracies: list[float], groups: list[str]) -> dict[str, float]:
    members = defaultdict(list)
    for accuracy, group in zip(accuracies, groups, strict=True):
        members[group].append(accuracy)
    return {group: _percent(values) for group, values in members.items()}


class VqaAccuracyMetric(evaluate.Metric):
    """See the module's docstring."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://visualqa.org/evaluation.html"],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        question_types: list[str] | None = None,
        answer_types: list[str] | None = None,
    ) -> dict:
        pairs = zip(predictions, references, strict=True)
        accuracies = [vqa_accuracy(prediction, answers) for prediction, answers in pairs]
        result: dict[str, Any] = {"overall": _percent(accuracies)}
        if question_types is not None:
            result["perQuestionType"] = _by_group(accuracies, question_types)
        if answer_types is not None:
            result["perAnswerType"] = _by_group(accuracies, answer_types)
        return result
