"""Whether prompts are shared: what a recipe asks for, where it is exact, and the check that both ways agree."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import UserError
from models.families.registry import family_of
from models.families.vision_hooks import vision_language_model
from models.shared_prefix.attention import IMPLEMENTATIONS
from models.shared_prefix.modes import WhereExact, parse_mode
from models.shared_prefix.output_gradients import OutputGradients, with_output_gradients
from models.shared_prefix.packing import Continuations, Rows, pack_continuations

Values = TypeVar("Values", torch.Tensor, tuple)


class SharedPrefixError(UserError, ValueError):
    """A batch cannot share its prompts exactly although it must, or both ways differ."""


def reason_not_shared(model: nn.Module) -> str | None:
    """Why prompts of a model cannot be shared exactly as it is now; `None` if they can."""
    try:
        combined = vision_language_model(model)
    except ValueError as error:
        return str(error)
    family = family_of(combined.config)
    of_family = family.reason_not_shared(combined)
    if of_family is not None:
        return of_family
    implementation = family.language_model(combined).config._attn_implementation
    if implementation not in IMPLEMENTATIONS:
        return f"attn_implementation {implementation!r} takes no such mask (of {', '.join(IMPLEMENTATIONS)})"
    for module in model.modules():
        config = getattr(module, "peft_config", None)
        if isinstance(config, dict) and any(one.is_prompt_learning for one in config.values()):
            return "adapters that put tokens before the prompt"
    return _randomness(model) if model.training else None


def _randomness(model: nn.Module) -> str | None:
    """What would be drawn for each row by itself in training."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 and module.training:
            return f"dropout of {module.p} in {name}, which is drawn anew for each row"
        if getattr(module, "attention_dropout", 0.0) and module.training:
            return f"attention dropout of {module.attention_dropout} in {name}"
        if getattr(module, "neftune_noise_alpha", None):
            return f"noise on the embeddings (neftune_noise_alpha of {module.neftune_noise_alpha})"
    return None


