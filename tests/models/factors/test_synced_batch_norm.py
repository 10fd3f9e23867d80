"""Batch normalisation of the factor trainer; test_factor_distribution.py has it on two processes."""

import pytest
import torch
from torch import nn

from models.factors.synced_batch_norm import sync_batch_norms


@pytest.mark.parametrize("training", [False, True])
def test_t20_weights_in_bfloat16_with_statistics_in_float32(training):
    """As DeepSpeed leaves them under bf16."""
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(4)
    for values in (plain.weight.data, plain.bias.data, plain.running_mean, plain.running_var.log_()):
        values.normal_()
    plain.running_var.exp_()
    plain.load_state_dict({name: value.to(torch.bfloat16) for name, value in plain.state_dict().items()})
    cast = nn.Sequential(nn.BatchNorm2d(4))
    cast[0].load_state_dict(plain.state_dict())
    for parameter in cast.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    sync_batch_norms(cast)
    inputs = torch.randn(3, 4, 5, 5).to(torch.bfloat16)
    plain.train(training)
    cast.train(training)
    found = cast(inputs)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, plain(inputs.float()).to(torch.bfloat16))
    for name, value in plain.named_buffers():
        assert torch.equal(value, cast.get_buffer(f"0.{name}")), name
