"""Scoring many rows: in chunks, in the order of the input, by one process or several."""

import random

import pytest
from PIL import Image

from rewards.registry import RewardSpecError, build_rewards
from rewards.scoring import rows as scoring
from rewards.scoring.columns import ColumnError, check_columns
from rewards.scoring.failure_policy import RewardError
from rewards.scoring.rows import score_rows

OWN = """
def chunk_size(completions, **columns):
    return [len(completions)] * len(completions)


def fail_at_x(completions, **columns):
    if "x" in completions:
        raise RuntimeError("found x")
    return [1.0] * len(completions)


async def length(completions, **columns):
    return [len(text) for text in completions]


def seen(completions, **columns):
    return [sum(columns[name][row] is not None for name in ("a", "b")) for row in range(len(completions))]


def nothing(completions, **columns):
    return [float("nan")] * len(completions)


def rank(completions, **columns):
    # how many of its group are shorter, and the size of the group
    return [sum(len(other) < len(text) for other in completions) + 10 * len(completions) for text in completions]


rank.scores_groups = True
"""


@pytest.fixture
def own(own_module) -> None:
    own_module("own_scores", OWN)


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Chunks of 3 rows, shared out among processes from 6 rows on."""
    monkeypatch.setattr(scoring, "CHUNK", 3)
    monkeypatch.setattr(scoring, "PARALLEL_FROM", 6)


@pytest.fixture(scope="module")
def rows(select) -> list[dict]:
    """20 rows whose scores by agent_selection and vqa_accuracy differ from neighbour to neighbour."""
    rng = random.Random(0)
    names = ["blur_filter", "exposure_filter", "text_length_filter"]
    return [
        {
            "id": f"r{number}",
            "completion": select(*((name, "keep") for name in rng.sample(names, rng.randint(0, 3)))),
            "ground_truth_agents": rng.sample(names, rng.randint(0, 3)),
            "answers": [rng.choice(["cat", "dog"]) for _ in range(10)],
        }
        for number in range(20)
    ]


def test_processes_give_what_one_process_gives(small_chunks, rows):
    specs = ["agent_selection", {"name": "strict_xml_format", "on_error": "skip"}, "vqa_accuracy"]
    alone, _ = score_rows(specs, None, rows, workers=1)
    shared, failures = score_rows(specs, None, rows, workers=2)
    assert shared == alone
    assert failures == []
    assert len(set(alone["agent_selection"])) > 3


def test_scores_come_in_the_order_of_the_rows(small_chunks, rows):
    reward = build_rewards(["agent_selection"])[0]
    expected = [reward([row["completion"]], ground_truth_agents=[row["ground_truth_agents"]])[0] for row in rows]
    for workers in (1, 2):
        assert score_rows(["agent_selection"], None, rows, workers)[0] == {"agent_selection": expected}


def test_many_rows_really_go_to_processes(rows):
    many = rows * (scoring.PARALLEL_FROM // len(rows) + 1)
    alone, _ = score_rows(["agent_selection"], None, many, workers=1)
    shared, _ = score_rows(["agent_selection"], None, many, workers=2)
    assert shared == alone
    assert len(alone["agent_selection"]) == len(many)


def test_rewards_that_read_the_data_set_stay_in_this_process(small_chunks, own, rows, pool):
    rows = [{**row, "pool": pool, "ground_truth_filtered_data": [1, 2, 3, 4, "e5"]} for row in rows]
    scores, _ = score_rows(["own_scores.length", "combined", "xml_format"], ["exposure_filter"], rows, workers=2)
    assert scores["length"] == [len(row["completion"]) for row in rows]
    assert scores["xml_format"] == [1.0] * 20
    assert len(scores["combined"]) == 20
    assert list(scores) == ["length", "combined", "xml_format"]


def test_the_recipes_agents_reach_the_processes(small_chunks, select):
    rows = [{"completion": select((name, "keep"))} for name in ("blur_filter", "exposure_filter") * 5]
    scores, _ = score_rows(["strict_xml_format"], ["blur_filter"], rows, workers=2)
    assert scores["strict_xml_format"] == [1.0, 0.0] * 5


def test_rows_are_scored_in_chunks(small_chunks, own):
    scores, _ = score_rows(["own_scores.chunk_size"], None, [{"completion": "x"}] * 8, workers=1)
    assert scores["chunk_size"] == [3.0] * 6 + [2.0] * 2


@pytest.mark.parametrize(
    "named",
    [
        [{"id": name} for name in "pqppqr"],
        [{"prompt": "same", "images": [Image.new("RGB", (2, 2), (number, 0, 0))]} for number in (0, 1, 0, 0, 1, 2)],
        [{"question": name} for name in "pqppqr"],
    ],
    ids=["ids", "images of one prompt", "questions"],
)
def test_groups_are_scored_whole_wherever_their_rows_stand_and_chunks_end(small_chunks, own, named):
    texts = ["a", "bb", "ccc", "dd", "e", "ffff"]
    rows = [{**row, "completion": text} for row, text in zip(named, texts, strict=True)]
    scores, _ = score_rows(["own_scores.rank", "own_scores.length"], None, rows)
    assert scores == {"rank": [30, 21, 32, 31, 20, 10], "length": [1, 2, 3, 2, 1, 4]}


def test_rows_of_no_known_prompt_are_groups_of_their_own(own):
    assert score_rows(["own_scores.rank"], None, [{"completion": "a"}, {"completion": "bb"}])[0] == {"rank": [10, 10]}


def test_an_async_reward_is_awaited(own):
    scores, failures = score_rows(["own_scores.length"], None, [{"completion": "ab"}, {"completion": ""}], workers=1)
    assert scores == {"length": [2.0, 0.0]}
    assert failures == []


def test_no_rows_have_no_scores():
    assert score_rows(["xml_format"], None, [], workers=2) == ({"xml_format": []}, [])


def test_columns_that_only_some_rows_have_are_none_elsewhere(own):
    rows = [{"completion": "x", "a": 1}, {"completion": "y", "b": 2, "a": 3}, {"completion": "z", "b": None}]
    assert score_rows(["own_scores.seen"], None, rows)[0] == {"seen": [1.0, 2.0, 0.0]}


# -- failures ---------------------------------------------------------------------------------------------------------


def test_skipped_rows_are_none_and_counted(small_chunks, own):
    rows = [{"completion": letter, "id": letter + "0"} for letter in "abcdxfgh"]
    spec = {"name": "own_scores.fail_at_x", "on_error": "skip", "max_error_rate": 0.125}
    scores, failures = score_rows([spec], None, rows, workers=1)
    assert scores["fail_at_x"] == [1.0] * 4 + [None] + [1.0] * 3
    assert [(failure.row, failure.cause) for failure in failures] == [("'x0'", "RuntimeError: found x")]


def test_more_failures_than_allowed_stop(small_chunks, own):
    rows = [{"completion": letter} for letter in "abcdxfgh"]
    spec = {"name": "own_scores.fail_at_x", "on_error": "skip", "max_error_rate": 0.12}
    with pytest.raises(RewardError, match="failed for 12.5% of 8 rows .*; the last: .* failed at row 4"):
        score_rows([spec], None, rows, workers=1)


def test_failures_of_processes_come_back(small_chunks, rows):
    broken = [dict(row) for row in rows]
    broken[10]["answers"] = 5
    spec = {"name": "vqa_accuracy", "on_error": "skip"}
    scores, failures = score_rows([spec], None, broken, workers=2)
    whole, _ = score_rows([spec], None, rows, workers=1)
    assert scores["vqa_accuracy"] == [*whole["vqa_accuracy"][:10], None, *whole["vqa_accuracy"][11:]]
    assert [failure.row for failure in failures] == ["'r10'"]


@pytest.mark.parametrize("workers", [1, 2])
def test_raise_stops_and_names_the_row(small_chunks, rows, workers):
    broken = [dict(row) for row in rows]
    broken[10]["answers"] = 5
    with pytest.raises(
        RewardError,
        match="reward 'vqa_accuracy' failed at row 'r10': ColumnError: .*: expected a text, a list of texts",
    ):
        score_rows(["vqa_accuracy"], None, broken, workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_without_an_id_are_named_by_their_number_in_the_whole_input(small_chunks, rows, workers):
    broken = [{key: value for key, value in row.items() if key != "id"} for row in rows]
    broken[10]["answers"] = 5
    with pytest.raises(RewardError, match="failed at row 10:"):
        score_rows(["vqa_accuracy"], None, broken, workers)


def test_what_is_no_number_stops_even_under_skip(own):
    with pytest.raises(RewardError, match="reward 'nothing' failed at row 0: expected a finite number, found nan"):
        score_rows([{"name": "own_scores.nothing", "on_error": "skip"}], None, [{"completion": "a"}])


def test_wrong_entries_stop_before_scoring(own):
    with pytest.raises(RewardSpecError, match="unknown reward 'nonsense'"):
        score_rows(["own_scores.fail_at_x", "nonsense"], None, [{"completion": "x"}])


# -- columns ----------------------------------------------------------------------------------------------------------


def test_the_first_row_without_a_column_is_named():
    rewards = build_rewards(["xml_format", "agent_selection"])
    rows = [{"completion": "x", "ground_truth_agents": []}, {"completion": "y", "id": "b", "answers": []}]
    message = (
        "my.jsonl: row 'b': reward 'agent_selection' needs the column 'ground_truth_agents'; "
        "the data has: answers, completion, id$"
    )
    with pytest.raises(ColumnError, match=message):
        check_columns(rewards, rows, "my.jsonl")


def test_optional_columns_may_be_missing_in_rows_and_chunks_but_not_in_all(small_chunks):
    rows = [{"completion": ""}] * 4 + [{"completion": "", "vqa_acc_score": 0.5}]
    check_columns(build_rewards(["candidate"]), rows, "my.jsonl")
    for workers in (1, 2):
        assert score_rows(["candidate"], None, rows * 2, workers)[0] == {"candidate": ([None] * 4 + [0.5]) * 2}
    with pytest.raises(ColumnError, match="my.jsonl: reward 'candidate' needs one of the columns vqa_correct, "):
        check_columns(build_rewards(["candidate"]), rows[:4], "my.jsonl")


def test_a_pool_may_be_missing():
    rows = [{"completion": "x", "ground_truth_filtered_data": []}]
    check_columns(build_rewards(["filtering_quality"]), rows, "my.jsonl")
    assert score_rows(["filtering_quality"], None, rows)[0] == {"filtering_quality": [None]}
