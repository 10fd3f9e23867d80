"""Generation that reads a prompt once for all its completions.

Within `shared_prefill(model)`, transformers' `generate` encodes each different image once, runs each different prompt
once, and goes on with keys and values of every row as if each had been run. Sampling is `generate`'s own, over all
rows: the same seed gives the same completions as without, but for rounding.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from models.families.base import TOKEN_TYPES, different_images, find_images
from models.families.registry import known_family_of
from models.families.vision_hooks import given_cache, of_prompts, vision_language_model
from models.shared_prefix.layout import rows_with_equal_keys


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
    before = {name: vars(combined)[name] for name in replaced if name in vars(combined)}
    for name, wrapper in replaced.items():
        setattr(combined, name, wrapper(getattr(combined, name), combined.config))
    try:
        yield
    finally:
        for name in replaced:
            delattr(combined, name)
        vars(combined).update(before)


def _encoding_once(encode: Callable, config: Any) -> Callable:
    """`get_image_features` that runs over the different images, and gives those of all."""
    family, names = known_family_of(config), list(inspect.signature(encode).parameters)

    @wraps(encode)
    def encode_different(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        numbers, different = different_images(family.split(given))
        features = family.encode(encode, **given | family.join(different))
        family.choose_images(features, numbers)
        return features

    return encode_different


def _prefilling_once(forward: Callable, config: Any) -> Callable:
    """The forward of the module that takes images and tokens; its first pass runs over the different rows."""

    @of_prompts
    @wraps(forward)
    def prefill_different(*args: Any, **kwargs: Any) -> Any:
        groups = None if args else equal_rows(kwargs, config)
        if groups is None or len(groups) == len(kwargs["input_ids"]):
            return forward(*args, **kwargs)
        first = [group[0] for group in groups]
        outputs = forward(**of_rows(kwargs, first, config))
        number_of_row = {row: number for number, group in enumerate(groups) for row in group}
        device = outputs.last_hidden_state.device
        numbers = torch.tensor([number_of_row[row] for row in range(len(number_of_row))], device=device)
        outputs.last_hidden_state = outputs.last_hidden_state[numbers]
        given_cache(kwargs).reorder_cache(numbers)
        return outputs

    return prefill_different


def equal_rows(kwargs: dict[str, Any], config: Any) -> list[list[int]] | None:
    """Numbers of the rows with the same tokens, padding and images; `None` for what is no first pass."""
    ids, mask, cache = kwargs.get("input_ids"), kwargs.get("attention_mask"), given_cache(kwargs)
    known = isinstance(cache, DynamicCache) and ids is not None and kwargs.get("inputs_embeds") is None
    if not known or cache.get_seq_length() or kwargs.get("pixel_values") is not None:
        return None
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        return None
    tokens = ids.cpu().numpy()
    real = [b""] * len(tokens) if mask is None else [row.tobytes() for row in mask.cpu().numpy()]
    encoded = _encoded(kwargs)
    features = [] if encoded is None else [{"features": one} for one in encoded.pooler_output]
    numbers, _ = different_images(features)
    shown = [tuple(numbers[place] for place in of_row) for of_row in _images_of_rows(kwargs, config)]
    return rows_with_equal_keys(list(zip((row.tobytes() for row in tokens), real, shown, strict=True)))


def _encoded(kwargs: dict[str, Any]) -> Any:
    """The features of all images; `None` without images."""
    return (kwargs.get("mm_encoder_outputs") or {}).get("image")


def _images_of_rows(kwargs: dict[str, Any], config: Any) -> list[list[int]]:
    """For each row, the numbers of its images among those that are encoded."""
    encoded, ids = _encoded(kwargs), kwargs["input_ids"]
    if encoded is None:
        return [[] for _ in ids]
    tokens = (known_family_of(config).token_types(config, ids) == 1).sum(dim=1).tolist()
    return find_images([len(one) for one in encoded.pooler_output], tokens)


def of_rows(kwargs: dict[str, Any], rows: Sequence[int], config: Any) -> dict[str, Any]:
    """The arguments of some rows."""
    chosen = dict(kwargs)
    index = torch.tensor(rows, device=kwargs["input_ids"].device)
    for name in ("input_ids", "attention_mask", *TOKEN_TYPES):
        if kwargs.get(name) is not None:
            chosen[name] = kwargs[name][index]
    if kwargs.get("position_ids") is not None:
        chosen["position_ids"] = kwargs["position_ids"].index_select(-2, index)  # (B, T), or (3 or 4, B, T)
    encoded = _encoded(kwargs)
    if encoded is not None:
        images = _images_of_rows(kwargs, config)
        numbers = [number for row in rows for number in images[row]]
        copy = type(encoded)(**encoded)
        known_family_of(config).choose_images(copy, numbers)
        chosen["mm_encoder_outputs"] = {"image": copy} if numbers else {}
    return chosen
