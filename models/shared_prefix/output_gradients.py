"""Gradients of a value at the outputs of a model's modules, for the check that both ways of a batch learn the same.

No gradient of a parameter is computed: nothing of an optimizer step changes, and whatever waits for gradients of
parameters to average or to spread them (DDP, ZeRO) sees none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn


@dataclass
class OutputGradients:
    """Of the modules whose own parameters train, by their names.

    Attributes:
        sums: (channels,) each: summed over tokens, weighted by what each token brings (`_weights`).
        sizes: the norm over tokens and channels of what is summed.
    """

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, weights: torch.Tensor | None, channels: int, gradient: torch.Tensor) -> None:
        """
        Args:
            weights: of the tokens; all alike by default.
            channels: which dimension of the gradient they are.
        """
        wide = torch.promote_types(gradient.dtype, torch.float32)
        each = gradient.movedim(channels, -1).flatten(0, -2)  # (tokens, channels)
        if weights is not None:
            each = each * weights.flatten().unsqueeze(1)
        size = torch.linalg.vector_norm(each, dtype=wide).item()
        self.sums[name] = self.sums.get(name, 0) + each.sum(dim=0, dtype=wide)
        self.sizes[name] = (self.sizes.get(name, 0.0) ** 2 + size**2) ** 0.5

    def differences(self, other: "OutputGradients") -> dict[str, float]:
        """How far another way to compute the same is at each module, as a part of the gradient's size; beginning at
        the values, where gradients come from.

        A gradient of next to nothing has no digits: it counts by a hundredth of the largest one's size.
        """
        least = SMALLEST_SHARE * max(self.sizes.values(), default=0.0)
        found = {}
        for name, total in self.sums.items():
            difference = torch.linalg.vector_norm(total - other.sums.get(name, 0)).item()
            found[name] = difference and difference / max(self.sizes[name], least)
        return found


SMALLEST_SHARE = 0.01


def with_output_gradients(
    model: nn.Module, compute: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, OutputGradients]:
    """Values, and gradients of their sum with random weights.

    Args:
        model: not inside what spreads its passes over processes; with checkpointing of any kind.
        compute: the values, by calling the model.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = OutputGradients()
    handles = [
        module.register_forward_hook(partial(_watch, found, name))
        for name, module in model.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    ]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        values = compute()
        weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values)
        if values.requires_grad:
            (values * weights).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
    return values.detach(), found


def _watch(found: OutputGradients, name: str, module: nn.Module, args: tuple, output: Any) -> torch.Tensor | None:
    """A forward hook. Where a gradient would begin at the module's parameters, it begins at the output."""
    if not (torch.is_grad_enabled() and isinstance(output, torch.Tensor) and output.is_floating_point()):
        return None
    if not output.requires_grad:
        output = output.detach().requires_grad_()
    channels = 1 if isinstance(module, CONVOLUTIONS) else -1
    output.register_hook(partial(found.add, name, _weights(args, output), channels))
    return output


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _weights(args: tuple, output: torch.Tensor) -> torch.Tensor | None:
    """Of each token, a mixture of the channels that go in: with these, a layer's sum is a mixture of its weight's
    gradient. Equal ones would count what padding gets, of which a weight learns nothing.
    """
    given = args[0].detach() if args and isinstance(args[0], torch.Tensor) else None
    if given is None or not given.is_floating_point() or given.shape[:-1] != output.shape[:-1]:
        return None
    mixture = torch.randn(given.shape[-1], generator=torch.Generator().manual_seed(0)).to(given)
    return given @ mixture / len(mixture) ** 0.5
