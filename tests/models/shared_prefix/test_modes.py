"""A faster way where it is exact: used, left out with a word, or demanded."""

import warnings

import pytest

from models.shared_prefix.modes import WhereExact, parse_mode


class NotExactError(Exception):
    pass


def of_mode(mode: str) -> WhereExact:
    return WhereExact(mode, NotExactError, "fast: true: it cannot be", "slowly (fast: auto)")


def test_auto_says_each_reason_once():
    faster = of_mode("auto")
    assert faster.allowed(None)
    with pytest.warns(UserWarning, match=r"^slowly \(fast: auto\): dropout$"):
        assert not faster.allowed("dropout")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not faster.allowed("dropout")
        with pytest.raises(UserWarning, match="beams"):
            faster.allowed("beams")


def test_true_is_an_error():
    assert of_mode("true").allowed(None)
    with pytest.raises(NotExactError, match="^fast: true: it cannot be: dropout$"):
        of_mode("true").allowed("dropout")


def test_modes_are_also_those_of_yaml():
    assert [parse_mode(value) for value in ("auto", True, False, "True")] == ["auto", "true", "false", "true"]
    with pytest.raises(ValueError, match="fast: expected one of auto, true, false, found 1"):
        parse_mode(1, "fast")
