"""Adapters of quantised models, which TRL would train in bfloat16.

bfloat16 keeps 8 bits of a weight: updates below 1/256 of it, the usual size late in training, are rounded away.
float32 is PEFT's own default, costs two bytes more for each adapter weight, and makes what is saved give the same
logits when PEFT loads it.
"""

from typing import Any

import torch
from torch import nn


def adapter_values(model: Any) -> dict[str, torch.Tensor]:
    """Trainable float32 weights of a model with adapters, to be kept from rounding; nothing for any other model."""
    if not hasattr(model, "peft_config"):
        return {}
    found = model.named_parameters()
    return {name: value.data for name, value in found if value.requires_grad and value.dtype == torch.float32}


def keep_adapters_in_float32(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Widens the trainable weights of a quantised model to float32 after TRL has narrowed them.

    Args:
        values: what `adapter_values` gave before, for adapters that had been trained already.
    """
    if not (getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)):
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = values.get(name, parameter.data.float())
