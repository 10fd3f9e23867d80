"""The keys that recipes of a method may have: of its dataclasses, or read from their source without importing it.

Importing TRL and transformers takes many seconds. Reading their source lets `--help` and most errors come at once.
"""

import ast
import importlib.util
import typing
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from data.cli.suggestions import closest
from trainers.setup.setting_rules import choices_of

ROOT = Path(__file__).parents[2]
PUBLISHED = {
    "trl.GRPOConfig": "trl.trainer.grpo_config",
    "trl.ModelConfig": "trl.trainer.model_config",
    "trl.RewardConfig": "trl.trainer.reward_config",
    "trl.SFTConfig": "trl.trainer.sft_config",
    "transformers.TrainingArguments": "transformers.training_args",
}
"""Modules of the libraries' classes that ours are made from."""
ENUMS = "transformers.trainer_utils"


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        annotation: type that a value must have.
        choices: all values that it may have, if they can be listed.
        default: `MISSING` if it must be given, or if it is not plain in the source.
        required: has no default.
        ours: of this toolkit, not of a library.
    """

    name: str
    annotation: Any
    choices: tuple | None
    default: Any
    required: bool
    help: str = ""
    shown_default: str = ""
    ours: bool = False
    shown_annotation: str = ""

    @property
    def shown_type(self) -> str:
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices))}"
        plain = not typing.get_args(self.annotation) and hasattr(self.annotation, "__name__")
        return self.annotation.__name__ if plain else str(self.annotation).replace("typing.", "")


SHORT_FORMS = {
    "lr": "learning_rate",
    "bs": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
    "model": "model_name_or_path",
    "dataset": "dataset_name",
    "data": "dataset_name",
    "output": "output_dir",
    "kl_coef": "beta",
    "group_size": "num_generations",
}
"""What people call keys in conversation, and in other toolkits."""


def closest_key(name: str, known: Iterable[str]) -> str:
    """A hint for a key that does not exist, also by what people call it in conversation.

    >>> closest_key("lr", ["learning_rate", "lora_r"])
    "did you mean 'learning_rate' or 'lora_r'? "
    """
    return closest(name, known, SHORT_FORMS)


# -- of classes -------------------------------------------------------------------------------------------------------


@cache
def keys_of_classes(dataclass_types: tuple[type, ...]) -> dict[str, Key]:
    """The keys of dataclasses that have been imported."""
    found = {}
    for cls in dataclass_types:
        annotations = typing.get_type_hints(cls)
        for item in (item for item in fields(cls) if item.init):
            annotation = _declared(item.metadata, annotations[item.name])
            required = item.default is MISSING and item.default_factory is MISSING
            choices = choices_of(item.name, annotation, item.metadata)
            found[item.name] = Key(item.name, annotation, choices, item.default, required)
    return found


def _declared(metadata: Any, annotation: Any) -> Any:
    """The type in a field's metadata, where argparse needs another one in the annotation."""
    return metadata["type"] | None if "type" in metadata else annotation


# -- of source --------------------------------------------------------------------------------------------------------


class _Names(dict):
    """What the names in annotations stand for; one that is not known may be anything."""

    def __init__(self, module: "_Module"):
        super().__init__(vars(typing))
        self.module = module

    def __missing__(self, name: str) -> Any:
        if name in __builtins__:
            return __builtins__[name]
        return _enum(name, self.module) or Any


@dataclass(frozen=True)
class _Module:
    name: str
    tree: ast.Module

    def classes(self) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}

    def imported(self) -> dict[str, tuple[str, str]]:
        """Name -> module and name there, of `from MODULE import NAME`."""
        found = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom):
                package = self.name.split(".")[: -node.level] if node.level else []
                module = ".".join([*package, *([node.module] if node.module else [])])
                found |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
        return found


@cache
def _read_module(name: str) -> _Module:
    package, _, rest = name.partition(".")
    if (ROOT / package).is_dir():
        root = ROOT / package
    else:
        root = Path(importlib.util.find_spec(package).origin).parent
    path = root.joinpath(*rest.split(".")).with_suffix(".py")
    return _Module(name, ast.parse(path.read_text(encoding="utf-8")))


