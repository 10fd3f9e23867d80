"""Whether rollouts go through the loop: what is asked for, and where it is exact."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

from torch import nn
from transformers import GenerationMixin

from data.errors import UserError
from models.decoding.check import rolled_out_both_ways
from models.decoding.custom_generate import Decoding
from models.decoding.reasons import reason_not_rolled_out
from models.shared_prefix.modes import WhereExact
from models.shared_prefix.prefill import shared_prefill
from models.shared_prefix.sharing import reason_not_shared

_NAMES = tuple(signature(GenerationMixin.generate).parameters)[1:]
"""Of arguments that come by their places."""


class RolloutError(UserError, ValueError):
    """Completions must be rolled out by the loop, and cannot be; or the loop is not as transformers."""


class Engine(WhereExact):
    """Whether completions are rolled out by the loop.

    Args:
        mode: "auto" leaves to transformers what the loop does not do exactly, and says so once; "true" raises instead;
            "false" always leaves it to transformers.
        decoding: the loop.
        check: roll the first batch out both ways, and stop if they differ.
        gathered: each process holds all weights while it generates, also those that ZeRO-3 divides.
    """

    def __init__(
        self, mode: str = "auto", decoding: Decoding | None = None, check: bool = False, gathered: bool = False
    ):
        required = "rollout_engine: true: completions cannot be rolled out exactly"
        super().__init__(mode, RolloutError, required, "transformers rolls completions out (rollout_engine: auto)")
        self.decoding = decoding or Decoding()
        self.gathered = gathered
        self._unchecked = check

    def usable(self, model: nn.Module, arguments: dict[str, Any]) -> bool:
        """Whether the loop does what `model.generate` is asked for.

        Args:
            arguments: of `generate`, by name.

        Raises:
            RolloutError: it must, and does not.
        """
        return self.allowed(reason_not_rolled_out(model, arguments, self.gathered))

    def roll_out(self, model: nn.Module, shares: bool, generate: Callable) -> Any:
        """What `generate` gives by the loop.

        Args:
            shares: whether prompts are read once; generate: `model.generate` with its arguments.

        Raises:
            RolloutError: this batch is checked, and by transformers' own loop it is another one.
        """

        def by_the_loop() -> Any:
            with shared_prefill(model, on=shares):
                return generate(custom_generate=self.decoding)

        if not self._unchecked:
            return by_the_loop()
        found, reason = rolled_out_both_ways(model, self.decoding, by_the_loop, generate)
        if reason is not None:
            raise RolloutError(f"rollout_check: {reason}; set rollout_engine: false, and report it")
        self._unchecked = False
        return found


@contextmanager
def rolling_out(model: nn.Module, engine: Engine, shares: bool | None = None) -> Iterator[None]:
    """Lets a model, also inside wrappers, `generate` by the loop, where that is exact.

    Args:
        engine: of which the mode says what happens where it is not.
        shares: whether prompts are read once; by default where that is exact. Where they are not, "auto" is "false".
    """
    shares = reason_not_shared(model) is None if shares is None else shares
    if engine.mode == "true" or (engine.mode == "auto" and shares):
        with generating_by(model, partial(_by_the_loop, model, engine, shares)):
            yield
    else:
        with shared_prefill(model, on=shares):
            yield


def _by_the_loop(model: nn.Module, engine: Engine, shares: bool, generate: Callable, *args: Any, **kwargs: Any) -> Any:
    if engine.usable(model, dict(zip(_NAMES, args, strict=False)) | kwargs):
        return engine.roll_out(model, shares, partial(generate, *args, **kwargs))
    with shared_prefill(model, on=shares):
        return generate(*args, **kwargs)


@contextmanager
def generating_by(model: nn.Module, function: Callable) -> Iterator[None]:
    """Puts a function in the place of `model.generate`; it is handed that one, and then its arguments."""
    generate, before = model.generate, vars(model).get("generate")
    model.generate = partial(function, generate)
    try:
        yield
    finally:
        del model.generate
        if before is not None:
            model.generate = before
