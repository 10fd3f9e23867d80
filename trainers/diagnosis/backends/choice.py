"""The backend that a command line names."""

from pathlib import Path

from data.errors import UserError
from trainers.diagnosis.backends.stored import StoredRollouts
from trainers.diagnosis.backends.transformers import TransformersRollouts
from trainers.diagnosis.rollout import Backend


def open_backend(name: str, model: str) -> Backend:
    """The backend of a name, or of a file of stored completions.

    Args:
        model: whose update is looked at.

    Raises:
        UserError: there is neither.
    """
    if Path(name).is_file():
        return StoredRollouts(Path(name), model)
    if name == TransformersRollouts.name:
        return TransformersRollouts()
    raise UserError(f"--backend: expected {TransformersRollouts.name} or a file of completions, found '{name}'")
