"""DeepSpeed's ZeRO-3, under which transformers divides every model that is made between the processes."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def whole_models() -> Iterator[None]:
    """Models made inside are whole on the process that makes them, also while the policy is divided.

    A model that one process makes alone needs it, because to divide it takes all of them; and one that writes its
    first weights when it is built, because they are out of its reach as soon as they are divided. The trainer divides
    it later.
    """
    from transformers.integrations import deepspeed

    current = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = current
