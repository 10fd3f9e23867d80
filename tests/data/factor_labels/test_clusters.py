"""Free texts become the same factors whatever their order, and paraphrases become one."""

import itertools
import random

import numpy as np
import pytest
from paraphrases import DEVELOPMENT, TEST

from data.easy_factors import PHRASES
from data.factor_labels.clusters import (
    DEFAULT_THRESHOLD,
    Factor,
    FactorSet,
    abstract_factors,
    cluster_texts,
    factor_id,
    normalise,
)
from data.factor_labels.text_encoder import BUNDLED_MINILM, load_text_encoder


@pytest.fixture(scope="module")
def encode():
    return load_text_encoder(BUNDLED_MINILM, device="cpu")


@pytest.fixture(scope="module")
def remembered(encode):
    """`encode` that encodes each list of texts once."""
    known = {}

    def encode_once(texts):
        key = tuple(texts)
        if key not in known:
            known[key] = encode(texts)
        return known[key]

    return encode_once


def by_letters(texts) -> np.ndarray:
    """An encoder whose cosines can be told in advance: the share of letters that two texts have in common."""
    counts = np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], dtype=np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def pair_figures(groups: dict[str, list[str]], id_of_text: dict[str, str]) -> tuple[float, float]:
    """Precision and recall of the pairs of texts that share a factor."""
    meant = {normalise(text): group for group, texts in groups.items() for text in texts}
    right = together = expected = 0
    for first, second in itertools.combinations(sorted(meant), 2):
        same, wanted = id_of_text[first] == id_of_text[second], meant[first] == meant[second]
        right, together, expected = right + (same and wanted), together + same, expected + wanted
    return right / together, right / expected


def test_there_are_thirty_groups_and_none_was_used_for_development():
    assert len(TEST) == len(DEVELOPMENT) == 30
    assert not TEST.keys() & DEVELOPMENT.keys()
    texts = [normalise(text) for group in TEST.values() for text in group]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & {normalise(text) for group in DEVELOPMENT.values() for text in group}
    assert min(map(len, TEST.values())) >= 5


def test_paraphrases_become_one_factor(remembered):
    texts = [text for group in TEST.values() for text in group]
    factors = abstract_factors(texts, remembered, BUNDLED_MINILM, DEFAULT_THRESHOLD)
    precision, recall = pair_figures(TEST, factors.id_of_text)
    assert precision >= 0.9
    assert recall >= 0.9


def test_the_measure_tells_bad_factors():
    """The test above would not pass with a factor for each text, nor with one for all."""
    texts = [normalise(text) for group in TEST.values() for text in group]
    precision, _ = pair_figures(TEST, dict.fromkeys(texts, "one"))
    assert precision < 0.05
    halves = {text: f"{number % 2} {group}" for group, own in TEST.items() for number, text in
              enumerate(map(normalise, own))}  # fmt: skip
    assert pair_figures(TEST, halves)[1] < 0.5


def test_factors_are_the_same_for_every_order(remembered):
    texts = [text for group in TEST.values() for text in group] * 2
    expected = abstract_factors(texts, remembered, BUNDLED_MINILM, DEFAULT_THRESHOLD)
    rng = random.Random(0)
    for _ in range(100):
        rng.shuffle(texts)
        assert abstract_factors(texts, remembered, BUNDLED_MINILM, DEFAULT_THRESHOLD) == expected


def test_the_phrases_of_the_demonstration_become_its_damages(encode):
    factors = abstract_factors([text for texts in PHRASES.values() for text in texts], encode, BUNDLED_MINILM, 0.625)
    assert {factors.id_of_text[text] for text in PHRASES["blur"]} == {"blurry_image"}
    assert len(factors.ids) == len(set(PHRASES.values()))


def test_every_pair_of_a_group_is_linked():
    """ab and bc are alike, and bc and cd; ab and cd are not, so the chain is cut."""
    groups = [texts for _, texts in cluster_texts(["bc", "ab", "cd"], by_letters, 0.4)]
    assert sorted(groups) == [["ab", "bc"], ["cd"]]


