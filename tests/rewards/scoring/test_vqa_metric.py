"""VQA accuracy as an `evaluate.Metric`: the official percentages, without a network."""

import socket

import evaluate
import numpy as np
import pytest

from rewards.scoring.vqa_metric import VqaAccuracyMetric
from rewards.vqa_accuracy import VqaAccuracy


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def content(oracle) -> dict:
    return oracle("vqa_accuracy")


def inputs(cases: list[dict]) -> dict:
    return {
        "predictions": [case["prediction"] for case in cases],
        "references": [case["answers"] for case in cases],
    }


def test_it_is_a_metric_of_the_evaluate_library():
    assert isinstance(VqaAccuracyMetric(), evaluate.Metric)


def test_percentages_of_all_cases_are_the_official_ones(content):
    cases = content["cases"]
    types = {f"{key}s": [case[key] for case in cases] for key in ("question_type", "answer_type")}
    assert VqaAccuracyMetric().compute(**inputs(cases), **types) == content["meta"]["aggregate_official"]


def test_overall_is_the_mean_of_the_reward(content):
    cases = content["cases"][:100]
    scores = VqaAccuracy()(inputs(cases)["predictions"], answers=inputs(cases)["references"])
    assert VqaAccuracyMetric().compute(**inputs(cases)) == {"overall": round(100 * float(np.mean(scores)), 2)}


def test_batches_add_up():
    metric = VqaAccuracyMetric()
    metric.add_batch(predictions=["cat", "dog"], references=[["cat"] * 10, ["cat"] * 10])
    metric.add(prediction="cat", reference=["cat"] * 3 + ["dog"] * 7)
    assert metric.compute() == {"overall": 63.33}  # (1 + 0 + 0.9) / 3
