"""Likeness to the right answers: against the oracle, by hand, and at lengths where difflib would take minutes."""

from difflib import SequenceMatcher

import pytest

from rewards.relevance import COMPARED, Relevance, RelevanceReward, relevance

KEYS = ("vqa_rel_token_f1", "vqa_rel_edit_sim", "vqa_rel_score")


def test_every_case_of_the_oracle(oracle):
    cases = oracle("relevance")["cases"]
    assert len(cases) == 246
    wrong = []
    for case in cases:
        found = relevance(case["prediction"], case["answers"])
        values = (found.token_f1, found.edit_sim, found.score)
        if values != pytest.approx(tuple(case[key] for key in KEYS), abs=1e-12):
            wrong.append((case["id"], values))
    assert wrong == []


def test_the_registered_reward_agrees_with_the_oracle(oracle):
    for case in oracle("relevance")["cases"]:
        [found] = RelevanceReward()([case["prediction"] or ""], answers=[case["answers"]])
        if case["answers"]:
            assert found == pytest.approx(case["vqa_rel_score"], abs=1e-12)
        else:
            assert found is None


def test_by_hand():
    # words: {two, cats} and {two, dogs} have 1 in common: 2 * 1 / (2 + 2)
    # letters: "two " (4) and "s" (1) in blocks, and "cat"/"dog" nothing: 2 * 5 / (8 + 8)
    found = relevance("Two cats ", ["two dogs", None, "9"])
    assert found == Relevance(0.5, 0.625)
    assert found.score == 0.625


def test_words_count_as_often_as_they_stand():
    assert relevance("red red", ["red"]).token_f1 == pytest.approx(2 / 3)


def test_each_part_is_the_best_over_the_answers():
    found = relevance("a red bus", ["bus red a", "a red bun"])
    assert found == Relevance(1.0, pytest.approx(2 * 8 / 18))


def test_the_answer_is_read_from_its_element():
    text = "<think>a dog</think><answer> A cat </answer>"
    assert RelevanceReward()([text], answers=[["a cat"]]) == [1.0]
    assert RelevanceReward()([text], answers=[[{"answer": "a cat"}]]) == [1.0]


def test_ordinary_texts_have_difflibs_value():
    text, answer = "the man is riding a wave " * 15, "a man rides a wave on his board " * 5
    text = text[: COMPARED - 1]
    expected = SequenceMatcher(None, text.strip(), answer.strip()).ratio()
    assert relevance(text, [answer]).edit_sim == expected > 0


def test_long_texts_are_compared_at_their_start_and_count_in_full():
    text = "a cat" + " " * COMPARED + "x" * 995
    found = relevance(text, ["a cat"])
    assert found.edit_sim == 2 * 5 / (len(text) + 5)
    assert found.token_f1 == pytest.approx(2 * 2 / (3 + 2))


@pytest.mark.timeout(20)
def test_a_megabyte_against_long_answers():
    found = relevance("ab" * 500_000, ["ba" * 90 + str(number) for number in range(10)])
    assert 0 < found.edit_sim < 0.001
