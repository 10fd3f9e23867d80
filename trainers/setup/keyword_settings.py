"""Settings that transformers hands on as keyword arguments, to something that is called when the model is loaded.

What may be given is asked of what will be called: of its signature, or by calling it on next to nothing.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType, get_scheduler

from data.cli.suggestions import closest
from trainers.setup.recipes import RecipeError

DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Texts that TRL takes for the `dtype` of `model_init_kwargs`."""
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
FEW = 20
"""So many names at least are not listed in a message."""


def check_keyword_settings(settings: Any) -> None:
    """Checks the settings of a configuration that are handed on, and makes numbers of texts like 1e-6 among them.

    Raises:
        ValueError: names the setting, what was expected and what was found.
    """
    for name, value in vars(settings).items():
        if name.endswith("_kwargs") and isinstance(value, Mapping):
            setattr(settings, name, {key: _number(one) for key, one in value.items()})
    _check_schedule(settings)
    _check_optim_args(settings.optim_args)
    _check_compile_backend(settings.torch_compile_backend)
    known = _keywords(checkpoint) - {"function"}
    check_keywords("gradient_checkpointing_kwargs", settings.gradient_checkpointing_kwargs, known)
    if not getattr(settings, "use_vllm", False):  # which samples by parameters of its own
        check_keywords("generation_kwargs", getattr(settings, "generation_kwargs", None), vars(GenerationConfig()))
    options = getattr(settings, "model_init_kwargs", None)
    dtype = options.get("dtype") if isinstance(options, Mapping) else None
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"model_init_kwargs: dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")


def _number(value: Any) -> Any:
    """The value; YAML takes 1e-6 for a text, because it has no point.

    >>> [_number(value) for value in ("1e-6", "e5", 3, "3")]
    [1e-06, 'e5', 3, '3']
    """
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def check_keywords(setting: str, given: Any, known: Iterable[str]) -> None:
    """Raises `RecipeError` for a key of a setting that nothing reads.

    >>> check_keywords("kwargs", {"top_q": 0.5}, ["top_k"])
    Traceback (most recent call last):
    ...
    trainers.setup.recipes.RecipeError: kwargs: unknown key 'top_q'; did you mean 'top_k'? expected some of top_k
    """
    known = sorted(name for name in known if not name.startswith("_"))
    for key in given if isinstance(given, Mapping) else ():
        if key not in known:
            listed = f"expected some of {', '.join(known)}" if len(known) < FEW else "nothing reads it"
            hint = closest(key, known) + (listed if known else "it takes none")
            raise RecipeError(f"{setting}: unknown key '{key}'; {hint}")


def _keywords(function: Any) -> set[str]:
    """Names of the arguments of a function that can be given by keyword."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name for name, one in inspect.signature(function).parameters.items() if one.kind in kinds}


def _check_schedule(settings: Any) -> None:
    """A schedule is made for one parameter; a constant one takes any keywords without reading them."""
    name, given = SchedulerType(settings.lr_scheduler_type), settings.lr_scheduler_kwargs or {}
    function = TYPE_TO_SCHEDULER_FUNCTION[name]
    if not any(one.kind is one.VAR_KEYWORD for one in inspect.signature(function).parameters.values()):
        by_trainer = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
        check_keywords("lr_scheduler_kwargs", given, _keywords(function) - by_trainer)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=10**6, scheduler_specific_kwargs=given)
    except (TypeError, ValueError, ArithmeticError) as error:
        found = given or "none"
        raise ValueError(f"lr_scheduler_kwargs: {found} with lr_scheduler_type: {name.value}: {error}") from error


def _check_optim_args(given: str | None) -> None:
    for part in given.split(",") if given else ():
        key, equals, value = map(str.strip, part.partition("="))
        if not (key and equals and value) or "=" in value:
            raise ValueError(f"optim_args: expected KEY=VALUE, KEY=VALUE, ..., found {given!r}")


def _check_compile_backend(name: str | None) -> None:
    known = [backend.value.lower() for backend in DynamoBackend]
    if name is not None and name.lower() not in known:
        raise ValueError(f"torch_compile_backend: expected one of {', '.join(known)}, found {name!r}")
