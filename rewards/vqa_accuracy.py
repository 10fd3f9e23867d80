"""VQA accuracy by the rule of the official VQAv2 evaluator, to the last digit.

Source: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, newest commit (a013f00). Its oddities are
kept, because published numbers contain them: answers are normalised only if the annotators are not unanimous, a
period is removed unless a digit follows, and at most 32 of them are.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from data.rows.answers import CLOSING_TAG, OPENING_TAG
from rewards.base import Reward
from rewards.scoring import columns as column_types

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_HAS_PUNCTUATION = re.compile("[" + re.escape(_PUNCTUATION) + "]")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the official code passes re.UNICODE, which is 32, as the number of replacements

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset(("a", "an", "the"))

# Words that the official table completes with their apostrophes. It lists every spelling with one apostrophe missing.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_COMPLETED = {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTIONS
    for position, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}

_CACHED_LENGTH = 128
"""Only texts up to this length are remembered: answers repeat, rambling completions do not."""


def strip_answer(text: str) -> str:
    """Newlines and tabs become spaces; the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def process_punctuation(text: str) -> str:
    """Removes each punctuation mark, or puts a space in its place.

    It is removed if it stands beside a space anywhere in the text, or if a comma stands between digits.
    """
    result = text
    if _HAS_PUNCTUATION.search(text):
        has_number_comma = _DIGIT_COMMA_DIGIT.search(text) is not None
        for mark in _PUNCTUATION:
            if mark in text:
                removed = has_number_comma or f"{mark} " in text or f" {mark}" in text
                result = result.replace(mark, "" if removed else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS) if "." in result else result


def process_digits_and_articles(text: str) -> str:
    """Lower case; number words up to ten become digits, articles go, missing apostrophes come back."""
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join([_COMPLETED.get(word, word) for word in words if word not in _ARTICLES])


def _normalise(text: str) -> str:
    return process_digits_and_articles(process_punctuation(text))


_normalise_cached = lru_cache(maxsize=65_536)(_normalise)


def normalise_answer(text: str) -> str:
    """Both steps on a stripped answer."""
    return _normalise_cached(text) if len(text) <= _CACHED_LENGTH else _normalise(text)


@lru_cache(maxsize=8_192)
def _prepare_answers(answers: tuple[str, ...]) -> tuple[bool, tuple[str, ...]]:
    stripped = tuple(strip_answer(answer) for answer in answers)
    unanimous = len(set(stripped)) <= 1
    return unanimous, stripped if unanimous else tuple(normalise_answer(answer) for answer in stripped)


@lru_cache(maxsize=1_024)
def _accuracy_by_matches(annotators: int) -> tuple[float, ...]:
    """Accuracy by the number of annotators who gave the answer: the mean over annotators of min(1, others / 3)."""
    by_matches = []
    for matches in range(annotators + 1):
        agreeing = min(1, (matches - 1) / 3) if matches else 0.0  # as an agreeing annotator's others see it
        scores = [agreeing] * matches + [min(1, matches / 3)] * (annotators - matches)
        by_matches.append(sum(scores) / annotators)
    return tuple(by_matches)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one prediction, 0 to 1.

    Args:
        prediction: the answer as written.
        answers: of the annotators, usually ten.

    >>> vqa_accuracy("Two", ["2"] * 3 + ["3"] * 7)
    0.9
    """
    if not answers:
        raise ValueError("VQA accuracy needs at least one annotator's answer, found none")
    unanimous, prepared = _prepare_answers(tuple(answers))
    predicted = strip_answer(prediction)
    if not unanimous:
        predicted = normalise_answer(predicted)
    return _accuracy_by_matches(len(prepared))[prepared.count(predicted)]


def read_answer(text: str) -> str:
    """The content of the last complete <answer> element (<ANSWER> too), or the whole text if there is none; in linear
    time.

    >>> read_answer("<answer>red</answer></answer>"), read_answer("<answer><ANSWER>red</ANSWER></answer>")
    ('red', 'red')
    """
    closings = [tag.start() for tag in CLOSING_TAG.finditer(text)]
    openings = [tag.end() for tag in OPENING_TAG.finditer(text) if closings and tag.end() <= closings[-1]]
    if not openings:
        return text
    return text[openings[-1] : next(end for end in closings if end >= openings[-1])]


class VqaAccuracy(Reward):
    """The official VQAv2 accuracy of an answer, given as plain text or between <answer> tags, 0 to 1.

    A text in `answers` is the right answer, as if ten annotators had given it; a list has one of each annotator.
    """

    name = "vqa_accuracy"
    columns = ("answers",)
    types: ClassVar = {"answers": column_types.annotators}
    data_types: ClassVar = {"answers": column_types.annotators_who_compare}

    def score(self, text: str, answers: Sequence[str] | None) -> float | None:
        if not answers:
            return None
        return vqa_accuracy(read_answer(text), answers)
