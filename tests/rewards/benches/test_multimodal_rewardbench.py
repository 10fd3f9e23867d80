"""Multimodal RewardBench: a file with the published columns, its figures by hand, and its errors."""

import pytest

CORRECTNESS, PREFERENCE = "open_generation/correctness_task", "open_generation/preference_task"


def published(item_id: str, category: str, better: str, scores: tuple[float, float]) -> dict:
    return {
        "ID": item_id,
        "Text": "Describe the image.",
        "Image": f"images/{item_id.split('_')[0]}/1.jpg",
        "Output1": "A cat.",
        "Output2": "A dog.",
        "Better": better,
        "Category": category,
        "scores": list(scores),
    }


ROWS = [
    published("nocaps_1", CORRECTNESS, "Output1", (2.0, 1.0)),  # right
    published("nocaps_2", CORRECTNESS, "Output2", (2.0, 1.0)),  # wrong
    published("visitbench_1", PREFERENCE, "Output2", (0.0, 0.5)),  # right
    published("mathvista_1", "reasoning", "Output1", (1.0, 1.0)),  # a tie
    published("MathVista_2", "reasoning", "Output1", (1.0, 0.0)),  # right
    published("EMMA-Coding_1", "reasoning", "Output2", (1.0, 0.0)),  # wrong
    published("pairs_1", "safety", "Output1", (1.0, 0.0)),  # right
    published("hateful_1", "safety", "Output1", (3.0, 3.0)),  # a tie
    published("RealworldQA_1", "vqa", "Output1", (-1.0, -2.0)),  # right
]


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_every_figure_by_hand(evaluate, ending):
    found = evaluate(ROWS, ending)
    assert found["bench"] == "multimodal_rewardbench"
    accuracies = {name: (group["accuracy"], group["n"]) for name, group in found["groups"].items()}
    assert accuracies == {
        CORRECTNESS: (1 / 2, 2),
        PREFERENCE: (1.0, 1),
        "reasoning": (pytest.approx((0.5 + 1 + 0) / 3), 3),
        "reasoning/math": (1.5 / 2, 2),
        "reasoning/coding": (0.0, 1),
        "safety": (1.5 / 2, 2),
        "safety/bias": (1.0, 1),
        "safety/toxicity": (0.5, 1),
        "vqa": (1.0, 1),
    }
    strict = {name: group["strict_accuracy"] for name, group in found["groups"].items()}
    assert strict["reasoning/math"] == strict["safety"] == 1 / 2
    assert strict["safety/toxicity"] == 0.0
    assert (found["items"], found["count"], found["ties"], found["correct"]) == (9, 7, 2, 5)
    assert found["overall"] == pytest.approx((5 + 2 * 0.5) / 9)
    assert found["strict_overall"] == 5 / 9
    assert found["macro"] == pytest.approx((1 / 2 + 1 + 1.5 / 3 + 1.5 / 2 + 1) / 5)
    assert found["strict_macro"] == pytest.approx((1 / 2 + 1 + 1 / 3 + 1 / 2 + 1) / 5)
    assert found["macro_groups"] == [CORRECTNESS, PREFERENCE, "reasoning", "safety", "vqa"]
    assert found["coverage"] == 7 / 9


def test_the_category_of_a_judges_output_stands_in_meta(evaluate):
    rows = [{**{name: row[name] for name in row if name != "Category"}, "Meta": row} for row in ROWS]
    assert evaluate(rows)["groups"] == evaluate(ROWS)["groups"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Better": "Output3"}, "field 'Better': expected 'Output1' or 'Output2' (found 'Output3')"),
        ({"Better": None}, "field 'Better': expected in every row (found None)"),
        ({"Output2": 3}, "field 'Output2': Input should be a valid string (found 3)"),
        ({"Category": None}, "field 'Category': expected a text, here or in 'Meta' (found None)"),
        ({"Image": None}, "field 'Image': expected in every row (found None)"),
        ({"ID": 1.5}, "field 'ID': expected an integer or a text (found 1.5)"),
        ({"Text": ["a"]}, "field 'Text': Input should be a valid string (found ['a'])"),
        ({"scores": [1.0]}, "field 'scores': expected 2 numbers, one a response, not 1"),
    ],
)
def test_errors_name_the_published_field(evaluate, change, message):
    with pytest.raises(SystemExit) as stopped:
        evaluate([ROWS[0], {**ROWS[0], **change}])
    assert f"scored.jsonl:2: {message}" in stopped.value.code
