"""Whole conversations that share their prompts: of a reward model, which wants the hidden state of every token.

Responses may have images of their own. What two conversations share then ends before the first image that differs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from models.families.base import find_images
from models.families.registry import known_family_of
from models.families.vision_hooks import vision_language_model
from models.shared_prefix.layout import common_prefix, rows_with_equal_keys
from models.shared_prefix.packing import Packed, Rows, pack

BEHIND = "images in responses, whose tokens see those behind them in this family"


def pack_conversations(
    model: nn.Module,
    inputs: dict[str, Any],
    group_of_row: Sequence[int],
    allowed: Callable[[str | None], bool] = lambda reason: reason is None,
) -> Packed | None:
    """Packs conversations of which every token's hidden state is wanted.

    Args:
        inputs: input_ids, attention_mask (N, T), those of images, and image_index, as a reward model takes them.
        group_of_row: equal numbers where conversations begin with the same prompt and images.
        allowed: is told why conversations cannot be packed exactly, or `None`, and says whether to pack them.

    Returns:
        `None` if nothing repeats, or it is not allowed.
    """
    groups = rows_with_equal_keys(group_of_row)
    if len(groups) == len(group_of_row):
        return None
    combined = vision_language_model(model)
    family = known_family_of(combined.config)
    mask = inputs["attention_mask"].cpu().numpy() != 0
    ids = inputs["input_ids"].cpu().numpy()
    shared = [common_prefix([ids[row][mask[row]] for row in group]) for group in groups]
    different = family.split(inputs)
    if not different:
        return pack(
            model, Rows(inputs["input_ids"], inputs["attention_mask"], [], [[]] * len(ids), different), shared, groups
        )
    types = (family.token_types(combined.config, inputs["input_ids"]).cpu().numpy() != 0) & mask
    places = [np.flatnonzero(row[real]) for row, real in zip(types, mask, strict=True)]
    sizes = [family.visual_tokens(combined.config, image) for image in different]
    index = range(len(different)) if inputs.get("image_index") is None else inputs["image_index"].tolist()
    found = find_images([sizes[number] for number in index], [len(row) for row in places])
    images = [[index[place] for place in row] for row in found]
    ends = [
        _first_image_apart([images[row] for row in group], [places[row] for row in group], sizes) for group in groups
    ]
    if not allowed(None if family.images_anywhere or all(end is None for end in ends) else BEHIND):
        return None
    shared = [size if end is None else min(size, end) for size, end in zip(shared, ends, strict=True)]
    return pack(model, Rows(inputs["input_ids"], inputs["attention_mask"], [], images, different), shared, groups)


def _first_image_apart(images: Sequence[list[int]], places: Sequence[np.ndarray], sizes: Sequence[int]) -> int | None:
    """Where the first image stands that not all rows of a group have in common; `None` where they have all.

    Args:
        images: of each row, their numbers; places: of the tokens of images among each row's real ones; sizes: tokens
            of each image.
    """
    same = common_prefix([np.array(of_row, dtype=int) for of_row in images])
    tokens = sum(sizes[number] for number in images[0][:same])
    own = [int(of_row[tokens]) for of_row in places if len(of_row) > tokens]
    return min(own, default=None)
