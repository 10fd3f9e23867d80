"""The backend that a command line names."""

from data.errors import UserError
from trainers.diagnosis.backends.transformers import TransformersRollouts
from trainers.diagnosis.rollout import Backend


def open_backend(name: str) -> Backend:
    """The backend of a name.

    Raises:
        UserError: there is none.
    """
    if name == TransformersRollouts.name:
        return TransformersRollouts()
    raise UserError(f"--backend: expected {TransformersRollouts.name}, found '{name}'")
