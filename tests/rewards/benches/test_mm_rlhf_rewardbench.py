"""MM-RLHF-RewardBench: a file with the published columns, its figures by hand, Acc+ by prompt, and videos."""

import pytest

from data.io.records import RecordError, write_jsonl
from rewards.benches.mm_rlhf_rewardbench import MM_RLHF_REWARDBENCH
from rewards.benches.reading import load_bench


def published(item_id: str, path: str, scores: tuple[float, float], chosen: str = "Two dogs.") -> dict:
    return {
        "id": item_id,
        "video" if path.startswith("video") else "image": path,
        "prompt": "How many dogs?",
        "chosen": chosen,
        "rejected": "Three dogs.",
        "chosen_reason": "There are two.",
        "rejected_reason": "There are two.",
        "scores": list(scores),
    }


ROWS = [
    published("a", "mcq/1.png", (1.0, 0.0)),  # right
    published("a", "mcq/1.png", (1.0, 2.0), "2"),  # wrong, so prompt a is
    published("b", "mcq/2.png", (1.0, 0.0)),  # right, and so is prompt b
    published("c", "long/longboat.png", (1.0, 1.0)),  # a tie is wrong
    published("d", "short/mcq_like.png", (1.0, 0.5)),  # right, and both a mcq and a short one by its path
    published("e", "video/1", (3.0, 0.5)),  # right
    published("e", "video/1", (3.0, 2.5), "Two."),  # right, and so is prompt e
    published("f", "elsewhere/1.png", (0.0, 0.5)),  # wrong, and of no category
]


def test_every_figure_by_hand(evaluate):
    found = evaluate(ROWS)
    assert found["bench"] == "mm_rlhf_rewardbench"
    groups = {name: (group["accuracy"], group["n"], group["acc_plus"]) for name, group in found["groups"].items()}
    assert groups == {
        "mcq": (3 / 4, 4, 2 / 3),  # rows a a b d; prompts a b d
        "long": (0.0, 1, 0.0),
        "short": (None, 0, 0.0),  # prompt d counts below the line here and above it in mcq
        "safety": (None, 0, None),
        "video": (1.0, 2, 1.0),
        "other": (0.0, 1, 0.0),
    }
    assert (found["overall"], found["strict_overall"]) == (5 / 8, 5 / 8)
    assert (found["acc_plus"], found["prompts"]) == (3 / 6, 6)  # b d e of a b c d e f
    assert found["macro"] == pytest.approx((3 / 4 + 0 + 1) / 3)
    assert found["macro_groups"] == ["mcq", "long", "video"]
    assert (found["items"], found["ties"]) == (8, 1)


def test_the_printed_table_has_acc_plus(evaluate, capsys):
    evaluate(ROWS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(line for line in lines if line[:1] == ["group"])[-1:] == ["Acc+"]
    assert next(line for line in lines if line[:1] == ["overall"])[-2:] == ["62.50", "50.00"]


def test_a_video_is_refused_where_a_model_would_have_to_see_it(tmp_path, image):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{**ROWS[0], "image": str(image)}, ROWS[5]])
    with pytest.raises(RecordError) as raised:
        load_bench(MM_RLHF_REWARDBENCH, path)
    [problem] = raised.value.problems
    assert problem == (
        f"{path}:2: field 'video': videos are not read: leave such rows out by --skip_bad_rows, or give their scores "
        "by --scores (found 'video/1')"
    )
    records, counts = load_bench(MM_RLHF_REWARDBENCH, path, skip_bad_rows=True)
    assert [record.response for record in records] == [["Two dogs.", "Three dogs."]]
    assert (counts.rows, counts.skipped) == (2, 1)


def test_rows_of_trl_are_no_rows_of_this_bench(evaluate):
    rows = [{"id": 1, "query": "q", "response": ["a", "b"], "human_ranking": [0, 1], "scores": [1.0, 0.0],
             "chosen": "a", "rejected": "b"}]  # fmt: skip
    assert evaluate(rows)["bench"] == "vl_rewardbench"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "field 'chosen': expected in every row (found None)"),
        ({"rejected": 5}, "field 'rejected': Input should be a valid string (found 5)"),
        ({"image": None}, "field 'image': expected a path, here or in 'video' (found None)"),
        ({"image": 5}, "field 'image': expected a path (found 5)"),
        ({"prompt": 5}, "field 'prompt': Input should be a valid string (found 5)"),
    ],
)
def test_errors_name_the_published_field(evaluate, change, message):
    with pytest.raises(SystemExit) as stopped:
        evaluate([ROWS[0], {**ROWS[0], **change}])
    assert f"scored.jsonl:2: {message}" in stopped.value.code
