"""Drafts by look-up: what followed the same last tokens before, in this rollout, in earlier ones, or in the prompt.

A draft changes no token: the model samples at every place of it with the numbers that the place has anyway, and keeps
what it sampled while that equals the draft. So drafts cost a wider forward, and save as many as they were right.
"""

from collections import OrderedDict
from collections.abc import Sequence

ORDERS = (6, 3)
"""How many last tokens are looked up, most first."""
MOST_CONTEXTS = 200_000
"""Contexts that are kept, about 40 MB; those that were not met for longest leave."""


class DraftStore:
    """What followed which tokens.

    Args:
        orders: how many last tokens are looked up, most first.
        most: contexts that are kept.
    """

    def __init__(self, orders: Sequence[int] = ORDERS, most: int = MOST_CONTEXTS):
        self.orders, self.most = tuple(orders), most
        self._found: OrderedDict[tuple[int, ...], tuple[list[int], int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def note(self, sequence: list[int], start: int) -> None:
        """Tokens of a sequence from `start` on are new; the sequence may grow behind them later."""
        for place in range(start, len(sequence)):
            for order in self.orders:
                if place >= order:
                    context = tuple(sequence[place - order : place])
                    self._found[context] = (sequence, place)
                    self._found.move_to_end(context)
        while len(self._found) > self.most:
            self._found.popitem(last=False)

    def find(self, sequence: Sequence[int], most: int) -> list[int]:
        """What followed the last tokens of a sequence when they were met last; nothing if they never were."""
        for order in self.orders:
            found = self._found.get(tuple(sequence[-order:]))
            if found is not None:
                source, place = found
                return source[place : place + most]
        return []
