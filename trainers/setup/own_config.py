"""The configuration of a trainer that is made from Python, as TRL's trainers take theirs."""

from dataclasses import fields
from typing import Any, TypeVar

from transformers import TrainingArguments

Config = TypeVar("Config", bound=TrainingArguments)


def own_config(args: Any, config_class: type[Config]) -> Config:
    """The configuration itself, or, of a parent of its class (`trl.GRPOConfig`), one with the additions' defaults.

    Raises:
        TypeError: neither; names the class that is expected.
        ValueError: the parent's settings are not allowed here.
    """
    if isinstance(args, config_class):
        return args
    expected = f"{config_class.__module__}.{config_class.__qualname__}"
    if not isinstance(args, TrainingArguments) or not issubclass(config_class, type(args)):
        raise TypeError(f"args: expected a {expected}, found {'none' if args is None else type(args).__name__}")
    if type(args) is TrainingArguments:  # says nothing of the method, and its defaults are others
        raise TypeError(f"args: expected a {expected}, found transformers.TrainingArguments")
    values = {one.name: getattr(args, one.name) for one in fields(args) if one.init}
    if values.get("steps_per_generation") is not None:
        values.pop("generation_batch_size", None)  # follows from it, and TRL takes one of both
    try:
        return config_class(**values)
    except ValueError as error:
        raise ValueError(f"args: {error} ({type(args).__module__} taken as {expected})") from error


def config_or_default(args: Any, config_class: type[Config], model: Any, method: str) -> Config:
    """The same, or without any the default one, whose output folder is named after the model, as TRL does it."""
    if args is not None:
        return own_config(args, config_class)
    name = model if isinstance(model, str) else model.config._name_or_path
    return config_class(f"{str(name).rstrip('/').rpartition('/')[2]}-{method}")
