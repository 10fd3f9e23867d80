"""Finding a model in the folder of a training run: the final one, or the newest checkpoint that is complete."""

import hashlib
from pathlib import Path

COMPLETE_FILE = "complete.json"
"""Written last. A checkpoint folder without it was cut short and is not used."""
CHECKPOINT_PREFIX = "checkpoint"
"""As transformers' Trainer names the folders: `checkpoint-100`."""
MODEL_FILE = "config.json"


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, complete or not."""
    folders = Path(output_dir).glob(f"{CHECKPOINT_PREFIX}-*")
    return sorted((folder for folder in folders if folder.name.rpartition("-")[2].isdigit()), key=_step_of)


def newest_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The last checkpoint that was written to its end, or `None`."""
    complete = [folder for folder in checkpoint_folders(output_dir) if (folder / COMPLETE_FILE).is_file()]
    return complete[-1] if complete else None


def find_model(name: str | Path) -> str:
    """Where a model is: the folder itself if it holds one, else its newest complete checkpoint; or a Hub id as it is.

    Raises:
        FileNotFoundError: a folder that holds neither.
    """
    folder = Path(name)
    if not folder.is_dir() or (folder / MODEL_FILE).is_file():
        return str(name)
    newest = newest_complete_checkpoint(folder)
    if newest is None:
        incomplete = ", ".join(found.name for found in checkpoint_folders(folder)) or "none"
        raise FileNotFoundError(
            f"{folder}: expected a model ({MODEL_FILE}) or a complete checkpoint ({COMPLETE_FILE} in "
            f"{CHECKPOINT_PREFIX}-<step>), found neither; incomplete checkpoints: {incomplete}"
        )
    return str(newest)


def model_fingerprint(name: str) -> str:
    """Of a folder, a hash of its weights and configuration; of a Hub id, the id."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".jinja", ".txt"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
