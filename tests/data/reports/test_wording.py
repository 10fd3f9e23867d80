"""The sentences of reports: all can be filled in, and the test split has some of its own."""

import random
from string import Formatter

import pytest

from data.reports.aspects import ASPECTS
from data.reports.wording import BOTH, OPENINGS, TEST, TRAIN, WORDINGS, choose

FIGURES = {
    "count": 3,
    "total": 12,
    "of_images": "3 of 12 images are",
    "images_are": "3 images are",
    "items_are": "3 items are",
    "blown": 80,
    "percent": 25,
    "median": 0.5,
    "minimum": 0.25,
    "extreme": 12.75,
}
LISTS = [("opening", OPENINGS)]
for aspect in ASPECTS:
    LISTS += [(f"{aspect.agent} {kind}", getattr(WORDINGS[aspect], kind)) for kind in ("remarkable", "healthy")]
every_list = pytest.mark.parametrize("sentences", [part for _, part in LISTS], ids=[name for name, _ in LISTS])


def _chosen(sentences, split: str) -> set[str]:
    rng = random.Random(0)
    return {choose(rng, sentences, split) for _ in range(200)}


def test_every_aspect_has_sentences():
    assert set(WORDINGS) == set(ASPECTS)


@every_list
def test_every_sentence_can_be_filled_in(sentences):
    for _, sentence in sentences:
        filled = sentence.format(**FIGURES)
        assert filled.endswith(".")
        assert filled[0].isupper() or filled[0].isdigit()
        assert "{" not in filled
        assert {name for _, name, _, _ in Formatter().parse(sentence) if name} <= set(FIGURES)


@every_list
def test_training_never_sees_the_sentences_of_the_test_split(sentences):
    of_test = {sentence for where, sentence in sentences if where == TEST}
    assert of_test
    assert not _chosen(sentences, "train") & of_test
    assert not _chosen(sentences, "validation") & of_test
    assert of_test < _chosen(sentences, "test")


@every_list
def test_the_test_split_never_uses_the_sentences_of_training(sentences):
    shared = {sentence for where, sentence in sentences if where == BOTH}
    of_train = {sentence for where, sentence in sentences if where == TRAIN}
    assert _chosen(sentences, "train") == shared | of_train
    assert not _chosen(sentences, "test") & of_train


def test_no_sentence_stands_twice():
    sentences = [sentence for _, part in LISTS for _, sentence in part]
    assert len(set(sentences)) == len(sentences)


def test_numbers_are_filled_in_with_their_decimals():
    (sentence,) = [text for _, text in WORDINGS[ASPECTS[0]].remarkable if "blur up to {extreme:.2f})" in text]
    assert sentence.format(**FIGURES) == "3 of 12 images are blurry (blur up to 12.75)."
