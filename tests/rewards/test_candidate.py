"""Rewards of stored candidates: every mode against the oracle, what they refuse, and as registered rewards."""

import math

import numpy as np
import pytest

from data.candidates.embedding_table import EmbeddingTable
from rewards.candidate import REWARD_MODES, BeamScore, CandidateReward, candidate_reward
from rewards.registry import RewardSpecError, build_reward
from rewards.scoring.columns import ColumnError
from rewards.scoring.rows import score_rows

FIELDS = CandidateReward.columns


def reward_of(**kwargs) -> float:
    """What the oracle calls so; a `correctness_mode` that it does not know acts as pm1 there, and is refused here."""
    return candidate_reward(**{name: "pm1" if value == "other" else value for name, value in kwargs.items()})


@pytest.fixture(scope="module")
def cases(oracle) -> list[dict]:
    found = [case for case in oracle("rewards")["cases"] if case["fn"] == "compute_reward_for_candidate"]
    assert len(found) == 1474
    assert {case["kwargs"].get("reward_mode") for case in found} == {*REWARD_MODES, "", None}
    return found


def test_every_case_of_the_oracle(cases):
    wrong = []
    for case in cases:
        if "error" in case:
            continue
        found = reward_of(**case["kwargs"])
        if not math.isclose(found, case["out"], rel_tol=1e-12, abs_tol=1e-12):
            wrong.append((case["id"], found, case["out"]))
    assert wrong == []


def test_the_cases_that_are_errors(cases):
    errors = [case for case in cases if "error" in case]
    assert errors
    for case in errors:
        with pytest.raises(ValueError, match="reward_mode: expected one of hard_plus_soft, .*, legacy, found"):
            reward_of(**case["kwargs"])


def test_the_registered_reward_agrees_with_the_oracle(cases):
    """Except where a candidate has nothing that its mode reads: those get no reward instead of 0."""
    wrong, without = [], 0
    for case in cases:
        if "error" in case:
            continue
        fields = {name: [case["kwargs"].get(name)] for name in FIELDS}
        settings = {name: value for name, value in case["kwargs"].items() if name not in FIELDS}
        if settings.get("correctness_mode") == "other":  # acts as pm1; refused where a recipe says it
            settings["correctness_mode"] = "pm1"
        [found] = build_reward({"name": "candidate", **settings})(["unread"], **fields)
        read = REWARD_MODES[settings.get("reward_mode", "hard_plus_soft")]
        if all(fields[name] == [None] for name in read):
            without += 1
            assert found is None
        elif not math.isclose(found, case["out"], rel_tol=1e-12, abs_tol=1e-12):
            wrong.append((case["id"], found, case["out"]))
    assert wrong == []
    assert without > 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"reward_mode": "hard_plus_soft", "hard_weight": 2}, 2 * 1 + 0.6),
        ({"reward_mode": "hard_plus_soft_v2"}, 2 * 1 + 0.6),
        ({"reward_mode": "separated", "hard_weight": 0.5}, 2 * 0.5 + 0.6),
        ({"reward_mode": "hard_only", "hard_weight": 3}, 3.0),
        ({"reward_mode": "soft_only", "soft_weight": 2}, 1.2),
        ({"reward_mode": "hard01_plus_gtprob"}, 1 + 0.25),
        ({"reward_mode": "hard01_plus_gtprob_separated"}, 2 + 0.25),
        ({"reward_mode": "hard_plus_gtprob_plus_rel", "rel_weight": 5}, 1 + 0.25),
        ({"reward_mode": "legacy", "alpha": 2, "beta": 3}, 2 * 0.5 + 3 * 1),
        ({"reward_mode": "legacy", "alpha": 1, "beta": 3, "use_logprob": True}, 2.0 + 3 * 1),
        ({"reward_mode": "hard_plus_soft", "hard_weight": 9}, 5.0),
        ({"reward_mode": "hard_plus_soft", "hard_weight": -9}, -5.0),
        ({"reward_mode": "hard_plus_soft", "reward_clip": [0, 1]}, 1.0),
    ],
)
def test_modes_by_hand(settings, expected):
    candidate = {"vqa_correct": 1, "vqa_acc_score": 0.6, "vqa_gt_prob": 0.25, "vqa_rel_score": 0.75}
    candidate |= {"beam_score": 0.5, "logprob_score": -2.0}
    assert reward_of(**candidate, **settings) == pytest.approx(expected)
    columns = {name: [value] for name, value in candidate.items()}
    assert CandidateReward(**settings)(["x"], **columns) == [pytest.approx(expected)]