def test_cosines_at_the_threshold_are_linked():
    cosine = float((by_letters(["ab"]) @ by_letters(["bc"]).T)[0, 0])
    assert len(cluster_texts(["ab", "bc"], by_letters, cosine - 1e-6)) == 1
    assert len(cluster_texts(["ab", "bc"], by_letters, cosine + 1e-6)) == 2


def test_the_name_is_the_middle_of_the_factor():
    [(name, texts)] = cluster_texts(["aab", "ab", "abb"], by_letters, 0.5)
    assert (name, texts) == ("ab", ["aab", "ab", "abb"])


def test_one_text_is_one_factor():
    assert abstract_factors(["Ab."], by_letters, "letters", 0.5).factors == (
        Factor(id="ab", name="ab", texts=("ab",)),
    )


def test_names_that_differ_in_signs_alone_have_different_ids():
    factors = abstract_factors(["a!", "a?", "a"], lambda texts: np.eye(8, dtype=np.float32)[: len(texts)], "e", 0.99)
    assert factors.ids == ["a", "a_2", "a_3"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("Too  Dark. ", "too dark"), ("ÜBERBELICHTET", "überbelichtet"), ("1.5 MB", "1.5 mb")],
)
def test_normalised_texts(text, found):
    assert normalise(text) == found


def test_ids_keep_letters_of_every_script():
    assert factor_id("überbelichtet / 过曝") == "überbelichtet_过曝"


class TestMapping:
    factors = FactorSet(
        encoder="letters",
        threshold=0.7,
        factors=(Factor(id="ab", name="ab", texts=("ab", "abb")), Factor(id="cd", name="cd", texts=("cd",))),
    )

    def test_known_texts_keep_their_factor(self):
        assert self.factors.map_texts(["AB.", "cd"], by_letters) == {"AB.": "ab", "cd": "cd"}

    def test_new_texts_go_to_the_nearest_factor(self):
        assert self.factors.map_texts(["aabb", "ccd"], by_letters) == {"aabb": "ab", "ccd": "cd"}

    def test_texts_that_are_near_none_have_none(self):
        assert self.factors.map_texts(["ef", "bc"], by_letters) == {"ef": None, "bc": None}

    def test_a_text_must_be_linked_to_every_text_of_the_factor(self):
        """aaab is near ab (0.89) but not near abb (0.71 at the threshold of 0.75)."""
        stricter = self.factors.model_copy(update={"threshold": 0.75})
        assert stricter.map_texts(["aaab"], by_letters) == {"aaab": None}
        assert self.factors.map_texts(["aaab"], by_letters) == {"aaab": "ab"}

    def test_unseen_paraphrases_of_a_factor_find_it(self, encode):
        found = abstract_factors([text for group in TEST.values() for text in group], encode, BUNDLED_MINILM, 0.625)
        new = ["blurry photo", "a watermark", "photo of a car", "stock market prices fell"]
        mapped = found.map_texts(new, encode)
        assert [mapped[text] is None for text in new] == [False, False, False, True]
        assert mapped["blurry photo"] == found.id_of_text["blurry image"]
        assert mapped["a watermark"] == found.id_of_text["has a watermark"]
        assert mapped["photo of a car"] == found.id_of_text["picture of a car"]


@pytest.mark.parametrize(
    ("ids", "texts", "message"),
    [(("a", "a"), ("x", "y"), "duplicate factor id 'a'"), (("a", "b"), ("x", "x"), "duplicate text 'x'")],
)
def test_no_duplicates(ids, texts, message):
    rows = [{"id": factor, "name": text, "texts": [text]} for factor, text in zip(ids, texts, strict=True)]
    with pytest.raises(ValueError, match=message):
        FactorSet.model_validate({"encoder": "e", "threshold": 0.5, "factors": rows})
