"""What a run is evaluated on while it trains: another split, another data set, or a share of the training rows.

Rows that were trained on say nothing about others, and early stopping and the best model would be chosen by them. So
an evaluation on them is refused, under whatever name they come.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data.io.digests import image_digest
from data.io.splits import linked_groups
from data.rows.same_text import normalise_text
from trainers.setup.recipes import DataArguments, RecipeError

Row = TypeVar("Row")
Content = Callable[[Row], tuple[str, Sequence[Any]]]
"""What makes two rows the same question: a text, and images."""

MOST_SHARED = 0.5
"""Share of the evaluation's rows that may also be trained on: real data repeats a few."""


def prompt_content(row: dict) -> tuple[str, Sequence[Any]]:
    """`Content` of rows that have a prompt and images.

    Prompts are one however they are written: as a text or as chat messages, with texts or parts as their content, in
    another white space, case or form of Unicode, with images at other places among the same words.
    """
    prompt = row["prompt"]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return json.dumps([_without_its_writing(turn) for turn in turns], default=repr, sort_keys=True), row["images"]


def _without_its_writing(turn: dict) -> dict:
    content = turn.get("content") or ""
    parts = [content] if isinstance(content, str) else [part.get("text") or " " for part in content]  # " ": an image
    return {name: value for name, value in turn.items() if value is not None} | {
        "content": normalise_text("".join(parts))
    }


def check_evaluation(arguments: DataArguments, evaluates: bool) -> None:
    """Raises `RecipeError` if a recipe names the rows it trains on, or none, as those it evaluates on."""
    named = [key for key in ("eval_dataset_name", "eval_share") if getattr(arguments, key) is not None]
    if not evaluates:
        if named:
            raise RecipeError(f"{named[0]}: nothing is evaluated with eval_strategy: no")
        return
    if len(named) > 1:
        raise RecipeError("eval_dataset_name and eval_share both say what is evaluated on: set one of them")
    if arguments.eval_share is not None:
        return
    source = arguments.eval_dataset_name or arguments.dataset_name
    same_source = Path(source).resolve() == Path(arguments.dataset_name).resolve()
    same_split = arguments.dataset_test_split == arguments.dataset_train_split
    ways = "set eval_dataset_name to other data, or eval_share to the share of the rows to hold out"
    if same_source and Path(source).is_file():
        key = "eval_dataset_name" if named else "eval_strategy"
        raise RecipeError(f"{key}: {source} is one file without splits, all of which is trained on; {ways}")
    if same_source and same_split:
        raise RecipeError(
            f"dataset_test_split: '{arguments.dataset_test_split}' is also the split that is trained on; name another "
            f"split, {ways}"
        )


def evaluation_rows(
    arguments: DataArguments,
    seed: int,
    rows: list[Row],
    load: Callable[[str, str], list[Row]],
    content: Content,
) -> tuple[list[Row], list[Row]]:
    """What to train on, and what to evaluate on, as the recipe says.

    Args:
        rows: of the training split.
        load: source and split -> rows.

    Raises:
        RecipeError: the evaluation would be on rows that are trained on, or `eval_share` leaves one side empty.
    """
    from trainers.run.console import say  # imports accelerate; the checks above come before that

    if arguments.eval_share is not None:
        train, held_out = hold_out(rows, arguments.eval_share, seed, content)
        say(f"held out to evaluate on: {len(held_out)} of {len(rows)} rows")
        return train, held_out
    source = arguments.eval_dataset_name or arguments.dataset_name
    held_out = load(source, arguments.dataset_test_split)
    check_apart(
        rows, held_out, content, source if Path(source).is_file() else f"{source}, {arguments.dataset_test_split}"
    )
    return rows, held_out


def check_apart(train: Sequence[Row], held_out: Sequence[Row], content: Content, where: str) -> None:
    """Raises `RecipeError` if more than half of the rows to evaluate on are also trained on; says how many are."""
    from trainers.run.console import say

    shared = len(held_out) - len(unseen_rows(train, held_out, content))
    found = f"{shared} of {len(held_out)} rows of {where} have the prompt and images of a training row"
    if shared > MOST_SHARED * len(held_out):
        raise RecipeError(f"evaluation: {found}; it must be on other rows")
    if shared:
        say(f"note: {found}")


def unseen_rows(train: Sequence[Row], held_out: Sequence[Row], content: Content) -> list[Row]:
    """The rows of `held_out` that do not stand in `train` too, images compared by what they show."""
    texts = {content(row)[0] for row in held_out}
    candidates = [row for row in train if content(row)[0] in texts]  # images of the others need not be read
    known = {content(row)[0] for row in candidates}
    keys = {_key(*content(row)) for row in candidates}
    return [row for row in held_out if content(row)[0] not in known or _key(*content(row)) not in keys]


def _key(text: str, images: Sequence[Any]) -> tuple[str, ...]:
    return (text, *(image_digest(image) for image in images))


def hold_out(rows: Sequence[Row], share: float, seed: int, content: Content) -> tuple[list[Row], list[Row]]:
    """A seeded division; rows that share an image, or without images the text, stay on one side.

    Returns:
        The rows to train on, and those held out, each in the order of `rows`.

    Raises:
        RecipeError: one side would be empty.
    """
    together = linked_groups(range(len(rows)), lambda number: _marks(*content(rows[number])))
    random.Random(seed).shuffle(together)
    wanted = max(1, round(share * len(rows)))
    chosen: set[int] = set()
    for numbers in together:
        if len(chosen) + len(numbers) <= wanted:
            chosen.update(numbers)
    if not chosen:  # each set of rows that belong together is larger than the share
        chosen.update(min(together, key=len))
    if len(chosen) == len(rows):
        raise RecipeError(
            f"eval_share: the {len(rows)} rows cannot be divided: they share an image or prompt; use eval_dataset_name"
        )
    sides = ([], [])
    for number, row in enumerate(rows):
        sides[number in chosen].append(row)
    return sides


def _marks(text: str, images: Sequence[Any]) -> list[str]:
    return [image_digest(image) for image in images] or [text]
