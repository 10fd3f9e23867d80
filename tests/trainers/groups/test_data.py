"""Reading stored groups: how pointers are grouped, and where rewards, pools and prompts come from."""

import json
import logging
from dataclasses import replace

import pytest
from stored_groups import POINTERS, write_groups
from trl import ModelConfig

from data.candidates.embedding_table import EmbeddingTable
from rewards.candidate import ExampleSequence
from rewards.scoring.failure_policy import RewardError
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import load_stored_groups
from trainers.groups.run import load_groups_and_held_out
from trainers.groups.selectors import selector_spec
from trainers.rce import RCEConfig

TABLES = {"query_table": "queries", "example_table": "examples"}


def test_pointers_of_different_lengths_are_different_groups(tmp_path):
    source = write_groups(tmp_path, POINTERS)
    apart = load_stored_groups(GroupArguments(dataset_name=source), "train")
    assert [group.rewards for group in apart] == [[1.0], [None, 0.25]]
    together = load_stored_groups(GroupArguments(dataset_name=source), "train", by_length=False)
    assert [group.rewards for group in together] == [[1.0, None, 0.25]]
    [short] = load_stored_groups(GroupArguments(dataset_name=source, shots=[1]), "train", by_length=False)
    assert [candidate.pointer for candidate in short.candidates] == [["a"]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"reward_field": "vqa_acc_score"}, [0.6, 0.0, 0.3]),
        ({"reward_field": "mine"}, [5.0, None, None]),
        ({"reward_funcs": [{"name": "candidate", "reward_mode": "hard_plus_soft"}]}, [1.6, 0.0, 0.3]),
        (
            {"reward_funcs": ["candidate", "rewards.candidate.CandidateReward"], "reward_weights": [1, 2]},
            [1.6 + 2 * 1.6, 0.0, 0.3 + 2 * 0.3],
        ),
    ],
)
def test_where_the_reward_comes_from(tmp_path, settings, expected):
    script = GroupArguments(dataset_name=write_groups(tmp_path, POINTERS), **settings)
    [group] = load_stored_groups(script, "train", by_length=False)
    assert list(group.rewards) == pytest.approx(expected)


GROUP_REWARD = """
async def place(completions, id, **columns):
    assert len(set(id)) == 1
    return [float(number + 10 * len(completions)) for number in range(len(completions))]


place.scores_groups = True
"""


def test_a_reward_of_groups_sees_all_candidates_of_one_prompt(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "places_of_group.py").write_text(GROUP_REWARD, encoding="utf-8")
    source = write_groups(tmp_path, POINTERS, {**POINTERS, "id": 2})
    script = GroupArguments(dataset_name=source, reward_funcs=["places_of_group.place"])
    found = load_stored_groups(script, "train", by_length=False)
    assert [group.rewards for group in found] == [[30.0, 31.0, 32.0]] * 2


def test_a_sequence_of_examples_is_scored_by_the_recipes_tables(pointer_groups, tmp_path):
    """In training as in evaluation, whose queries may have a table of their own."""
    queries = EmbeddingTable.load(pointer_groups / "queries.safetensors")
    EmbeddingTable(queries.ids, -queries.values).save(tmp_path / "held_out.safetensors")
    tables = {key: str(pointer_groups / f"{name}.safetensors") for key, name in TABLES.items()}
    held_out = {"eval_query_table": str(tmp_path / "held_out.safetensors")}
    funcs = [{"name": "candidate", "reward_mode": "soft_only"}, "example_sequence"]
    script = GroupArguments(
        dataset_name=str(pointer_groups),
        **tables,
        **held_out,
        selector={"hidden_size": 8},
        reward_funcs=funcs,
        reward_weights=[1.0, 0.1],
    )
    args = RCEConfig(str(tmp_path), use_cpu=True, eval_strategy="steps", eval_steps=1)
    splits = load_groups_and_held_out(script, args, selector_spec(script, args, ModelConfig()))
    for split, table in zip(splits, (tables["query_table"], held_out["eval_query_table"]), strict=True):
        expected = ExampleSequence(table, tables["example_table"])
        for group in split:
            query = getattr(group.id, "id", group.id)
            for candidate, reward in zip(group.candidates, group.rewards, strict=True):
                sequence = expected.score("", query, candidate.pointer)
                assert reward == pytest.approx(candidate.vqa_acc_score + 0.1 * sequence)
    with pytest.raises(RewardError, match="reward 'example_sequence'.*id 0 is not in the table"):
        load_stored_groups(replace(script, query_table=tables["example_table"]), "train")


def test_groups_without_a_pool_take_it_from_the_file_of_pools(tmp_path):
    source = write_groups(tmp_path, {**POINTERS, "pool": None})
    pools = tmp_path / "pools.jsonl"
    pools.write_text(json.dumps({"query_id": 1, "pool": ["c", "b", "a", "d"], "sampler": "random"}) + "\n")
    [group] = load_stored_groups(GroupArguments(dataset_name=source, pools=str(pools), shots=[1]), "train")
    assert group.pool == ["c", "b", "a", "d"]
    pools.write_text(json.dumps({"query_id": 1, "pool": ["c", "b"], "sampler": "random"}) + "\n")
    with pytest.raises(ValueError, match="field 'pointer': 'a' is not in the pool of"):
        load_stored_groups(GroupArguments(dataset_name=source, pools=str(pools)), "train")


def test_groups_whose_rewards_are_all_equal_are_a_warning(tmp_path, caplog):
    flat = {**POINTERS, "candidates": [{"pointer": ["a"], "reward": 0.6}, {"pointer": ["b"], "reward": 0.6}]}
    with caplog.at_level(logging.WARNING):
        load_stored_groups(GroupArguments(dataset_name=write_groups(tmp_path, flat)), "train")
    assert "the rewards of every group are all equal: there is nothing to prefer" in caplog.text


def test_prompts_come_from_the_task_where_groups_have_none(tmp_path, report_data, task_rows):
    row = task_rows()[0]
    source = write_groups(tmp_path, {"id": row["id"], "candidates": [{"completion": "none", "reward": 1.0}]})
    script = GroupArguments(dataset_name=source, policy="vlm", task_data=str(report_data))
    script.agents = None
    [group] = load_stored_groups(script, "train")
    assert group.columns["prompt"][-1] == row["prompt"][-1]
    assert group.columns["images"] == row["images"]
