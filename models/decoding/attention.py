"""Attention of new tokens: each row sees its prompt, whose keys and values stand once for all its rows, and itself.

Both parts are ordinary attention, each with the logarithm of its sum of exponentials, by which they are put together
again: softmax over all keys is the mean of the two, weighted by these sums.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from models.shared_prefix.attention import FinishedMask

NAME = "rollout"


@dataclass(frozen=True)
class Step:
    """The tokens that one forward computes: T of each of R rows, which belong to n prompts.

    Attributes:
        starts: (R,), how many own tokens each row has before these.
        at: the same of all rows, of which each has one token; `None` where they differ.
        width: own tokens of the longest row, with these.
        prompts: n, of which the rows are; each has up to `group` rows.
        grid: (n * group,), the row that stands at each place of the table of prompts by rows, any where there is
            none; `None` where rows stand in that order.
        back: (R,), the place of each row in it; `None` likewise.
        padding: (n, 1, 1, P), the lowest number where a prompt has padding, else 0; `None` without padding.
    """

    starts: torch.Tensor
    tokens: int
    at: int | None
    width: int
    prompts: int
    group: int
    grid: torch.Tensor | None
    back: torch.Tensor | None
    padding: torch.Tensor | None

    @property
    def rows(self) -> int:
        return len(self.starts)

    @property
    def places(self) -> torch.Tensor:
        """(R, T), the place of each token among the row's own."""
        return self.starts.unsqueeze(1) + torch.arange(self.tokens, device=self.starts.device)

    def by_prompt(self, rows: torch.Tensor) -> torch.Tensor:
        """(R, ...) -> (n, group, ...)."""
        rows = rows if self.grid is None else rows.index_select(0, self.grid)
        return rows.unflatten(0, (self.prompts, self.group))

    def by_row(self, table: torch.Tensor) -> torch.Tensor:
        """(n, group, ...) -> (R, ...)."""
        rows = table.flatten(0, 1)
        return rows if self.back is None else rows.index_select(0, self.back)


class StepMask(FinishedMask):
    """Stands for the mask of new tokens in layers that see all before them, or the last `window`.

    Args:
        prompt: tokens of a prompt, with its padding.
    """

    @staticmethod
    def __new__(cls, step: Step, prompt: int, window: int | None = None):
        return cls.on(step.starts.device)

    def __init__(self, step: Step, prompt: int, window: int | None = None):
        self.step = step
        self.prompt = prompt
        self.window = window if window is not None and prompt + step.width > window else None
        self.biases: dict[tuple, torch.Tensor | None] = {}  # they are the same in all layers

    def own_bias(self, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        """(R or 1, 1, repeats * T, width), to add to scores among own tokens; `None` where all are seen."""
        return self._once(("own", repeats, dtype), lambda: self._own(repeats, dtype))

    def prompt_bias(self, repeats: int, keys: int, dtype: torch.dtype) -> torch.Tensor | None:
        """(n, 1, 1 or group * repeats * T, keys), to add to scores of a prompt's last `keys` tokens."""
        return self._once(("prompt", repeats, keys, dtype), lambda: self._of_prompts(repeats, keys, dtype))

    def _once(self, name: tuple, make: Any) -> torch.Tensor | None:
        if name not in self.biases:
            self.biases[name] = make()
        return self.biases[name]

    def _own(self, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        step = self.step
        if step.at is not None and (self.window is None or step.width <= self.window):
            return None
        places = step.places.unsqueeze(-1)  # (R, T, 1)
        keys = torch.arange(step.width, device=places.device)
        seen = keys <= places
        if self.window is not None:
            seen &= places - keys < self.window
        return _to_add(seen, dtype).repeat(1, repeats, 1).unsqueeze(1)

    def _of_prompts(self, repeats: int, keys: int, dtype: torch.dtype) -> torch.Tensor | None:
        step = self.step
        padding = None if step.padding is None else step.padding[..., -keys:].to(dtype)
        if self.window is None:
            return padding
        distances = torch.arange(keys, 0, -1, device=step.starts.device)  # of the prompt's tokens to the first own one
        seen = step.by_prompt(step.places).unsqueeze(-1) + distances < self.window  # (n, group, T, keys)
        bias = _to_add(seen, dtype).repeat(1, 1, repeats, 1).flatten(1, 2).unsqueeze(1)
        return bias if padding is None else torch.maximum(bias + padding, bias.new_tensor(torch.finfo(dtype).min))


def _to_add(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def attention_with_sums(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (B, H, T, D), and (B, H, T), the logarithm of the sum of exponentials of its scores."""
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
    return attention_by_products(query, key, value, bias, scale)


def attention_by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same on any device."""
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale
    scores = scores if bias is None else scores + bias
    sums = scores.logsumexp(dim=-1)
    return torch.matmul((scores - sums.unsqueeze(-1)).exp().to(value.dtype), value), sums


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: StepMask,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What a layer's attention gives for new tokens: (R, T, H, D), in transformers' form.

    Args:
        query: (R, H, T, D).
        key, value: (R, heads of keys, width, D), the rows' own, from a cache layer (`models.decoding.cache`) which
            stands at `key.layer` and has those of the prompts.
    """
    rows, heads, tokens, size = query.shape
    scale = size**-0.5 if scaling is None else scaling
    step, repeats = attention_mask.step, heads // key.shape[1]
    # Heads that share keys stand as queries of one head.
    own = query.to(value.dtype).reshape(rows, key.shape[1], repeats * tokens, size)
    found, sums = attention_with_sums(own, key, value, attention_mask.own_bias(repeats, value.dtype), scale)
    prompt_keys, prompt_values = key.layer.of_prompts(step.prompts)
    bias = attention_mask.prompt_bias(repeats, prompt_keys.shape[2], value.dtype)
    queries = step.by_prompt(own).transpose(1, 2).flatten(2, 3)  # (n, heads of keys, group * repeats * T, D)
    seen, seen_sums = attention_with_sums(queries, prompt_keys, prompt_values, bias, scale)
    seen = step.by_row(seen.unflatten(2, (step.group, -1)).transpose(1, 2))
    seen_sums = step.by_row(seen_sums.unflatten(2, (step.group, -1)).transpose(1, 2))
    share = torch.sigmoid(seen_sums - sums).unsqueeze(-1).to(found.dtype)
    return torch.lerp(found, seen, share).view(rows, heads, tokens, size).transpose(1, 2), None


AttentionInterface.register(NAME, attend)


@contextmanager
def rollout_attention(config: Any) -> Iterator[None]:
    """Lets the language model with this configuration attend by `attend`."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
