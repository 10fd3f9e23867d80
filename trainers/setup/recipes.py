"""Reading a recipe strictly: an unknown key, a wrong type or a bad value ends the program before anything starts."""

import json
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from data.cli.package_files import RECIPES, shipped_file
from data.cli.secrets import command_without_secrets, remember_secrets
from data.cli.suggestions import WordError, check_given_once, check_words
from data.errors import UserError
from data.io.json_text import half_character
from trainers.setup.recipe_keys import Key, closest_key, keys_of_classes
from trainers.setup.setting_rules import check_settings, problem

WHERE_TO_READ = "`--help` lists the keys of this toolkit, docs/recipes.md says where all others are documented"


class RecipeError(UserError, ValueError):
    """A recipe or command line that cannot be run; the message names file, line, key, found and expected."""


@dataclass
class DataArguments:
    """Where the data comes from, and how a run begins."""

    dataset_name: str = field(metadata={"help": "File, folder with splits, or Hub data set (data/tasks.py)."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="validation", metadata={"help": "Split to evaluate on while training."})
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "File, folder or Hub data set to evaluate on, where dataset_name has no split for it."},
    )
    eval_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of the training rows to hold out and evaluate on, drawn by `seed`; rows with a common "
            "image, or the same text without images, stay together."
        },
    )
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
    validate_only: bool = field(
        default=False, metadata={"help": "Check recipe, data and token counts, print the memory estimate, and stop."}
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={"help": "What of accelerate_configs/ the recipe is meant for; `validate_only` estimates for it."},
    )
    resume: str = field(
        default="true",
        metadata={
            "help": "Go on from the newest whole checkpoint in output_dir, if there is one: true, if the run started "
            "from the same recipe, data, model and versions; changed, also if not; false, never.",
            "type": bool | str,
        },
    )

    def __post_init__(self):
        check_settings(self)
        self.agents = parse_entries(self.agents)
        resume, self.resume = self.resume, str(self.resume).lower()
        if self.resume not in ("true", "false", "changed"):
            raise ValueError(f"resume: expected true, false or changed, found {resume!r}")


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
        RecipeError: not YAML, not a mapping, or a duplicate key.
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
            raise RecipeError(f"{path}:{line}: duplicate key '{key_node.value}' (first on line {first})")
        found[key_node.value] = (line, values[key_node.value])
    return found


def _unknown_key(where: str, key: str, known: Iterable[str]) -> RecipeError:
    return RecipeError(f"{where}: unknown key '{key}'; {closest_key(key, known)}{WHERE_TO_READ}")


