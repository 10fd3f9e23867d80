"""Linear attention over a packed sequence: each beginning once, and every continuation from the state at its end.

A layer of linear attention (Gated DeltaNet) has no mask that could keep continuations apart: it goes through a line
from left to right, with a state. So the layer's own forward runs over the beginning, and then over the continuations
below each other, each from the same state, through which gradients flow.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.shared_prefix.attention import SegmentRows
from models.shared_prefix.layout import PrefixLayout

CACHE = ("cache", "cache_params")
"""What a layer's forward calls its cache: the first since transformers 5.24."""


class Fork:
    """Stands for the mask of a packed sequence in a layer of linear attention.

    Args:
        layout: of the sequence.
    """

    def __init__(self, layout: PrefixLayout, device: torch.device):
        self.segments = [SegmentRows(segment, device) for segment in layout.segments]


class _State:
    """What a layer of linear attention asks of a cache, as tensors of the graph, in which nothing is overwritten."""

    def __init__(self, convolution: torch.Tensor | None = None, recurrent: torch.Tensor | None = None):
        self.convolution, self.recurrent = convolution, recurrent

    def get_conv_state(self, *_: Any, **__: Any) -> torch.Tensor | None:
        return self.convolution

    def get_recurrent_state(self, *_: Any, **__: Any) -> torch.Tensor | None:
        return self.recurrent

    def is_recording_past(self, *_: Any) -> bool:
        """Otherwise one token more would take the fused step, which writes into the state."""
        return True

    def update_conv_state(self, states: torch.Tensor, *_: Any, conv_kernel_size: int, **__: Any) -> torch.Tensor:
        whole = states if self.convolution is None else torch.cat([self.convolution, states], dim=-1)
        missing = max(0, conv_kernel_size - 1 - whole.shape[-1])  # a beginning shorter than the convolution
        self.convolution = F.pad(whole, (missing, 0))[..., 1 - conv_kernel_size :]
        return whole

    def update_recurrent_state(self, state: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.recurrent = state
        return state

    def of_rows(self, count: int) -> "_State":
        """The same state for so many rows."""
        return _State(*(state.expand(count, *state.shape[1:]) for state in (self.convolution, self.recurrent)))


def install_forks(combined: nn.Module) -> None:
    """Lets layers of linear attention take a `Fork` as their mask; with any other they do what they did."""
    for layer in combined.modules():
        if type(layer).__name__.endswith("GatedDeltaNet") and not hasattr(layer, "forward_of_rows"):
            layer.forward_of_rows = layer.forward
            layer.forward = MethodType(_forward, layer)


def _forward(
    self: nn.Module, hidden_states: torch.Tensor, *, attention_mask: Any = None, **kwargs: Any
) -> torch.Tensor:
    if not isinstance(attention_mask, Fork):
        return self.forward_of_rows(hidden_states, attention_mask=attention_mask, **kwargs)
    kwargs = {name: value for name, value in kwargs.items() if name not in CACHE}
    line = hidden_states.flatten(0, 1).unsqueeze(0)  # (1, tokens, D)
    done, outputs = 0, []
    for rows in attention_mask.segments:
        segment = rows.segment
        outputs.append(torch.zeros_like(line[:, done : segment.start]))  # padding at the end of the line before
        done = segment.start + segment.length
        outputs.append(_of_segment(self, rows, line[:, segment.start : done], kwargs))
    outputs.append(torch.zeros_like(line[:, done:]))
    return torch.cat(outputs, dim=1).view_as(hidden_states)


def _of_segment(layer: nn.Module, rows: SegmentRows, states: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """(1, tokens, D) -> (1, tokens, D) of a beginning and its continuations. States are the forward's second argument,
    whatever its name."""
    if len(rows.continuations) <= 1:
        return layer.forward_of_rows(states, **kwargs)
    beginning, continuations = states.split([rows.segment.prefix, sum(rows.continuations)], dim=1)
    outputs, state = [], None
    if rows.segment.prefix:
        state = _State()
        outputs.append(layer.forward_of_rows(beginning, state, **kwargs))
        state = state.of_rows(len(rows.continuations))
    below = rows.below_each_other(continuations.unsqueeze(1)).squeeze(1)
    # fla's kernel for a single column has no gradient.
    below = F.pad(below, (0, 0, 0, max(0, 2 - rows.longest)))
    found = layer.forward_of_rows(below, state, **kwargs)[:, : rows.longest]
    return torch.cat([*outputs, rows.in_line(found.unsqueeze(1)).squeeze(1)], dim=1)
