"""What a rollout knows of its prompts: each different one is read once, when the first of its rows begins."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from models.families.vision_hooks import CACHES, given_cache, vision_language_model
from models.shared_prefix.prefill import equal_rows, of_rows


@dataclass(frozen=True)
class Prompts:
    """The different prompts of a batch.

    Attributes:
        inputs: what the model's forward takes of them, with encoded images, and with an empty cache that grows.
        of_row: the number of each row's prompt.
        positions: (..., n, 1), of each prompt's last token, on each axis that the family has.
        padding: (n, 1, 1, P), the lowest number of float32 where a prompt has padding, else 0; `None` without.
        tokens: of each, without padding.
        width: P.
    """

    inputs: dict[str, Any]
    of_row: list[int]
    positions: torch.Tensor
    padding: torch.Tensor | None
    tokens: list[list[int]]
    width: int

    def read(self, model: nn.Module, numbers: Sequence[int]) -> tuple[Sequence[Any], torch.Tensor]:
        """Layers of a cache that has read these prompts, and (n, V) float32, the logits after each."""
        chosen = self.inputs
        if len(numbers) < len(self.tokens):
            chosen = of_rows(chosen, numbers, vision_language_model(model).config)
        chosen = {name: deepcopy(value) if name in CACHES else value for name, value in chosen.items()}
        logits = model(**chosen, return_dict=True).logits[:, -1].float()
        return given_cache(chosen).layers, logits


def different_prompts(inputs: dict[str, Any], config: Any) -> Prompts:
    """Those of a batch, in the order of their first rows.

    Args:
        inputs: what the model's forward takes, with an empty cache that grows.
        config: of the module that takes images and tokens.
    """
    count = len(inputs["input_ids"])
    groups = equal_rows(inputs, config) or [[row] for row in range(count)]
    if len(groups) < count:
        inputs = of_rows(inputs, [group[0] for group in groups], config)
    number = {row: place for place, group in enumerate(groups) for row in group}
    mask = inputs.get("attention_mask")
    real = torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask != 0
    padding = None
    if not bool(real.all()):
        lowest = torch.finfo(torch.float32).min
        padding = torch.zeros(real.shape, device=real.device).masked_fill(~real, lowest)[:, None, None]
    return Prompts(
        inputs,
        [number[row] for row in range(count)],
        inputs["position_ids"][..., -1:],
        padding,
        [ids[real].tolist() for ids, real in zip(inputs["input_ids"], real, strict=True)],
        real.shape[1],
    )


@dataclass(frozen=True)
class Begun:
    """Rows that begin, behind their prompts.

    Attributes:
        prompts: those that were read for them; keys: their keys and values, of each layer with attention.
        states: of each layer with linear attention, for each row.
        logits: (rows, V), after the prompt of each row.
    """

    rows: list[int]
    prompts: list[int]
    keys: list[DynamicLayer]
    states: list[LinearAttentionLayer]
    logits: torch.Tensor


class WaitingRows:
    """Rows that have not begun, those of a prompt after each other: so more rows can be to come of one prompt alone
    among those that were read, the last.

    Attributes:
        rows: in the order in which they begin.
    """

    def __init__(self, model: nn.Module, prompts: Prompts):
        self.model, self.prompts = model, prompts
        self.rows = sorted(range(len(prompts.of_row)), key=prompts.of_row.__getitem__)
        self._last: int | None = None
        self._ends: tuple[list[LinearAttentionLayer], torch.Tensor]  # states and logits (1, V) after that prompt

    def begin(self, count: int) -> Begun:
        """Lets the next rows begin, `count` at most: more of the prompt that was read last, or those of other ones."""
        of_row = self.prompts.of_row
        more = [row for row in self.rows[:count] if of_row[row] == self._last]
        rows = more or self.rows[:count]
        self.rows = self.rows[len(rows) :]
        prompts = list(dict.fromkeys(of_row[row] for row in rows))
        keys: list[DynamicLayer] = []
        if more:
            states, logits = deepcopy(self._ends)
        else:
            layers, logits = self.prompts.read(self.model, prompts)
            keys = [layer for layer in layers if isinstance(layer, DynamicLayer)]
            states = [layer for layer in layers if isinstance(layer, LinearAttentionLayer)]
        places = torch.tensor([prompts.index(of_row[row]) for row in rows], device=logits.device)
        self._keep_last(prompts[-1], states, logits)
        for layer in states:
            layer.reorder_cache(places)
        return Begun(rows, [] if more else prompts, keys, states, logits[places])

    def _keep_last(self, prompt: int, states: list[LinearAttentionLayer], logits: torch.Tensor) -> None:
        """Keeps what stands at the end of the last prompt, if rows of it wait."""
        if prompt == self._last or not self.rows or self.prompts.of_row[self.rows[0]] != prompt:
            return
        self._last, self._ends = prompt, (deepcopy(states), logits[-1:])
        for layer in self._ends[0]:
            layer.reorder_cache(torch.tensor([len(logits) - 1]))
