"""Shared prompts of every family but Qwen2-VL's: exact in float64, in values and each parameter's gradient; and the
comparison sees mistakes."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_cases import (
    MAKERS,
    MIXED,
    SHARED_IMAGES,
    Batch,
    Prompt,
    assert_same,
    batches,
    both_ways,
    checkpointing,
    detached_deepstack,
    double,
    in_double,
    of_states,
    tiny_gemma3,
    tiny_gemma4,
    tiny_idefics,
    tiny_internvl,
    tiny_llava_onevision,
    tiny_qwen3_5,
    tiny_qwen3_vl,
)
from torch import nn

from models.families.base import Family
from models.families.gemma import Gemma3
from models.families.idefics import Idefics
from models.families.internvl import InternVL
from models.families.qwen3_5 import Qwen35
from models.families.qwen3_vl import Qwen3VL
from models.shared_prefix import fork, packing
from models.shared_prefix.sharing import reason_not_shared

FIRST = {name: MAKERS[name] for name in ("qwen3_vl", "qwen3_5", "internvl", "idefics3", "smolvlm")}
MIXTURES = {name: MAKERS[name] for name in ("qwen3_vl_moe", "qwen3_5_moe")}
BOUNDS = dict.fromkeys((*FIRST, *MIXTURES, "gemma3", "gemma4", "llava_onevision"), 1e-10)
BOUNDS |= dict.fromkeys(("qwen3_5", "qwen3_5_moe"), 1e-9)


@cache
def cached_model(family: str) -> nn.Module:
    return in_double(MAKERS[family]()).train()


def exact(family: str, batch: Batch, kind: str) -> None:
    """Without padding between prompt and continuation, which the state of linear attention goes through, and windows
    count."""
    model = cached_model(family)
    checkpointing(model, kind)
    assert reason_not_shared(model) is None
    with double():
        assert_same(*both_ways(model, batch), tolerance=BOUNDS[family])


KINDS = st.sampled_from(["off", "reentrant", "not reentrant"])


@pytest.mark.parametrize("family", FIRST)
@settings(max_examples=20)
@given(batch=batches(between=False), kind=KINDS)
def test_values_and_gradients_are_exact_in_float64(family, batch, kind):
    exact(family, batch, kind)


@pytest.mark.slow
@pytest.mark.parametrize("family", MIXTURES)
@settings(max_examples=20)
@given(batch=batches(between=False), kind=KINDS)
def test_mixtures_of_experts_are_exact_in_float64(family, batch, kind):
    exact(family, batch, kind)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_batch_of_a_mixture_is_exact_and_all_its_experts_learn(family):
    exact(family, MIXED, "off")
    plain, shared = both_ways(MIXTURES[family]().train(), MIXED)
    assert (plain[0] - shared[0]).abs().max() < 5e-6
    experts = [one for name, weights in shared[1].items() if ".experts." in name for one in weights]
    assert len(experts) >= 2 * 2 * 4
    assert all(one.abs().max() > 0 for one in experts)


LATER = {name: MAKERS[name] for name in ("gemma3", "gemma4", "llava_onevision")}
LONG = batches(between=False, text=20, rest=24)
"""Longer than the windows of the tiny Gemmas."""


@pytest.mark.parametrize("family", LATER)
@settings(max_examples=3)
@given(batch=LONG, kind=KINDS)
def test_windows_and_images_that_see_themselves_are_exact_in_float64(family, batch, kind):
    exact(family, batch, kind)


@pytest.mark.slow
@pytest.mark.parametrize("family", LATER)
@settings(max_examples=40)
@given(batch=LONG, kind=KINDS)
def test_more_batches_with_windows_are_exact_in_float64(family, batch, kind):
    exact(family, batch, kind)


def distance(one: tuple, other: tuple) -> tuple[float, float]:
    """Largest difference of values, and of a parameter's gradient as a part of it."""
    total = torch.stack([value.norm() for value in one[1].values()]).norm()
    parts = [
        (value - other[1][name]).norm() / max(value.norm(), 1e-2 * total)
        for name, value in one[1].items()
        if name in other[1]
    ]
    return (one[0] - other[0]).abs().max().item(), max(parts).item()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [tiny_qwen3_5, tiny_gemma3, tiny_gemma4, tiny_llava_onevision])
