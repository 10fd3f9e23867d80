"""One plain sentence, or not."""

import pytest

from rewards.formats.sentence_format import SentenceFormat


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is no red shape.", 1.0),
        (" It is a circle.\n", 1.0),
        ("Is it?", 1.0),
        ("What a shape!", 1.0),
        ("", 0.0),
        ("  ", 0.0),
        ("red", 0.0),
        ("Red.", 0.0),
        ("there is no red shape.", 0.0),
        ("There is no red shape", 0.0),
        ("There is one. There is none.", 0.0),
        ("There is one..", 0.0),
        ("There is\none.", 0.0),
        ("It " + "is " * 39 + "so.", 0.0),
        ("It " + "is " * 38 + "so.", 1.0),
    ],
)
def test_score(text, expected):
    assert SentenceFormat()([text]) == [expected]


def test_the_limit_is_a_parameter():
    assert SentenceFormat(max_words=3)(["It is so.", "It is so too."]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="max_words: expected at least 1, found 0"):
        SentenceFormat(max_words=0)
