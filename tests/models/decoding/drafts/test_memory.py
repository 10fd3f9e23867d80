"""From one rollout to the next nothing is kept but drafts, and so many of them."""

import gc
import tracemalloc

import pytest
import torch
from rollout_cases import ENDS, MOST, PLAIN, inputs_of, spread_model

from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.drafts.store import DraftStore
from models.decoding.engine import Engine, rolling_out

CONTEXTS = 1_000
"""That the store keeps here, which a few rollouts fill."""


def kept() -> tuple[int, int]:
    """Bytes of Python's objects, and the number of tensors."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0], sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


@pytest.mark.slow
def test_300_rollouts_keep_as_much_memory_as_100():
    model, inputs = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "groups")
    drafting = Drafting(DraftStore(most=CONTEXTS), 4)
    options = {**PLAIN, "max_new_tokens": MOST, "eos_token_id": ENDS, "pad_token_id": 0}
    after = {}
    tracemalloc.start()
    with rolling_out(model, Engine("true", Decoding(drafting=drafting))):
        for number in range(1, 301):
            torch.manual_seed(number)
            model.generate(**inputs, **options)
            if number in (100, 300):
                after[number] = kept()
    tracemalloc.stop()
    assert len(drafting.store) == CONTEXTS
    (bytes_first, tensors_first), (bytes_last, tensors_last) = after[100], after[300]
    assert tensors_last == tensors_first
    assert bytes_last - bytes_first < 200_000
