"""DeepSpeed's ZeRO-3, under which transformers divides every model that is made between the processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


@contextmanager
def whole_models() -> Iterator[None]:
    """Models made inside are whole on the process that makes them, also while the policy is divided.

    A model that one process makes alone needs it: to divide it takes all of them.
    """
    from transformers.integrations import deepspeed

    current = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = current


@contextmanager
def loading_transposed() -> Iterator[None]:
    """Models that are loaded inside get their experts as they are stored, whichever way round that is.

    transformers turns the weights of Qwen3-VL's experts around where a file has other shapes than the model. Under
    ZeRO-3 it asks the divided weights, which have none, so it would turn those too that are stored as the model has
    them: all that were saved after a training.
    """
    from transformers.core_model_loading import Transpose

    convert = Transpose.convert

    def by_whole_shapes(self: Any, *args: Any, model: Any = None, **kwargs: Any) -> Any:
        return convert(self, *args, model=None if model is None else _Whole(model), **kwargs)

    Transpose.convert = by_whole_shapes
    try:
        yield
    finally:
        Transpose.convert = convert


class _Whole:
    """A model whose weights say the shapes that they have together on all processes."""

    def __init__(self, model: Any):
        self.model = model

    def get_parameter(self, name: str) -> SimpleNamespace:
        weight = self.model.get_parameter(name)
        return SimpleNamespace(shape=getattr(weight, "ds_shape", weight.shape))
