"""What is said of a model that cannot be made or loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.commands import machine_problem
from data.errors import UserError


class ModelError(UserError, OSError, ValueError):
    """There is no such model, it is of another kind, its files are not whole, or its configuration makes no sense.

    transformers raises errors of both kinds for that, and callers may expect either.
    """


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """Turns what transformers and the Hub's client say of a model or its files into a `ModelError` that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, UserError) or machine_problem(error) is not None:
            raise
        raise ModelError(f"{name}: cannot be loaded: {error}") from error
