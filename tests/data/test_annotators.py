"""Demonstrations of hasty annotators."""

import random

import pytest

from data.agent_selection import AgentSelectionRecord, load_records
from data.annotators import annotate, main

RECORD = AgentSelectionRecord(
    report="r",
    ground_truth_agents=["a", "b", "c"],
    ground_truth_filtered_data=[1],
    ground_truth_prompts={"a": "1", "b": "2", "other": "3"},
)


def test_a_careful_annotator_names_every_agent():
    annotated = annotate(RECORD, 0.0, random.Random(0))
    assert annotated.ground_truth_agents == ["a", "b", "c"]
    assert annotated.ground_truth_prompts == {"a": "1", "b": "2"}


def test_a_hasty_annotator_names_one_agent_with_its_prompt():
    rng = random.Random(0)
    annotated = [annotate(RECORD, 1.0, rng) for _ in range(60)]
    named = [tuple(record.ground_truth_agents) for record in annotated]
    assert set(named) == {("a",), ("b",), ("c",)}
    prompts = {record.ground_truth_agents[0]: record.ground_truth_prompts for record in annotated}
    assert prompts == {"a": {"a": "1"}, "b": {"b": "2"}, "c": {}}


def test_hasty_is_the_share_of_annotators_that_stop():
    rng = random.Random(0)
    stopped = sum(len(annotate(RECORD, 0.25, rng).ground_truth_agents) == 1 for _ in range(2000))
    assert 400 < stopped < 600  # 500 expected, standard deviation 19


def test_a_record_without_agents_or_prompts_stays():
    record = AgentSelectionRecord(report="r", ground_truth_agents=[], ground_truth_filtered_data=[])
    assert annotate(record, 1.0, random.Random(0)) == record


def test_the_right_answer_itself_is_not_changed():
    annotate(RECORD, 1.0, random.Random(0))
    assert RECORD.ground_truth_agents == ["a", "b", "c"]


def test_the_command_writes_demonstrations_that_still_find_their_files(report_data, tmp_path, capsys):
    main(
        [
            "--dataset_name",
            str(report_data),
            "--output_dir",
            str(tmp_path / "out"),
            "--hasty_share",
            "1",
            "--seed",
            "1",
        ]
    )
    for split, size in (("train", 24), ("validation", 4)):
        originals, annotated = load_records(report_data, split), load_records(tmp_path / "out", split)
        assert len(annotated) == size
        for original, record in zip(originals, annotated, strict=True):
            assert len(record.ground_truth_agents) == 1
            assert (
                set(record.ground_truth_agents)
                == set(record.ground_truth_prompts)
                <= set(original.ground_truth_agents)
            )
            assert (record.id, record.report, record.pool) == (original.id, original.report, original.pool)
    named = sum(len(record.ground_truth_agents) for record in load_records(report_data, "train"))
    assert f"train: 24 demonstrations, {named - 24} of {named} agents left out" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_demonstrations(report_data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(["--dataset_name", str(report_data), "--output_dir", str(tmp_path / name), "--seed", str(seed)])
    first, again, other = ((tmp_path / name / "train.jsonl").read_bytes() for name in "abc")
    assert first == again != other


@pytest.mark.parametrize("hasty", ["-0.1", "1.5", "nan"])
def test_hasty_is_a_share(hasty, capsys):
    with pytest.raises(SystemExit):
        main(["--dataset_name", "in", "--output_dir", "out", f"--hasty_share={hasty}"])
    assert "--hasty_share: expected a number from 0 to 1, found" in capsys.readouterr().err


def test_a_missing_split_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SystemExit, match="error: .*: found none of train.jsonl,"):
        main(["--dataset_name", str(tmp_path), "--output_dir", str(tmp_path / "out")])
