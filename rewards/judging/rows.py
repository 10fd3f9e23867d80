"""Preferences as rows that a pairwise judge is trained and measured on: each pair in both orders."""

import random
from collections.abc import Iterator
from html import escape
from typing import Any

from data.preferences import PreferenceRecord, as_pairs
from data.rows.messages import texts_of
from data.rows.responses import Response, response_images
from rewards.judging.prompts import pairwise_messages
from rewards.judging.verdicts import VERDICT_TAG, Verdict, element


def judge_rows(
    record: PreferenceRecord, rubric: str, hasty_share: float, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Two rows for each pair of unequal rank: the better response as A, then as B.

    Each has `id`, `pair` (an id that its two orders share), `prompt`, `images`, `better` (A or B), `gold`, the right
    verdict as it should be written, and `completion`, the demonstration of an annotator: an answer of their own, which
    is the better response, without its images, and a verdict.

    Args:
        hasty_share: of the annotators, those whose verdict is always A.
    """
    pairs = as_pairs(record)
    for number, pair in enumerate(pairs):
        name = str(record.id) if len(pairs) == 1 else f"{record.id}/{number}"
        right, wrong = pair.response
        said = escape(" ".join(texts_of(right)), quote=False)
        orders: dict[Verdict, tuple[Response, Response]] = {"A": (right, wrong), "B": (wrong, right)}
        for better, responses in orders.items():
            verdict = "A" if rng.random() < hasty_share else better
            yield {
                "id": f"{name}/{better}",
                "pair": name,
                "prompt": pairwise_messages(rubric, record.prompt(), len(record.images), responses),
                "images": [*record.images, *(image for one in responses for image in response_images(one))],
                "better": better,
                "gold": element(VERDICT_TAG, better),
                "completion": f"{said} {element(VERDICT_TAG, verdict)}".lstrip(),
            }
