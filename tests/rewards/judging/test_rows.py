"""Preferences as rows for judges: both orders of each pair, side by side in one split."""

import random

import pytest
from PIL import Image

from data.io.records import write_jsonl
from data.preferences import PreferenceRecord
from data.rows.messages import message_texts
from data.tasks import load_rows
from rewards.judging.__main__ import main
from rewards.judging.accuracy import VerdictAccuracy
from rewards.judging.rows import judge_rows


def rows_of(record: PreferenceRecord, hasty_share: float = 0.0, rubric: str = "Prefer the truth.") -> list[dict]:
    return list(judge_rows(record, rubric, hasty_share, random.Random(0)))


def shown(row) -> str:
    return message_texts(row["prompt"])[-1]


def test_a_pair_is_shown_in_both_orders_with_the_verdict_that_is_right_in_each():
    record = PreferenceRecord(
        id=7, query="What is it?", image="a.png", response=["A cat.", "A dog."], human_ranking=[1, 0]
    )
    first, second = rows_of(record)
    assert shown(first) == "</prompt>\n<response_a>A dog.</response_a>\n<response_b>A cat.</response_b>"
    assert shown(second) == "</prompt>\n<response_a>A cat.</response_a>\n<response_b>A dog.</response_b>"
    assert [(row["id"], row["pair"], row["better"], row["gold"]) for row in (first, second)] == [
        ("7/A", "7", "A", "<verdict>A</verdict>"),
        ("7/B", "7", "B", "<verdict>B</verdict>"),
    ]
    assert [row["completion"] for row in (first, second)] == [
        "A dog. <verdict>A</verdict>",
        "A dog. <verdict>B</verdict>",
    ]
    assert first["images"] == second["images"] == ["a.png"]
    assert first["prompt"][0]["content"][0]["text"].startswith("Prefer the truth.\n")


def test_images_of_responses_follow_those_of_the_prompt_in_the_order_that_is_shown():
    made = [
        [{"type": "image", "image": "b.png"}],
        [{"type": "text", "text": "Here:"}, {"type": "image", "image": "c.png"}],
    ]
    first, second = rows_of(PreferenceRecord(query="Draw it.", image="a.png", response=made, human_ranking=[1, 0]))
    assert (first["images"], second["images"]) == (["a.png", "c.png", "b.png"], ["a.png", "b.png", "c.png"])
    assert sum(part["type"] == "image" for part in first["prompt"][-1]["content"]) == 3
    assert first["completion"] == "Here: <verdict>A</verdict>"


def test_a_ranking_is_all_its_pairs_of_unequal_rank():
    record = PreferenceRecord(id="r", query="?", response=["x", "y", "z"], human_ranking=[1, 0, 1])
    rows = rows_of(record)
    assert [row["pair"] for row in rows] == ["r/0", "r/0", "r/1", "r/1"]
    assert len({row["id"] for row in rows}) == 4


def test_the_right_verdict_earns_all_of_the_reward():
    record = PreferenceRecord(query="?", response=["Say <verdict>.", "y"], human_ranking=[0, 1])
    for row in rows_of(record):
        assert VerdictAccuracy()([row["gold"], row["completion"]], better=[row["better"]] * 2) == [1.0, 1.0]


def test_hasty_annotators_take_the_first_response_and_the_others_the_better_one():
    record = PreferenceRecord(query="?", response=[str(place) for place in range(40)], human_ranking=range(40))
    rows = rows_of(record, hasty_share=0.6)
    wrong = [row for row in rows if not row["completion"].endswith(row["gold"])]
    assert all(row["completion"].endswith(" <verdict>A</verdict>") for row in wrong)
    assert len(rows) == 40 * 39
    assert len(wrong) == pytest.approx(0.6 * len(rows) / 2, abs=40)


@pytest.fixture
def preferences(tmp_path):
    """A folder with three splits of preferences about one image."""
    folder = tmp_path / "preferences"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        row = {"query": "?", "image": "a.png", "response": ["<b>", "No"], "human_ranking": [0, 1]}
        write_jsonl(folder / f"{split}.jsonl", [{"id": f"{split}-{number}", **row} for number in range(count)])
    return folder


def test_the_command_keeps_both_orders_in_one_split_and_trainers_read_its_rows(preferences, tmp_path, capsys):
    out = tmp_path / "judge"
    main(["rows", "--dataset_name", str(preferences), "--output_dir", str(out), "--rubric", "Prefer the truth."])
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        rows = load_rows(out, split)  # decodes the images
        assert [row["pair"] for row in rows] == [f"{split}-{number // 2}" for number in range(2 * count)]
        assert [row["better"] for row in rows] == ["A", "B"] * count
        assert message_texts(rows[0]["prompt"])[0].startswith("Prefer the truth.\n")
        assert [row["completion"] for row in rows] == ["&lt;b&gt; " + row["gold"] for row in rows]
    assert "train: 6 rows; 3 of 3 records used, 3 pairs" in capsys.readouterr().out


def test_a_file_keeps_its_name_and_annotators_may_be_hasty(preferences, tmp_path):
    out = tmp_path / "judge"
    (preferences / "test.jsonl").rename(preferences / "test_blank.jsonl")
    source = str(preferences / "test_blank.jsonl")
    main(["rows", "--dataset_name", source, "--output_dir", str(out), "--hasty_share", "1"])
    assert [row["completion"][-20:] for row in load_rows(out / "test_blank.jsonl", "")] == ["<verdict>A</verdict>"] * 2


def test_the_command_never_overwrites_what_it_reads(preferences):
    with pytest.raises(SystemExit):
        main(["rows", "--dataset_name", str(preferences), "--output_dir", str(preferences)])
