"""Batches of prompts, ways to sample, and completions of them by both ways: `generate`, and the loop in its place."""

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from prefix_cases import MAKERS, Batch, Prompt, prompts_of
from torch import nn

from models.decoding.custom_generate import Decoding
from models.decoding.engine import Engine, rolling_out

PICTURE = Prompt((3, 5), ((4, 6),), 1)
TEXT = Prompt((7,), (), 2)
PICTURES = Prompt((2, 9, 14), ((4, 4), (2, 8)), 3)  # longer than the windows of the tiny Gemmas
OTHER_TEXT = Prompt((4,), (), 5)


def batch(*rows: Prompt, left: int = 0) -> Batch:
    """A row for each of these prompts, of which equal ones are one prompt."""
    different = tuple(dict.fromkeys(rows))
    return Batch(different, tuple((different.index(prompt), 0) for prompt in rows), left, 0)


SHAPES = {
    "one group": batch(*[PICTURE] * 6),
    "groups": batch(*[PICTURE] * 3, *[PICTURES] * 3, *[TEXT] * 3),
    "single rows": batch(PICTURE, TEXT, PICTURES, OTHER_TEXT, left=2),
    "mixed order": batch(TEXT, PICTURES, TEXT, PICTURE, PICTURES, OTHER_TEXT, PICTURE, TEXT),
    "without images": batch(TEXT, OTHER_TEXT, TEXT, OTHER_TEXT, OTHER_TEXT),
}
PLAIN: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
SAMPLERS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "top-p": {**PLAIN, "top_p": 0.9, "temperature": 0.7},
    "top-k": {**PLAIN, "top_k": 5, "temperature": 1.3},
    "min-p": {**PLAIN, "min_p": 0.02},
    "all cuts": {**PLAIN, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 0.8},
    "repetition penalty": {**PLAIN, "top_p": 0.95, "repetition_penalty": 1.3},
    "greedy": {**PLAIN, "do_sample": False},
    "suppressed tokens": {**PLAIN, "top_p": 0.9, "suppress_tokens": [*range(20, 120)]},
    "no repeated pairs": {**PLAIN, "no_repeat_ngram_size": 2, "top_k": 8},
}
ENDS = [*range(30, 50)]
"""So many of 300 tokens that rows end at different places."""
MOST = 16
"""New tokens of a row."""


@cache
def spread_model(family: str, factor: float = 4) -> nn.Module:
    """A tiny model whose distributions are far from even. Tests that change it take one of their own."""
    return spread(MAKERS[family]().eval(), factor)


def spread(model: nn.Module, factor: float = 4) -> nn.Module:
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(factor if weight.ndim > 1 else 1)
    return model


@cache
def inputs_of(family: str, shape: str) -> dict[str, torch.Tensor]:
    return prompts_of(SHAPES[shape], spread_model(family))


def complete(
    model: nn.Module, inputs: dict[str, Any], decoding: Decoding | None = None, check: bool = False, **options: Any
) -> tuple[list[list[int]], torch.Tensor]:
    """Tokens of each row with its prompt, and the state of the generator afterwards.

    Args:
        decoding: instead of transformers' loop; check: that it does the same.
        options: of `generate`, which holds before those of `PLAIN`.
    """
    pad = model.config.get_text_config().pad_token_id
    options = {**PLAIN, "max_new_tokens": MOST, "eos_token_id": ENDS, "pad_token_id": pad, **options}
    loop = nullcontext() if decoding is None else rolling_out(model, Engine("true", decoding, check))
    torch.manual_seed(5)
    with torch.no_grad(), loop:
        tokens = model.generate(**inputs, **options)
    return tokens.tolist(), torch.get_rng_state()


def assert_as_generate(model: nn.Module, inputs: dict[str, Any], *ways: Decoding, **options: Any) -> list[list[int]]:
    """Fails unless the loop gives what `generate` gives, and leaves the generator where it does; by each way in turn.

    Returns:
        Tokens of each row with its prompt.
    """
    expected, state = complete(model, inputs, **options)
    for decoding in ways or (Decoding(),):
        found, after = complete(model, inputs, decoding, **options)
        assert found == expected
        assert torch.equal(state, after)
    return expected


@contextmanager
def put(place: Any, name: str, value: Any):
    """Has another attribute meanwhile."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def distributions_of(
    model: nn.Module, inputs: dict[str, torch.Tensor], completions: Sequence[Sequence[int]], temperature: float = 1.0
) -> torch.Tensor:
    """(B, longest, V), log-probabilities at each place of completions, by one plain forward of prompts and these."""
    width = max(map(len, completions))
    ids = torch.tensor([[*one, *[0] * (width - len(one))] for one in completions])
    whole = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], ids], dim=1)}
    for name in set(inputs) & {"attention_mask", "token_type_ids", "mm_token_type_ids"}:
        behind = torch.full_like(ids, int(name == "attention_mask"))
        whole[name] = torch.cat([inputs[name], behind], dim=1)
    with torch.no_grad():
        logits = model(**whole, use_cache=False).logits.float() / temperature
    return logits[:, -width - 1 : -1].log_softmax(dim=2)


def log_probs_of(
    model: nn.Module, inputs: dict[str, torch.Tensor], completions: Sequence[Sequence[int]], temperature: float = 1.0
) -> list[list[float]]:
    """Of each token of each completion."""
    shares = distributions_of(model, inputs, completions, temperature)
    return [
        [of_row[place, token].item() for place, token in enumerate(one)]
        for of_row, one in zip(shares, completions, strict=True)
    ]
