"""Where a model is: a folder, or an id of the Hub; and which of the two a name can only be meant as."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.cli.commands import machine_problem
from data.errors import UserError
from models.errors import ModelError
from models.run_folders import find_model, newest_complete_checkpoint

MODEL_FILES = ("config.json", "adapter_config.json", "modules.json")
"""One of them is in the folder of every model: `modules.json` in those of sentence-transformers."""
OUTPUTS = "outputs"
"""The folder that the pipelines write to: a name below it is no id of the Hub."""


class ModelOptionError(UserError):
    """An option that names no model. It is no `ValueError`, of which argparse would only say "invalid value"."""


def looks_local(name: str) -> bool:
    """Whether the name of a model can only be meant as a folder: an id of the Hub is `name` or `owner/name`."""
    path = Path(name)
    starts = name.startswith(("/", ".", "~")) or "\\" in name or name.endswith("/")
    return starts or name.count("/") > 1 or ("/" in name and (path.parent.is_dir() or path.parts[0] == OUTPUTS))


def check_model_place(name: str, of_a_run: bool = False) -> None:
    """Checks that a name which is meant as a folder is one that holds a model. Ids of the Hub are not looked up.

    Args:
        of_a_run: the folder of a run will do, of which the newest complete checkpoint is taken.

    Raises:
        ModelError: see above; the message names folders with a similar name.
    """
    path = Path(name)
    if not path.exists():
        if looks_local(name):
            raise ModelError(f"'{name}': no such folder{_similar_folders(path)}")
    elif not path.is_dir():
        raise ModelError(f"'{name}' is a file; expected the folder of a model")
    elif not any((path / file).is_file() for file in MODEL_FILES):
        if of_a_run:
            find_model(name)
            return
        newest = newest_complete_checkpoint(path)
        hint = f"; its newest complete checkpoint is {newest}" if newest else ""
        raise ModelError(f"'{name}' holds no model (no {' or '.join(MODEL_FILES[:2])}){hint}")


def _similar_folders(path: Path) -> str:
    """A hint at folders with a similar name, beside it or beside its parent."""
    places = [place for place in (path.parent, path.parent.parent) if place.is_dir()]
    found = {str(folder): folder.name for place in places for folder in place.iterdir() if folder.is_dir()}
    names = difflib.get_close_matches(path.name, found.values(), n=3)
    close = [folder for folder, name in found.items() if name in names][:3]
    return f"; there is {' and '.join(close)}" if close else ""


def model_place(option: str) -> Callable[[str], str]:
    """A `type` of argparse: the name of a model, checked by `check_model_place` before anything is read.

    Args:
        option: which the message names.
    """

    def read(name: str) -> str:
        try:
            check_model_place(name, of_a_run=True)
        except ModelError as error:
            raise ModelOptionError(f"{option}: {error}") from error
        return name

    return read


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """Turns what transformers and the Hub's client say of a model or its files into a `ModelError` that names it.

    Raises:
        ModelError: also before the block, for a folder that does not exist or holds no model.
    """
    check_model_place(str(name), of_a_run=True)
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, UserError) or machine_problem(error) is not None:
            raise
        raise ModelError(f"{name}: cannot be loaded: {error}") from error
