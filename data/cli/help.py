"""What `--help` of commands and training scripts looks like: who it is, how it is started, and each setting once."""

import sys
import textwrap
from collections.abc import Iterable

WIDTH = 119
NAME = "vlm-posttrain"
"""The one command, which runs all others. It leaves `vlm-posttrain eval` as the name of what it runs."""


def started_as() -> list[str]:
    """The words of a command line before its options: `vlm-posttrain eval`, or `python trainers/grpo.py`."""
    name = sys.argv[0]
    return name.split(" ", 1) if name.startswith(f"{NAME} ") else ["python", name]


def entry(name: str, annotation: str, default: str, text: str) -> str:
    """The lines of one setting.

    >>> print(entry("--pool_size", "int", "64", "candidates of a query"))
      --pool_size: int = 64
          candidates of a query
    """
    return f"{_wrapped(f'{name}: {annotation} = {default}', 2)}\n{_wrapped(text, 6)}"


def _wrapped(text: str, indent: int) -> str:
    further = " " * 6
    return textwrap.fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=further, break_on_hyphens=False)


def described(description: str | None, lines: Iterable[str]) -> str:
    """The whole text: a module's docstring, and what follows it."""
    return "\n".join([(description or "").strip(), "", *lines, ""])