def _check_value(where: str, key: Key, value: Any) -> Any:
    """The value as its type has it.

    Raises:
        RecipeError: another type, or a value that is not allowed; names what is.
    """
    found = problem(key.name, value, key.choices)
    if found is not None:
        raise RecipeError(f"{where}: {found}")
    if value is None:
        if type(None) not in typing.get_args(key.annotation) and key.annotation is not Any:
            raise RecipeError(f"{where}: expected {key.shown_type}, found null")
        return None
    if isinstance(value, dict):  # mappings are checked by whoever reads them
        return value
    try:
        typed = TypeAdapter(key.annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except PydanticUserError:  # a type that pydantic cannot check by itself
        return value
    except ValidationError as error:
        detail = error.errors()[0]["msg"]
        raise RecipeError(f"{where}: expected {key.shown_type}, found {value!r} ({detail})") from error
    found = problem(key.name, typed, key.choices)
    if found is not None:
        raise RecipeError(f"{where}: {found}")
    return typed


def check_recipe(path: Path, text: str, keys: Mapping[str, Key]) -> dict[str, Any]:
    """The values of a recipe, every key of which is checked.

    Raises:
        RecipeError: names the line and the key.
    """
    values = {}
    for key, (line, value) in _key_nodes(path, text).items():
        texts = json.dumps([key, value], ensure_ascii=False, default=str, skipkeys=True)
        if half_character(texts) is not None:
            raise RecipeError(f"{path}:{line}: key {key!a}: half of a surrogate pair, which no text can hold")
        if key == "env":
            continue
        if key not in keys:
            raise _unknown_key(f"{path}:{line}", key, keys)
        values[key] = _check_value(f"{path}:{line}: key '{key}'", keys[key], value)
    return values


def _check_command_line(argv: Sequence[str], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The values of a command line, every key of which is checked.

    Raises:
        RecipeError: names the key.
    """
    values, written = {}, []
    for name, words in _options(argv):
        key = keys.get(name.replace("-", "_"))
        if key is None and name.startswith("no_") and getattr(keys.get(name[3:]), "default", None) is True:
            values[name[3:]] = False
            written.append((name[3:], name))
        elif key is None:
            raise _unknown_key("command line", name, keys)
        else:
            values[key.name] = _typed_value(key, words)
            written.append((key.name, name))
    try:
        check_words(argv)
        check_given_once(written)
    except WordError as error:
        raise RecipeError(f"command line: {error}") from error
    return values


def _options(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Name and values of every `--NAME VALUE ...` but `--config`."""
    found: list[tuple[str, list[str]]] = []
    for argument in argv:
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            found.append((name, [value] if equals else []))
        elif not found:
            raise RecipeError(
                f"command line: expected --KEY VALUE, found {argument!r}; a recipe is given by --config FILE"
            )
        else:
            found[-1][1].append(argument)
    files = [word for name, words in found if name == "config" for word in words]
    for name, words in found:
        if name == "config":
            if len(files) != 1 or not words:
                raise RecipeError(f"command line: --config: expected one file, found {' '.join(files) or 'none'}")
        else:
            yield name, words


def _typed_value(key: Key, words: list[str]) -> Any:
    """What was typed after a key, as its type has it."""
    where = f"command line: --{key.name}"
    listed = any("list" in str(part) for part in (key.annotation, *typing.get_args(key.annotation)))
    if not words:
        if key.annotation in (bool, bool | None):
            return True
        raise RecipeError(f"{where}: expected {key.shown_type}, found no value")
    if len(words) > 1 and not listed:
        raise RecipeError(f"{where}: expected one value, found {len(words)}: {' '.join(words)}")
    only = words[0]
    if len(words) == 1 and only.startswith("{") and "dict" in str(key.annotation) and not listed:
        return parse_mapping(where, only)
    if listed and not (len(words) == 1 and str in typing.get_args(key.annotation)):
        return _check_value(where, key, words)
    return _check_value(where, key, only)


def parse_mapping(where: str, value: Any) -> Any:
    """The value of a key that takes a mapping, which is written as JSON on the command line; others stay as they are.

    Raises:
        RecipeError: a text that begins like a mapping and is none.
    """
    if not (isinstance(value, str) and value.startswith("{")):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{where}: expected a mapping as JSON: {error}") from error


def _split_config(argv: Sequence[str]) -> list[str]:
    """The command line with `--config=FILE` as two arguments: TrlParser only knows those."""
    return [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]


def _config_path(argv: Sequence[str]) -> Path | None:
    """The file that `--config` stands for, which may be given by a recipe's name."""
    words = _split_config(argv)
    given = next((given for name, given in zip(words, words[1:], strict=False) if name == "--config"), None)
    return None if given is None else shipped_file(given, RECIPES)


def recipe_value(argv: Sequence[str], key: str) -> Any:
    """A key of the recipe or command line that is read before everything is parsed, because it decides how.

    The command line wins. `None` where neither has the key, or the recipe cannot be read (parsing says why).
    """
    try:
        given = {name.replace("-", "_"): words for name, words in _options(argv)}
        if given.get(key):
            return given[key][0]
        path = _config_path(argv)
    except UserError:
        return None
    if path is None or not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return content.get(key) if isinstance(content, dict) else None


@dataclass(frozen=True)
class RecipeValues:
    """A recipe and the command line as plain values, before anything of TRL is imported.

    Attributes:
        argv: the command line, `--config PATH` as two arguments.
        path, text: of the recipe, if there is one.
        values: key -> value, of those that are given.
    """

    argv: list[str]
    path: Path | None
    text: str
    values: dict[str, Any]


def read_recipe(keys: Mapping[str, Key], argv: Sequence[str]) -> RecipeValues:
    """Reads `--config RECIPE` and the command line, which wins, and checks every key and value.

    Raises:
        RecipeError: anything wrong with the recipe or the command line.
    """
    given = _check_command_line(argv, keys)
    argv, path, text, values = _split_config(argv), _config_path(argv), "", {}
    if path is not None:
        argv[argv.index("--config") + 1] = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
        values = check_recipe(path, text, keys)
    missing = [name for name, key in keys.items() if key.required and name not in {**values, **given}]
    if missing:
        raise RecipeError(f"{path or 'command line'}: key '{missing[0]}' is missing")
    return RecipeValues(argv, path, text, values | given)


def parse_recipe(dataclass_types: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Reads `--config RECIPE` and the command line, which wins, into one instance of each dataclass.

    Returns:
        The instances, and last a `Recipe`.

    Raises:
        RecipeError: anything wrong with the recipe or the command line.
    """
    from trl import TrlParser

    class Parser(TrlParser):
        """Says what is wrong in one message, where argparse would print the usage of every key."""

        def error(self, message: str) -> None:
            raise ValueError(message)

    found = read_recipe(keys_of_classes(tuple(dataclass_types)), sys.argv[1:] if argv is None else argv)
    argv, path = found.argv, found.path
    parser = Parser(dataclass_types=list(dataclass_types))
    try:
        parsed = parser.parse_args_and_config(argv + _without_accelerator(found.values))
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(f"{path or 'command line'}: {error}") from error
    for values in (found.values, *map(vars, parsed)):
        remember_secrets(values)
    overrides = [argument for argument in argv if argument not in ("--config", str(path))]
    return (*parsed, Recipe(None if path is None else str(path), found.text + _as_comment(overrides)))


def _as_comment(overrides: Sequence[str]) -> str:
    """The command line below a recipe; each line of an argument that has several begins with `#` too."""
    lines = command_without_secrets(overrides).splitlines()
    return "\n# and on the command line: " + "\n# ".join(lines) + "\n" if lines else ""


def _without_accelerator(values: Mapping[str, Any]) -> list[str]:
    """What lets a recipe for a GPU be validated on a machine that has none."""
    import torch

    return ["--use_cpu", "true"] if values.get("validate_only") and not torch.accelerator.is_available() else []
