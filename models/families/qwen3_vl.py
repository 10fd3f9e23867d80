"""Qwen3-VL: as Qwen2-VL, but images have features for several layers (deepstack), and the model makes its own mask.

In its mixture-of-experts form each token is sent to experts of its own, by itself, so that nothing else changes.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from models.families.base import KnownFamily
from models.families.qwen_vl import QwenVL
from models.shared_prefix.layout import PrefixLayout


class Qwen3VL(QwenVL):
    model_types: ClassVar = ("qwen3_vl", "qwen3_vl_moe")
    patch_size: ClassVar = 16
    deepstack: ClassVar = True

    def masks(self, combined: nn.Module, layout: PrefixLayout, make: Callable[..., Any], types: torch.Tensor) -> Any:
        return KnownFamily.masks(self, combined, layout, make, types)

    def step_masks(self, text: Any, make: Callable[[int | None], Any]) -> Any:
        return KnownFamily.step_masks(self, text, make)

    def later_features(self, layers: Sequence[torch.Tensor], places: torch.Tensor) -> dict[str, Any]:
        return {"visual_pos_masks": places, "deepstack_visual_embeds": list(layers)}
