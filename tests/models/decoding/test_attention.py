"""Attention of new tokens in two parts is torch's over the keys of prompt and row in one."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from models.decoding import attention
from models.decoding.attention import (
    Step,
    StepMask,
    attend,
    attention_by_products,
    attention_with_sums,
    rollout_attention,
)

HEADS, KEY_HEADS, SIZE = 4, 2, 8
REPEATS = HEADS // KEY_HEADS


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


WAYS = {"the device's": attention_with_sums, "by products": attention_by_products}
"""Of which the second is what a GPU takes."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 0.02)])
def test_attention_comes_with_the_sums_of_its_exponentials(way, biased, dtype, close):
    query, key, value = numbers(3, 2, 5, SIZE), numbers(3, 2, 7, SIZE), numbers(3, 2, 7, SIZE) + 1
    bias = (
        numbers(3, 1, 5, 7).masked_fill(numbers(3, 1, 5, 7) > 1, torch.finfo(torch.bfloat16).min) if biased else None
    )
    given = [None if one is None else one.to(dtype) for one in (query, key, value, bias)]
    found, sums = WAYS[way](*given, 0.3)
    wide = [None if one is None else one.double() for one in given]
    scores = wide[0] @ wide[1].transpose(-1, -2) * 0.3 + (0 if bias is None else wide[3])
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), scores.softmax(dim=-1) @ wide[2], atol=close, rtol=close)
    torch.testing.assert_close(sums.double(), scores.logsumexp(dim=-1), atol=close, rtol=close)


@pytest.mark.parametrize("way", WAYS)
def test_where_nothing_is_seen_the_sum_is_next_to_nothing(way):
    """So that this part counts for nothing beside the other."""
    query, key = numbers(1, 1, 2, SIZE), numbers(1, 1, 3, SIZE)
    bias = torch.full((1, 1, 2, 3), torch.finfo(torch.float32).min)
    found, sums = WAYS[way](query, key, key, bias, 1.0)
    assert found.isfinite().all()
    assert (sums < -1e30).all()


@dataclass(frozen=True)
class Case:
    """Rows' prompts and how many own tokens each has before; tokens at once; padding of each prompt; a window."""

    prompts: tuple[int, ...]
    starts: tuple[int, ...]
    tokens: int = 1
    padding: tuple[int, ...] = (0, 0)
    window: int | None = None


CASES = {
    "one prompt": Case((0, 0, 0), (4, 4, 4)),
    "first own token": Case((0, 0), (0, 0)),
    "two prompts": Case((0, 0, 1, 1), (2, 2, 2, 2)),
    "rows out of order": Case((1, 0, 1, 1), (3, 3, 3, 3)),
    "padding": Case((0, 1, 1), (2, 2, 2), padding=(0, 4)),
    "other lengths": Case((0, 0, 1), (5, 0, 2)),
    "drafts": Case((0, 1, 1), (5, 0, 2), tokens=3, padding=(2, 0)),
    "a window over both": Case((0, 1, 1), (3, 3, 3), padding=(0, 4), window=6),
    "a window of own tokens": Case((0, 1), (9, 9), window=4),
    "a window that not all have left": Case((0, 1, 1), (9, 1, 3), tokens=2, padding=(3, 0), window=5),
    "a window wider than all": Case((0, 1), (2, 2), window=50),
    "a window that just ends": Case((0, 1), (2, 2), window=9),
    "a window of own tokens that just ends": Case((0, 1), (4, 4), window=4),
}
PROMPT = 7


def step_of(case: Case) -> Step:
    """As `LiveRows` lays rows out, but written down in another way."""
    count, members = max(case.prompts) + 1, {}
    for row, prompt in enumerate(case.prompts):
        members.setdefault(prompt, []).append(row)
    group = max(map(len, members.values()))
    grid = [(members[prompt] + [0] * group)[:group] for prompt in range(count)]
    back = [prompt * group + members[prompt].index(row) for row, prompt in enumerate(case.prompts)]
    padding = None
    if any(case.padding[:count]):
        padding = torch.zeros(count, 1, 1, PROMPT)
        for prompt in range(count):
            padding[prompt, ..., : case.padding[prompt]] = torch.finfo(torch.float32).min
    even = case.tokens == 1 and len(set(case.starts)) == 1
    in_order = [row for own in grid for row in own] == list(range(len(case.prompts)))
    return Step(
        torch.tensor(case.starts),
        case.tokens,
        case.starts[0] if even else None,
        max(case.starts) + case.tokens,
        count,
        group,
        None if in_order else torch.tensor(grid).flatten(),
        None if in_order else torch.tensor(back),
        padding,
    )


