"""Attention over a packed sequence (models/shared_prefix/layout.py): each continuation sees its own segment's
beginning, and itself.

What a token sees of its own row is what came before it, or what a family's own table says (windows, images whose
tokens see each other): for each segment one of the row [beginning | longest continuation], which is cut into what the
beginning sees and what each continuation sees.

For `sdpa`, the mask is an object that takes the call over (as PyTorch's own `CausalBias` does) and makes two ordinary
calls of it: the beginning on itself, causal, and the continuations, one a row, on beginning and themselves, with one
mask for all of them. So nothing of the size (tokens x tokens) exists, and no work is done that masks would throw away.
`eager` gets a table of numbers to add.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.shared_prefix.layout import PrefixLayout, Segment

IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention implementations that can keep the continuations of a segment apart: flash_attention_2 takes no such mask,
and transformers offers flex_attention for few vision-language models."""

Table = torch.Tensor | None
"""Bool (tokens, tokens), what each token of the row [beginning | longest continuation] sees; `None` for all before it.
"""


class FinishedMask(torch.Tensor):
    """Stands for a mask. It has the four dimensions of a finished one, which transformers' mask functions hand on as
    they are."""

    @classmethod
    def on(cls, device: torch.device) -> "FinishedMask":
        return torch.Tensor._make_subclass(cls, torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device))

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__ and _takes_all(args[1]):
            return args[0]  # before layers that reuse keys, Gemma 4 cuts off the queries that it does not need
        return super().__torch_function__(function, types, args, kwargs or {})


class PrefixMask(FinishedMask):
    """Stands for the mask of a packed sequence in a call of `scaled_dot_product_attention`.

    Args:
        layout: in one line.
        tables: of each segment; none are causal.
    """

    @staticmethod
    def __new__(cls, layout: PrefixLayout, device: torch.device, tables: Sequence[Table] = ()):
        return cls.on(device)

    def __init__(self, layout: PrefixLayout, device: torch.device, tables: Sequence[Table] = ()):
        self.parts = [
            SegmentRows(segment, device, table)
            for segment, table in zip(layout.segments, tables or [None] * len(layout.segments), strict=True)
        ]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs or {})


def _takes_all(index: Any) -> bool:
    """Whether an index leaves out nothing, whatever the size."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is ... or part in (slice(None), slice(0, None)) for part in parts)


class SegmentRows:
    """A segment, with what its continuations need to be written below each other as (rows, longest one) and back.

    Attributes:
        whole: what a row sees that is the only one; `None` if what came before.
        beginning: what the beginning sees; `None` if what came before.
        mask: (longest, prefix + longest), what the continuations see.
    """

    def __init__(self, segment: Segment, device: torch.device, table: Table = None):
        self.segment = segment
        self.continuations = [size for size in segment.continuations if size]
        self.longest = max(self.continuations, default=0)
        self.even = len(set(self.continuations)) <= 1
        self.whole = self.beginning = table
        if table is None:
            self.mask = _lower_right(self.longest, segment.prefix + self.longest, device)
        else:
            self.beginning, self.mask = table[: segment.prefix, : segment.prefix], table[segment.prefix :]
        if not self.even:
            sizes = np.array(self.continuations)
            real = np.arange(self.longest) < sizes[:, None]
            first = np.cumsum(sizes) - sizes
            spread = np.where(real, first[:, None] + np.arange(self.longest), 0)
            self.spread = torch.from_numpy(spread.ravel()).to(device)
            self.gather = torch.from_numpy(np.flatnonzero(real)).to(device)

    def below_each_other(self, states: torch.Tensor) -> torch.Tensor:
        """(1, H, continuations, D) -> (rows, H, longest, D); where one is shorter stands any of the states."""
        if not self.even:
            states = states.index_select(2, self.spread)
        heads, width = states.shape[1], states.shape[3]
        return states.view(heads, len(self.continuations), self.longest, width).transpose(0, 1)

    def in_line(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, H, longest, D) -> (1, H, continuations, D)."""
        states = states.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        return states if self.even else states.index_select(2, self.gather)


