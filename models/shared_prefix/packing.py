"""One prompt, many continuations: each prompt and each image goes through the model once, exactly.

A batch of rows [prompt | continuation] is packed: rows with the same prompt and the same pixels become one segment
[prompt | continuation 1 | continuation 2 | ...] (models/shared_prefix/layout.py), in which attention keeps the
continuations apart (models/shared_prefix/attention.py) and every token has the position that it has in its own
row. One ordinary forward pass, without a cache: gradient checkpointing, adapters, DDP and ZeRO see nothing unusual.
Values and gradients are those of the plain way but for rounding. See docs/shared_prefix.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.families.base import ImageTensors, different_images
from models.families.registry import known_family_of
from models.families.vision_hooks import share_images, vision_language_model
from models.shared_prefix.attention import mask_for
from models.shared_prefix.layout import PrefixLayout, Segment, in_blocks, lay_out, rows_with_equal_keys


@dataclass(frozen=True)
class Rows:
    """A batch as models take it, each prompt written out in every row.

    Attributes:
        input_ids, attention_mask: (N, T), padded on either side or both.
        prompts: (N,), how many of each row's real tokens are the prompt: at least 1; its last one is text, and no
            image stands after it.
        images: for each row, the numbers of its images, in order.
        different: these images.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prompts: Sequence[int]
    images: Sequence[Sequence[int]]
    different: Sequence[ImageTensors] = ()

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        prompts: Sequence[int],
        images: Sequence[Sequence[ImageTensors]],
    ) -> "Rows":
        """Of the images of each row, of which those with the same tensors are found."""
        numbers, different = different_images([image for of_row in images for image in of_row])
        remaining = iter(numbers)
        numbered = [[next(remaining) for _ in of_row] for of_row in images]
        return cls(input_ids, attention_mask, prompts, numbered, different)

    def reason_not_shared(self, model: nn.Module) -> str | None:
        """Why prompts of this batch cannot be shared exactly, by a model, also wrapped; `None` if they can."""
        if min(self.prompts) < 1:
            return "a row without a prompt"
        config = vision_language_model(model).config
        types = known_family_of(config).token_types(config, self.input_ids) * (self.attention_mask != 0)
        if (types > 1).any():
            return "videos"
        number = (self.attention_mask != 0).cumsum(dim=1)  # (N, T), of each real token in its row, from 1
        last = torch.tensor(self.prompts, device=number.device).unsqueeze(1)
        if types[number > last].any():
            return "images in the continuations"
        return "a prompt that ends with an image" if types[number == last].any() else None

    def prompt_keys(self) -> list[tuple]:
        """For each row, what two rows have in common exactly if prompt and images are the same."""
        ids, mask = self.input_ids.cpu().numpy(), self.attention_mask.cpu().numpy() != 0
        tokens = [row[real][:size].tobytes() for row, real, size in zip(ids, mask, self.prompts, strict=True)]
        return [(text, tuple(pictures)) for text, pictures in zip(tokens, self.images, strict=True)]


@dataclass(frozen=True)
class Packed:
    """A batch whose prompts stand once.

    Attributes:
        inputs: of the model: input_ids (lines, width), position_ids (lines, width), or of several axes (axes, lines,
            width), attention_mask, and those of images.
        layout: where the tokens of the rows went.
    """

    inputs: dict[str, Any]
    layout: PrefixLayout

    def places(self, device: torch.device | None = None) -> torch.Tensor:
        """(N, T), of each token in the packed sequence, counted line by line; -1 for padding."""
        return torch.from_numpy(self.layout.places).to(device)


