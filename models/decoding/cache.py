"""Keys and values of a rollout: those of each prompt once, and those of each row's own tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionLayer

from models.decoding.attention import Step
from models.decoding.prompts import Begun

ROOM = 64
"""Own tokens that are made room for at least."""


class OwnKeys(CacheLayerMixin):
    """Of a layer with attention.

    Attributes:
        prompt_keys, prompt_values: of the different prompts, (n, H, P, D).
        most: own tokens that a row may have.
    """

    prompt_keys: torch.Tensor
    prompt_values: torch.Tensor

    def __init__(self, most: int):
        super().__init__()
        self.most = most
        self.step: Step | None = None

    def add_prompts(self, read: DynamicLayer, held: int) -> None:
        """Those of other prompts, behind the first, so many, which are held."""
        keys, values = read.keys.to(read.values.dtype), read.values  # under autocast, rotary leaves float32
        if held:
            keys, values = torch.cat([self.prompt_keys[:held], keys]), torch.cat([self.prompt_values[:held], values])
        self.prompt_keys, self.prompt_values = keys, values

    def of_prompts(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first prompts."""
        return self.prompt_keys[:count], self.prompt_values[:count]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes room for as many rows."""
        self.keys, self.values = (
            torch.zeros(*states.shape[:2], 0, states.shape[3], dtype=self.prompt_values.dtype, device=states.device)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes those of new tokens, (R, H, T, D), behind the rows' own.

        Returns:
            All of the rows' own, (R, H, width, D). `layer` of the keys is this.
        """
        step = self.step
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._make_room(step.width)
        for held, states in ((self.keys, key_states), (self.values, value_states)):
            if step.at is not None:
                held[: step.rows, :, step.at : step.at + 1] = states
            else:
                rows = torch.arange(step.rows, device=held.device).unsqueeze(1)
                held.transpose(1, 2).index_put_((rows, step.places), states.transpose(1, 2).to(held.dtype))
        keys, values = (held[: step.rows, :, : step.width] for held in (self.keys, self.values))
        keys.layer = self
        return keys, values

    def _make_room(self, width: int) -> None:
        held = self.keys.shape[2]
        if width <= held:
            return
        more = max(width, min(self.most, max(ROOM, 2 * held))) - held
        self.keys, self.values = (
            torch.cat([states, states.new_zeros(*states.shape[:2], more, states.shape[3])], dim=2)
            for states in (self.keys, self.values)
        )

    def move_row(self, source: int, target: int, tokens: int) -> None:
        """Writes a row's own tokens over another's."""
        if self.is_initialized:
            for held in (self.keys, self.values):
                held[target, :, :tokens] = held[source, :, :tokens]

    def move_prompt(self, source: int, target: int) -> None:
        for held in (self.prompt_keys, self.prompt_values):
            held[target] = held[source]

    def get_seq_length(self) -> int:
        return self.prompt_keys.shape[2] + (0 if self.step is None else self.step.width - self.step.tokens)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class RolloutCache(Cache):
    """Of all layers; those of linear attention have a state for each row.

    Args:
        empty: layers of a cache that has read nothing.
        most: own tokens that a row may have.
    """

    def __init__(self, empty: Sequence[Any], most: int):
        super().__init__(layers=[OwnKeys(most) if isinstance(layer, DynamicLayer) else layer for layer in empty])

    def _attending(self) -> list[OwnKeys]:
        return [layer for layer in self.layers if isinstance(layer, OwnKeys)]

    def _states(self) -> list[LinearAttentionLayer]:
        return [layer for layer in self.layers if isinstance(layer, LinearAttentionLayer)]

    @property
    def has_states(self) -> bool:
        """Whether there are states that cannot go back by some tokens."""
        return bool(self._states())

    def begin(self, step: Step) -> None:
        """What the next forward computes."""
        for layer in self._attending():
            layer.step = step

    def enter(self, begun: Begun, prompts: int) -> None:
        """Takes rows in behind the others, and their prompts behind the first, so many, which are held."""
        for layer, read in zip(self._attending(), begun.keys, strict=bool(begun.prompts)):
            layer.add_prompts(read, prompts)
        states = iter(begun.states)
        self.layers = [
            _together(layer, next(states)) if isinstance(layer, LinearAttentionLayer) else layer
            for layer in self.layers
        ]

    def keep_rows(self, moves: Sequence[tuple[int, int]], rows: int, tokens: Sequence[int]) -> None:
        """Goes on with the first `rows` rows, after some behind them were written over others.

        Args:
            moves: pairs of a row and the place that it takes; tokens: own ones of each that moves.
        """
        for layer in self._attending():
            for (source, target), size in zip(moves, tokens, strict=True):
                layer.move_row(source, target, size)
        states = self._states()
        if states:
            order = list(range(rows))
            for source, target in moves:
                order[target] = source
            for layer in states:
                layer.reorder_cache(torch.tensor(order, dtype=torch.long))

    def keep_prompts(self, moves: Sequence[tuple[int, int]]) -> None:
        for layer in self._attending():
            for source, target in moves:
                layer.move_prompt(source, target)


def _together(first: LinearAttentionLayer, others: LinearAttentionLayer) -> LinearAttentionLayer:
    """States of rows, and those of others behind them."""
    for held, behind in ((first.conv_states, others.conv_states), (first.recurrent_states, others.recurrent_states)):
        for number, state in held.items():
            if state is not None:
                behind[number] = torch.cat([state, behind[number]])
    return others
