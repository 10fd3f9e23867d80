"""Batch normalisation over the batches of all processes, on any device.

`torch.nn.SyncBatchNorm` does this on GPUs alone; with it two processes learn what one would from both their batches.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_reduce


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of all processes' batches together."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), of as many channels as the layer has; B, H and W may differ between processes."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return self._of_this_process(inputs)
        values = inputs.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = torch.cat([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3)), count])  # (2C + 1,)
        sums = all_reduce(sums)
        mean, square = (sums[:-1] / sums[-1]).chunk(2)
        variance = (square - mean.square()).clamp(min=0)  # rounding may take it below
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                unbiased = variance * sums[-1] / (sums[-1] - 1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (values * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(inputs.dtype)

    def _of_this_process(self, inputs: torch.Tensor) -> torch.Tensor:
        """The parent's; DeepSpeed casts weights to bfloat16 and leaves statistics in float32, which it cannot mix."""
        if self.running_mean is None or self.weight.dtype == self.running_mean.dtype:
            return super().forward(inputs)
        if self.training:
            self.num_batches_tracked += 1
        statistics = (self.running_mean, self.running_var)
        layer = (self.weight.float(), self.bias.float(), self.training, self.momentum, self.eps)
        return F.batch_norm(inputs.float(), *statistics, *layer).to(inputs.dtype)


def sync_batch_norms(module: nn.Module) -> None:
    """Makes every `nn.BatchNorm2d` below a module take its statistics over all processes."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SyncedBatchNorm2d  # its parameters and buffers, and their names, stay
