"""Numbers that an option of a command or a setting of a recipe may be."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, which belong to it unless it is open there; never NaN or infinity."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if self == FINITE:
            return "a finite number"
        if self.high == math.inf:
            return f"a number above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        low, high = ("above " if self.open_low else ""), ("below " if self.open_high else "")
        return f"a number from {low}{self.low:g} to {high}{self.high:g}"


FINITE = Range()
ABOVE_0, AT_LEAST_0, AT_LEAST_1 = Range(0, open_low=True), Range(0), Range(1)
SHARE, POSITIVE_SHARE, BELOW_1 = Range(0, 1), Range(0, 1, open_low=True), Range(0, 1, open_high=True)
