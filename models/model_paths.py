"""Where a model is: a folder, or an id of the Hub; and which of the two a name can only be meant as."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from data.cli.arguments import option
from data.cli.commands import machine_problem
from data.cli.folder_names import problem_of_place
from data.errors import UserError
from data.factor_labels.text_encoder import MODULES_FILE
from models.errors import ModelError
from models.run_folders import MODEL_FILES, find_model, newest_complete_checkpoint
from models.served.address import checked_address, is_server


def check_model_place(name: str, of_a_run: bool = False) -> None:
    """Checks that a name which is meant as a folder is one that holds a model. Ids of the Hub are not looked up.

    Args:
        of_a_run: the folder of a run will do, of which the newest complete checkpoint is taken.

    Raises:
        ModelError: see above; the message names folders with a similar name.
    """
    if is_server(name):
        expected = "expected a folder or an id of the Hub, because the model itself is needed here"
        raise ModelError(f"{expected}; found the address of a server")
    path = Path(name)
    # models of sentence-transformers have neither
    problem = None if (path / MODULES_FILE).is_file() else problem_of_place(name, MODEL_FILES)
    if problem is None:
        return
    if path.is_dir() and of_a_run:
        find_model(name)
        return
    newest = newest_complete_checkpoint(path) if path.is_dir() else None
    raise ModelError(f"{problem}; its newest complete checkpoint is {newest}" if newest else problem)


def model_option(text: str, default: Any = MISSING, served: bool = False, **settings: Any) -> Any:
    """A field of a command's dataclass that names a model, which is checked before anything is read.

    Args:
        served: it may also be the address of a server.
        settings: of `data.cli.arguments.option`.
    """
    return option(text, default, read=_read_place_or_address if served else _read_place, **settings)


def _read_place(name: str) -> str:
    check_model_place(name, of_a_run=True)
    return name


def _read_place_or_address(name: str) -> str:
    return checked_address(name) if is_server(name) else _read_place(name)


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """Turns what transformers and the Hub's client say of a model or its files into a `ModelError` that names it.

    Raises:
        ModelError: also before the block, for a folder that does not exist or holds no model.
    """
    check_model_place(str(name), of_a_run=True)
    try:
        yield
    except (OSError, ValueError, ImportError) as error:  # the last of a package that it asks for by name
        if isinstance(error, UserError) or machine_problem(error) is not None:
            raise
        raise ModelError(f"{name}: cannot be loaded: {error}") from error
