"""VQA accuracy: every oracle case of the official evaluator, and cases written by hand."""

import pytest

from rewards.vqa_accuracy import (
    VqaAccuracy,
    normalise_answer,
    process_digits_and_articles,
    process_punctuation,
    read_answer,
    strip_answer,
    vqa_accuracy,
)


@pytest.fixture(scope="module")
def cases(oracle) -> list[dict]:
    cases = oracle("vqa_accuracy")["cases"]
    assert len(cases) == 3_000
    return cases


def test_accuracy_of_every_case(cases):
    found = [(case["id"], vqa_accuracy(case["prediction"], case["answers"]), case["accuracy"]) for case in cases]
    assert [row for row in found if round(row[1], 12) != row[2]] == []


def test_the_reward_scores_every_case_alike(cases):
    plain = [case for case in cases if "</answer>" not in case["prediction"]]
    scores = VqaAccuracy()([case["prediction"] for case in plain], answers=[case["answers"] for case in plain])
    wrong = [case["id"] for case, score in zip(plain, scores, strict=True) if round(score, 12) != case["accuracy"]]
    assert len(plain) == len(cases)
    assert wrong == []


def test_accuracy_does_not_depend_on_what_was_scored_before(cases):
    backwards = [vqa_accuracy(case["prediction"], case["answers"]) for case in reversed(cases)]
    assert [round(accuracy, 12) for accuracy in reversed(backwards)] == [case["accuracy"] for case in cases]


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        (strip_answer, "text", "stripped"),
        (process_punctuation, "stripped", "punctuation"),
        (process_digits_and_articles, "punctuation", "final"),
        (normalise_answer, "stripped", "final"),
    ],
)
def test_every_step_of_normalising(oracle, step, before, after):
    texts = oracle("vqa_normalize")["cases"]
    assert len(texts) == 2_360
    assert [(text, step(text[before])) for text in texts if step(text[before]) != text[after]] == []


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # the nine others see 1 of 3, the one itself sees none: 9/3/10
        (2, 0.6),  # 8 see 2 of 3, 2 see 1 of 3: (16/3 + 2/3) / 10
        (3, 0.9),  # 7 see 3, 3 see 2 of 3: (7 + 2) / 10
        (4, 1.0),
        (9, 1.0),
    ],
)
def test_accuracy_by_the_number_of_ten_annotators_who_agree(matches, expected):
    answers = ["cat"] * matches + [f"dog {number}" for number in range(10 - matches)]
    assert vqa_accuracy("cat", answers) == pytest.approx(expected, abs=1e-15)


def test_one_annotator_can_never_be_matched():
    assert vqa_accuracy("cat", ["cat"]) == 0.0


def test_unanimous_answers_are_compared_as_written():
    assert vqa_accuracy("Cat", ["cat"] * 10) == 0.0
    assert vqa_accuracy(" cat\n", ["cat\t"] * 10) == 1.0


def test_mixed_answers_are_normalised_on_both_sides():
    assert vqa_accuracy("The Cat!", ["a cat"] * 9 + ["dog"]) == 1.0


def test_at_most_32_periods_are_removed():
    assert process_punctuation("." * 40) == "." * 8


def test_no_annotators_is_an_error():
    with pytest.raises(ValueError, match="at least one annotator's answer"):
        vqa_accuracy("cat", [])


def test_rows_without_answers_get_none():
    scores = VqaAccuracy()(["cat", "cat", "cat"], answers=[[], None, ["cat"] * 10])
    assert scores == [None, None, 1.0]


def test_answers_may_be_the_official_objects():
    answers = [{"answer": "cat", "answer_id": number, "answer_confidence": "yes"} for number in range(10)]
    assert VqaAccuracy()(["cat"], answers=[answers]) == [1.0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("two", "two"),
        ("<answer>two</answer>", "two"),
        ("It shows <answer>2</answer>, no: <answer>3</answer> dogs", "3"),  # the last one counts
        ("<answer>two", "<answer>two"),  # never closed
        ("two</answer>", "two</answer>"),  # never opened
        ("</answer><answer>two", "</answer><answer>two"),
        ("<answer>two</answer> or <answer>three", "two"),
        ("<answer>a<answer>b</answer>", "b"),
        ("<answer></answer>", ""),
        ("<answer> two\n</answer>", " two\n"),
    ],
)
def test_reading_the_answer_element(text, answer):
    assert read_answer(text) == answer


def test_the_reward_reads_the_answer_element():
    scores = VqaAccuracy()(["Three dogs. <answer> two\n</answer>", "two dogs"], answers=[["two"] * 10] * 2)
    assert scores == [1.0, 0.0]


@pytest.mark.parametrize("text", ["yes, it is " * 12, "one 1,000. two! " * 50])
def test_long_texts_that_are_not_remembered_are_normalised_alike(text):
    assert len(text) > 128
    assert normalise_answer(text) == process_digits_and_articles(process_punctuation(text))
    assert vqa_accuracy(text, [text.upper()] * 9 + ["x"]) == 1.0
