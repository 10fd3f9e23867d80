"""Finding a model in the folder of a training run: the final one, or the newest checkpoint that is whole."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.io.digests import file_digest
from data.io.records import write_json
from models.errors import ModelError

COMPLETE_FILE = "complete.json"
"""Written last: the files of a checkpoint, with their sizes and hashes. A folder without it was cut short."""
RUN_FILE = "run.json"
"""What a run was started from, and whether it has finished (trainers/run/origin.py)."""
CHECKPOINT_PREFIX = "checkpoint"
"""As transformers' Trainer names the folders: `checkpoint-100`."""
MODEL_FILE = "config.json"
MODEL_FILES = (MODEL_FILE, "adapter_config.json")
"""One of them is in the folder of every model of transformers or peft."""
MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".txt", ".model")
NOT_OF_THE_MODEL = ("trainer_state.json", "training_args.bin", RUN_FILE, COMPLETE_FILE)
"""Files of a run that lie beside its model."""


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, complete or not."""
    steps = {folder: folder.name.rpartition("-")[2] for folder in Path(output_dir).glob(f"{CHECKPOINT_PREFIX}-*")}
    return sorted((folder for folder, step in steps.items() if step.isdigit()), key=lambda folder: int(steps[folder]))


# -- whole checkpoints ------------------------------------------------------------------------------------------------


def _files_of(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path != folder / COMPLETE_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _hashes(folder: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(8) as pool:  # hashing leaves the interpreter free
        return list(pool.map(lambda name: file_digest(folder / name), names))


def mark_complete(folder: Path, **facts: Any) -> None:
    """Writes `complete.json`, when everything else is in the folder.

    Args:
        facts: further entries.
    """
    names = _files_of(folder)
    sizes = [(folder / name).stat().st_size for name in names]
    rows = zip(names, sizes, _hashes(folder, names), strict=True)
    files = {name: {"bytes": size, "sha256": digest} for name, size, digest in rows}
    write_json(folder / COMPLETE_FILE, {**facts, "files": files})


def read_complete(folder: Path) -> dict[str, Any] | None:
    """What `mark_complete` wrote, or `None` if the file cannot be read as that."""
    try:
        content = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    listed = isinstance(content, dict) and isinstance(content.get("files"), dict) and content["files"]
    return content if listed and all(map(_is_entry, content["files"].values())) else None


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)


def damage(folder: Path, by_content: bool = True) -> str | None:
    """What is wrong with a checkpoint that has a `complete.json`, or `None` if every file is as it was written.

    Args:
        by_content: compare hashes, and not only sizes.
    """
    content = read_complete(folder)
    if content is None:
        return f"{COMPLETE_FILE} does not list the files of a checkpoint"
    files = content["files"]
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, expected {entry['bytes']}"
    if not by_content:
        return None
    for name, found in zip(files, _hashes(folder, list(files)), strict=True):
        if found != files[name]["sha256"]:
            return f"{name} has another content than was written (SHA-256)"
    return None


def newest_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The last checkpoint that was written to its end and whose files have their sizes, or `None`."""
    complete = (folder for folder in checkpoint_folders(output_dir) if (folder / COMPLETE_FILE).is_file())
    whole = [folder for folder in complete if damage(folder, by_content=False) is None]
    return whole[-1] if whole else None


# -- models -----------------------------------------------------------------------------------------------------------


def was_cut_short(folder: Path) -> bool:
    """Whether a run in this folder has begun and not finished, so that the model in it may be half written."""
    try:
        content = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("finished") is None


def find_model(name: str | Path) -> str:
    """Where a model is: the folder itself if it holds one, else its newest complete checkpoint; or a Hub id as it is.

    Raises:
        ModelError: a folder that holds neither.
    """
    folder = Path(name)
    if not folder.is_dir():
        return str(name)
    newest = newest_complete_checkpoint(folder)
    holds_one = any((folder / name).is_file() for name in MODEL_FILES)
    if holds_one and not (newest and was_cut_short(folder)):
        return str(name)
    if newest is None:
        incomplete = ", ".join(found.name for found in checkpoint_folders(folder)) or "none"
        raise ModelError(
            f"{folder}: expected a model ({' or '.join(MODEL_FILES)}) or a complete checkpoint ({COMPLETE_FILE} in "
            f"{CHECKPOINT_PREFIX}-<step>), found neither; incomplete checkpoints: {incomplete}"
        )
    return str(newest)


def model_fingerprint(name: str) -> str:
    """Of a folder, a hash of its weights and configuration; of a Hub id, the id."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    found = (path.name for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES)
    names = sorted(name for name in found if name not in NOT_OF_THE_MODEL)
    digest = hashlib.sha256()
    for file_name, of_file in zip(names, _hashes(folder, names), strict=True):
        digest.update(f"{file_name} {of_file}\n".encode())
    return digest.hexdigest()