def pack(model: nn.Module, rows: Rows, shared: Sequence[int], groups: Sequence[Sequence[int]]) -> Packed:
    """Writes each beginning once.

    Args:
        model: also wrapped; its weights are not touched.
        shared: for each group, how many real tokens its rows have in common, with the same images whole among them.
        groups: numbers of the rows that begin alike; each row stands in one group.
    """
    combined = vision_language_model(model)
    family = known_family_of(combined.config)
    implementation = family.language_model(combined).config._attn_implementation
    mask = rows.attention_mask.cpu().numpy() != 0
    if implementation == "eager":  # whose mask is a table of all tokens by all
        lengths = mask.sum(axis=1)
        longest = [max(lengths[row] for row in group) - size for group, size in zip(groups, shared, strict=True)]
        sizes = dict(zip((group[0] for group in groups), shared, strict=True))
        of_row = {row: sizes[group[0]] for group in groups for row in group}
        groups = in_blocks(groups, shared, longest)
        shared = [of_row[block[0]] for block in groups]
    layout = lay_out(mask, groups, shared, one_line=implementation == "sdpa")
    device = rows.input_ids.device
    sources = torch.from_numpy(layout.sources.clip(min=0)).to(device)
    ids = rows.input_ids.reshape(-1)[sources]
    if layout.tokens < len(layout.sources):
        ids = ids.masked_fill(torch.from_numpy(layout.sources < 0).to(device), _padding(combined))
    ids = ids.view(layout.shape)
    types = family.token_types(combined.config, ids)
    dtype = combined.get_input_embeddings().weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    make = partial(mask_for, layout, implementation, dtype, device)
    inputs = {
        "input_ids": ids,
        "position_ids": _positions(combined, rows, layout, device),
        "attention_mask": family.masks(combined, layout, make, types),
        **family.join(rows.different),
    }
    if family.types_input is not None:
        inputs[family.types_input] = types
    index = [number for segment in layout.segments for number in _images_in_line(combined, rows, segment)]
    if index != list(range(len(rows.different))):
        inputs["image_index"] = torch.tensor(index)
    if rows.different:
        share_images(combined)
    return Packed(inputs, layout)


def _padding(combined: nn.Module) -> int:
    """A token that stands for no image."""
    text = known_family_of(combined.config).language_model(combined).config
    return 0 if text.pad_token_id is None else text.pad_token_id


def _images_in_line(combined: nn.Module, rows: Rows, segment: Segment) -> list[int]:
    """Numbers of the images of a segment: of its beginning, then those that each row has behind it."""
    of_rows = [(rows.images[row], _images_before(combined, rows, row, segment.prefix)) for row in segment.rows]
    first, count = of_rows[0]
    return [*first[:count], *(number for images, before in of_rows for number in images[before:])]


def _images_before(combined: nn.Module, rows: Rows, row: int, size: int) -> int:
    """How many images are among the first real tokens of a row."""
    family = known_family_of(combined.config)
    left = int((family.token_types(combined.config, _real_ids(rows, row)[:size]) == 1).sum())
    for count, number in enumerate(rows.images[row]):
        if left <= 0:
            return count
        left -= family.visual_tokens(combined.config, rows.different[number])
    return len(rows.images[row])


def _real_ids(rows: Rows, row: int) -> torch.Tensor:
    return rows.input_ids[row][rows.attention_mask[row] != 0].cpu()


def _positions(combined: nn.Module, rows: Rows, layout: PrefixLayout, device: torch.device) -> torch.Tensor:
    """(axes, lines, width), or (lines, width) of one axis: each token's position in its own row, counted without
    padding."""
    beginnings = [_first_positions(combined, rows, segment.rows[0], segment.prefix) for segment in layout.segments]
    axes = len(beginnings[0])
    positions = torch.zeros(axes, layout.shape[0] * layout.shape[1], dtype=torch.long)
    for segment, beginning in zip(layout.segments, beginnings, strict=True):
        positions[:, segment.start : segment.start + segment.prefix] = beginning
        after = segment.start + segment.prefix
        first = int(beginning.max()) + 1 if segment.prefix else 0
        for row, rest in zip(segment.rows, segment.continuations, strict=True):
            own = torch.arange(first, first + rest)
            if _images_before(combined, rows, row, segment.prefix) < len(rows.images[row]):
                own = _first_positions(combined, rows, row, segment.prefix + rest)[:, segment.prefix :]
            positions[:, after : after + rest] = own
            after += rest
    shape = layout.shape if axes == 1 else (axes, *layout.shape)
    return positions.view(shape).to(device)


def _first_positions(combined: nn.Module, rows: Rows, row: int, size: int) -> torch.Tensor:
    """(axes, size) of the first real tokens of a row."""
    before = rows.images[row][: _images_before(combined, rows, row, size)]
    images = [rows.different[number] for number in before]
    return known_family_of(combined.config).positions(combined, _real_ids(rows, row)[:size], images)


