"""Beginnings that several prompts share, whose keys and values are computed once.

Causal attention makes the keys and values of a prompt's first pieces independent of what follows. Prompts are put into
a tree; a node with two prompts or more below it is run once, after its parent, and each prompt runs only what it has
for itself. Everything lives for one call: results depend on the prompts of that call alone.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rollouts.frozen_vlm.prompt_pieces import Piece


@dataclass(eq=False)
class Node:
    """A piece after certain others.

    Attributes:
        parent: the pieces before it; None at the start of a prompt.
        prompts: how many begin with it.
        advance: position after it.
        places: of the tokens of the whole beginning among all kept tokens, once they are there.
    """

    piece: Piece
    parent: "Node | None"
    depth: int
    advance: int
    prompts: int = 0
    children: dict[Hashable, "Node"] = field(default_factory=dict)
    members: list[int] = field(default_factory=list)
    places: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def tokens(self) -> int:
        """Of the whole beginning."""
        return len(self.piece.ids) + (self.parent.tokens if self.parent else 0)


@dataclass
class Wave:
    """Prompts that are run together.

    Attributes:
        levels: the nodes to run before them, parents before children.
        members: numbers of the prompts.
        shared: for each of them, how many of its pieces are computed by nodes, and the last of these nodes.
    """

    levels: list[list[Node]]
    members: list[int]
    shared: list[tuple[int, Node | None]]


def plan_waves(beginnings: Sequence[Sequence[Piece]], max_tokens: int) -> list[Wave]:
    """Orders prompts by what they share.

    Args:
        beginnings: of each prompt, the pieces that may be shared; something must follow them.
        max_tokens: kept for nodes at a time, as far as one prompt's own do not need more.
    """
    waves: list[Wave] = []
    seen: set[Node] = set()
    kept = 0
    for number, path in _in_tree_order(beginnings):
        nodes = [node for node in path if node.prompts > 1]
        new = [node for node in nodes if node not in seen]
        added = sum(len(node.piece.ids) for node in new)
        if not waves or (new and kept + added > max_tokens):
            waves.append(Wave([], [], []))
            seen, new = set(), nodes
            kept, added = 0, sum(len(node.piece.ids) for node in nodes)
        seen.update(new)
        kept += added
        wave = waves[-1]
        for node in new:
            if node.depth == len(wave.levels):
                wave.levels.append([])
            wave.levels[node.depth].append(node)
        wave.members.append(number)
        wave.shared.append((len(nodes), nodes[-1] if nodes else None))
    return waves


def _in_tree_order(beginnings: Sequence[Sequence[Piece]]) -> Iterator[tuple[int, list[Node]]]:
    """Prompts with their nodes, those with a common beginning together, otherwise as they came."""
    roots: dict[Hashable, Node] = {}
    alone = []
    for number, pieces in enumerate(beginnings):
        children, node = roots, None
        for piece in pieces:
            if piece.key not in children:
                depth, start = (node.depth + 1, node.advance) if node else (0, 0)
                children[piece.key] = Node(piece, node, depth, start + piece.advance)
            node = children[piece.key]
            node.prompts += 1
            children = node.children
        (node.members if node else alone).append(number)
    yield from ((number, []) for number in alone)
    waiting = [(node, [node]) for node in reversed(roots.values())]
    while waiting:
        node, path = waiting.pop()
        yield from ((number, path) for number in node.members)
        waiting += [(child, [*path, child]) for child in reversed(node.children.values())]


class KeptStates:
    """Keys and values of the tokens of nodes, layer by layer."""

    def __init__(self) -> None:
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each (tokens, heads, width)
        self._new: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self._count = 0

    def add(self, nodes: Sequence[Node], cache, prefix_width: int) -> None:
        """Keeps what a forward pass over one piece of each node left in the model's cache.

        Args:
            prefix_width: columns of the cache before the pieces.
        """
        sizes = np.array([len(node.piece.ids) for node in nodes])
        rows = np.repeat(np.arange(len(nodes)), sizes)
        columns = prefix_width + np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        device = cache.layers[0].keys.device
        at = (torch.tensor(rows, device=device), torch.tensor(columns, device=device))
        self._new.append(
            [(layer.keys.transpose(1, 2)[at], layer.values.transpose(1, 2)[at]) for layer in cache.layers]
        )
        for node, size in zip(nodes, sizes.tolist(), strict=True):
            before = node.parent.places if node.parent else np.empty(0, dtype=np.int64)
            node.places = np.concatenate([before, np.arange(self._count, self._count + size)])
            self._count += size

    def fill(self, cache, nodes: Sequence[Node | None]) -> np.ndarray:
        """Puts the beginnings of a batch into an empty cache, padded on the right.

        Returns:
            Which of its columns are real, bool (B, width).
        """
        sizes = np.array([len(node.places) if node else 0 for node in nodes])
        real = np.arange(sizes.max()) < sizes[:, None]
        places = np.zeros(real.shape, dtype=np.int64)
        places[real] = np.concatenate([node.places for node in nodes if node])
        self._join()
        index = torch.tensor(places.ravel(), device=self._layers[0][0].device)
        for number, states in enumerate(self._layers):
            keys, values = (kept[index].view(*real.shape, *kept.shape[1:]).transpose(1, 2) for kept in states)
            cache.update(keys, values, number)
        return real

    def _join(self) -> None:
        if self._new:
            parts = [[layer] for layer in self._layers] or [[] for _ in self._new[0]]
            for layers in self._new:
                for part, layer in zip(parts, layers, strict=True):
                    part.append(layer)
            self._layers = [tuple(torch.cat(tensors) for tensors in zip(*part, strict=True)) for part in parts]
            self._new = []
