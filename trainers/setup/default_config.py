"""The configuration of a trainer, made from Python as TRL's trainers take theirs: checked like a recipe's."""

from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any, TypeVar

from transformers import TrainingArguments

from trainers.setup.keyword_settings import check_keyword_settings
from trainers.setup.setting_rules import check_settings

SMALLER_IS_BETTER = ("kl", "bce")
"""How figures end of which the best model has the smallest; transformers knows this of losses alone."""
Config = TypeVar("Config", bound=TrainingArguments)


@dataclass
class CheckedSettings:
    """Mix-in of configurations, before all others: made from Python too, they hold allowed values only.

    Classes that compare settings with each other do so after `super().__post_init__()`.
    """

    warmup_ratio: float | None = field(
        default=None,
        metadata={"help": "Share of the optimizer steps in which the learning rate rises, in place of warmup_steps."},
    )

    def __post_init__(self):
        check_settings(self)
        if self.warmup_ratio is not None:
            if self.warmup_steps not in (0, self.warmup_ratio):
                both = f"{self.warmup_ratio}, and warmup_steps is {self.warmup_steps}"
                raise ValueError(f"warmup_ratio: {both}: set one of them (warmup_steps: 0 unsets it)")
            self.warmup_steps = self.warmup_ratio  # below 1, transformers takes it as a share
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith(SMALLER_IS_BETTER):
            self.greater_is_better = False
        super().__post_init__()
        check_keyword_settings(self)


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
    """The same, or without any the default one, whose output folder is named after the model, as TRL does it.

    Raises:
        TypeError: also for a model that is neither made nor named by a text.
    """
    if model is None or isinstance(model, PurePath):
        raise TypeError(f"model: expected a model, or its folder or Hub id as a text, found {model!r}")
    if args is not None:
        return own_config(args, config_class)
    name = model if isinstance(model, str) else model.config.name_or_path
    return config_class(f"{str(name).rstrip('/').rpartition('/')[2]}-{method}")