def _enum(name: str, module: _Module) -> type[Enum] | None:
    for place in (module, _read_module(ENUMS)) if module.name.startswith("transformers.") else ():
        node = place.classes().get(name)
        if node is not None and any("Enum" in ast.unparse(base) for base in node.bases):
            values = [item for item in node.body if isinstance(item, ast.Assign)]
            return Enum(name, {item.targets[0].id: ast.literal_eval(item.value) for item in values})
    return None


def _parent(base: ast.expr, module: _Module, ours: bool) -> tuple[_Module, str] | None:
    """Where a base class is, or `None` if it has no fields that anyone sets, or none of this toolkit's."""
    name = ast.unparse(base)
    if name in module.classes():
        return module, name
    package, own = module.imported().get(name, ("", name))
    dotted = f"{package}.{own}" if package else name
    if ours and not package.startswith("trainers"):
        return None
    if dotted in PUBLISHED:
        return _read_module(PUBLISHED[dotted]), dotted.rpartition(".")[2]
    return (_read_module(package), own) if package.startswith(("trainers", "trl.", "transformers.")) else None


def _fields_of_source(module: _Module, name: str, ours: bool) -> Iterator[tuple[_Module, ast.AnnAssign]]:
    """Fields of a dataclass, those of its parents first, or of those parents that are this toolkit's."""
    node = module.classes()[name]
    for base in reversed(node.bases):
        parent = _parent(base, module, ours)
        if parent is not None:
            yield from _fields_of_source(*parent, ours)
    if any(ast.unparse(item).startswith("dataclass") for item in node.decorator_list):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and not ast.unparse(item.annotation).startswith("ClassVar"):
                yield module, item


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return MISSING


def _field_call(item: ast.AnnAssign) -> dict[str, ast.expr]:
    """Keywords of a field's `field(...)`; a plain value is its default."""
    call = item.value
    if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "field":
        return {keyword.arg: keyword.value for keyword in call.keywords}
    return {} if call is None else {"default": call}


def _key_of_source(module: _Module, item: ast.AnnAssign) -> Key:
    call = _field_call(item)
    metadata = {}
    if isinstance(call.get("metadata"), ast.Dict):
        entries = zip(call["metadata"].keys, call["metadata"].values, strict=True)
        metadata = {ast.literal_eval(key): value for key, value in entries}
    names = _Names(module)
    annotation = metadata.get("type", item.annotation)
    annotation = eval(ast.unparse(annotation), {"__builtins__": {}}, names)
    if "type" in metadata:
        annotation = annotation | None
    listed = _literal(metadata.get("choices"))
    choices = choices_of(item.target.id, annotation, {} if listed is MISSING else {"choices": listed})
    if "default" in call:
        shown = ast.unparse(call["default"])
    else:
        shown = ast.unparse(call["default_factory"]) + "()" if "default_factory" in call else "required"
    text = _literal(metadata.get("help"))
    return Key(
        item.target.id,
        annotation,
        choices,
        _literal(call.get("default")),
        shown == "required",
        "" if text is MISSING else text,
        shown,
        module.name.startswith("trainers."),
        ast.unparse(item.annotation),
    )


@cache
def keys_of_source(script: str, classes: tuple[str, ...], ours: bool = False) -> dict[str, Key]:
    """The keys of dataclasses that a training script defines or imports, without importing it.

    Args:
        script: its name, such as "grpo".
        classes: their names in it.
        ours: only the keys of this toolkit, without a look at the libraries.
    """
    module = _read_module(f"trainers.{script}")
    found = {}
    for name in classes:
        place = _parent(ast.Name(name), module, ours)
        for where, item in _fields_of_source(*place, ours) if place else ():
            if not _is_internal(item):
                found.pop(item.target.id, None)  # a class says more of a field than its parents
                found[item.target.id] = _key_of_source(where, item)
    return found


def _is_internal(item: ast.AnnAssign) -> bool:
    return item.target.id.startswith("_") or "init=False" in ast.unparse(item).replace(" ", "")