def seen_by(case: Case, width: int) -> torch.Tensor:
    """(R, T, prompt + width): what each new token may see, by the places of both in the whole row."""
    places = torch.tensor(case.starts)[:, None] + torch.arange(case.tokens) + PROMPT
    keys = torch.arange(PROMPT + width)
    seen = keys <= places[:, :, None]
    if case.window is not None:
        seen &= places[:, :, None] - keys < case.window
    hidden = torch.tensor([case.padding[prompt] for prompt in case.prompts])
    return seen & ~(keys < hidden[:, None])[:, None]


def attended(case: Case, kept: int = PROMPT, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, T, H, D), by the two parts and by torch over all keys.

    Args:
        kept: keys of a prompt that are still there, the last ones.
    """
    step = step_of(case)
    rows, count, width = len(case.prompts), step.prompts, step.width
    query = numbers(rows, HEADS, case.tokens, SIZE, dtype=dtype)
    own, own_values = (numbers(rows, KEY_HEADS, width, SIZE + more, dtype=dtype)[..., :SIZE] for more in (0, 1))
    prompts, values = (numbers(count, KEY_HEADS, PROMPT, SIZE + more, dtype=dtype)[..., :SIZE] for more in (0, 1))
    own.layer = SimpleNamespace(of_prompts=lambda _: (prompts[:, :, -kept:], values[:, :, -kept:]))
    found, _ = attend(None, query, own, own_values, StepMask(step, PROMPT, case.window), 0.4)
    of_rows = list(case.prompts)
    keys = torch.cat([prompts[of_rows], own], dim=2).repeat_interleave(REPEATS, dim=1)
    every = torch.cat([values[of_rows], own_values], dim=2).repeat_interleave(REPEATS, dim=1)
    mask = seen_by(case, width).unsqueeze(1)
    return found, F.scaled_dot_product_attention(query, keys, every, mask, scale=0.4).transpose(1, 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_two_parts_are_one(name, way, monkeypatch):
    monkeypatch.setattr(attention, "attention_with_sums", WAYS[way])
    found, right = attended(CASES[name])
    torch.testing.assert_close(found, right, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.window is not None and case.window < 8])
def test_a_cache_may_have_dropped_what_no_window_shows(name):
    case = CASES[name]
    found, right = attended(case, kept=case.window - 1)
    torch.testing.assert_close(found, right, atol=2e-6, rtol=0)


def test_two_parts_in_bfloat16():
    found, right = attended(CASES["drafts"], dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, right, atol=0.03, rtol=0)


def test_biases_are_made_once_for_all_layers():
    mask = StepMask(step_of(CASES["drafts"]), PROMPT)
    assert mask.own_bias(2, torch.float32) is mask.own_bias(2, torch.float32)
    assert mask.own_bias(2, torch.bfloat16).dtype == torch.bfloat16
    assert mask.prompt_bias(2, PROMPT, torch.float32) is mask.prompt_bias(2, PROMPT, torch.float32)


def test_rows_of_equal_length_need_no_bias():
    mask = StepMask(step_of(CASES["one prompt"]), PROMPT)
    assert mask.own_bias(2, torch.float32) is None
    assert mask.prompt_bias(2, PROMPT, torch.float32) is None


def test_a_mask_passes_as_finished():
    mask = StepMask(step_of(CASES["one prompt"]), PROMPT)
    assert mask.shape == (1, 1, 0, 0)
    assert mask[:, :, :, :] is mask


def test_the_implementation_is_put_back_also_after_an_error():
    config = SimpleNamespace(_attn_implementation="sdpa")
    inside = []

    def fail() -> None:
        inside.append(config._attn_implementation)
        raise RuntimeError

    with pytest.raises(RuntimeError), rollout_attention(config):
        fail()
    assert inside == [attention.NAME]
    assert config._attn_implementation == "sdpa"
