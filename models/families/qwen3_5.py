"""Qwen3.5, also with a mixture of experts: as Qwen3-VL without deepstack, and most layers are linear attention (Gated
DeltaNet)."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from models.families.qwen_vl import QwenVL
from models.shared_prefix.fork import Fork, install_forks
from models.shared_prefix.layout import PrefixLayout


class Qwen35(QwenVL):
    model_types: ClassVar = ("qwen3_5", "qwen3_5_moe")
    patch_size: ClassVar = 16
    layer_kinds: ClassVar = ("full_attention", "linear_attention")

    def masks(
        self, combined: nn.Module, layout: PrefixLayout, make: Callable[..., Any], types: torch.Tensor
    ) -> dict[str, Any]:
        install_forks(combined)
        return {"full_attention": make(), "linear_attention": Fork(layout, types.device)}

    def step_masks(self, text: Any, make: Callable[[int | None], Any]) -> Any:
        return {"full_attention": make(None), "linear_attention": None}
