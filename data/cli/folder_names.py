"""Names that stand for a folder here or a repository of the Hub, and which of the two one can only be meant as."""

import difflib
from collections.abc import Sequence
from pathlib import Path

OUTPUTS = "outputs"
"""The folder that the pipelines write to: a name below it is no id of the Hub."""


def looks_local(name: str) -> bool:
    """Whether the name of a model can only be meant as a folder: an id of the Hub is `name` or `owner/name`."""
    path = Path(name)
    starts = name.startswith(("/", ".", "~")) or "\\" in name or name.endswith("/")
    return starts or name.count("/") > 1 or ("/" in name and (path.parent.is_dir() or path.parts[0] == OUTPUTS))


def problem_of_place(name: str, files: Sequence[str]) -> str | None:
    """Why a name that is meant as a folder is no folder of a model; `None` if nothing is wrong with it, or if it is an
    id of the Hub, which is not looked up.

    Args:
        files: one of which must be in the folder.
    """
    path = Path(name)
    if not path.exists():
        return f"'{name}': no such folder{_similar_folders(path)}" if looks_local(name) else None
    if not path.is_dir():
        return f"'{name}' is a file; expected the folder of a model"
    if any((path / file).is_file() for file in files):
        return None
    return f"'{name}' holds no model (no {' or '.join(files)})"


def _similar_folders(path: Path) -> str:
    """A hint at folders with a similar name, beside it or beside its parent."""
    places = [place for place in (path.parent, path.parent.parent) if place.is_dir()]
    found = {str(folder): folder.name for place in places for folder in place.iterdir() if folder.is_dir()}
    names = difflib.get_close_matches(path.name, found.values(), n=3)
    close = [folder for folder, name in found.items() if name in names][:3]
    return f"; there is {' and '.join(close)}" if close else ""
