"""Attention over a packed sequence (models/shared_prefix/layout.py): each continuation sees its own segment's
beginning, and itself.

For `sdpa`, the mask is an object that takes the call over (as PyTorch's own `CausalBias` does) and makes two ordinary
calls of it: the beginning on itself, causal, and the continuations, one a row, on beginning and themselves, with one
mask for all of them. So nothing of the size (tokens x tokens) exists, and no work is done that masks would throw away.
`eager` gets a table of numbers to add.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.shared_prefix.layout import PrefixLayout, Segment

IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention implementations that can keep the continuations of a segment apart: flash_attention_2 takes no such mask,
and transformers offers flex_attention for few vision-language models."""


class PrefixMask(torch.Tensor):
    """Stands for the mask of a packed sequence in a call of `scaled_dot_product_attention`. It has the four dimensions
    of a finished mask, which transformers' mask functions hand on as they are.

    Args:
        layout: in one line.
    """

    @staticmethod
    def __new__(cls, layout: PrefixLayout, device: torch.device):
        return torch.Tensor._make_subclass(cls, torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device))

    def __init__(self, layout: PrefixLayout, device: torch.device):
        self.parts = [SegmentRows(segment, device) for segment in layout.segments]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs or {})


class SegmentRows:
    """A segment, with what its continuations need to be written below each other as (rows, longest one) and back."""

    def __init__(self, segment: Segment, device: torch.device):
        self.segment = segment
        self.continuations = [size for size in segment.continuations if size]
        self.longest = max(self.continuations, default=0)
        self.even = len(set(self.continuations)) <= 1
        self.mask = _lower_right(self.longest, segment.prefix + self.longest, device)
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
            outputs.append(F.scaled_dot_product_attention(*whole, is_causal=True, **options))
            continue
        if part.segment.prefix:
            outputs.append(F.scaled_dot_product_attention(*prefix, is_causal=True, **options))
        if part.continuations:
            outputs.append(_attend_continuations(part, prefix, continuations, options))
    return torch.cat(outputs, dim=2)


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


def _line_and_rest_numbers(layout: PrefixLayout) -> np.ndarray:
    """(lines, width): 0 for the beginning of a segment, n for its n-th continuation, -1 for padding."""
    numbers = np.full(layout.shape[0] * layout.shape[1], -1)
    for segment in layout.segments:
        after = segment.start + segment.prefix
        numbers[segment.start : after] = 0
        for number, size in enumerate(segment.continuations, start=1):
            numbers[after : after + size] = number
            after += size
    return numbers.reshape(layout.shape)


def additive_mask(layout: PrefixLayout, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(lines, 1, width, width): 0 where a token sees another, the lowest number of the type elsewhere.

    Args:
        layout: a line for each segment.
    """
    numbers = torch.from_numpy(_line_and_rest_numbers(layout)).to(device)
    width = layout.shape[1]
    alike = (numbers.unsqueeze(1) == 0) | (numbers.unsqueeze(1) == numbers.unsqueeze(2))  # (lines, query, key)
    seen = alike & torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


def mask_for(layout: PrefixLayout, implementation: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The attention mask of a packed sequence for an attention implementation.

    Raises:
        ValueError: an implementation that cannot keep the continuations of a segment apart.
    """
    if implementation == "sdpa":
        return PrefixMask(layout, device)
    if implementation == "eager":
        return additive_mask(layout, dtype, device)
    raise ValueError(f"attn_implementation: expected one of {', '.join(IMPLEMENTATIONS)}, found {implementation!r}")
