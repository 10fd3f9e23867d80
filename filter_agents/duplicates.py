"""Agents that drop copies. Of exact copies the first in the data set's order stays, of look-alikes the best."""

from data.reports.measurements import HEALTHY, Measurement, exact_copies, near_copies
from data.reports.pool import Item, ItemId
from filter_agents.base import CopiesAgent, Instruction
from filter_agents.grammar import parse_bounds

_COPY_WORDS = ("cop", "duplicate", "identical", "repeat", "distinct", "unique", "alike")


def _speaks_of_copies(prompt: str) -> bool:
    lowered = prompt.lower()
    return any(word in lowered for word in _COPY_WORDS)


class ExactDuplicateFilter(CopiesAgent):
    """Same pixels, same question, same answers. Without parameters: any prompt that speaks of copies is understood."""

    name = "exact_duplicate_filter"
    description = "removes verbatim duplicates"

    def read_prompt(self, prompt: str) -> Instruction:
        return Instruction((), _speaks_of_copies(prompt))

    def copies(self, items: list[Item], measurements: list[Measurement], parameters: tuple) -> list[ItemId]:
        return exact_copies(items, measurements)


class NearDuplicateFilter(CopiesAgent):
    """Perceptual hashes that differ in at most `distance` of their bits, 0 to 1, and the same question.

    The one with the highest resolution stays, of equal ones the sharpest.

    Default: 0.1, also for a prompt that speaks of copies and names no number.
    """

    name = "near_duplicate_filter"
    description = "removes look-alikes"

    def read_prompt(self, prompt: str) -> Instruction:
        bounds = parse_bounds(prompt, {"distance": (0, 1)})
        distance = None if bounds is None else bounds["distance"].maximum
        if (
            distance is None and bounds is not None
        ):  # "drop copies with a distance below 0.2": what is dropped is bounded
            distance = bounds["distance"].minimum
        if distance is None:
            return Instruction((HEALTHY["distance"].maximum,), _speaks_of_copies(prompt))
        return Instruction((distance,), True)

    def copies(self, items: list[Item], measurements: list[Measurement], parameters: tuple) -> list[ItemId]:
        return near_copies(items, measurements, *parameters)