def test_in_float32_the_difference_is_that_of_other_padding(make, attention):
    """Gradients of the decay of linear attention have no more digits than that in the plain way itself, nor have those
    of Gemma 4."""
    model = make(attention).train()
    floors, found = [], []
    for batch in (MIXED, SHARED_IMAGES):
        plain, shared = both_ways(model, batch)
        found.append(distance(plain, shared))
        floors += [distance(plain, both_ways(model, replace(batch, left=more))[0]) for more in (2, 17)]
    for floor, difference in zip(map(max, zip(*floors, strict=True)), map(max, zip(*found, strict=True)), strict=True):
        assert difference <= max(5e-6, 2 * floor)


def test_no_row_of_linear_attention_is_a_single_column():
    """For which fla's kernel has no gradient, and transformers a step that writes into the state."""
    model = tiny_qwen3_5().train()
    batch = Batch((Prompt((3, 5), ((4, 4),), 1),), ((0, 1), (0, 1), (0, 1)), left=0, right=0)
    plain, shared = both_ways(model, batch)
    widths = []
    for layer in model.modules():
        if hasattr(layer, "forward_of_rows"):
            layer.in_proj_qkv.register_forward_hook(lambda module, args, output: widths.append(args[0].shape[1]))
    again = both_ways(model, batch)[1]
    assert min(widths) == 2
    assert torch.equal(again[0], shared[0])
    assert (plain[0] - shared[0]).abs().max() < 1e-5


def test_a_layer_may_call_its_cache_what_older_versions_do():
    """`cache_params`, where transformers is older than 5.24: any other name is swallowed by `**kwargs`."""
    model = tiny_qwen3_5()
    for layer in model.modules():
        if type(layer).__name__.endswith("GatedDeltaNet"):
            layer.forward = partial(older_forward, layer.forward)
    plain, shared = both_ways(model, MIXED)
    assert (plain[0] - shared[0]).abs().max() < 1e-5


def older_forward(forward, hidden_states, cache_params=None, attention_mask=None, **kwargs) -> torch.Tensor:
    kwargs.pop("cache", None)
    return forward(hidden_states, cache_params, attention_mask, **kwargs)


# -- mistakes, each of which the comparison sees ----------------------------------------------------------------------


def one_axis(self, combined, ids, images) -> torch.Tensor:
    return torch.arange(len(ids)).expand(3, len(ids))


def without_deepstack(self, features, numbers) -> None:
    features.pooler_output = tuple(features.pooler_output[number] for number in numbers)


MISTAKES = {"positions": one_axis, "choose_images": without_deepstack}


@pytest.mark.parametrize("name", MISTAKES)
def test_values_show_a_mistake(monkeypatch, name):
    monkeypatch.setattr(Qwen3VL, name, MISTAKES[name])
    model = tiny_qwen3_vl()
    with pytest.raises((AssertionError, RuntimeError)):
        assert_same(*both_ways(model, SHARED_IMAGES))
    monkeypatch.undo()
    assert_same(*both_ways(model, SHARED_IMAGES))


STATES = {
    "no state of the convolution": lambda convolution, recurrent: (torch.zeros_like(convolution), recurrent),
    "no recurrent state": lambda convolution, recurrent: (convolution, torch.zeros_like(recurrent)),
}


@pytest.mark.parametrize("name", STATES)
def test_values_show_a_state_that_is_cut(monkeypatch, name):
    monkeypatch.setattr(fork._State, "of_rows", of_states(STATES[name]))
    plain, shared = both_ways(tiny_qwen3_5(), MIXED)
    assert (plain[0] - shared[0]).abs().max() > 1e-2


def test_values_show_linear_attention_through_the_whole_line(monkeypatch):
    def masks(self, combined, layout, make, types):
        return {"full_attention": make(), "linear_attention": None}

    monkeypatch.setattr(Qwen35, "masks", masks)
    plain, shared = both_ways(tiny_qwen3_5(), MIXED)
    assert (plain[0] - shared[0]).abs().max() > 1e-2


def test_gradients_show_states_that_are_detached(monkeypatch):
    detached_states = of_states(lambda convolution, recurrent: (convolution.detach(), recurrent.detach()))
    monkeypatch.setattr(fork._State, "of_rows", detached_states)
    values, parts = distance(*both_ways(tiny_qwen3_5(), MIXED))
    assert values < 5e-5
    assert parts > 0.1


def test_a_mask_that_keeps_nothing_apart_shows(monkeypatch):
    monkeypatch.setattr(packing, "mask_for", lambda *_: None)
    plain, shared = both_ways(tiny_qwen3_vl(), MIXED)
    assert (plain[0] - shared[0]).abs().max() > 1e-2


