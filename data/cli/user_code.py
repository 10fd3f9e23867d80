"""Functions and classes of a user's own, by a dotted path or by their file.

    my_rewards.brevity           of my_rewards.py in the current folder, or of a package that is installed
    rewards.mine.brevity         of rewards/mine.py in the current folder, although `rewards` is a package of ours
    rewards/mine.py:brevity      the same, by its file

The current folder is the last place that is looked in: no file of a user's hides a package.
"""

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from data.cli.package_files import ROOT
from data.errors import UserError


class UnknownNameError(UserError, ValueError):
    """A name that stands for nothing, or for something that cannot be imported."""


def import_named(name: str, what: str, known: Sequence[str], error_type: type[UserError] = UnknownNameError) -> Any:
    """The object that a recipe names.

    Args:
        name: a dotted path, or a file and what it defines.
        what: "reward", "agent", ..
        known: the names that need no path.
        error_type: of the errors.

    Raises:
        UserError: there is no such module or file, or nothing of this name in it.
    """
    file, colon, attribute = name.rpartition(":")
    by_file = bool(colon) and file.endswith(".py")
    module, dot, last = name.rpartition(".")
    if not by_file and (not module or name.startswith(".") or last == "py"):
        raise error_type(
            f"unknown {what} '{name}'; expected one of {', '.join(known)}, or one of your own as my_{what}s.NAME or "
            f"my_{what}s.py:NAME"
        )
    try:
        return getattr(_load_file(Path(file)), attribute) if by_file else getattr(_import(module), last)
    except (ImportError, AttributeError, OSError) as error:
        own = Path(*module.split(".")).with_suffix(".py")
        hint = f"; to name the file here, write {own}:{last}" if not by_file and own.is_file() else ""
        raise error_type(
            f"{what} '{name}': cannot be imported ({error}){hint}; known names: {', '.join(known)}"
        ) from error


def _open_current_folder(name: str) -> None:
    """Makes the current folder the last place that a module may be in, also one that looks like a package's."""
    here = Path.cwd()
    sys.path += [place for place in (str(ROOT), str(here)) if place not in sys.path]  # ROOT: if installed in place
    parts = name.split(".")
    for end in range(1, len(parts)):
        own = here.joinpath(*parts[:end])
        if not own.is_dir() or not (ROOT / Path(*parts[:end])).is_dir():
            break
        places = importlib.import_module(".".join(parts[:end])).__path__
        if str(own) not in places:
            places.append(str(own))


def _import(name: str) -> ModuleType:
    _open_current_folder(name)
    return importlib.import_module(name)


def _dotted(file: Path) -> str | None:
    """The dotted path that leads to a file from the current folder, if one does."""
    here = Path.cwd()
    if not file.is_relative_to(here):
        return None
    name = ".".join(file.relative_to(here).with_suffix("").parts)
    _open_current_folder(name)
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return name if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file else None


def _load_file(path: Path) -> ModuleType:
    """The module of a file: that which its dotted path leads to, unless something else is called so."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    absolute = path.resolve()
    dotted = _dotted(absolute)
    if dotted is not None:
        return importlib.import_module(dotted)
    name = f"{absolute.stem}_{zlib.crc32(bytes(absolute)):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, absolute)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