class SharedPrefix(WhereExact):
    """Whether a trainer shares prompts, and the check that it does so exactly.

    Args:
        mode: "auto" goes the plain way where sharing would not be exact, and says so once; "true" raises instead;
            "false" always goes the plain way.
        check: compare both ways on the first batch, and gradients on the first with gradients.
    """

    def __init__(self, mode: str = "auto", check: bool = False):
        required = "shared_prefix: true: prompts cannot be shared exactly"
        instead = "each row computes its prompt by itself (shared_prefix: auto)"
        super().__init__(parse_mode(mode), SharedPrefixError, required, instead)
        self._unchecked = {"values", "gradients"} if check and self.mode != "false" else set()

    def usable(self, model: nn.Module) -> bool:
        """Whether to share the prompts of a batch for a model as it is now.

        Raises:
            SharedPrefixError: the recipe says that they must be, and they cannot.
        """
        return self.mode != "false" and self.allowed(reason_not_shared(model))

    def pack(self, model: nn.Module, rows: Rows, width: int) -> Continuations | None:
        """`pack_continuations`; `None` also where sharing would not be exact, of which it warns."""
        return pack_continuations(model, rows, width) if self.allowed(rows.reason_not_shared(model)) else None

    def run(
        self,
        model: nn.Module,
        packed: Callable[[nn.Module], Values | None],
        plain: Callable[[nn.Module], Values],
        reason: str | None = None,
        repeats: bool = True,
    ) -> Values:
        """Values of a batch, with each prompt once where that is exact; the first batch both ways, if that is wanted.

        Args:
            packed: computes them with shared prompts, by the model that it gets; `None` where that would save nothing.
            plain: computes them with each row's own prompt.
            reason: why this batch cannot share its prompts, if it cannot.
            repeats: whether a prompt of the batch repeats. Where none does, `auto` has nothing to say of the model.

        Values are a tensor, or a tuple of which the first tensor is compared.

        Raises:
            SharedPrefixError: prompts must be shared and cannot be, or both ways differ by more than rounding.
        """
        if self._unchecked - (set() if torch.is_grad_enabled() else {"gradients"}):
            self._check(model, packed if reason is None else lambda _: None, plain)
        wanted = repeats or self.mode == "true"
        values = packed(model) if wanted and self.usable(model) and self.allowed(reason) else None
        return plain(model) if values is None else values

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Leaves the check to the first batch after this block."""
        wanted, self._unchecked = self._unchecked, set()
        try:
            yield
        finally:
            self._unchecked = wanted

    def _check(
        self,
        model: nn.Module,
        packed: Callable[[nn.Module], Values | None],
        plain: Callable[[nn.Module], Values],
    ) -> None:
        """Computes a batch both ways, in passes of their own, and stops on a difference.

        Processes make the same passes, whatever repeats on each of them: those of ZeRO-3 stay together.
        """
        if self.mode == "false" or reason_not_shared(model) is not None:
            return
        inner = _without_wrappers(model)
        shares = True

        def packed_or_plain() -> torch.Tensor:
            nonlocal shares
            values = packed(inner)
            shares = values is not None
            return _first(plain(inner) if values is None else values)

        with noted_dtypes(inner) as dtypes:
            if torch.is_grad_enabled():
                expected, right = with_output_gradients(inner, lambda: _first(plain(inner)))
                found, gradients = with_output_gradients(inner, packed_or_plain)
            else:
                expected, found = _first(plain(inner)), packed_or_plain()
                right = gradients = OutputGradients()
        dtype = dtypes[-1]
        self._compare(found, expected, dtype)
        self._compare_gradients(gradients, right, dtype)
        if _on_any_process(shares, found.device):
            self._unchecked -= {"values", "gradients"} if torch.is_grad_enabled() else {"values"}

    def _compare(self, shared: torch.Tensor, plain: torch.Tensor, dtype: torch.dtype) -> None:
        """Stops on a difference between both ways.

        Args:
            shared, plain: of the same tokens; dtype: what the model computes in.

        Raises:
            SharedPrefixError: they differ by more than rounding.
        """
        allowed = 1e-4 if dtype == torch.float32 else 0.1
        difference = (shared.detach().float() - plain.detach().float()).abs()
        typical = difference.max() if dtype == torch.float32 else difference.mean()
        if not typical <= allowed:
            raise SharedPrefixError(
                f"shared_prefix_check: values with shared prompts differ from the plain way's by {typical:.3g} (at "
                f"most {allowed} is rounding in {dtype}); set shared_prefix: false, and report it"
            )

    def _compare_gradients(self, shared: OutputGradients, plain: OutputGradients, dtype: torch.dtype) -> None:
        """The same of gradients.

        Raises:
            SharedPrefixError: those of a module differ by more than rounding.
        """
        allowed = 0.02 if dtype == torch.float32 else 0.25
        found = plain.differences(shared)
        wrong = {name: one for name, one in found.items() if not one <= allowed}
        if wrong:
            name, difference = next(iter(wrong.items()))
            raise SharedPrefixError(
                f"shared_prefix_check: values with shared prompts are right, but gradients at {len(wrong)} of "
                f"{len(found)} modules differ from the plain way's, that at {name} by {difference:.0%} (at most "
                f"{allowed:.0%} is rounding in {dtype}), so the model would learn something else; set shared_prefix: "
                "false, and report it"
            )


def _without_wrappers(model: nn.Module) -> nn.Module:
    """The module inside what averages gradients over processes, which waits for those of parameters."""
    while isinstance(model, DistributedDataParallel) or type(model).__name__ == "DeepSpeedEngine":
        model = model.module
    return model


@contextmanager
def noted_dtypes(model: nn.Module) -> Iterator[list[torch.dtype]]:
    """What a model computes in, also where autocast is entered on the way: a list to which each pass adds it."""
    noted = [computing_dtype(model)]
    inside = vision_language_model(model)
    hook = inside.register_forward_pre_hook(lambda module, _: noted.append(computing_dtype(module)))
    try:
        yield noted
    finally:
        hook.remove()


def _on_any_process(value: bool, device: torch.device) -> bool:
    if not torch.distributed.is_initialized():
        return value
    flag = torch.tensor(float(value), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def _first(values: torch.Tensor | tuple) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else values[0]


def computing_dtype(model: nn.Module) -> torch.dtype:
    """What the matrix products of a model are made in at this place of a program."""
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
