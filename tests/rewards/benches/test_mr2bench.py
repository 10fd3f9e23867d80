"""MR2Bench: a file with the published columns, best-of-N and Kendall's tau by hand, and its errors."""

import pytest

from data.io.records import RecordError, write_jsonl
from rewards.benches.mr2bench import MR2BENCH
from rewards.benches.reading import load_bench


def published(rankings: list[int], scores: list[float], **media: str) -> dict:
    responses = [f"Response {number}." for number in range(len(rankings))]
    return {"prompt": "What is it?", "responses": responses, "rankings": rankings, "scores": scores, **media}


ROWS = [
    # In order: 6 concordant pairs of 6, tau 1.
    published([3, 1, 2, 4], [1.0, 3.0, 2.0, 0.0], image="a.jpg"),
    # The second best is picked: 5 of 6 pairs concordant, tau (5 - 1) / 6.
    published([1, 2, 3, 4], [2.0, 3.0, 1.0, 0.0], image="b.jpg"),
    # Two share the highest score, one of them the best: half a pick. 2 of 3 pairs concordant, one tie in the scores:
    # tau-b 2 / sqrt(3 * 2).
    published([1, 2, 3], [2.0, 2.0, 1.0], image="c.jpg"),
    # Two are best, and one of them is picked. Pairs: 2 of unequal rank, one concordant, one discordant: tau 0.
    published([1, 1, 2], [5.0, 1.0, 3.0], video="d.mp4"),
    # All scores are equal: one of two picks. Pair wrong, tau 0.
    published([2, 1], [0.0, 0.0]),
    # One rank for all: left out.
    published([1, 1], [0.0, 1.0], image="e.jpg"),
]
THIRD = 2 / 6**0.5


def test_every_figure_by_hand(evaluate):
    found = evaluate(ROWS)
    assert found["bench"] == "mr2bench"
    image, video, text = (found["groups"][kind] for kind in ("image", "video", "text"))
    assert (image["accuracy"], image["strict_accuracy"], image["n"]) == (1.5 / 3, 1 / 3, 3)
    assert image["kendall"] == pytest.approx((1 + 4 / 6 + THIRD) / 3)
    assert image["pair_accuracy"] == pytest.approx((6 + 5 + 2) / 15)
    assert (video["accuracy"], video["strict_accuracy"], video["n"]) == (1.0, 1.0, 1)
    assert (video["kendall"], video["pair_accuracy"]) == (0.0, 1 / 2)
    assert (text["accuracy"], text["strict_accuracy"], text["n"]) == (0.5, 0.0, 1)
    assert (text["kendall"], text["pair_accuracy"]) == (0.0, 0.0)
    assert found["overall"] == pytest.approx((1 + 0 + 0.5 + 1 + 0.5) / 5)
    assert found["strict_overall"] == 2 / 5
    assert found["macro"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert found["kendall"] == pytest.approx((1 + 4 / 6 + THIRD + 0 + 0) / 5)
    assert found["pair_accuracy"] == pytest.approx((6 + 5 + 2 + 1 + 0) / 18)
    assert (found["items"], found["count"], found["ties"]) == (5, 3, 2)
    assert (found["rows"], found["equal_ranks"]) == (6, 1 + 1)  # a pair of the fourth prompt, one of the last


def test_rows_are_known_by_their_numbers_and_may_ask_a_question(tmp_path, image):
    row = {"question": "Why?", **{name: ROWS[0][name] for name in ("responses", "rankings")}, "image": str(image)}
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [row, {**row, "id": "own"}])
    records, _ = load_bench(MR2BENCH, path)
    assert [(record.id, record.prompt(), record.category) for record in records] == [
        (1, "Why?", "image"),
        ("own", "Why?", "image"),
    ]


def test_a_video_is_refused_where_a_model_would_have_to_see_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [ROWS[3]])
    with pytest.raises(RecordError, match=r"rows.jsonl:1: field 'video': videos are not read: leave such rows out"):
        load_bench(MR2BENCH, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rankings": [1, 2]}, "field 'rankings': expected a rank of each of 4 responses (found [1, 2])"),
        ({"rankings": 5}, "field 'rankings': expected a list (found 5)"),
        ({"rankings": [1, 2, 3, "4"]}, "field 'rankings.3': Input should be a valid number"),
        ({"responses": ["a", "b", "c", 4]}, "field 'responses.3': Input should be a valid string"),
        ({"responses": ["a"], "rankings": [1]}, "field 'responses': Value should have at least 2 items"),
        ({"prompt": None}, "field 'prompt': expected in every row (found None)"),
        ({"scores": [1.0]}, "field 'scores': expected 4 numbers, one a response, not 1"),
    ],
)
def test_errors_name_the_published_field(evaluate, change, message):
    with pytest.raises(SystemExit) as stopped:
        evaluate([ROWS[0], {**ROWS[0], **change}])
    assert f"scored.jsonl:2: {message}" in stopped.value.code
