"""Free texts about what is wrong with images, or what is on them, abstracted into a fixed set of factors.

A text's vector is the mean of two, made by a frozen sentence encoder: of the text as it is, and of its words without
those that frame any factor ("the picture is ..."). Two texts are linked if the cosine of their vectors is at least the
threshold, and a factor is a group in which every text is linked to every other (complete linkage, by scikit-learn).
Texts are taken in sorted order, so the input's order changes nothing.

Threshold, linkage and the mean were chosen on the groups of paraphrases in `tests/helpers/paraphrases.py` that are
marked as those for development, and on the phrases of `data/easy_factors.py`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictStr, model_validator

from data.factor_labels.text_encoder import Encode
from data.rows.same_text import normalise_text

DEFAULT_THRESHOLD = 0.625
FRAME_WORDS = frozenset(
    "a an the is are it in of on at this there has contains shows looks taken very too visible image images picture "
    "pictures photo photos".split()
)
"""English words that say nothing about which factor is meant."""


class Factor(BaseModel):
    """One factor.

    Attributes:
        id: made of the name; the same for the same texts, whatever their order.
        name: the text that is nearest to all others of the factor.
        texts: all that mean this factor, normalised and sorted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: StrictStr = Field(min_length=1)
    name: StrictStr
    texts: tuple[StrictStr, ...] = Field(min_length=1)


class FactorSet(BaseModel):
    """The factors of a data set, in the order of their ids, and how texts are mapped to them.

    Attributes:
        encoder: name of the sentence encoder.
        threshold: smallest cosine of two texts that mean the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: StrictStr
    threshold: StrictFloat = Field(ge=-1, le=1)
    factors: tuple[Factor, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_duplicates(self) -> "FactorSet":
        for what, values in (("factor id", self.ids), ("text", [text for f in self.factors for text in f.texts])):
            twice = sorted(value for value, count in Counter(values).items() if count > 1)
            if twice:
                raise ValueError(f"duplicate {what} {twice[0]!r}")
        return self

    @property
    def ids(self) -> list[str]:
        return [factor.id for factor in self.factors]

    @property
    def names(self) -> dict[str, str]:
        """Id -> name."""
        return {factor.id: factor.name for factor in self.factors}

    @property
    def id_of_text(self) -> dict[str, str]:
        """Normalised text -> id."""
        return {text: factor.id for factor in self.factors for text in factor.texts}

    def map_texts(self, texts: Iterable[str], encode: Encode) -> dict[str, str | None]:
        """Each text's factor id, or `None` where no factor is near.

        A text that is not known yet belongs to a factor if it is linked to all of its texts; of several such factors,
        to the one with the highest mean cosine.
        """
        known = self.id_of_text
        wanted = {text: normalise(text) for text in texts}
        new = sorted(set(wanted.values()) - set(known))
        found: dict[str, str | None] = dict(known)
        if new:
            texts_of_factors = [text for factor in self.factors for text in factor.texts]
            cosines = text_vectors(new, encode) @ text_vectors(texts_of_factors, encode).T
            ends = np.cumsum([len(factor.texts) for factor in self.factors])[:-1]
            parts = np.split(cosines, ends, axis=1)
            linked = np.stack([part.min(axis=1) >= self.threshold for part in parts], axis=1)  # (new, factors)
            means = np.stack([part.mean(axis=1) for part in parts], axis=1)
            best = np.where(linked, means, -np.inf).argmax(axis=1)
            for text, number, near in zip(new, best, linked.any(axis=1), strict=True):
                found[text] = self.factors[number].id if near else None
        return {text: found[normalised] for text, normalised in wanted.items()}


def normalise(text: str) -> str:
    """The same text (`data.rows.same_text`) without a full stop at the end: what two annotators would call the same.

    >>> normalise("  Too  Dark. ")
    'too dark'
    """
    return normalise_text(text).rstrip(".。")


def factor_id(name: str) -> str:
    """Letters and digits of a name, joined by underscores.

    >>> factor_id("JPEG artefacts (strong)")
    'jpeg_artefacts_strong'
    """
    return "_".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def content_words(text: str) -> str:
    """A normalised text without what frames any factor; the text itself if nothing else is left.

    >>> content_words("the picture looks blurry")
    'blurry'
    """
    words = [word for word in text.replace("-", " ").split() if word not in FRAME_WORDS]
    return " ".join(words) or text


def text_vectors(texts: Sequence[str], encode: Encode) -> np.ndarray:
    """float64 (N, width), rows of length 1; see the module.

    Args:
        texts: normalised.
    """
    vectors = encode(texts).astype(np.float64) + encode([content_words(text) for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cluster_texts(texts: Iterable[str], encode: Encode, threshold: float) -> list[tuple[str, list[str]]]:
    """Groups of texts in which every pair has at least this cosine, each with the text nearest to its others.

    Memory grows with the square of the number of different texts: 10,000 of them take about 2 GB.

    Args:
        texts: normalised; the order does not matter.
    """
    from sklearn.cluster import AgglomerativeClustering

    ordered = sorted(set(texts))
    if len(ordered) == 1:
        return [(ordered[0], ordered)]
    vectors = text_vectors(ordered, encode)
    cosines = vectors @ vectors.T
    distances = np.clip(1 - (cosines + cosines.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    clustering = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="complete", distance_threshold=np.nextafter(1 - threshold, 3)
    )
    labels = clustering.fit_predict(distances)
    groups = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        total = distances[np.ix_(members, members)].sum(axis=1).round(4)  # equal ones must not differ by rounding
        ranked = sorted(zip(total, members, strict=True), key=lambda pair: (pair[0], ordered[pair[1]]))
        groups.append((ordered[ranked[0][1]], [ordered[member] for member in members]))
    return groups


def abstract_factors(texts: Iterable[str], encode: Encode, encoder: str, threshold: float) -> FactorSet:
    """The factors of texts.

    Args:
        encoder: name of what `encode` runs.
    """
    groups = dict(cluster_texts(map(normalise, texts), encode, threshold))
    ids: dict[str, str] = {}
    for name in sorted(groups):  # two names may differ in their signs alone
        base, number = factor_id(name) or "factor", 1
        while (candidate := base if number == 1 else f"{base}_{number}") in ids.values():
            number += 1
        ids[name] = candidate
    factors = [Factor(id=ids[name], name=name, texts=tuple(members)) for name, members in groups.items()]
    return FactorSet(
        encoder=encoder, threshold=float(threshold), factors=tuple(sorted(factors, key=lambda factor: factor.id))
    )
