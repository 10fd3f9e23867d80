"""DeepSpeed's ZeRO-3, under which transformers divides every model that is made between the processes."""

from collections.abc import Iterator
from contextlib import contextmanager


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
