"""Scorers of known behaviour: each decides by one thing, and the figures say by which."""

import pytest
from PIL import Image

from data.io.images import open_image
from rewards.diagnosis.image_variants import BLANK, OTHER, WITH, WITHOUT
from rewards.diagnosis.questions import Diagnosis
from rewards.scoring.model_scores import ScoreRequest

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
ROWS, WITHOUT_IMAGES = 44, 4


def _row(number: int) -> tuple[ScoreRequest, list[int]]:
    """Red and blue in turn; of three rows, the right answer is the shorter one, the longer one, and as long as the
    other; its place takes turns too."""
    right, wrong = ("red", "blue") if number % 2 else ("blue", "red")
    responses = [f"{right}{'.' * (12 - len(right))}", f"{wrong}{'.' * (12 - len(wrong) + number % 3 - 1)}"]
    ranks = [0, 1]
    if number % 4 > 1:
        responses.reverse()
        ranks.reverse()
    images = [Image.new("RGB", (8, 8), COLOURS[right])] if number < ROWS - WITHOUT_IMAGES else []
    return ScoreRequest("which colour?", images, responses), ranks


REQUESTS, RANKS = (list(column) for column in zip(*map(_row, range(ROWS)), strict=True))
KINDS = [number % 3 for number in range(ROWS)]
LONGER, EQUAL, SHORTER = 0, 1, 2


def letters(request: ScoreRequest) -> list[float]:
    return [len(response) for response in request.responses]


def image(request: ScoreRequest) -> list[float]:
    value = float(sum(open_image(request.images[0]).getpixel((0, 0)))) if request.images else 0.0
    return [value] * len(request.responses)


def both(request: ScoreRequest) -> list[float]:
    seen = open_image(request.images[0]).getpixel((0, 0)) if request.images else None
    return [float(COLOURS[response.rstrip(".")] == seen) for response in request.responses]


def first(request: ScoreRequest) -> list[float]:
    return [-float(place) for place in range(len(request.responses))]


def diagnosed(scorer, limit: int = ROWS, **options) -> dict:
    diagnosis = Diagnosis(REQUESTS, RANKS, limit, **options)
    return diagnosis.figures([scorer(one) for one in REQUESTS], [scorer(one) for one in diagnosis.requests])


def accuracies(figures: dict) -> dict[str, float]:
    return {name: found["share"] for name, found in figures["images"].items()}


def by_length(figures: dict) -> list[tuple[float, int]]:
    return [(found["share"], found["rows"]) for found in figures["length"]["accuracy"].values()]


