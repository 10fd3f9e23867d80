"""What a rollout knows of its prompts: each different one is read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.families.vision_hooks import given_cache, vision_language_model
from models.shared_prefix.prefill import equal_rows, of_rows


@dataclass(frozen=True)
class Prompts:
    """The different prompts of a batch, after they were read.

    Attributes:
        of_row: the number of each row's prompt.
        layers: of the cache that has read them.
        logits: (n, V) float32, after each prompt.
        positions: (..., n, 1), of each prompt's last token, on each axis that the family has.
        padding: (n, 1, 1, P), the lowest number of float32 where a prompt has padding, else 0; `None` without.
        tokens: of each, without padding.
        width: P.
    """

    of_row: list[int]
    layers: Sequence[Any]
    logits: torch.Tensor
    positions: torch.Tensor
    padding: torch.Tensor | None
    tokens: list[list[int]]
    width: int


def read_prompts(model: nn.Module, inputs: dict[str, Any]) -> Prompts:
    """Reads the different prompts of a batch once.

    Args:
        model: with a language-model head.
        inputs: what its forward takes, with an empty cache that grows.
    """
    config = vision_language_model(model).config
    count = len(inputs["input_ids"])
    groups = equal_rows(inputs, config) or [[row] for row in range(count)]
    if len(groups) < count:
        inputs = of_rows(inputs, [group[0] for group in groups], config)
    outputs = model(**inputs, return_dict=True)
    number = {row: place for place, group in enumerate(groups) for row in group}
    mask = inputs.get("attention_mask")
    real = torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask != 0
    padding = None
    if not bool(real.all()):
        lowest = torch.finfo(torch.float32).min
        padding = torch.zeros(real.shape, device=real.device).masked_fill(~real, lowest)[:, None, None]
    return Prompts(
        [number[row] for row in range(count)],
        given_cache(inputs).layers,
        outputs.logits[:, -1].float(),
        inputs["position_ids"][..., -1:],
        padding,
        [ids[real].tolist() for ids, real in zip(inputs["input_ids"], real, strict=True)],
        real.shape[1],
    )
