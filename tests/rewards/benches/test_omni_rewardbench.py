"""OmniRewardBench: files with the published columns, their figures by hand, and 300 changed rows."""

import json
import random

import pytest
from PIL import Image

from data.io.records import RecordError, write_json, write_jsonl
from rewards import reward_bench
from rewards.benches.omni_rewardbench import CRITERION, OMNI_REWARDBENCH
from rewards.benches.reading import load_bench, load_scored_bench


def row(preference: str, scores: tuple[float, float], **changes) -> dict:
    """As published, but for the scores."""
    return {
        "prompt": "What is it?",
        "response1": "A circle.",
        "response2": "A red circle, I think.",
        "model1": "a",
        "model2": "b",
        "criteria": "Prefer the more detailed answer.",
        "criteria_preference": preference,
        "scores": list(scores),
        **changes,
    }


IMAGE = {"image": "red.png"}
ROWS = [
    row("response2", (0.0, 1.0), **IMAGE),  # right
    row("response1", (0.0, 1.0), **IMAGE),  # wrong
    row("response1", (1.0, 1.0), **IMAGE),  # a tie, where people have a preference
    row("tie", (1.0, 1.0), **IMAGE),  # right with ties
    row("tie", (1.0, 0.0)),  # wrong with ties
    row("response1", (1.0, 0.0)),  # right
    row("response2", (1.0, 2.0), response1="red.png", response2="blue.png"),  # right
]


@pytest.fixture
def folder(tmp_path):
    for colour in ("red", "blue"):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{colour}.png")
    return tmp_path


def test_every_figure_by_hand(evaluate):
    found = evaluate(ROWS)
    assert found["bench"] == "omni_rewardbench"
    figures = {
        name: (group["accuracy"], group["n"], group["with_ties"], group["n_with_ties"])
        for name, group in found["groups"].items()
    }
    assert figures == {
        "text_image_to_text": (1 / 3, 3, 2 / 4, 4),
        "text_to_text": (1.0, 1, 1 / 2, 2),
        "text_to_image": (1.0, 1, 1.0, 1),
    }
    assert (found["items"], found["correct"], found["ties"], found["equal_ranks"]) == (5, 3, 1, 2)
    assert (found["overall"], found["strict_overall"], found["with_ties"]) == (3 / 5, 3 / 5, 4 / 7)
    assert found["macro"] == pytest.approx((1 / 3 + 1 + 1) / 3)


def test_the_criterion_stands_behind_the_prompt_and_ties_are_kept(folder):
    write_jsonl(folder / "rows.jsonl", ROWS)
    records, counts = load_bench(OMNI_REWARDBENCH, folder / "rows.jsonl")
    assert (len(records), counts.tied_records, counts.pairs) == (7, 2, 5)
    assert records[0].query == f"What is it?\n\n{CRITERION} Prefer the more detailed answer."
    assert records[0].images == [str(folder / "red.png")]
    assert records[6].response == [[{"type": "image", "image": str(folder / f"{one}.png")}] for one in ("red", "blue")]
    assert [record.human_ranking for record in records[:4]] == [[1, 0], [0, 1], [0, 1], [0, 0]]


def test_a_parquet_file_with_images_as_bytes(folder):
    from datasets import Dataset

    image = {"bytes": (folder / "red.png").read_bytes(), "path": "1.png"}
    other = {"bytes": (folder / "blue.png").read_bytes(), "path": "2.png"}
    columns = {name: [ROWS[0][name]] for name in ("prompt", "criteria", "criteria_preference")}
    columns |= {"image": [image], "response1": [image], "response2": [other], "image_path": ["media_data/1.png"]}
    Dataset.from_dict(columns | {"id": ["x"]}).to_parquet(str(folder / "test.parquet"))
    [record] = load_bench(OMNI_REWARDBENCH, folder / "test.parquet")[0]
    assert (record.id, record.category, len(record.images)) == ("x", "text_image_to_image", 1)


def test_a_reward_model_scores_it(folder, tiny_reward_model):
    write_json(folder / "rows.json", [{name: one[name] for name in one if name != "scores"} for one in ROWS])
    words = ["--model", str(tiny_reward_model), "--dataset_name", str(folder / "rows.json"), "--device", "cpu"]
    reward_bench.main([*words, "--output_dir", str(folder / "out")])
    found = json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (found["items"], found["n_with_ties"], found["rows"]) == (5, 7, 7)


CHANGES = {
    "criteria_preference": ("both", "field 'criteria_preference': expected 'response1', 'response2' or 'tie'"),
    "criteria": (None, "field 'criteria': expected in every row"),
    "prompt": (3, "field 'prompt': expected a text"),
    "response2": (7, "field 'response2.0.image': expected a path, bytes or an image"),
    "video": ("a.mp4", "field 'video': videos are not read"),
    "audio": ("a.mp3", "field 'audio': audio is not read"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_errors_name_row_and_published_field(folder, field):
    value, message = CHANGES[field]
    bad = {name: one for name, one in {**ROWS[0], field: value}.items() if name != "scores"}
    write_jsonl(folder / "rows.jsonl", [ROWS[0], bad])
    with pytest.raises(RecordError) as error:
        load_bench(OMNI_REWARDBENCH, folder / "rows.jsonl")
    [problem] = error.value.problems
    assert problem.startswith(f"{folder / 'rows.jsonl'}:2: {message}")


def test_rows_of_videos_and_audio_count_with_scores(evaluate):
    found = evaluate([row("response1", (1.0, 0.0), **{kind: f"a.{kind}"}) for kind in ("video", "audio")])
    assert set(found["groups"]) == {"text_video_to_text", "text_audio_to_text"}
    assert found["overall"] == 1.0


JUNK = [None, "", " ", 0, -1.5, [], {}, True, "tie", "gone.png", "<|image_pad|>", ["a"], {"bytes": None, "path": None}]
FIELDS = ("prompt", "response1", "response2", "criteria", "criteria_preference", "image", "id", "task")


def test_300_changed_rows_are_used_or_named_and_none_is_lost(folder):
    rng = random.Random(0)
    rows = []
    for _ in range(300):
        changed = dict(rng.choice(ROWS))
        for field in rng.sample(FIELDS, rng.choice((1, 1, 2))):
            changed[field] = rng.choice(JUNK)
            if rng.random() < 0.2:
                del changed[field]
        rows.append(changed)
    write_jsonl(folder / "rows.jsonl", [*ROWS, *rows])
    records, counts = load_bench(OMNI_REWARDBENCH, folder / "rows.jsonl", skip_bad_rows=True)
    named = {problem.split(": ")[0] for problem in counts.problems}
    assert counts.rows == len(ROWS) + 300
    assert len(records) + len(named) == counts.rows
    assert counts.skipped == len(named) > 100
    assert len(records) > 50
    for load in (load_bench, load_scored_bench):
        with pytest.raises(RecordError) as error:
            load(OMNI_REWARDBENCH, folder / "rows.jsonl")
        assert all(problem.startswith(f"{folder / 'rows.jsonl'}:") for problem in error.value.problems)
    assert {problem.split(": ")[0] for problem in error.value.problems} <= named
