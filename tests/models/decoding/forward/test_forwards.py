"""Forwards that were recorded once and are replayed give the completions of those that are not.

A CPU has no CUDA graphs. In their place stands what `make_fx` records: all operations on all tensors, by their
addresses, while all that Python knows stays as it was at the recording.
"""

import pytest
import torch
from rollout_cases import MAKERS, complete, inputs_of, put, spread_model
from torch.fx.experimental.proxy_tensor import make_fx

from data.errors import UserError
from models.decoding import rollout
from models.decoding.attention import Step
from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.drafts.store import DraftStore
from models.decoding.forward import forwards

WITH_KEYS = [family for family in MAKERS if not family.startswith("qwen3_5") and not family.endswith("_moe")]


class Tape:
    """What a `CudaGraph` is, on a CPU."""

    made = 0

    def __init__(self, compute):
        type(self).made += 1
        compute()
        self._operations = make_fx(compute)()

    def __call__(self):
        return self._operations()


@pytest.fixture
def recording(monkeypatch):
    """Lets forwards be recorded on a CPU."""
    monkeypatch.setattr(forwards, "CudaGraph", Tape)
    monkeypatch.setattr(rollout, "reason_not_recorded", lambda *_: None)
    monkeypatch.setattr(Tape, "made", 0)


def drafting() -> Drafting:
    return Drafting(DraftStore((3, 2)), 4)


def assert_the_same(family: str, shape: str, stream: str, drafts: bool) -> Decoding:
    model, inputs = spread_model(family), inputs_of(family, shape)
    plain = complete(model, inputs, Decoding(stream, drafting() if drafts else None))
    way = Decoding(stream, drafting() if drafts else None, graphs=True)
    found = complete(model, inputs, way)
    assert found[0] == plain[0]
    assert torch.equal(found[1], plain[1])
    return way


@pytest.mark.parametrize("family", WITH_KEYS)
@pytest.mark.parametrize("drafts", [False, True])
def test_replayed_forwards_give_the_same_completions(family, drafts, recording):
    way = assert_the_same(family, "mixed order", "transformers", drafts)
    assert Tape.made <= 1 + drafts < way.last.counts.forwards  # one of each number of tokens


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_KEYS)
@pytest.mark.parametrize("shape", ["groups", "one group", "single rows", "without images"])
@pytest.mark.parametrize("stream", ["transformers", "own"])
@pytest.mark.parametrize("drafts", [False, True])
def test_replayed_forwards_of_every_batch(family, shape, stream, drafts, recording):
    assert_the_same(family, shape, stream, drafts)


def test_a_number_that_is_kept_from_the_recording_shows(recording):
    """As one does that was asked of the device, and became a part of the graph."""
    kept = property(lambda self: torch.tensor(self.starts.tolist()).unsqueeze(1) + torch.arange(self.tokens))
    with put(Step, "places", kept), pytest.raises((AssertionError, RuntimeError)):
        assert_the_same("qwen2_vl", "mixed order", "transformers", drafts=False)


def test_a_model_on_a_cpu_is_refused():
    with pytest.raises(
        UserError, match="rollout_graphs: true: a model on device 'cpu', where there are no CUDA graphs"
    ):
        complete(spread_model("qwen2_vl"), inputs_of("qwen2_vl", "groups"), Decoding(graphs=True))


@pytest.mark.parametrize(
    ("family", "reason"),
    [("qwen2_vl", None), ("gemma4", None), ("qwen3_5", "layers whose states"), ("qwen3_vl_moe", "experts")],
)
def test_what_cannot_be_recorded_has_a_reason(family, reason):
    model = spread_model(family)
    found = forwards.reason_not_recorded_on_a_gpu(model, has_states=family == "qwen3_5")
    assert found is None if reason is None else found.startswith(reason)