TILES = {"internvl": (tiny_internvl, InternVL), "idefics3": (tiny_idefics, Idefics)}


def in_another_order(self, features, numbers) -> None:
    Family.choose_images(self, features, list(numbers)[::-1])


def wider(self, combined, ids, images) -> torch.Tensor:
    return 2 * torch.arange(len(ids)).unsqueeze(0)


@pytest.mark.parametrize("family", TILES)
@pytest.mark.parametrize(("name", "mistake"), [("choose_images", in_another_order), ("positions", wider)])
def test_values_show_a_mistake_with_tiles(monkeypatch, family, name, mistake):
    make, kind = TILES[family]
    monkeypatch.setattr(kind, name, mistake)
    plain, shared = both_ways(make(), SHARED_IMAGES)
    assert (plain[0] - shared[0]).abs().max() > 1e-3


@pytest.mark.parametrize("family", TILES)
def test_gradients_show_tiles_that_are_detached(monkeypatch, family):
    def without_gradients(self, features, numbers):
        Family.choose_images(self, features, numbers)
        pooled = features.pooler_output
        whole = isinstance(pooled, torch.Tensor)
        features.pooler_output = pooled.detach() if whole else tuple(one.detach() for one in pooled)

    make, kind = TILES[family]
    monkeypatch.setattr(kind, "choose_images", without_gradients)
    plain, shared = both_ways(make(), SHARED_IMAGES)
    assert (plain[0] - shared[0]).abs().max() < 1e-5
    with pytest.raises(AssertionError, match="vision"):
        assert_same(plain, shared)


def test_gradients_show_what_values_do_not(monkeypatch):
    monkeypatch.setattr(Qwen3VL, "choose_images", detached_deepstack)
    plain, shared = both_ways(tiny_qwen3_vl(), SHARED_IMAGES)
    assert (plain[0] - shared[0]).abs().max() < 1e-5
    with pytest.raises(AssertionError, match="visual"):
        assert_same(plain, shared)


LONGER = Batch(  # than a window, with images that the prompt's end and the continuations see or do not see
    (Prompt((6, 5), ((4, 6),), 1), Prompt((2, 9, 14), ((4, 4), (2, 8)), 3)),
    ((0, 24), (1, 7), (0, 9), (1, 24), (0, 0)),
    left=1,
    right=1,
)


def without_windows(right):
    def wrong(self, combined, segment, types):
        tables = right(self, combined, segment, types)
        return {**tables, "sliding_attention": tables["full_attention"]}

    return wrong


def without_images(right):
    return lambda self, combined, segment, types: right(self, combined, segment, torch.zeros_like(types))


def causal(right):
    return lambda *arguments: dict.fromkeys(right(*arguments))


def of_gemma_3(right):
    """Gemma 4 with images that see themselves in all layers."""

    def wrong(self, combined, segment, types):
        tables = right(self, combined, segment, types)
        return {**tables, "full_attention": right(Gemma3(), combined, segment, types)["full_attention"]}

    return wrong


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("make", "mistake"),
    [
        (tiny_gemma3, without_windows),
        (tiny_gemma3, without_images),
        (tiny_gemma3, causal),
        (tiny_gemma4, without_windows),
        (tiny_gemma4, without_images),
        (tiny_gemma4, of_gemma_3),
    ],
)
def test_values_show_what_tokens_should_not_see(monkeypatch, attention, make, mistake):
    model = make(attention)
    plain, shared = both_ways(model, LONGER)
    assert (plain[0] - shared[0]).abs().max() < 1e-4
    monkeypatch.setattr(Gemma3, "_tables", mistake(Gemma3._tables))
    plain, shared = both_ways(model, LONGER)
    assert (plain[0] - shared[0]).abs().max() > 1e-2


def test_positions_along_the_line_show(monkeypatch):
    right = packing._positions

    def wrong(*arguments):
        return torch.arange(right(*arguments).shape[-1]).unsqueeze(0)

    monkeypatch.setattr(packing, "_positions", wrong)
    plain, shared = both_ways(tiny_gemma3(), LONGER)
    assert (plain[0] - shared[0]).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_images_of_the_smaller_gemma_4_are_causal(attention):
    model = tiny_gemma4(attention)
    seeing_themselves = both_ways(model, LONGER)[0][0]
    model.config.get_text_config().use_bidirectional_attention = None
    plain, shared = both_ways(model, LONGER)
    assert (plain[0] - seeing_themselves).abs().max() > 1e-2
    assert (plain[0] - shared[0]).abs().max() < 1e-4
