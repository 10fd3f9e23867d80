"""Reading what a server answered to a request for completions; half an answer is none."""

import re
from dataclasses import dataclass
from typing import Any

from models.served.errors import Fault, ServerError

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # of a pair that was cut, which no file could hold
CUT_OFF = ("abort", "error", "content_filter", "tool_calls", "function_call")
"""Finish reasons of completions that the server did not write to their end, or of which it tells a part as text."""
ABOVE_CERTAIN = 1e-3
"""A log-probability is 0 at most; more than this above it is no rounding."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: without special tokens.
        finish_reason: "stop" at an end token, "length" at the largest number of tokens; or as the server calls it.
        first_tokens: the likeliest first tokens with their log-probabilities, where they were asked for.
    """

    text: str
    finish_reason: str
    first_tokens: tuple[tuple[str, float], ...] = ()

    @classmethod
    def read(cls, stored: dict[str, Any]) -> "Completion":
        """One that was stored as JSON."""
        tokens = tuple((token, value) for token, value in stored["first_tokens"])
        return cls(stored["text"], stored["finish_reason"], tokens)


def read_completions(answer: Any, count: int, with_tokens: bool = False) -> list[Completion]:
    """The completions of an answer, in their order.

    Args:
        count: how many were asked for.
        with_tokens: log-probabilities of the first token were asked for.

    Raises:
        Fault: anything but `count` whole completions.
        ServerError: a server without log-probabilities.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        raise Fault(f"no list of choices in {str(answer)[:120]!r}")
    if len(choices) != count:
        raise Fault(f"{len(choices)} completions in place of {count}")
    if not all(isinstance(choice, dict) for choice in choices):
        raise Fault("a choice that is no object")
    indices = [number if choice.get("index") is None else choice["index"] for number, choice in enumerate(choices)]
    if sorted(map(str, indices)) != sorted(map(str, range(count))):
        raise Fault(f"choices with the indices {indices} in place of 0 to {count - 1}")
    ordered = sorted(range(count), key=lambda number: int(indices[number]))
    return [_completion(choices[number], with_tokens) for number in ordered]


def tokens_used(answer: dict[str, Any]) -> dict[str, int]:
    """What a server says that an answer took, by kind; nothing where it says nothing.

    >>> tokens_used({"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}})
    {'prompt_tokens': 7, 'completion_tokens': 2}
    """
    usage = answer.get("usage")
    found = usage if isinstance(usage, dict) else {}
    return {kind: found[kind] for kind in ("prompt_tokens", "completion_tokens") if type(found.get(kind)) is int}


def _completion(choice: dict[str, Any], with_tokens: bool) -> Completion:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason in CUT_OFF:
        raise Fault(f"a completion that is not finished (finish_reason {reason!r})")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise Fault(f"a completion without a text (content {text!r:.80}, finish_reason {reason!r})")
    return Completion(_whole(text), _whole(reason), _first_tokens(choice) if with_tokens else ())


def _whole(text: str) -> str:
    return _HALF_CHARACTER.sub("\ufffd", text)


def _first_tokens(choice: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    found = choice.get("logprobs")
    if found is None:
        raise ServerError("found a completion without log-probabilities; expected those of its first token (logprobs)")
    try:
        tokens = tuple((_whole(one["token"]), float(one["logprob"])) for one in found["content"][0]["top_logprobs"])
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise Fault(f"log-probabilities of another form ({error!r})") from error
    for token, value in tokens:
        if not value <= ABOVE_CERTAIN:  # so is NaN
            raise Fault(f"{value} as log-probability of {token!r}")
    return tokens
