"""Reading a recipe strictly: an unknown key, a wrong type or a bad value ends the program before anything starts."""

import difflib
import json
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError


class RecipeError(ValueError):
    """A recipe or command line that cannot be run; the message names file, line, key, found and expected."""


@dataclass
class DataArguments:
    """Where the data comes from, and how it is shown to the model."""

    dataset_name: str = field(metadata={"help": "File, folder with splits, or Hub data set (data/tasks.py)."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="validation", metadata={"help": "Split to evaluate on while training."})
    agents: list[str] | None = field(
        default=None,
        metadata={
            "help": "Filtering agents that may be selected: names, dotted paths or mappings "
            "(filter_agents/registry.py); by default all built-in ones that need no model.",
            "type": list[str | dict],
        },
    )
    answer_tags: bool = field(
        default=False, metadata={"help": "Visual question answering asks for an <answer> element."}
    )
    min_pixels: int | None = field(default=None, metadata={"help": "Smallest width * height of an image."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest width * height of an image."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Tokens a prompt may have, images included; a longer one is an error."}
    )
    validate_only: bool = field(
        default=False, metadata={"help": "Check recipe, data and token counts, print the memory estimate, and stop."}
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={
            "help": "File of accelerate_configs/ that the recipe is meant for; `validate_only` estimates for it."
        },
    )
    resume: bool = field(
        default=True, metadata={"help": "Go on from the newest complete checkpoint in output_dir, if there is one."}
    )

    def __post_init__(self):
        self.agents = parse_entries(self.agents)
        for name in ("min_pixels", "max_pixels", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: expected a number above 0, found {value}")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels ({self.min_pixels}) must not exceed max_pixels ({self.max_pixels})")


def parse_entries(entries: Sequence[Any] | None) -> list[Any] | None:
    """Entries of `agents` or `reward_funcs`; on the command line a mapping is written as JSON."""
    if entries is None:
        return None
    return [json.loads(entry) if isinstance(entry, str) and entry.startswith("{") else entry for entry in entries]


@dataclass(frozen=True)
class Recipe:
    """What a recipe file said.

    Attributes:
        path: of the file, or `None` if everything was on the command line.
        text: its content, and the command line's overrides as a comment.
    """

    path: str | None
    text: str


def _key_nodes(path: Path, text: str) -> dict[str, tuple[int, Any]]:
    """Key -> (line, value) of a YAML mapping.

    Raises:
        RecipeError: not YAML, not a mapping, or a key that stands twice.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected a YAML mapping of keys to values, found {type(values).__name__}")
    found: dict[str, tuple[int, Any]] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if key_node.value in found:
            first = found[key_node.value][0]
            raise RecipeError(f"{path}:{line}: key '{key_node.value}' stands twice (first on line {first})")
        found[key_node.value] = (line, values[key_node.value])
    return found


def _fields_by_name(dataclass_types: Sequence[type]) -> dict[str, tuple[type, Any]]:
    return {item.name: (cls, item) for cls in dataclass_types for item in fields(cls) if item.init}


def _unknown_key(where: str, key: str, known: Sequence[str]) -> RecipeError:
    close = difflib.get_close_matches(key, known, n=3)
    hint = f"did you mean {' or '.join(repr(name) for name in close)}? " if close else ""
    return RecipeError(f"{where}: unknown key '{key}'; {hint}Known keys: {', '.join(sorted(known))}")


def _expected_type(cls: type, item: Any) -> Any:
    if "type" in item.metadata:
        return item.metadata["type"] | None
    return typing.get_type_hints(cls)[item.name]


def _check_type(path: Path, line: int, key: str, value: Any, expected: Any) -> None:
    if value is None or isinstance(value, dict):  # null is "not set"; mappings are checked by whoever reads them
        return
    try:
        TypeAdapter(expected, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except PydanticUserError:  # a type that pydantic cannot check by itself
        return
    except ValidationError as error:
        name = getattr(expected, "__name__", None) if not typing.get_args(expected) else None
        shown = name or str(expected).replace("typing.", "")
        detail = error.errors()[0]["msg"]
        raise RecipeError(f"{path}:{line}: key '{key}': expected {shown}, found {value!r} ({detail})") from error


def check_recipe(path: Path, text: str, dataclass_types: Sequence[type]) -> None:
    """Checks every key of a recipe against the dataclasses that will read it.

    Raises:
        RecipeError: names the line and the key.
    """
    known = _fields_by_name(dataclass_types)
    for key, (line, value) in _key_nodes(path, text).items():
        if key == "env":
            continue
        if key not in known:
            raise _unknown_key(f"{path}:{line}", key, list(known))
        _check_type(path, line, key, value, _expected_type(*known[key]))


def _check_command_line(argv: Sequence[str], dataclass_types: Sequence[type]) -> None:
    known = [*_fields_by_name(dataclass_types), "config"]
    for argument in argv:
        key = argument.removeprefix("--").partition("=")[0].replace("-", "_")
        if argument.startswith("--") and key.removeprefix("no_") not in known and key not in known:
            raise _unknown_key("command line", key, known)


def _config_path(argv: list[str]) -> Path | None:
    for position, argument in enumerate(argv):
        if argument == "--config" and position + 1 < len(argv):
            return Path(argv[position + 1])
        if argument.startswith("--config="):
            return Path(argument.partition("=")[2])
    return None


def recipe_value(argv: Sequence[str], key: str) -> Any:
    """A key of the recipe or command line that is read before everything is parsed, because it decides how.

    The command line wins. `None` where neither has the key, or the recipe cannot be read (parsing says why).
    """
    given = dict(zip(argv, argv[1:], strict=False))
    if f"--{key}" in given:
        return given[f"--{key}"]
    path = _config_path(list(argv))
    if path is None or not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return content.get(key) if isinstance(content, dict) else None


def parse_recipe(dataclass_types: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Reads `--config RECIPE` and the command line, which wins, into one instance of each dataclass.

    Returns:
        The instances, and last a `Recipe`.

    Raises:
        RecipeError: anything wrong with the recipe or the command line.
    """
    from trl import TrlParser

    argv = list(sys.argv[1:] if argv is None else argv)
    _check_command_line(argv, dataclass_types)
    path = _config_path(argv)
    text = ""
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
        check_recipe(path, text, dataclass_types)
        argv = [part for argument in argv for part in _split_config(argument)]
    parser = TrlParser(dataclass_types=list(dataclass_types))
    try:
        parsed = parser.parse_args_and_config(argv + _without_accelerator(argv, text))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path or 'command line'}: {error}") from error
    overrides = [argument for argument in argv if argument not in ("--config", str(path))]
    comment = f"\n# and on the command line: {' '.join(overrides)}\n" if overrides else ""
    return (*parsed, Recipe(None if path is None else str(path), text + comment))


def _without_accelerator(argv: Sequence[str], text: str) -> list[str]:
    """What lets a recipe for a GPU be validated on a machine that has none."""
    import torch

    values = dict(zip(argv, argv[1:], strict=False))
    asked = values.get("--validate_only", str((yaml.safe_load(text) or {}).get("validate_only", False)))
    validates = asked.lower() in ("true", "1", "yes")
    return ["--use_cpu", "true"] if validates and not torch.accelerator.is_available() else []


def _split_config(argument: str) -> list[str]:
    """`--config=PATH` as two arguments: TrlParser only knows those."""
    name, equals, value = argument.partition("=")
    return [name, value] if name == "--config" and equals else [argument]