def test_relevance_counts_for_wrong_answers():
    wrong = reward_of(reward_mode="hard_plus_gtprob_plus_rel", vqa_correct=0, vqa_gt_prob=0.25, vqa_rel_score=0.75)
    assert wrong == pytest.approx(0.25 + 0.1 * 0.75)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "1", [1]])
@pytest.mark.parametrize("mode", REWARD_MODES)
def test_what_is_no_finite_number_is_an_error_that_names_the_field(mode, value):
    for name in REWARD_MODES[mode]:
        settings = {"use_logprob": name == "logprob_score"}
        if name == "vqa_acc_score" and mode == "legacy":
            settings["vqa_correct"] = None
        with pytest.raises(ValueError, match=f"{name}.*: expected a finite number"):
            reward_of(reward_mode=mode, **{name: value}, **settings)


def test_numbers_too_large_to_be_added_are_an_error():
    with pytest.raises(ValueError, match="too large"):
        reward_of(vqa_correct=1e308, vqa_acc_score=1e308, hard_weight=1e308, soft_weight=-1e308)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_mode": "hybrid"}, "reward_mode: expected one of hard_plus_soft, .*, legacy, found 'hybrid'"),
        ({"correctness_mode": "02"}, "correctness_mode: expected one of 01, pm1, found '02'"),
        ({"hard_weight": float("nan")}, "hard_weight: expected a finite number"),
        ({"beta": None}, "beta: expected a finite number, found None"),
        ({"reward_clip": [1, -1]}, "reward_clip: expected the smaller bound first"),
        ({"reward_clip": 5}, "reward_clip: expected a smallest and a largest reward, found 5"),
        ({"reward_clip": [0, float("inf")]}, "reward_clip: expected a smallest and a largest reward"),
        ({"mode": "legacy"}, "has no parameter 'mode'; expected some of: reward_mode, hard_weight"),
    ],
)
def test_wrong_settings_stop_at_construction(settings, message):
    with pytest.raises(RewardSpecError, match=message):
        build_reward({"name": "candidate", **settings})


def test_columns_may_be_missing_but_not_all_of_them():
    reward = CandidateReward()
    assert reward(["", ""], vqa_acc_score=[0.5, None]) == [0.5, None]
    assert reward(["", ""], vqa_correct=[1, None], vqa_acc_score=[0.5, 0.25]) == [1.5, 0.25]
    with pytest.raises(ColumnError, match="'candidate' needs one of the columns vqa_correct, .*; the data has: "):
        reward([""], answers=[["a"]])


def test_the_range_is_the_clip():
    reward = CandidateReward(reward_clip=(-1, 2))
    assert (reward.minimum, reward.maximum, reward.text_only) == (-1.0, 2.0, True)


def test_beam_scores_are_taken_as_they_are():
    assert BeamScore()(["", "", ""], beam_score=[0.25, -3, None]) == [0.25, -3.0, None]
    with pytest.raises(ColumnError, match="needs the column 'beam_score'"):
        BeamScore()([""], vqa_correct=[1])
    reward = build_reward({"name": "beam_score", "on_error": "skip"})
    assert reward([""], beam_score=[float("nan")]) == [None]
    assert "beam_score: expected a finite number" in reward.failures[0].cause


# -- the examples themselves ------------------------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path) -> dict[str, str]:
    """A query at (1, 0), and examples there, across from it and beside it; lengths do not matter."""
    EmbeddingTable([7], np.array([[1, 0]])).save(tmp_path / "queries.safetensors")
    places = {"same": (2, 0), "beside": (0, 0.5), "across": (-1, 0), "nowhere": (0, 0)}
    EmbeddingTable(list(places), np.array(list(places.values()))).save(tmp_path / "examples.safetensors")
    return {
        "query_table": str(tmp_path / "queries.safetensors"),
        "example_table": str(tmp_path / "examples.safetensors"),
    }


