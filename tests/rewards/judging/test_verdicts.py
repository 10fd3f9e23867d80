"""A verdict is read where it is the only one, in the stated form, at the end; nothing else is guessed."""

import pytest

from rewards.judging.verdicts import Scale, read_score, read_verdict

MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<verdict>A</verdict>", "A"),
        ("<verdict>B</verdict>\n ", "B"),
        ("A says red, and it is red.\n<verdict>A</verdict>", "A"),
        ("Is 1 < 2? Then B. <verdict>B</verdict>", "B"),
        ("", None),
        ("A", None),
        ("Response A is better.", None),
        ("<verdict></verdict>", None),
        ("<verdict>C</verdict>", None),
        ("<verdict>a</verdict>", None),
        ("<verdict> A </verdict>", None),
        ("<verdict>A or B</verdict>", None),
        ("<verdict>AB</verdict>", None),
        ("<VERDICT>A</VERDICT>", None),
        ("<verdict>A", None),
        ("A</verdict>", None),
        ("</verdict>A<verdict>", None),
        ("<verdict>A</verdict>.", None),
        ("<verdict>A</verdict> Or is it B?", None),
        ("<verdict>A</verdict><verdict>A</verdict>", None),
        ("<verdict>A</verdict> or <verdict>B</verdict>", None),
        ("B wrote <Verdict>B</Verdict>. <verdict>A</verdict>", None),
        ("B wrote < verdict >B. <verdict>A</verdict>", None),
        ('B wrote <verdict for="me">B. <verdict>A</verdict>', None),
        ("B wrote < /verdict>. <verdict>A</verdict>", None),
        ("<verdict><verdict>A</verdict></verdict>", None),
        ("<verdict>A</verdict ></verdict>", None),
        ("＜verdict＞A＜/verdict＞", None),
        ("&lt;verdict&gt;A&lt;/verdict&gt;", None),
        ("<score>7</score>", None),
    ],
)
def test_a_verdict_is_read_strictly(text, expected):
    assert read_verdict(text) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1", 1), ("7", 7), ("10", 10), ("0", None), ("11", None), ("-1", None), ("07", None), ("+7", None),
        ("7.0", None), ("7/10", None), ("7 ", None), ("٧", None), ("1e1", None), ("", None), ("nan", None),
        ("9" * MEGABYTE, None),
    ],
)  # fmt: skip
def test_a_score_is_a_whole_number_within_the_scale(content, expected):
    assert read_score(f"Nearly right. <score>{content}</score>", Scale(1, 10)) == expected


@pytest.mark.parametrize(("content", "expected"), [("-2", -2), ("0", 0), ("-0", None), ("-3", None)])
def test_a_scale_may_begin_below_0(content, expected):
    assert read_score(f"<score>{content}</score>", Scale(-2, 2)) == expected


def test_of_two_scores_none_is_taken():
    assert read_score("<score>3</score> of <score>10</score>", Scale()) is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "piece", ["<verdict>", "</verdict>", "<", "< ", "</", " ", "<verdict>A</verdict>", "<verdict "]
)
@pytest.mark.parametrize("start", ["", "<", "<verdict>A"])
def test_a_megabyte_of_hostile_text_is_read_in_time_that_grows_with_its_length(start, piece):
    assert read_verdict(start + piece * (MEGABYTE // len(piece)) + "x") is None
