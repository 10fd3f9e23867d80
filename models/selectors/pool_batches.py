"""Pools of examples in a batch of queries: which rows of a table each query may choose, and products with them."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

DENSE_LIMIT = 16
"""Up to this many examples in a shared table per candidate in a pool, products with the whole table and picking from
them are quicker than copying each pool's rows out of it (measured with 64 and 1,000 candidates, one thread)."""


@dataclass
class Pools:
    """The pools of a batch, as rows of the table of examples.

    Attributes:
        rows: (B, K), 0 where there is none.
        valid: (B, K), False where there is none.
    """

    rows: torch.Tensor
    valid: torch.Tensor

    @property
    def sizes(self) -> torch.Tensor:
        """(B,): how many examples each query can choose from."""
        return self.valid.sum(-1)


def read_pools(pools: torch.Tensor, examples: int) -> Pools:
    """Checks (B, K) rows of a table with `examples` rows; -1 is padding, anywhere.

    Raises:
        ValueError: a row that the table does not have, a pool with an example twice, or an empty pool.
    """
    if pools.dim() != 2 or pools.is_floating_point():
        raise ValueError(
            f"pools: expected whole numbers (queries, candidates), found {pools.dtype} {tuple(pools.shape)}"
        )
    valid = pools >= 0
    ordered = pools.sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    outside = (pools < -1) | (pools >= examples)
    if bool(twice.any() | outside.any() | ~valid.any(-1).all()):
        _explain_pools(pools, examples)
    return Pools(pools.clamp(min=0), valid)


def _explain_pools(pools: torch.Tensor, examples: int) -> None:
    for query, pool in enumerate(pools.tolist()):
        rows = [row for row in pool if row != -1]
        if not rows:
            raise ValueError(f"pools: query {query} has no candidates")
        for row in rows:
            if not 0 <= row < examples:
                raise ValueError(f"pools: query {query}: expected rows 0 to {examples - 1} or -1, found {row}")
            if rows.count(row) > 1:
                raise ValueError(f"pools: query {query} has example {row} twice")


class PoolTable:
    """Products between rows of each query and the examples of its pool.

    Args:
        values: (U, hidden), one row per example.
    """

    def __init__(self, values: torch.Tensor, pools: Pools):
        self.values, self.rows = values, pools.rows
        shared = 2 * len(values) <= self.rows.numel()
        self.dense = shared and len(values) <= DENSE_LIMIT * self.rows.shape[1]

    @cached_property
    def own(self) -> torch.Tensor:
        """(B, K, hidden): the rows of each pool, copied."""
        return F.embedding(self.rows, self.values)

    def dot(self, left: torch.Tensor) -> torch.Tensor:
        """(B, G, hidden) -> (B, G, K)."""
        if not self.dense:
            return left @ self.own.transpose(1, 2)
        everything = left @ self.values.T  # (B, G, U)
        return everything.gather(2, self.rows.unsqueeze(1).expand(-1, left.shape[1], -1))

    def mix(self, weights: torch.Tensor) -> torch.Tensor:
        """(B, G, K) -> (B, G, hidden), sums of examples with these weights."""
        if not self.dense:
            return weights @ self.own
        everything = weights.new_zeros(*weights.shape[:2], len(self.values))
        index = self.rows.unsqueeze(1).expand_as(weights)
        return everything.scatter_add(2, index, weights) @ self.values
