"""The tokens behind a sample of a report, by which `vlm-posttrain doctor` can look at a rollout that has been."""

from typing import Any

from pydantic import BaseModel

from trainers.mixins.rollouts.batch import Batch

DIGITS = 6
"""Of a log-probability in nats: differences of less than 1e-6 are rounding."""


class SampledTokens(BaseModel):
    """What a sampler read and drew of one prompt.

    Attributes:
        row: id of the row, if it has one.
        prompt_token_ids: with one for every patch of an image.
        image_grids: (time, height, width) of each image in patches.
        token_ids: of each completion, the end token too.
        log_probs: of each of them, as the sampler told; `None` if it did not, and for a token that has none.
    """

    row: Any = None
    prompt_token_ids: list[int]
    image_grids: list[list[int]] = []
    token_ids: list[list[int]]
    log_probs: list[list[float | None]] | None = None


def tokens_of_first_group(batch: Batch, rows: int, row: Any) -> SampledTokens:
    """Those of the first group of a batch.

    Args:
        rows: completions of the group.
        row: its id.
    """
    counted = [mask.bool() for mask in batch["completion_mask"][:rows]]
    told = batch.get("sampling_per_token_logps")
    images = (batch.get("num_images") or [0])[0]
    grids = batch["image_grid_thw"][:images].tolist() if images and "image_grid_thw" in batch else []
    return SampledTokens(
        row=row,
        prompt_token_ids=batch["prompt_ids"][0][batch["prompt_mask"][0].bool()].tolist(),
        image_grids=grids,
        token_ids=[ids[mask].tolist() for ids, mask in zip(batch["completion_ids"], counted, strict=False)],
        log_probs=None
        if told is None
        else [_rounded(of_row[mask]) for of_row, mask in zip(told, counted, strict=False)],
    )


def _rounded(values: Any) -> list[float | None]:
    return [round(value, DIGITS) if value == value else None for value in values.tolist()]
