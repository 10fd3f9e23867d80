"""Generation that reads a prompt once for all its completions.

Within `shared_prefill(model)`, transformers' `generate` encodes each different image once, runs each different prompt
once, and goes on with keys and values of every row as if each had been run. Sampling is `generate`'s own, over all
rows: the same seed gives the same completions as without, but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from models.families.base import Family
from models.families.registry import family_of
from models.families.vision_hooks import given_cache, vision_language_model
from models.shared_prefix.layout import rows_with_equal_keys
from models.shared_prefix.packing import different_images


@contextmanager
def shared_prefill(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Lets a model, also inside wrappers, generate from each prompt and image once.

    Args:
        on: with `False` nothing changes.

    Rows may stand in any order. What is no first pass of a batch with a growing cache runs as usual.
    """
    if not on:
        yield
        return
    combined = vision_language_model(model)
    replaced = {"get_image_features": _encoding_once, "forward": _prefilling_once}
    family = family_of(combined.config)
    before = {name: vars(combined)[name] for name in replaced if name in vars(combined)}
    for name, wrapper in replaced.items():
        setattr(combined, name, wrapper(getattr(combined, name), family))
    try:
        yield
    finally:
        for name in replaced:
            delattr(combined, name)
        vars(combined).update(before)


def _encoding_once(encode: Callable, family: Family) -> Callable:
    """`get_image_features` that runs over the different images, and gives those of all."""

    @wraps(encode)
    def encode_different(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs: Any) -> Any:
        numbers, pixels, grids = different_images(pixel_values, image_grid_thw)
        features = encode(pixels, grids, **kwargs)
        family.choose_images(features, numbers)
        return features

    return encode_different


def _prefilling_once(forward: Callable, family: Family) -> Callable:
    """The forward of the module that takes images and tokens; its first pass runs over the different rows."""

    @wraps(forward)
    def prefill_different(*args: Any, **kwargs: Any) -> Any:
        groups = None if args else _equal_rows(kwargs)
        if groups is None or len(groups) == len(kwargs["input_ids"]):
            return forward(*args, **kwargs)
        first = [group[0] for group in groups]
        outputs = forward(**_of_rows(kwargs, first, family))
        number_of_row = {row: number for number, group in enumerate(groups) for row in group}
        device = outputs.last_hidden_state.device
        numbers = torch.tensor([number_of_row[row] for row in range(len(number_of_row))], device=device)
        outputs.last_hidden_state = outputs.last_hidden_state[numbers]
        given_cache(kwargs).reorder_cache(numbers)
        return outputs

    return prefill_different


def _equal_rows(kwargs: dict[str, Any]) -> list[list[int]] | None:
    """Numbers of the rows with the same tokens, padding and images; `None` for what is no first pass."""
    ids, mask, cache = kwargs.get("input_ids"), kwargs.get("attention_mask"), given_cache(kwargs)
    known = isinstance(cache, DynamicCache) and ids is not None and kwargs.get("inputs_embeds") is None
    if not known or cache.get_seq_length() or kwargs.get("pixel_values") is not None:
        return None
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        return None
    if kwargs.get("mm_encoder_outputs") and kwargs.get("mm_token_type_ids") is None:
        return None
    tokens = ids.cpu().numpy()
    real = [b""] * len(tokens) if mask is None else [row.tobytes() for row in mask.cpu().numpy()]
    images = _features_of_rows(kwargs)
    numbers: dict[int, int] = {}
    shown = [tuple(numbers.setdefault(id(one), len(numbers)) for one in of_row) for of_row in images]
    return rows_with_equal_keys(list(zip((row.tobytes() for row in tokens), real, shown, strict=True)))


def _features_of_rows(kwargs: dict[str, Any]) -> list[list[torch.Tensor]]:
    """The features of each row's images, which are identified by their tokens."""
    encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
    rows = len(kwargs["input_ids"])
    if encoded is None:
        return [[] for _ in range(rows)]
    remaining = iter(encoded.pooler_output)
    found = []
    for tokens in (kwargs["mm_token_type_ids"] == 1).sum(dim=1).tolist():
        own: list[torch.Tensor] = []
        while sum(len(one) for one in own) < tokens:
            own.append(next(remaining))
        found.append(own)
    return found


def _of_rows(kwargs: dict[str, Any], rows: Sequence[int], family: Family) -> dict[str, Any]:
    """The arguments of some rows."""
    chosen = dict(kwargs)
    index = torch.tensor(rows, device=kwargs["input_ids"].device)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if kwargs.get(name) is not None:
            chosen[name] = kwargs[name][index]
    if kwargs.get("position_ids") is not None:
        chosen["position_ids"] = kwargs["position_ids"].index_select(-2, index)  # (B, T), or (3 or 4, B, T)
    encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
    if encoded is not None:
        ends = [0, *accumulate(len(of_row) for of_row in _features_of_rows(kwargs))]
        copy = type(encoded)(**encoded)
        family.choose_images(copy, [number for row in rows for number in range(ends[row], ends[row + 1])])
        chosen["mm_encoder_outputs"] = {"image": copy}
    return chosen
