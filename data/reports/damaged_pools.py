"""Pools whose flaws are known: healthy images drawn from a source, a known share of them damaged in known ways.

An undamaged item is unremarkable in every aspect, and a damaged one stands out in the aspect of its damage alone, so
the agents for the damages, with the healthy bounds as their prompts, keep exactly the undamaged items.
"""

import functools
import random
from dataclasses import dataclass

from data.errors import UserError
from data.io.image_sources import SourceItem
from data.io.images import open_image
from data.reports.aspects import Aspect, aspects_of, remarkable_ids, stands_out
from data.reports.damage import DAMAGES, Damage, Draft
from data.reports.measurements import HEALTHY_RESOLUTION, Measurement, measure_file, measure_image, measure_items
from data.reports.pool import Item

ATTEMPTS = 200
"""How often another image or another strength is tried for one place in a pool."""
SHARE_DAMAGED = (0.2, 0.6)
"""Smallest and largest share of a pool that is damaged, all damages together."""


class DamageError(UserError, ValueError):
    """The source's images do not allow the damage that was asked for."""


@dataclass(frozen=True)
class Measured:
    """A draft with the figures of its picture."""

    draft: Draft
    figures: dict


@dataclass
class DamagedPool:
    """What was drawn: the items in their order, and which of them were damaged how."""

    members: list[Measured]
    damage_of: dict[int, str]  # position -> name of the damage


_figures_of_path = functools.lru_cache(maxsize=8192)(measure_file)


def _measure_source(source: SourceItem) -> Measured:
    image = open_image(source.image)
    figures = _figures_of_path(source.image) if isinstance(source.image, str) else measure_image(image)
    return Measured(Draft(image, source.question, source.answers), figures)


def _outstanding(member: Measured, aspects: tuple[Aspect, ...], side_limit: float) -> set[Aspect]:
    item = Item(id=0, image="", question=member.draft.question, answers=member.draft.answers)
    row = measure_items([item], [member.figures])[0]
    return {aspect for aspect in aspects if stands_out(aspect, row, side_limit)}


def as_items(members: list[Measured]) -> tuple[list[Item], list[Measurement]]:
    """Items numbered by position, without image paths, and their measurements."""
    items = [
        Item(id=position, image="", question=member.draft.question, answers=member.draft.answers)
        for position, member in enumerate(members)
    ]
    return items, measure_items(items, [member.figures for member in members])


class PoolDrawer:
    """Draws damaged pools from a source's items.

    Args:
        sources: the items to draw from.
        pool_size: items in a pool.
        agents: names of the agents whose damages may be used.
        damages: smallest and largest number of damages in a pool.
    """

    def __init__(self, sources: list[SourceItem], pool_size: int, agents: tuple[str, ...], damages: tuple[int, int]):
        self.sources = sources
        self.pool_size = pool_size
        self.damages = damages
        has_texts = any(source.question for source in sources)
        self.aspects = aspects_of([Item(id=0, image="", question="?" if has_texts else "")])
        self.answers = sorted({answer for source in sources for answer in source.answers})
        self.by_agent: dict[str, list[str]] = {}
        for name, damage in DAMAGES.items():
            if damage.aspect.agent in agents and (len(self.answers) > 1 or not damage.needs_text):
                self.by_agent.setdefault(damage.aspect.agent, []).append(name)
        if not self.by_agent:
            raise DamageError(f"none of the agents {', '.join(agents)} has a damage that this source allows")

    def draw(self, rng: random.Random) -> DamagedPool:
        """One pool; the same `rng` state gives the same pool.

        Raises:
            DamageError: no image of the source fits, after many tries.
        """
        for _ in range(ATTEMPTS):
            pool = self._draw_once(rng)
            if self._is_as_planned(pool):
                return pool
        raise DamageError(
            f"no pool of {self.pool_size} items could be damaged as planned in {ATTEMPTS} attempts; this split of the "
            f"source has {len({str(source.image) for source in self.sources})} images, more may be needed"
        )

    def _draw_once(self, rng: random.Random) -> DamagedPool:
        plan = self._plan(rng)
        side_limit = self._typical_side(rng) * HEALTHY_RESOLUTION
        healthy: list[Measured] = []
        members: list[Measured] = []
        for position in range(self.pool_size):
            name = plan.get(position)
            if name is None:
                member = self._draw_member(rng, None, healthy, side_limit)
                healthy.append(member)
            else:
                member = self._draw_member(rng, DAMAGES[name], healthy, side_limit)
            members.append(member)
        return DamagedPool(members, plan)

    def _plan(self, rng: random.Random) -> dict[int, str]:
        """Which positions get which damage. The first place stays healthy: copies need an earlier original."""
        count = min(rng.randint(*self.damages), len(self.by_agent))
        names = [rng.choice(self.by_agent[agent]) for agent in rng.sample(sorted(self.by_agent), count)]
        most = min(self.pool_size - 1, round(SHARE_DAMAGED[1] * self.pool_size))
        least = max(count, round(SHARE_DAMAGED[0] * self.pool_size))
        victims = rng.sample(range(1, self.pool_size), min(most, rng.randint(least, max(least, most))))
        return {
            position: names[index] if index < count else rng.choice(names) for index, position in enumerate(victims)
        }

    def _typical_side(self, rng: random.Random) -> float:
        sides = sorted(_measure_source(rng.choice(self.sources)).figures["side"] for _ in range(5))
        return sides[2]

    def _draw_member(
        self, rng: random.Random, damage: Damage | None, healthy: list[Measured], side_limit: float
    ) -> Measured:
        for _ in range(ATTEMPTS):
            if damage is not None and damage.copies:
                member = rng.choice(healthy)
            else:
                member = _measure_source(rng.choice(self.sources))
                if _outstanding(member, self.aspects, side_limit):
                    continue
            if damage is None:
                return member
            draft = damage.apply(member.draft, rng, self.answers)
            same_picture = draft.image is member.draft.image
            damaged = Measured(draft, member.figures if same_picture else measure_image(draft.image))
            expected = set() if damage.copies else {damage.aspect}
            if _outstanding(damaged, self.aspects, side_limit) == expected:
                return damaged
        wish = f"damaged by {damage.apply.__name__.strip('_')}" if damage else "healthy"
        raise DamageError(f"no image of the source can be {wish} without standing out otherwise ({ATTEMPTS} tries)")

    def _is_as_planned(self, pool: DamagedPool) -> bool:
        """Whether each aspect's remarkable items, measured on the whole pool, are those damaged in that aspect."""
        items, measurements = as_items(pool.members)
        for aspect in self.aspects:
            planned = {position for position, name in pool.damage_of.items() if DAMAGES[name].aspect == aspect}
            if set(remarkable_ids(aspect, items, measurements)) != planned:
                return False
        return True
