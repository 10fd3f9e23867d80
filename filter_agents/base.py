"""What every filtering agent is: a name, a description for the model that chooses, and a rule for what to keep."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from data.reports.aspects import Aspect, healthy_bounds, resolution_limit
from data.reports.measurements import Bounds, Measurement, pool_measurements
from data.reports.pool import Item, ItemId, load_pool
from filter_agents.grammar import Limits, parse_bounds


@dataclass(frozen=True)
class Instruction:
    """What a prompt came to mean.

    Attributes:
        parameters: hashable; together with the agent and the data set it decides what is kept.
        understood: False when the prompt could not be read and the agent's default was taken.
    """

    parameters: tuple
    understood: bool


class FilterAgent(ABC):
    """Keeps some ids of a pool. Subclasses set `name` and `description` and define `read_prompt` and `keep`."""

    name: ClassVar[str]
    description: ClassVar[str]
    """One line, shown to the model that selects agents."""

    def check_there(self) -> None:  # noqa: B027  not abstract: most agents need nothing
        """Looks, before data is read, for what the agent asks elsewhere; most ask nobody.

        Raises:
            UserError: it is not there.
        """

    @abstractmethod
    def read_prompt(self, prompt: str) -> Instruction:
        """What the prompt says, or the agent's default if it cannot be read."""

    @abstractmethod
    def keep(self, pool_folder: str, parameters: tuple) -> list[ItemId]:
        """Ids that remain, in the pool's order.

        Args:
            pool_folder: see `data.reports.pool.load_pool`.
            parameters: of the `Instruction`.
        """


class BoundsAgent(FilterAgent):
    """Keeps the items whose quantities lie within bounds; a quantity that the prompt does not bound is ignored.

    Items that have no such quantity (no question, no answers) are not judged, and stay.

    Subclasses name an aspect and the values that its quantities can have. Default: the healthy bounds of all of them
    (`data.reports.measurements.HEALTHY`).
    """

    aspect: ClassVar[Aspect]
    limits: ClassVar[tuple[Limits, ...]]

    def read_prompt(self, prompt: str) -> Instruction:
        bounds = parse_bounds(prompt, dict(zip(self.aspect.quantities, self.limits, strict=True)))
        return Instruction(() if bounds is None else tuple(sorted(bounds.items())), bounds is not None)

    def keep(self, pool_folder: str, parameters: tuple) -> list[ItemId]:
        measurements = pool_measurements(pool_folder)
        bounds: dict[str, Bounds] = dict(parameters)
        if not bounds:
            bounds = healthy_bounds(self.aspect, resolution_limit(measurements))
        return [row.id for row in measurements if row.lies_within(bounds)]


class CopiesAgent(FilterAgent):
    """Drops all but the best of items that are copies of one another; subclasses say what a copy is.

    Runs after the agents that judge each item by itself, on what they keep: a copy of an item that is dropped is none.
    """

    @abstractmethod
    def copies(self, items: list[Item], measurements: list[Measurement], parameters: tuple) -> list[ItemId]:
        """Ids of those that are dropped, of some items of a pool."""

    def keep_among(self, pool_folder: str, parameters: tuple, remaining: Collection[ItemId]) -> list[ItemId]:
        """Ids that remain of those that other agents keep, in the pool's order."""
        measured = zip(load_pool(pool_folder).items, pool_measurements(pool_folder), strict=True)
        pairs = [(item, row) for item, row in measured if item.id in remaining]
        items = [item for item, _ in pairs]
        dropped = set(self.copies(items, [row for _, row in pairs], parameters))
        return [item.id for item in items if item.id not in dropped]

    def keep(self, pool_folder: str, parameters: tuple) -> list[ItemId]:
        return self.keep_among(pool_folder, parameters, set(load_pool(pool_folder).ids))
