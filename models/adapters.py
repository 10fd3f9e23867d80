"""Adapters of quantised models."""

import torch
from torch import nn


def keep_adapters_in_float32(model: nn.Module) -> None:
    """Widens the trainable weights of a quantised model to float32, PEFT's own default, where TRL narrows them.

    bfloat16 keeps 8 bits of a weight, so that updates below 1/256 of it, the usual size late in training, are rounded
    away; and what is saved gives the same logits when PEFT loads it. Costs two bytes for each adapter weight.
    """
    if not (getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)):
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
