"""What a VLM is asked with shown examples, what is read from its answers, and in which batches it is asked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from data.candidates.legacy_formats import CONSTRUCT_ORDERS
from data.vqa import VqaRecord

DEFAULT_BATCH_TOKENS = 8_192
_PROMPT_MARKS = re.compile(r"\n|Question:|Short answer:")


@dataclass(frozen=True, eq=False)
class InContextRequest:
    """A question for the VLM.

    Args:
        query: the record whose question is asked about its images.
        examples: records that are shown with their most common answer, in the order in which they are shown.
        answer: whose probability is asked for; not needed to generate.
    """

    query: VqaRecord
    examples: tuple[VqaRecord, ...] = ()
    answer: str | None = None


def shown_order(pointer: Sequence, construct_order: str) -> list:
    """Examples in the order in which they are shown.

    Args:
        pointer: examples (or their ids) in the order in which they were selected.
        construct_order: "left" puts each newly selected one before the earlier ones, "right" after them.

    >>> shown_order(["first", "second"], "left")
    ['second', 'first']
    """
    if construct_order not in CONSTRUCT_ORDERS:
        raise ValueError(f"construct order: expected one of {', '.join(CONSTRUCT_ORDERS)}, found {construct_order!r}")
    return list(reversed(pointer)) if construct_order == "left" else list(pointer)


def first_answer(text: str) -> str:
    """The answer in a generated text: what stands before a line break or before the prompt's own marks.

    Commas are kept: "red, white and blue" is one answer.

    >>> first_answer(" red, white and blue Question:what shape")
    'red, white and blue'
    """
    return _PROMPT_MARKS.split(text.strip(), maxsplit=1)[0].strip()


def text_to_score(request: InContextRequest) -> str:
    """The answer whose probability is asked for, without blanks around it.

    Raises:
        ValueError: there is none.
    """
    text = (request.answer or "").strip()
    if not text:
        raise ValueError(f"query {request.query.id!r}: expected an answer to score, found {request.answer!r}")
    return text


def token_batches(sizes: Sequence[tuple[int, int]], max_tokens: int) -> list[list[int]]:
    """Numbers of rows, longest first (so that memory runs out at once or never), under a budget of tokens.

    Args:
        sizes: of each row, tokens whose keys and values are there already, and tokens to run.
        max_tokens: of a batch, padding included. A longer row is a batch of its own.
    """
    batches: list[list[int]] = []
    there, here = 0, 0
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number][0], -sizes[number][1])):
        there, here = max(there, sizes[number][0]), max(here, sizes[number][1])
        if not batches or (len(batches[-1]) + 1) * (there + here) > max_tokens:
            batches.append([])
            there, here = sizes[number]
        batches[-1].append(number)
    return batches
