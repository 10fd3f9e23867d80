"""Drafts by look-up: what followed the same last tokens before, in this rollout, in earlier ones, or in the prompt.

A draft changes no token: the model samples at every place of it with the numbers that the place has anyway, and keeps
what it sampled while that equals the draft. So drafts cost a wider forward, and save as many as they were right.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch

ORDERS = (6, 3)
"""How many last tokens are looked up, most first."""
MOST_CONTEXTS = 200_000
"""Contexts that are kept, about 40 MB, and with each the whole sequence that it was met in last; those that were not
met for longest leave."""


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

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is kept, in whole numbers: `tokens` of all sequences behind each other, their `lengths`, and `contexts`
        (N, 3) in the order in which they were met: tokens of each, the sequence, and the place behind them.
        """
        numbers: dict[int, int] = {}
        sequences, contexts = [], []
        for context, (sequence, place) in self._found.items():
            if id(sequence) not in numbers:
                numbers[id(sequence)] = len(sequences)
                sequences.append(sequence)
            contexts.append((len(context), numbers[id(sequence)], place))
        return {
            "tokens": torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int32),
            "lengths": torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int32),
            "contexts": torch.tensor(contexts, dtype=torch.int32).view(-1, 3),
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keeps what `tensors` gave, and nothing else."""
        sequences = [part.tolist() for part in tensors["tokens"].split(tensors["lengths"].tolist())]
        self._found.clear()
        for size, number, place in tensors["contexts"].tolist():
            sequence = sequences[number]
            self._found[tuple(sequence[place - size : place])] = (sequence, place)