@pytest.mark.parametrize(
    ("pointer", "coherence", "diversity"),
    [
        (["same"], 1, 0),
        (["across"], -1, 0),
        (["nowhere"], 0, 0),
        (["same", "beside"], (1 + 0) / 2, 1),
        (["beside", "same"], (0 + 0) / 2, 1),
        (["same", "across"], (1 - 1) / 2, 2),
        (["same", "beside", "across"], (1 + 0 + 0) / 3, 1 + 1 / 3),
    ],
)
def test_coherence_and_diversity_of_a_sequence_by_hand(tables, pointer, coherence, diversity):
    for weights in ((0.5, 0.5), (1.0, 0.0), (0.25, 2.0)):
        spec = {"coherence_weight": weights[0], "diversity_weight": weights[1], **tables}
        reward = build_reward({"name": "example_sequence", **spec})
        [score] = reward([""], id=[7], pointer=[pointer])
        assert score == pytest.approx(weights[0] * coherence + weights[1] * diversity)
        assert reward.function.minimum <= score <= reward.function.maximum


def test_the_query_is_read_after_what_stands_last(tables):
    """Under "right" the last selected example is its neighbour, under "left" the first."""
    coherences = [
        build_reward({"name": "example_sequence", "diversity_weight": 0, "construct_order": order, **tables})(
            ["", ""], id=[7, 7], pointer=[["same", "beside"], ["beside", "same"]]
        )
        for order in ("left", "right")
    ]
    assert coherences == [[0.25, 0.0], [0.0, 0.25]]


def test_sequences_of_stored_candidates_are_scored_beside_their_answers(tables):
    rows = [
        {"id": 7, "completion": "", "pointer": ["same", "beside"], "vqa_correct": 1, "vqa_acc_score": 0.5},
        {"id": 7, "completion": "red", "pointer": None, "vqa_correct": 0},
    ]
    scores, failures = score_rows(["candidate", {"name": "example_sequence", **tables}], None, rows)
    assert scores == {"candidate": [1.5, 0.0], "example_sequence": [pytest.approx(0.75), None]}
    assert failures == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"query_table": None, "example_table": None},
            "expected query_table and example_table beside its name, found none",
        ),
        ({"example_table": "/none.safetensors"}, "example_table: /none.safetensors: no such file"),
        ({"diversity_weight": -1}, "diversity_weight: expected at least 0, found -1"),
        ({"coherence_weight": math.nan}, "coherence_weight: expected a finite number"),
        ({"construct_order": "up"}, "construct_order: expected left or right, found 'up'"),
        ({"beta": 1}, "has no parameter 'beta'; expected some of: query_table, example_table, coherence_weight,"),
    ],
)
def test_a_sequence_reward_that_makes_no_sense(tables, changes, message):
    spec = {"name": "example_sequence", **tables, **changes}
    with pytest.raises(RewardSpecError, match=message):
        build_reward({key: value for key, value in spec.items() if value is not None})


def test_examples_and_queries_without_an_embedding_are_named(tables, tmp_path):
    reward = build_reward({"name": "example_sequence", "on_error": "skip", "max_error_rate": 1.0, **tables})
    assert reward(["", "", ""], id=[7, 8, 7], pointer=[["other"], ["same"], []]) == [None] * 3
    causes = [failure.cause for failure in reward.failures]
    assert "id 'other' is not in the table" in causes[0]
    assert "id 8 is not in the table" in causes[1]
    assert "pointer: expected at least one example" in causes[2]
    EmbeddingTable([7], np.ones((1, 3))).save(tmp_path / "wide.safetensors")
    reward = build_reward({"name": "example_sequence", **tables, "query_table": str(tmp_path / "wide.safetensors")})
    reward([""], id=[7], pointer=[["same"]])
    assert "two tables made by different encoders" in reward.failures[0].cause
