"""Ways to roll completions out: `generate`, alone and with prompts read once, and the loop of models/decoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.engine import Engine

DRAFTED = 4


@dataclass(frozen=True)
class Way:
    """How rollouts are made.

    Attributes:
        shares: each prompt is read once for all its rows.
        stream: of random numbers in the loop; `None` is transformers' own loop.
        drafts: tokens.
    """

    name: str
    shares: bool = True
    stream: str | None = None
    drafts: int = 0

    def engine(self) -> Engine:
        """A new one, with nothing to draft from yet."""
        if self.stream is None:
            return Engine("false")
        return Engine("true", Decoding(self.stream, Drafting.of(self.drafts)))


WAYS = {
    way.name: way
    for way in (
        Way("generate", shares=False),
        Way("shared prefill"),
        Way("loop", stream="transformers"),
        Way("loop, drafts", stream="transformers", drafts=DRAFTED),
        Way("loop, own stream", stream="own"),
        Way("loop, own stream, drafts", stream="own", drafts=DRAFTED),
    )
}
BASE = "shared prefill"


def ratios(seconds: dict[str, list[float]], way: str) -> list[float]:
    """How many times as fast as the base it is, in each round."""
    return [base / own for base, own in zip(seconds[BASE], seconds[way], strict=True)]


def ratio_and_range(found: Sequence[float]) -> str:
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def count_as_expected(found: dict[str, list]) -> dict[str, int]:
    """How many completions of each way are as they must be: those of one stream of random numbers, by any way.

    Args:
        found: completions of all ways, in the order of `WAYS`.
    """
    expected: dict[str, list] = {}
    return {
        name: sum(
            one == other
            for one, other in zip(
                expected.setdefault(WAYS[name].stream or "transformers", completions), completions, strict=True
            )
        )
        for name, completions in found.items()
    }