# -- log-probabilities of continuations -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Continuations:
    """A packed batch from which each token of each continuation is predicted.

    A rest is the prompt's last token with all of the continuation but its last token: it predicts the continuation,
    token by token, so that each place of the packed sequence predicts one token at most.

    Attributes:
        labels: (lines, width), the token that each place predicts; -100 where there is none.
        where: (N, C), the place that predicts each token of each row's continuation; -1 where there is none.
    """

    packed: Packed
    labels: torch.Tensor
    where: torch.Tensor

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """(lines, width) -> (N, C), 0 where there is no token."""
        return values.reshape(-1)[self.where.clamp(min=0)] * (self.where >= 0)


def pack_continuations(model: nn.Module, rows: Rows, width: int) -> Continuations | None:
    """Packs a batch whose continuations stand in the last `width` columns.

    Returns:
        `None` if no prompt repeats, or a token or none would be left: the plain way costs no more.
    """
    groups = rows_with_equal_keys(rows.prompt_keys())
    real = rows.attention_mask != 0
    shared = [rows.prompts[group[0]] - 1 for group in groups]
    left = (
        int(real.sum())
        - len(rows.prompts)
        - sum(size * (len(group) - 1) for size, group in zip(shared, groups, strict=True))
    )
    if len(groups) == len(rows.prompts) or left < 2:
        return None
    places = torch.arange(real.shape[1], device=real.device)
    last = (places * real).argmax(dim=1, keepdim=True)
    read = Rows(
        rows.input_ids,
        real & (places != last),  # nothing is predicted from the last token
        rows.prompts,
        rows.images,
        rows.different,
    )
    packed = pack(model, read, shared, groups)
    where = _predecessors(packed.layout, real.cpu().numpy(), rows.prompts, width)
    labels = np.full(len(packed.layout.sources), -100)
    tokens = rows.input_ids[:, rows.input_ids.shape[1] - width :].cpu().numpy()
    labels[where[where >= 0]] = tokens[where >= 0]
    device = rows.input_ids.device
    return Continuations(
        packed, torch.from_numpy(labels).view(packed.layout.shape).to(device), torch.from_numpy(where).to(device)
    )


def _predecessors(layout: PrefixLayout, real: np.ndarray, prompts: Sequence[int], width: int) -> np.ndarray:
    """(N, width): where the token before each token of a continuation stands; -1 for padding."""
    where = np.full((len(real), width), -1, dtype=np.int64)
    for row, size in enumerate(prompts):
        columns = np.flatnonzero(real[row])
        where[row, columns[size:] - (real.shape[1] - width)] = layout.places[row, columns[size - 1 : -1]]
    return where


def continuation_log_probs(
    model: nn.Module, batch: Continuations, entropies: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability, and if asked for entropy, in nats, of each token of each continuation, (N, C) float32.

    Args:
        model: with a language-model head; called once.
    """
    keep = batch.labels != -100  # (lines, width)
    logits = model(**batch.packed.inputs, logits_to_keep=keep, use_cache=False).logits  # (tokens, vocabulary)
    labels = batch.labels[keep]
    pieces = [
        token_log_probs(part, tokens, entropies)
        for part, tokens in zip(logits.split(256), labels.split(256), strict=True)
    ]
    found = [torch.cat(values) for values in zip(*pieces, strict=True)] if pieces else [logits.sum(dim=1).float()] * 2
    empty = found[0].new_zeros(keep.shape)
    placed = [batch.unpack(empty.masked_scatter(keep, values)) for values in found]
    return placed[0], placed[1] if entropies else None


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor, entropies: bool = False) -> tuple[torch.Tensor, ...]:
    """Log-probabilities of tokens, and if asked for entropies: (n, V), (n,) -> (n,) each, in float32.

    They are computed anew for the gradient, because wide logits of all rows would fill gigabytes.
    """

    def compute(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wide = logits.float()
        total = wide.logsumexp(dim=1)
        chosen = wide.gather(1, tokens.unsqueeze(1)).squeeze(1) - total
        return (chosen, total - (wide.softmax(dim=1) * wide).sum(dim=1)) if entropies else (chosen,)

    return checkpoint(compute, logits, use_reentrant=False) if torch.is_grad_enabled() else compute(logits)
