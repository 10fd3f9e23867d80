"""What is said of a model that cannot be made or loaded."""

from data.errors import UserError


class ModelError(UserError, OSError, ValueError):
    """There is no such model, it is of another kind, its files are not whole, or its configuration makes no sense.

    transformers raises errors of both kinds for that, and callers may expect either.
    """
