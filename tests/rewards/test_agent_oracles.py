"""The agent rewards against what the original functions returned, case by case."""

from fractions import Fraction

import pytest

from rewards.agent_selection import AgentSelection, parse_selection, set_f1
from rewards.filtering_quality import Combined, FilteringQuality
from rewards.formats.xml_format import XmlFormat

LAST_DIGIT = 2.3e-16
"""The original multiplies precision and recall, which rounds once more than the exact fraction does."""


def keep_nothing(pool, prompts):
    """The original's executor, a stub."""
    return []


@pytest.fixture(scope="module")
def cases(oracle) -> list[dict]:
    """All 600 cases; where the file holds a number of ids only, that many ids stand for them."""
    cases = oracle("agent_rewards")["cases"]
    assert len(cases) == 600
    for case in cases:
        if isinstance(case["ground_truth_filtered_data"], int):
            case["ground_truth_filtered_data"] = list(range(case["ground_truth_filtered_data"]))
    return cases


def differing(cases, found, key, tolerance=0.0) -> list[str]:
    """A line for every case whose value is not the oracle's."""
    pairs = zip(cases, found, strict=True)
    return [
        f"case {case['id']}: {key} is {value}, expected {case[key]}: {case.get('completion')!r}"
        for case, value in pairs
        if not abs(value - case[key]) <= tolerance
    ]


def exact_f1(predicted, expected) -> float:
    """F1 from precision and recall in exact fractions, rounded once."""
    predicted, expected = set(predicted), set(expected)
    if not predicted or not expected:
        return float(predicted == expected)
    common = len(predicted & expected)
    if not common:
        return 0.0
    precision, recall = Fraction(common, len(predicted)), Fraction(common, len(expected))
    return float(2 * precision * recall / (precision + recall))


def test_parsed_agents_in_order(cases):
    found = [(case["id"], parse_selection(case["completion"]).agents or [], case["parsed_agents"]) for case in cases]
    assert [row for row in found if row[1] != row[2]] == []


def test_parsed_prompts(cases):
    found = [(case["id"], parse_selection(case["completion"]).prompts, case["parsed_prompts"]) for case in cases]
    assert [row for row in found if row[1] != row[2]] == []


def test_agent_selection_f1(cases):
    columns = {"ground_truth_agents": [case["ground_truth_agents"] for case in cases]}
    found = AgentSelection()([case["completion"] for case in cases], **columns)
    assert differing(cases, found, "f1", LAST_DIGIT) == []


def test_agent_selection_f1_is_the_exact_fraction_rounded_once(cases):
    wrong = []
    for case in cases:
        expected = case["ground_truth_agents"]
        exact = exact_f1(case["parsed_agents"], [expected] if isinstance(expected, str) else expected)
        [found] = AgentSelection()([case["completion"]], ground_truth_agents=[expected])
        if found != exact:
            wrong.append((case["id"], found, exact))
    assert wrong == []


def test_xml_format(cases):
    found = XmlFormat()([case["completion"] for case in cases])
    assert differing(cases, found, "format") == []


def test_filtering_quality_with_the_stub_executor(cases):
    reward = FilteringQuality(execute=keep_nothing)
    truths = [case["ground_truth_filtered_data"] for case in cases]
    found = reward([case["completion"] for case in cases], ground_truth_filtered_data=truths, pool=["p"] * len(cases))
    assert differing(cases, found, "filtering_quality_stub") == []


def test_combined_with_the_stub_executor(cases):
    found = []
    for case in cases:
        reward = Combined(case["agent_weight"], case["filtering_weight"], execute=keep_nothing)
        columns = {key: [case[key]] for key in ("ground_truth_agents", "ground_truth_filtered_data")}
        found += reward([case["completion"]], pool=["p"], **columns)
    assert differing(cases, found, "combined", LAST_DIGIT) == []


def test_set_f1_on_ids(oracle):
    cases = oracle("agent_set_f1")["cases"]
    assert len(cases) == 178
    found = [set_f1(case["predicted"], case["ground_truth"]) for case in cases]
    assert differing(cases, found, "f1", LAST_DIGIT) == []
    assert found == [exact_f1(case["predicted"], case["ground_truth"]) for case in cases]
