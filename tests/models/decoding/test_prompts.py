"""The different prompts of a batch, each read once, when the first of its rows begins."""

from copy import copy

import pytest
import torch
from prefix_cases import Batch, Prompt, prompts_of
from rollout_cases import OTHER_TEXT, PICTURE, PICTURES, TEXT, batch, complete, put, spread_model
from transformers.cache_utils import LinearAttentionLayer

from models.decoding import custom_generate
from models.decoding.custom_generate import Decoding
from models.decoding.prompts import Begun, Prompts, WaitingRows
from models.decoding.rollout import RollOut


def waiting(inputs: dict, family: str = "qwen2_vl") -> WaitingRows:
    """What the loop makes of a batch before it reads anything."""
    found = []

    class Noting(RollOut):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(copy(self.waiting))

    with put(custom_generate, "RollOut", Noting):
        complete(spread_model(family), inputs, Decoding(), max_new_tokens=1)
    return found[0]


def prompts_in(inputs: dict, family: str = "qwen2_vl") -> Prompts:
    return waiting(inputs, family).prompts


@torch.no_grad()
def begin(rows: WaitingRows, count: int) -> Begun:
    return rows.begin(count)


def test_equal_rows_are_one_prompt():
    inputs = prompts_of(batch(TEXT, PICTURE, TEXT, PICTURE, OTHER_TEXT), spread_model("qwen2_vl"))
    prompts = prompts_in(inputs)
    assert prompts.of_row == [0, 1, 0, 1, 2]
    assert len(prompts.tokens) == len(prompts.padding) == len(prompts.inputs["input_ids"]) == 3
    assert prompts.width == inputs["input_ids"].shape[1]


def test_rows_with_other_pictures_are_other_prompts():
    alike = tuple(Prompt((3, 5), ((4, 4),), 1) for _ in range(3))
    inputs = prompts_of(Batch(alike, ((0, 0), (1, 0), (2, 0)), 0, 0), spread_model("qwen2_vl"))
    inputs["pixel_values"][20:] += 0.5  # of the second and third image
    assert prompts_in(inputs).of_row == [0, 1, 2]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_5", "gemma3"])
@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_rows_begin_prompt_by_prompt_behind_what_their_prompt_ends_with(family, slots):
    """Whatever number begins at once, each prompt is read once, and has the logits and states of a plain forward."""
    model = spread_model(family)
    inputs = prompts_of(batch(TEXT, PICTURE, TEXT, PICTURES, PICTURE, TEXT, PICTURES, PICTURE), model)
    rows, read = waiting(inputs, family), []
    with torch.no_grad():
        plain = model(**inputs, use_cache=True)
    right = [one for one in plain.past_key_values.layers if isinstance(one, LinearAttentionLayer)]
    began = []
    while rows.rows:
        begun = begin(rows, slots)
        began += begun.rows
        read += begun.prompts
        assert all(len(layer.keys) == len(begun.prompts) for layer in begun.keys)
        torch.testing.assert_close(begun.logits, plain.logits[begun.rows, -1], atol=1e-4, rtol=0)
        for found, expected in zip(begun.states, right, strict=True):
            for name in ("conv_states", "recurrent_states"):
                torch.testing.assert_close(
                    getattr(found, name)[0], getattr(expected, name)[0][begun.rows], atol=1e-4, rtol=0
                )
    assert began == [0, 2, 5, 1, 4, 7, 3, 6]
    assert read == [0, 1, 2]


def test_tokens_come_without_padding():
    inputs = prompts_of(batch(PICTURE, TEXT, PICTURE), spread_model("qwen2_vl"))
    prompts = prompts_in(inputs)
    for ids, mask, number in zip(inputs["input_ids"], inputs["attention_mask"], prompts.of_row, strict=True):
        assert prompts.tokens[number] == ids[mask.bool()].tolist()
        hidden = prompts.padding[number, 0, 0] != 0
        assert torch.equal(hidden, ~mask.bool())
    assert prompts.padding.min() == torch.finfo(torch.float32).min


def test_prompts_of_one_length_have_no_padding():
    assert prompts_in(prompts_of(batch(TEXT, TEXT), spread_model("qwen2_vl"))).padding is None


def test_positions_are_of_the_last_token_on_each_axis():
    model = spread_model("qwen2_vl")
    inputs = prompts_of(batch(PICTURE, TEXT), model)
    prompts = prompts_in(inputs)
    assert prompts.positions.shape[-2:] == (2, 1)
    tokens = [len(of_one) for of_one in prompts.tokens]
    # Six tokens of a picture, in 2 rows and 3 columns, take as many positions as the longer side has.
    assert prompts.positions[..., 0].reshape(-1, 2)[-1].tolist() == [tokens[0] - 1 - 6 + 3, tokens[1] - 1]
    assert prompts_in(prompts_of(batch(TEXT), spread_model("gemma3")), "gemma3").positions.tolist() == [[6]]


def test_a_batch_is_read_as_it_is_where_nothing_repeats():
    model = spread_model("qwen2_vl")
    inputs = prompts_of(batch(TEXT, OTHER_TEXT), model)
    seen = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    prompts = prompts_in(inputs)
    hook.remove()
    assert prompts.of_row == [0, 1]
    assert len(seen) == 1
    assert torch.equal(seen[0]["input_ids"], inputs["input_ids"])
