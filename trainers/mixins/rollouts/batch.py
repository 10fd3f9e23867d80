"""The batch of generated and scored completions: its order by groups, merging two, storing and reading it.

A batch is the dictionary that `trl.GRPOTrainer._generate_and_score_completions` returns: tensors with one row a
completion, pixels of all rows one after the other, and scalars.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from models.families.base import IMAGE_INPUTS, TOKEN_TYPES

Batch = dict[str, Any]

_LEFT_PADDED = ("prompt_ids", "prompt_mask")
_WHOLE_SEQUENCE = TOKEN_TYPES  # prompt and completion in one row


def rows_in(batch: Batch) -> int:
    return len(batch["completion_ids"])


def take_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch with other rows, or the same in another order; pixels must already be split by row."""

    def take(value: Any) -> Any:
        if isinstance(value, list):
            return [value[row] for row in rows]
        return value[list(rows)] if isinstance(value, torch.Tensor) and value.ndim else value

    return {key: take(value) for key, value in batch.items()}


def order_of_groups(rows: int, first: int, size: int) -> torch.Tensor:
    """(rows,) where each row stands after whole groups have been shuffled; rows of a group stay in their order.

    Args:
        first: number of the first row among those of all processes.
        size: completions of a group.
    """
    groups = torch.arange(first, first + rows) // size
    groups -= groups[0].item()
    ranks = torch.randperm(int(groups[-1]) + 1)
    return ranks[groups].argsort(stable=True).argsort()


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, list):
        return [item for value in values for item in value]
    return torch.cat(tuple(values)) if isinstance(first, torch.Tensor) and first.ndim else first


def in_order(parts: Sequence[Batch], key: str) -> list[Batch]:
    """The rows of equally large batches in another order, cut into as many batches.

    Args:
        key: of each row's place, counted over all parts; it is left out of what is returned.
    """
    order = torch.cat([part[key] for part in parts]).argsort().tolist()
    split = [_split(part) for part in parts]
    whole = {name: _joined([part[name] for part in split]) for name in split[0] if name != key}
    size = rows_in(parts[0])
    cut = [order[start : start + size] for start in range(0, len(order), size)]
    return [unsplit_pixel_values_by_grid(take_rows(whole, rows)) for rows in cut]


def _pad(tensor: torch.Tensor, width: int, left: bool, value: float) -> torch.Tensor:
    missing = width - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (missing, 0) if left else (0, missing), value=value)


def _pad_batch(batch: Batch, prompt_width: int, completion_width: int, pad_token_id: int) -> Batch:
    """Widens every row to the given numbers of prompt and completion tokens."""
    old_prompt, old_completion = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
    padded = dict(batch)
    for key, value in batch.items():
        if not isinstance(value, torch.Tensor) or value.ndim != 2 or key in IMAGE_INPUTS:
            continue
        fill = pad_token_id if key.endswith("_ids") and key not in _WHOLE_SEQUENCE else 0
        if key in _LEFT_PADDED:
            padded[key] = _pad(value, prompt_width, True, fill)
        elif key in _WHOLE_SEQUENCE:
            prompt, completion = value[:, :old_prompt], value[:, old_prompt:]
            parts = (_pad(prompt, prompt_width, True, 0), _pad(completion, completion_width, False, 0))
            padded[key] = torch.cat(parts, dim=1)
        elif value.shape[1] == old_completion:
            padded[key] = _pad(value, completion_width, False, fill)
    return padded


def has_pixels_by_row(batch: Batch) -> bool:
    """Whether pixels have a row for each completion, with zeros where it has no image (Idefics), and not for each
    image."""
    return batch.get("pixel_attention_mask") is not None and batch["pixel_values"].ndim == 5


def with_rows_as_images(batch: Batch) -> Batch:
    """A batch that has pixels by row counts its rows as images, by which TRL cuts it: of as many images as rows, of
    which some have two and others none, it would take each for a row."""
    return batch | {"num_images": [1] * len(batch["pixel_values"])} if has_pixels_by_row(batch) else batch


