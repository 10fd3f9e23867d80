"""Lists the recipes of the toolkit, prints one of them, or copies it here to be changed.

vlm-posttrain recipes
vlm-posttrain recipes agent_selection_tiny
vlm-posttrain recipes agent_selection_tiny --copy
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.cli.arguments import option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.package_files import RECIPES, names_in, unknown
from data.errors import UserError
from data.io.records import atomic_write

HARDWARE = "Hardware:"


@dataclass(frozen=True)
class Head:
    """What the comment at the beginning of a recipe says, each in a sentence."""

    purpose: str
    hardware: str


def read_head(path: Path) -> Head:
    """The head of a recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#") for line in lines[: lines.index("")]]
    indented = next(number for number, line in enumerate(comments) if line.startswith("   "))  # the command
    below = " ".join(line.strip() for line in comments[indented:])
    return Head(
        _first_sentence(" ".join(line.strip() for line in comments[:indented])),
        _first_sentence(below.partition(HARDWARE)[2].strip()),
    )


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].removesuffix(".")


def listed() -> str:
    """A line a recipe: its name, what it does, what it needs."""
    names = names_in(RECIPES)
    width = max(map(len, names))
    heads = [read_head(RECIPES / f"{name}.yaml") for name in names]
    lines = [f"{name:<{width}}  {head.purpose} [{head.hardware}]" for name, head in zip(names, heads, strict=True)]
    return "\n".join(lines) + "\n"


def copy(path: Path) -> Path:
    """Copies a recipe into the current folder.

    Raises:
        UserError: it holds another file of this name.
    """
    target = Path(path.name)
    text = path.read_text(encoding="utf-8")
    if target.exists() and target.read_text(encoding="utf-8") != text:
        raise UserError(f"{target}: there is another file of this name here, which would be overwritten")
    with atomic_write(target) as file:
        file.write(text)
    return target


@dataclass(kw_only=True)
class RecipesArguments:
    """Which recipe, and what is done with it."""

    name: str | None = option("of a recipe; without one, all are listed", None, positional=True)
    copy: bool = option("write it into the current folder", False)


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_and_hold(RecipesArguments, argv)
    if arguments.name is None:
        if arguments.copy:
            raise UserError("--copy: name the recipe to copy; without --copy all are listed")
        sys.stdout.write(listed())
        return
    path = RECIPES / f"{arguments.name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise unknown(arguments.name, RECIPES)
    if arguments.copy:
        sys.stdout.write(f"{copy(path)}: change what you like, and run it by --config {path.stem}\n")
    else:
        sys.stdout.write(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
