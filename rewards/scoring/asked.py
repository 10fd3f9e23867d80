"""What the rows of a batch ask and show, for rewards that read prompts and images."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.rows.row_images import is_image_name
from rewards.scoring import columns as column_types
from rewards.scoring.columns import QUESTIONS, ColumnError, missing_column


def prompts_and_images(
    reward: str,
    rows: int,
    prompts: Sequence[Any] | None,
    images: Sequence[Any] | None,
    columns: Mapping[str, Any],
) -> tuple[list[Any], list[list[Any]]]:
    """Of each row its prompt, `None` without one, and the images that are not in the prompt's own messages.

    Args:
        reward: its name, for messages.
        prompts, images: the trainer's, where there are any; else those of the columns of their usual names.

    Raises:
        ColumnError: no row has a prompt, or one has something else in its place.
    """
    asked = _first_known(rows, [prompts, *(columns.get(name) for name in QUESTIONS)])
    asked = [None if prompt is None else _as_prompt(reward, row, prompt) for row, prompt in enumerate(asked)]
    if rows and all(prompt is None for prompt in asked):
        having = [name for name, column in columns.items() if isinstance(column, list)]
        raise missing_column(reward, QUESTIONS, having)
    named = [columns[name] for name in columns if is_image_name(name) and isinstance(columns[name], list)]
    pictures = _first_known(rows, [images, *named])
    seen = [
        [] if prompt is None or _images_of(prompt) else _as_list(pictures[row]) for row, prompt in enumerate(asked)
    ]
    return asked, seen


def _images_of(prompt: Any) -> list:
    """Images that a prompt carries in its own messages."""
    contents = [] if isinstance(prompt, str) else [turn.get("content") for turn in prompt]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image"] for part in parts if part.get("type") == "image" and part.get("image") is not None]


def _as_prompt(reward: str, row: int, prompt: Any) -> str | list[dict[str, Any]]:
    try:
        return column_types.prompt(prompt)
    except column_types.TypeProblem as problem:
        raise ColumnError([f"reward '{reward}': prompt of row {row} of the batch: {problem}"]) from problem


def _as_list(images: Any) -> list:
    return list(images) if isinstance(images, list | tuple) else [] if images is None else [images]


def _first_known(length: int, candidates: Sequence[Sequence[Any] | None]) -> list:
    """For every row the first column's value that is not `None`."""
    columns = [column for column in candidates if column is not None]
    return [next((column[row] for column in columns if column[row] is not None), None) for row in range(length)]