def _split(batch: Batch) -> Batch:
    """The batch with the images of each row by themselves."""
    return batch if has_pixels_by_row(batch) else split_pixel_values_by_grid(batch)


def _with_image_slots(batch: Batch, other: Batch) -> Batch:
    """The batch split by rows, with places for images where the other one has some, and as many tiles a row."""
    batch = _with_tiles(batch, other)
    if "pixel_values" in batch or "pixel_values" not in other:
        return _split(batch)
    rows, empty = rows_in(batch), {key: other[key][:0] for key in IMAGE_INPUTS if key in other}
    by_row = has_pixels_by_row(other)
    slots = {
        key: value.new_zeros(rows, *value.shape[1:]) if by_row else [value] * rows for key, value in empty.items()
    }
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    types = {key: torch.zeros_like(ids) for key in TOKEN_TYPES if key in other}
    return {**types, **batch, **slots, "num_images": [int(by_row)] * rows}


def _with_tiles(batch: Batch, other: Batch) -> Batch:
    """The batch with its tiles counted, where the other one has images of several, and with padding to as many tiles
    as the other one's rows have."""
    found = dict(batch)
    if "num_tiles" in other and "num_tiles" not in batch:
        found["num_tiles"] = list(batch.get("num_images") or [0] * rows_in(batch))
    for key in ("pixel_values", "pixel_attention_mask"):
        if key in batch and key in other and other["pixel_values"].ndim == 5:  # (images or rows, tiles, ...)
            missing = max(0, other[key].shape[1] - batch[key].shape[1])
            found[key] = torch.nn.functional.pad(batch[key], (0, 0) * (batch[key].ndim - 2) + (0, missing))
    return found


def replace_rows(
    batch: Batch, rows: Sequence[int], other: Batch, other_rows: Sequence[int], pad_token_id: int
) -> Batch:
    """A batch in which `rows` are those of another batch; both are padded to the same widths.

    Args:
        rows, other_rows: equally many; row `rows[i]` becomes row `other_rows[i]` of `other`.
    """
    widths = [max(part[key].shape[1] for part in (batch, other)) for key in ("prompt_ids", "completion_ids")]
    left = _pad_batch(_with_image_slots(batch, other), *widths, pad_token_id)
    right = _pad_batch(_with_image_slots(other, batch), *widths, pad_token_id)
    source = dict(zip(rows, other_rows, strict=True))

    def merge(key: str) -> Any:
        mine, theirs = left[key], right.get(key)
        if isinstance(mine, list):
            return [theirs[source[row]] if row in source else value for row, value in enumerate(mine)]
        if not isinstance(mine, torch.Tensor) or mine.ndim == 0:
            return mine
        merged = mine.clone()
        merged[list(rows)] = theirs[list(other_rows)].to(mine.dtype)
        return merged

    return unsplit_pixel_values_by_grid({key: merge(key) for key in left})


def save_batches(batches: Sequence[Batch], path: Path) -> None:
    """Writes batches as safetensors; what is no tensor goes to the header as JSON."""
    tensors, plain = {}, {}
    for number, batch in enumerate(batches):
        for key, value in batch.items():
            name = f"{number}.{key}"
            if isinstance(value, torch.Tensor):
                tensors[name] = value.contiguous().clone()
            else:
                plain[name] = value
    save_file(tensors, path, metadata={"plain": json.dumps(plain), "count": str(len(batches))})


def load_batches(path: Path, device: torch.device) -> list[Batch]:
    """Reads what `save_batches` wrote."""
    with safe_open(path, framework="pt") as file:  # it knows no device by the name of "cpu:0"
        header = file.metadata()
        tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
        entries = json.loads(header["plain"]) | tensors
    batches: list[Batch] = [{} for _ in range(int(header["count"]))]
    for name, value in entries.items():
        number, _, key = name.partition(".")
        batches[int(number)][key] = value
    return batches
