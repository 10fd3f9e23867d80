"""Reading what a server answered to a request for completions; half an answer is none."""

import re
from dataclasses import dataclass
from typing import Any

from models.served.errors import Fault, ServerError

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # of a pair that was cut, which no file could hold
CUT_OFF = ("abort", "error")
"""Finish reasons of completions that the server did not write to their end."""


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
    indices = [choice.get("index", number) for number, choice in enumerate(choices)]
    if sorted(map(str, indices)) != sorted(map(str, range(count))):
        raise Fault(f"choices with the indices {indices} in place of 0 to {count - 1}")
    ordered = sorted(choices, key=lambda choice: int(choice.get("index", 0)))
    return [_completion(choice, with_tokens) for choice in ordered]


def _completion(choice: dict[str, Any], with_tokens: bool) -> Completion:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason in CUT_OFF:
        raise Fault(f"a completion that is not finished (finish_reason {reason!r})")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise Fault(f"a completion without a text (content {text!r:.80}, finish_reason {reason!r})")
    return Completion(_HALF_CHARACTER.sub("\ufffd", text), reason, _first_tokens(choice) if with_tokens else ())


def _first_tokens(choice: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    found = choice.get("logprobs")
    if found is None:
        raise ServerError("found a completion without log-probabilities; expected those of its first token (logprobs)")
    try:
        return tuple((str(one["token"]), float(one["logprob"])) for one in found["content"][0]["top_logprobs"])
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise Fault(f"log-probabilities of another form: {str(found)[:120]!r}") from error
