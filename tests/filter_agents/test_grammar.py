"""What prompts mean, for any text whatever: bounds or nothing, never an error, a delay or an effect."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.reports.measurements import Bounds
from filter_agents import grammar
from filter_agents.grammar import MAX_LENGTH, parse_bounds

BLUR = {"blur": (0, 1)}
EXPOSURE = {"brightness": (0, 1), "clipping": (0, 1)}
WORDS = {"question_words": (0, None), "answer_words": (0, None)}
SIDE = {"side": (0, None)}


@pytest.mark.parametrize(
    ("prompt", "bounds"),
    [
        ("keep blur at most 0.45", Bounds(maximum=0.45)),
        ("require blur at least 0.45", Bounds(minimum=0.45)),
        ("blur below 0.45", Bounds(maximum=0.45)),
        ("drop blur above 0.5", Bounds(maximum=0.5)),
        ("remove blur below 0.5", Bounds(minimum=0.5)),
        ("discard all images with a blur of more than 0.5!", Bounds(maximum=0.5)),
        ("exclude blur over 0.5", Bounds(maximum=0.5)),
        ("reject blur under 0.5", Bounds(minimum=0.5)),
        ("blur < 0.5", Bounds(maximum=0.5)),
        ("blur<=0.5", Bounds(maximum=0.5)),
        ("blur > 0.5", Bounds(minimum=0.5)),
        ("blur >= 0.5", Bounds(minimum=0.5)),
        ("blur &lt; 0.5", Bounds(maximum=0.5)),
        ("blur &gt;= 0.5", Bounds(minimum=0.5)),
        ("blur up to 0.5", Bounds(maximum=0.5)),
        ("no more than 0.5", Bounds(maximum=0.5)),
        ("not below 0.5", Bounds(minimum=0.5)),
        ("drop what is not above 0.5", Bounds(minimum=0.5)),
        ("blur no less than 0.2, at most 0.6", Bounds(0.2, 0.6)),
        ("no, keep at most 0.5", Bounds(maximum=0.5)),
        ("blur maximum 0.5", Bounds(maximum=0.5)),
        ("max 0.5", Bounds(maximum=0.5)),
        ("min 0.5", Bounds(minimum=0.5)),
        ("minimum 0.5", Bounds(minimum=0.5)),
        ("less than 0.5", Bounds(maximum=0.5)),
        ("greater than 0.5", Bounds(minimum=0.5)),
        ("blur between 0.2 and 0.6", Bounds(0.2, 0.6)),
        ("blur from 0.2 to 0.6", Bounds(0.2, 0.6)),
        ("at least 0.2, at most 0.6", Bounds(0.2, 0.6)),
        ("at least 0.2 and at most 0.6", Bounds(0.2, 0.6)),
        ("drop blur below 0.2 and above 0.6", Bounds(0.2, 0.6)),
        ("drop blur above 0.6; keep blur at least 0.2", Bounds(0.2, 0.6)),
        ("at most 0.6\nat most 0.4", Bounds(maximum=0.4)),
        ("at most 0.5 (the scale ends at 1)", Bounds(maximum=0.5)),
        ("between 0.2 and 0.6 of 1", Bounds(0.2, 0.6)),
        ("KEEP BLUR AT MOST 45%", Bounds(maximum=0.45)),
        ("at most 1", Bounds(maximum=1)),
        ("at most 0", Bounds(maximum=0)),
        ("at most 0.5.", Bounds(maximum=0.5)),
        ("sharpness matters: at most, say, 0.5", None),
        ("", None),
        ("make it nice", None),
        ("blur 0.5", None),
        ("keep blur at most", None),
        ("keep blur at most high", None),
        ("blur between 0.2", None),
        ("drop blur between 0.2 and 0.6", None),
        ("blur between 0.6 and 0.2", None),
        ("at least 0.6, at most 0.2", None),
        ("keep blur at most 1.5", None),
        ("keep blur at most 200%", None),
        ("keep blur at most ٣", None),
    ],
)
def test_bounds_of_one_quantity(prompt, bounds):
    assert parse_bounds(prompt, BLUR) == (None if bounds is None else {"blur": bounds})


@pytest.mark.parametrize(
    ("prompt", "quantities", "bounds"),
    [
        ("at least 0.15", EXPOSURE, {"brightness": Bounds(minimum=0.15)}),
        ("clipping at most 0.7", EXPOSURE, {"clipping": Bounds(maximum=0.7)}),
        (
            "keep brightness at least 0.15, clipping at most 0.7",
            EXPOSURE,
            {"brightness": Bounds(minimum=0.15), "clipping": Bounds(maximum=0.7)},
        ),
        (
            "drop brightness below 0.2 and clipping above 50%",
            EXPOSURE,
            {"brightness": Bounds(minimum=0.2), "clipping": Bounds(maximum=0.5)},
        ),
        (
            "clipping at most 0.7, at least 0.1",
            EXPOSURE,
            {"clipping": Bounds(0.1, 0.7)},
        ),
        ("keep question words between 3 and 40", WORDS, {"question_words": Bounds(3, 40)}),
        ("answer words at most 20", WORDS, {"answer_words": Bounds(maximum=20)}),
        ("at most 20 words", WORDS, {"question_words": Bounds(maximum=20)}),
        (
            "keep questions from 3 to 40 words, answer up to 9",
            WORDS,
            {"question_words": Bounds(3, 40), "answer_words": Bounds(maximum=9)},
        ),
        ("side at least 100000", SIDE, {"side": Bounds(minimum=100000)}),
        ("aspect at least 0.5", {"aspect": (1, None)}, None),
        ("brightness at least 0.2, clipping at most 7", EXPOSURE, None),
    ],
)
def test_the_quantity_is_the_last_one_named_or_the_first_of_all(prompt, quantities, bounds):
    assert parse_bounds(prompt, quantities) == bounds


def _assert_possible(prompt: str) -> None:
    found = parse_bounds(prompt, EXPOSURE)
    assert found is None or found
    for name, bounds in (found or {}).items():
        assert name in EXPOSURE
        values = [value for value in (bounds.minimum, bounds.maximum) if value is not None]
        assert values
        assert values == sorted(values)
        assert all(0 <= value <= 1 for value in values)


@given(st.text())
def test_any_text_gives_possible_bounds_or_nothing(prompt):
    _assert_possible(prompt)


SPOKEN = st.lists(
    st.sampled_from(
        "keep drop blur at least most above between and from to 0.2 0.5 90% 7 , . ; \n &lt; > >= images words &amp;"
        " brightness clipping".split(" ")
    )
)


@given(SPOKEN)
def test_any_order_of_known_words_gives_possible_bounds_or_nothing(words):
    _assert_possible(" ".join(words))


@given(low=st.integers(0, 100), high=st.integers(0, 100))
def test_dropping_what_lies_outside_equals_keeping_what_lies_inside(low, high):
    low, high = sorted((low, high))
    expected = {"blur": Bounds(low / 100, high / 100)}
    assert parse_bounds(f"drop blur below {low / 100} and above {high / 100}", BLUR) == expected
    assert parse_bounds(f"keep blur between {low}% and {high}%", BLUR) == expected


@pytest.mark.parametrize("piece", ["at most 0.5 ", "9", "&lt;", "a", "<", "0.", "&", "ﬃ", "between "])
def test_only_the_beginning_of_a_long_prompt_is_read(monkeypatch, piece):
    read = []

    class Recorder(grammar._Reader):
        def read(self, token):
            read.append(token)
            super().read(token)

    monkeypatch.setattr(grammar, "_Reader", Recorder)
    long = piece * (1_000_000 // len(piece))
    assert parse_bounds(long, BLUR) == parse_bounds(long[:MAX_LENGTH], BLUR)
    assert len(read) <= 2 * MAX_LENGTH


def test_what_stands_after_the_beginning_does_not_count():
    assert parse_bounds("x" * MAX_LENGTH + " at most 0.5", BLUR) is None
    assert parse_bounds("at most 0.5" + " " * MAX_LENGTH + "at most 0.1", BLUR) == {"blur": Bounds(maximum=0.5)}


@pytest.mark.parametrize(
    "prompt",
    [
        "__import__('os').system('touch {path}')",
        "$(touch {path}); `touch {path}`",
        "{{{{ cycler.__init__.__globals__.os.popen('touch {path}') }}}} at most 0.5",
        "keep blur at most open('{path}', 'w')",
        "lambda: exec(\"open('{path}', 'w')\")",
        "(a+)+$ at most 0.5 (?{{touch {path}}})",
    ],
)
def test_a_prompt_is_never_executed_or_opened(tmp_path, prompt):
    events = []
    watched = {"open", "exec", "compile", "import", "os.system", "subprocess.Popen", "os.exec", "os.fork"}
    state = {"on": True}
    sys.addaudithook(lambda event, _: events.append(event) if state["on"] and event in watched else None)
    parse_bounds("warm up at most 0.5", BLUR)
    events.clear()
    parse_bounds(prompt.format(path=tmp_path / "touched"), BLUR)
    state["on"] = False
    assert events == []
    assert list(tmp_path.iterdir()) == []