def _lower_right(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """(queries, keys): query i sees all keys but the last `queries - 1 - i`.

    On a GPU too: PyTorch's `causal_lower_right` needs no table, and its update was slower (benchmarks/RESULTS.md).
    """
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: PrefixMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` of a packed sequence, (1, H, tokens, D) each."""
    if torch.is_autocast_enabled(query.device.type):  # some kernels below are none that autocast knows
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (states.to(dtype) for states in (query, key, value))
    options = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": enable_gqa}
    sizes = [size for part in attn_mask.parts for size in (part.segment.prefix, sum(part.continuations))]
    pieces = zip(*(states.split(sizes, dim=2) for states in (query, key, value)), strict=True)
    outputs = []
    for part in attn_mask.parts:
        prefix, continuations = next(pieces), next(pieces)
        if len(part.continuations) == 1:  # beginning and continuation are one row
            whole = [torch.cat(pair, dim=2) for pair in zip(prefix, continuations, strict=True)]
            outputs.append(_attend_rows(*whole, part.whole, options))
            continue
        if part.segment.prefix:
            outputs.append(_attend_rows(*prefix, part.beginning, options))
        if part.continuations:
            outputs.append(_attend_continuations(part, prefix, continuations, options))
    return torch.cat(outputs, dim=2)


def _attend_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: Table, options: dict[str, Any]
) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=table, is_causal=table is None, **options)


def _attend_continuations(
    part: SegmentRows, prefix: tuple, continuations: tuple, options: dict[str, Any]
) -> torch.Tensor:
    """What the continuations of a segment see: (1, H, continuations, D). A shorter one's padding is behind all that it
    may see."""
    count = len(part.continuations)
    query, *own = (part.below_each_other(states) for states in continuations)
    keys, values = (
        torch.cat([shared.expand(count, -1, -1, -1), states], dim=2)
        for shared, states in zip(prefix[1:], own, strict=True)
    )
    return part.in_line(F.scaled_dot_product_attention(query, keys, values, attn_mask=part.mask, **options))


def _seen_in_segment(segment: Segment, table: torch.Tensor) -> torch.Tensor:
    """(length, length): what each token of a segment sees, by the table of [beginning | longest continuation]."""
    prefix = segment.prefix
    seen = torch.zeros(segment.length, segment.length, dtype=torch.bool, device=table.device)
    seen[:prefix, :prefix] = table[:prefix, :prefix]
    after = prefix
    for size in segment.continuations:
        own = slice(after, after + size)
        seen[own, :prefix] = table[prefix : prefix + size, :prefix]
        seen[own, own] = table[prefix : prefix + size, prefix : prefix + size]
        after += size
    return seen


def additive_mask(
    layout: PrefixLayout, dtype: torch.dtype, device: torch.device, tables: Sequence[Table] = ()
) -> torch.Tensor:
    """(lines, 1, width, width): 0 where a token sees another, the lowest number of the type elsewhere.

    Args:
        layout: a line for each segment.
        tables: of each segment; none are causal.
    """
    lines, width = layout.shape
    seen = torch.zeros(lines, width, width, dtype=torch.bool, device=device)
    for segment, table in zip(layout.segments, tables or [None] * len(layout.segments), strict=True):
        line, start = divmod(segment.start, width)
        own = slice(start, start + segment.length)
        longest = segment.prefix + max(segment.continuations)
        seen[line, own, own] = _seen_in_segment(
            segment, _lower_right(longest, longest, device) if table is None else table
        )
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


def mask_for(
    layout: PrefixLayout,
    implementation: str,
    dtype: torch.dtype,
    device: torch.device,
    tables: Sequence[Table] = (),
) -> Any:
    """The attention mask of a packed sequence for an attention implementation.

    Args:
        tables: of each segment; none are causal.

    Raises:
        ValueError: an implementation that cannot keep the continuations of a segment apart.
    """
    if implementation == "sdpa":
        return PrefixMask(layout, device, tables)
    if implementation == "eager":
        return additive_mask(layout, dtype, device, tables)
    raise ValueError(f"attn_implementation: expected one of {', '.join(IMPLEMENTATIONS)}, found {implementation!r}")
