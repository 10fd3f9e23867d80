"""Shared prompts of every family but Qwen2-VL's: exact in float64, in values and each parameter's gradient; and the
comparison sees mistakes."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_cases import (
    MIXED,
    Batch,
    Prompt,
    assert_same,
    batches,
    both_ways,
    checkpointing,
    double,
    tiny_qwen3_vl,
)
from torch import nn

from models.families.base import Family
from models.families.qwen3_vl import Qwen3VL
from models.shared_prefix import packing
from models.shared_prefix.sharing import reason_not_shared

MAKERS = {"qwen3_vl": tiny_qwen3_vl}
SHARED_IMAGES = Batch(  # of which the first stands in two prompts, and the prompts repeat out of order
    (Prompt((3, 5), ((4, 6),), 1), Prompt((4, 5), ((4, 6),), 1), Prompt((2, 3, 4), ((4, 4), (2, 8)), 3)),
    ((2, 4), (0, 3), (1, 1), (2, 5), (0, 0), (1, 5)),
    left=1,
    right=1,
)


@cache
def cached_model(family: str) -> nn.Module:
    return MAKERS[family]().double().train()


@settings(max_examples=25)
@given(
    batch=batches(), family=st.sampled_from(list(MAKERS)), kind=st.sampled_from(["off", "reentrant", "not reentrant"])
)
def test_values_and_gradients_are_exact_in_float64(batch, family, kind):
    model = cached_model(family)
    checkpointing(model, kind)
    assert reason_not_shared(model) is None
    with double():
        assert_same(*both_ways(model, batch), tolerance=1e-10)


# -- mistakes, each of which the comparison sees ----------------------------------------------------------------------


def one_axis(self, combined, ids, types, grids) -> torch.Tensor:
    return torch.arange(len(ids)).expand(3, len(ids))


def without_deepstack(self, features, numbers) -> None:
    features.pooler_output = tuple(features.pooler_output[number] for number in numbers)


def detached(self, features, numbers) -> None:
    Family.choose_images(self, features, numbers)
    features.deepstack_features = [tuple(one.detach() for one in layer) for layer in features.deepstack_features]


MISTAKES = {"positions": one_axis, "choose_images": without_deepstack}


@pytest.mark.parametrize("name", MISTAKES)
def test_values_show_a_mistake(monkeypatch, name):
    monkeypatch.setattr(Qwen3VL, name, MISTAKES[name])
    model = tiny_qwen3_vl()
    with pytest.raises((AssertionError, RuntimeError)):
        assert_same(*both_ways(model, SHARED_IMAGES))
    monkeypatch.undo()
    assert_same(*both_ways(model, SHARED_IMAGES))


def test_a_mask_that_keeps_nothing_apart_shows(monkeypatch):
    monkeypatch.setattr(packing, "mask_for", lambda *_: None)
    plain, shared = both_ways(tiny_qwen3_vl(), MIXED)
    assert (plain[0] - shared[0]).abs().max() > 1e-2


def test_gradients_show_what_values_do_not(monkeypatch):
    monkeypatch.setattr(Qwen3VL, "choose_images", detached)
    plain, shared = both_ways(tiny_qwen3_vl(), SHARED_IMAGES)
    assert (plain[0] - shared[0]).abs().max() < 1e-5
    with pytest.raises(AssertionError, match="visual"):
        assert_same(plain, shared)
