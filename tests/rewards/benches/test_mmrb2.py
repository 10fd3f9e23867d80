"""Multimodal RewardBench 2: files with the published fields, their figures by hand, and 300 changed pairs."""

import json
import random
from copy import deepcopy

import pytest
from PIL import Image

from data.io.records import RecordError, write_json
from rewards import reward_bench
from rewards.benches.mmrb2 import MMRB2
from rewards.benches.reading import load_bench, load_scored_bench


def pair(number: int, chosen: str, scores: tuple[float, float], name: str = "id") -> dict:
    """As published, but for the scores."""
    return {
        name: f"oneigbench_{number}",
        "response_a": {"model_name": "flux", "response_content": [["image", "images/red.png"]]},
        "response_b": {"model_name": "flux", "response_content": [["image", "images/blue.png"], ["text", "Done."]]},
        "chosen": chosen,
        "human_annotations": [2, 2, 1],
        "prompt_source": "oneigbench",
        "prompt_metadata": {"id": str(number)},
        "prompt_content": [["text", "Make it red."], ["image", "input_images/grey.png"], ["text", ""]],
        "scores": list(scores),
    }


T2I = [pair(1, "A", (2.0, 1.0)), pair(2, "B", (2.0, 1.0)), pair(3, "B", (1.0, 1.0))]  # right, wrong, a tie
REASONING = [pair(4, "B", (-3.0, -1.0), name="pair_id")]  # right


@pytest.fixture
def folder(tmp_path):
    for place, colour in (("images", "red"), ("images", "blue"), ("input_images", "grey")):
        (tmp_path / place).mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), colour).save(tmp_path / place / f"{colour}.png")
    write_json(tmp_path / "t2i.json", {"pairs": T2I})
    write_json(tmp_path / "reasoning.json", {"pairs": REASONING})
    return tmp_path


def test_every_figure_of_a_folder_by_hand(folder):
    reward_bench.main(["--scores", str(folder), "--output_dir", str(folder / "out")])
    found = json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))
    assert found["bench"] == "mmrb2"
    accuracies = {name: (group["accuracy"], group["n"], group["ties"]) for name, group in found["groups"].items()}
    assert accuracies == {"t2i": (1.5 / 3, 3, 1), "reasoning": (1.0, 1, 0)}
    assert (found["items"], found["correct"], found["ties"], found["coverage"]) == (4, 2, 1, 3 / 4)
    assert (found["overall"], found["macro"]) == (2.5 / 4, (1.5 / 3 + 1) / 2)
    assert (found["strict_overall"], found["strict_macro"]) == (2 / 4, (1 / 3 + 1) / 2)


def test_images_are_found_beside_the_file_in_prompt_and_responses(folder):
    records, counts = load_bench(MMRB2, folder / "t2i.json")
    assert (counts.rows, counts.records, len(records)) == (3, 3, 3)
    record = records[0]
    assert record.query == [{"role": "user", "content": [{"type": "text", "text": "Make it red."}, {"type": "image"}]}]
    assert record.images == [str(folder / "input_images" / "grey.png")]
    assert record.response == [
        [{"type": "image", "image": str(folder / "images" / "red.png")}],
        [{"type": "image", "image": str(folder / "images" / "blue.png")}, {"type": "text", "text": "Done."}],
    ]
    assert [one.human_ranking for one in records] == [[0, 1], [1, 0], [1, 0]]
    assert {one.category for one in records} == {"t2i"}


def test_a_reward_model_scores_it(folder, tiny_reward_model):
    words = ["--model", str(tiny_reward_model), "--dataset_name", str(folder), "--device", "cpu"]
    reward_bench.main([*words, "--output_dir", str(folder / "out")])
    assert json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))["items"] == 4


CHANGES = {
    "chosen": ("C", "field 'chosen': expected 'A' or 'B'"),
    "prompt_content": ("Make it red.", "field 'prompt_content': expected a list of texts and images"),
    "response_a": ([], "field 'response_a': expected an object with 'response_content'"),
    "response_b": ({"response_content": []}, "field 'response_b.response_content': expected a text or an image"),
    "scores": ([1.0], "field 'scores': expected 2 numbers"),
    "id": (1.5, "field 'id': expected an integer or a text"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_errors_name_pair_and_published_field(folder, field):
    value, message = CHANGES[field]
    write_json(folder / "t2i.json", {"pairs": [T2I[0], {**T2I[1], field: value}]})
    with pytest.raises(RecordError) as error:
        load_scored_bench(MMRB2, folder / "t2i.json")
    [problem] = error.value.problems
    assert problem.startswith(f"{folder / 't2i.json'}, pair 2: {message}")


def test_a_file_without_pairs_says_so(folder):
    write_json(folder / "edit.json", {"rows": T2I})
    with pytest.raises(RecordError, match="edit.json: field 'pairs': expected a list of pairs"):
        load_bench(MMRB2, folder)


JUNK = [
    None,
    "",
    0,
    -1.5,
    [],
    {},
    ["image"],
    ["video", "a.mp4"],
    ["image", "gone.png"],
    "<|image_pad|>",
    [["text"]],
    True,
]


def mutated(row: dict, rng: random.Random) -> dict:
    """The pair with one value, somewhere in it, replaced, or left out."""
    row = deepcopy(row)
    places: list[tuple] = []

    def walk(value, place):
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                walk(value[key], (*place, key))

    walk(row, ())
    holder, key = rng.choice(places)
    if rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = rng.choice(JUNK)
    return row


def test_300_changed_pairs_are_used_or_named_and_none_is_lost(folder):
    rng = random.Random(0)
    rows = [mutated(rng.choice(T2I), rng) for _ in range(300)]
    write_json(folder / "t2i.json", {"pairs": [T2I[0], *rows]})
    records, counts = load_bench(MMRB2, folder / "t2i.json", skip_bad_rows=True)
    named = {problem.split(": ")[0] for problem in counts.problems}
    assert counts.rows == 301
    assert len(records) + len(named) == 301
    assert counts.skipped == len(named) > 100
    assert len(records) > 50
    with pytest.raises(RecordError) as error:
        load_bench(MMRB2, folder / "t2i.json")
    assert {problem.split(": ")[0] for problem in error.value.problems} == named
    assert all("field '" in problem or "expected" in problem for problem in error.value.problems)
