"""The different prompts of a batch, read once."""

import torch
from prefix_cases import Batch, Prompt, prompts_of
from rollout_cases import OTHER_TEXT, PICTURE, TEXT, batch, complete, put, spread_model

from models.decoding import custom_generate
from models.decoding.custom_generate import Decoding
from models.decoding.prompts import Prompts
from models.decoding.rollout import RollOut


def read(inputs: dict, family: str = "qwen2_vl") -> Prompts:
    """What the loop reads of a batch."""
    found = []

    class Reading(RollOut):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(self.prompts)

    with put(custom_generate, "RollOut", Reading):
        complete(spread_model(family), inputs, Decoding(), max_new_tokens=1)
    return found[0]


def test_equal_rows_are_one_prompt():
    inputs = prompts_of(batch(TEXT, PICTURE, TEXT, PICTURE, OTHER_TEXT), spread_model("qwen2_vl"))
    prompts = read(inputs)
    assert prompts.of_row == [0, 1, 0, 1, 2]
    assert len(prompts.logits) == len(prompts.tokens) == len(prompts.padding) == 3
    assert prompts.width == inputs["input_ids"].shape[1]
    assert all(len(layer.keys) == 3 for layer in prompts.layers)


def test_rows_with_other_pictures_are_other_prompts():
    alike = tuple(Prompt((3, 5), ((4, 4),), 1) for _ in range(3))
    inputs = prompts_of(Batch(alike, ((0, 0), (1, 0), (2, 0)), 0, 0), spread_model("qwen2_vl"))
    inputs["pixel_values"][20:] += 0.5  # of the second and third image
    assert read(inputs).of_row == [0, 1, 2]


def test_logits_are_those_after_each_prompt_and_tokens_come_without_padding():
    model = spread_model("qwen2_vl")
    inputs = prompts_of(batch(PICTURE, TEXT, PICTURE), model)
    prompts = read(inputs)
    with torch.no_grad():
        right = model(**inputs, use_cache=False).logits[:, -1]
    torch.testing.assert_close(prompts.logits[prompts.of_row], right, atol=1e-4, rtol=0)
    for ids, mask, number in zip(inputs["input_ids"], inputs["attention_mask"], prompts.of_row, strict=True):
        assert prompts.tokens[number] == ids[mask.bool()].tolist()
        hidden = prompts.padding[number, 0, 0] != 0
        assert torch.equal(hidden, ~mask.bool())
    assert prompts.padding.min() == torch.finfo(torch.float32).min


def test_prompts_of_one_length_have_no_padding():
    assert read(prompts_of(batch(TEXT, TEXT), spread_model("qwen2_vl"))).padding is None


def test_positions_are_of_the_last_token_on_each_axis():
    model = spread_model("qwen2_vl")
    inputs = prompts_of(batch(PICTURE, TEXT), model)
    prompts = read(inputs)
    assert prompts.positions.shape[-2:] == (2, 1)
    tokens = [len(of_one) for of_one in prompts.tokens]
    # Six tokens of a picture, in 2 rows and 3 columns, take as many positions as the longer side has.
    assert prompts.positions[..., 0].reshape(-1, 2)[-1].tolist() == [tokens[0] - 1 - 6 + 3, tokens[1] - 1]
    assert read(prompts_of(batch(TEXT), spread_model("gemma3")), "gemma3").positions.tolist() == [[6]]


def test_a_batch_is_read_as_it_is_where_nothing_repeats():
    model = spread_model("qwen2_vl")
    inputs = prompts_of(batch(TEXT, OTHER_TEXT), model)
    seen = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    prompts = read(inputs)
    hook.remove()
    assert prompts.of_row == [0, 1]
    assert len(seen) == 1
    assert torch.equal(seen[0]["input_ids"], inputs["input_ids"])
