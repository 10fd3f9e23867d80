"""The backend that a command line names."""

from pathlib import Path

from data.errors import UserError
from trainers.diagnosis.backends.stored import StoredRollouts
from trainers.diagnosis.backends.transformers import TransformersRollouts
from trainers.diagnosis.backends.vllm import VLLMSamples
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
    if Path(name).is_dir():
        raise UserError(f"--backend: {name} is a folder; expected a file in it, as samples.jsonl of a run")
    for kind in (TransformersRollouts, VLLMSamples):
        if name == kind.name:
            return kind()
    raise UserError(f"--backend: expected transformers, vllm or a file of completions, found '{name}'")