def test_one_that_counts_letters_does_not_see_and_is_wrong_where_the_better_one_is_shorter():
    figures = diagnosed(letters)
    seen = [0.5 * (kind == EQUAL) + (kind == LONGER) for kind in KINDS[: ROWS - WITHOUT_IMAGES]]
    assert accuracies(figures) == dict.fromkeys((WITH, BLANK, OTHER, WITHOUT), sum(seen) / len(seen))
    for variant in (BLANK, OTHER, WITHOUT):
        assert figures["images"][variant]["difference"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    counts = [KINDS.count(kind) for kind in (SHORTER, LONGER, EQUAL)]
    assert by_length(figures) == [(0.0, counts[0]), (1.0, counts[1]), (0.5, counts[2])]
    length = figures["length"]
    assert length["correlation"] == {"estimate": 1.0, "low": 1.0, "high": 1.0}
    assert length["prompts"] == counts[0] + counts[1]
    assert length["people"]["estimate"] == pytest.approx((counts[1] - counts[0]) / length["prompts"])
    assert length["difference"]["estimate"] == pytest.approx(1 - length["people"]["estimate"])


def test_one_that_reads_the_image_alone_has_chance_everywhere():
    figures = diagnosed(image)
    assert set(accuracies(figures).values()) == {0.5}
    assert {share for share, _ in by_length(figures)} == {0.5}
    assert figures["length"]["correlation"]["estimate"] == 0.0
    assert figures["calibration"]["expected_calibration_error"] == 0.0


def test_one_that_reads_both_is_right_with_the_image_and_misled_by_another():
    figures = diagnosed(both)
    assert accuracies(figures) == {WITH: 1.0, BLANK: 0.5, OTHER: 0.0, WITHOUT: 0.5}
    assert figures["images"][BLANK]["difference"] == {"estimate": -0.5, "low": -0.5, "high": -0.5}
    assert figures["images"][OTHER]["difference"] == {"estimate": -1.0, "low": -1.0, "high": -1.0}
    assert {found["rows"] for found in figures["images"].values()} == {ROWS - WITHOUT_IMAGES}
    assert figures["images"][WITH]["wilson"] == pytest.approx((0.9124, 1.0), abs=1e-4)
    assert (figures["rows"], figures["all_rows"], figures["without_images"]) == (ROWS, ROWS, WITHOUT_IMAGES)
    assert figures["order"] is None


def test_one_that_prefers_the_first_flips_with_the_order_and_is_right_by_half():
    figures = diagnosed(first, both_orders=True)
    assert set(accuracies(figures).values()) == {0.5}
    assert {name: found["share"] for name, found in figures["order"].items()} == {"flips": 1.0, "first": 1.0}


def test_a_small_bias_for_the_first_flips_what_is_undecided_alone():
    def biased(request: ScoreRequest) -> list[float]:
        return [seen + 0.5 * place for seen, place in zip(both(request), first(request), strict=True)]

    figures = diagnosed(biased, both_orders=True)
    assert accuracies(figures) == {WITH: 1.0, BLANK: 0.5, OTHER: 0.0, WITHOUT: 0.5}
    undecided = WITHOUT_IMAGES / ROWS
    assert figures["order"]["flips"]["share"] == pytest.approx(undecided)
    assert figures["order"]["first"]["share"] == pytest.approx(0.5 + undecided / 2)


def test_a_verdict_that_becomes_a_tie_has_flipped():
    def tied_when_reversed(request: ScoreRequest) -> list[float]:
        return both(request) if any(request is one for one in REQUESTS) else [0.0, 0.0]

    order = diagnosed(tied_when_reversed, both_orders=True)["order"]
    assert order["flips"]["share"] == pytest.approx(1 - WITHOUT_IMAGES / ROWS)


def test_a_scorer_that_swaps_itself_tells_what_it_found():
    flips = {"flips": {"share": 0.25, "wilson": (0.1, 0.4), "rows": 40}}
    diagnosis = Diagnosis(REQUESTS, RANKS, ROWS)
    answers = [both(one) for one in diagnosis.requests]
    figures = diagnosis.figures([both(one) for one in REQUESTS], answers, order=flips, are_log_odds=False)
    assert (figures["order"], figures["calibration"]) == (flips, None)


def test_rows_are_drawn_by_the_seed_and_bounded():
    few = Diagnosis(REQUESTS, RANKS, limit=10, seed=1)
    with_images = sum(bool(REQUESTS[row].images) for row in few.rows)
    assert len(few.rows) == 10
    assert len(few.requests) == 3 * with_images
    assert few.rows == Diagnosis(REQUESTS, RANKS, limit=10, seed=1).rows
    assert few.rows != Diagnosis(REQUESTS, RANKS, limit=10, seed=2).rows
    assert diagnosed(both, limit=10)["all_rows"] == ROWS


def test_a_row_counts_once_however_many_pairs_it_has():
    """Three responses of which two pairs of three are in order, and two in the wrong order."""
    requests = [ScoreRequest("?", [], ["a", "bb", "ccc"]), ScoreRequest("?", [], ["a", "bb"])]
    figures = Diagnosis(requests, [[0, 1, 2], [0, 1]], 2).figures([[3.0, 1.0, 2.0], [0.0, 1.0]], [])
    assert figures["length"]["accuracy"]["shorter"]["share"] == pytest.approx((2 / 3 + 0) / 2)
    assert figures["length"]["accuracy"]["shorter"]["rows"] == 2
    assert figures["length"]["correlation"]["estimate"] == pytest.approx((-0.5 + 1) / 2)


def test_the_correlation_is_one_of_ranks():
    """Of scores in the order 1, 3, 2, 4 two neighbours are exchanged, whatever the distances."""
    request = ScoreRequest("?", [], ["a" * length for length in (1, 2, 10, 11)])
    length = Diagnosis([request], [[0, 1, 2, 3]], 1).figures([[0.0, 5.0, 4.9, 100.0]], [])["length"]
    assert length["correlation"]["estimate"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert length["people"]["estimate"] == pytest.approx(-1)


def test_rows_of_equal_ranks_say_nothing():
    nothing = Diagnosis(REQUESTS, [[0, 0]] * ROWS, ROWS)
    assert nothing.requests == []
    assert nothing.figures([both(one) for one in REQUESTS], []) == {}
