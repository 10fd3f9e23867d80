"""Files that come with the toolkit and can be used by name: recipes, and what `accelerate` launches runs with.

They lie beside the packages: in a clone, and where a wheel is installed.
"""

from pathlib import Path

from data.cli.suggestions import closest
from data.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
ACCELERATE_CONFIGS = ROOT / "accelerate_configs"


def names_in(folder: Path) -> list[str]:
    """What can be named of one of the folders above.

    >>> "agent_selection" in names_in(RECIPES)
    True
    """
    return sorted(path.stem for path in folder.glob("*.yaml"))


def shipped_file(given: str | Path, folder: Path) -> Path:
    """The file that a user means: one of his own, or else the toolkit's.

    Args:
        given: a path; or `NAME`, for `NAME.yaml` in the current folder or in `folder`; or the path of a file of the
            toolkit as the documents have it, such as `recipes/NAME.yaml`.
        folder: one of those above.

    Returns:
        A path that is not there is returned as it is: whoever reads it says so.

    Raises:
        UserError: a name that stands for nothing; says what there is.
    """
    path = Path(given)
    for own in (path, path.parent / f"{path.name}.yaml"):
        if own.is_file():
            return own
    shipped = folder / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent in (Path(), Path(folder.name)) and shipped.is_file():
        return shipped
    if path.suffix or len(path.parts) != 1:
        return path
    raise unknown(path.name, folder)


def unknown(name: str, folder: Path) -> UserError:
    """The error of a name that stands for nothing."""
    names = names_in(folder)
    known = f"{closest(name, names)}they are {', '.join(names)}"
    return UserError(f"{name}: no such file, and none of {folder.name}/ has this name; {known}")
