"""What stand-ins for judges say: truths by which a test can tell every verdict beforehand."""

import re
from collections.abc import Callable
from typing import Any

_RESPONSES = re.compile(r"<response(?:_[ab])?>(.*?)</response(?:_[ab])?>", re.DOTALL)


def responses_in(body: dict[str, Any]) -> list[str]:
    """The responses that a question to a judge shows, A first."""
    return _RESPONSES.findall(body["messages"][-1]["content"][-1]["text"])


def prefers(merit: Callable[[str], float]) -> Callable[[dict[str, Any]], list[str]]:
    """Answers of a pairwise judge: the verdict for the response of more merit, A where both have as much."""

    def answer(body: dict[str, Any]) -> list[str]:
        first, second = map(merit, responses_in(body))
        return [f"So be it. <verdict>{'A' if first >= second else 'B'}</verdict>"] * body["n"]

    return answer
