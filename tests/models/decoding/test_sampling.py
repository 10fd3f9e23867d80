"""What is left of a distribution is what transformers' processors leave."""

from itertools import product

import pytest
import torch
from sampling_cases import left_by, logits_of, processors
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from models.decoding import sampling
from models.decoding.sampling import FEW, Cuts

CUTS = [
    Cuts(),
    Cuts(temperature=0.7),
    Cuts(top_k=1),
    Cuts(top_k=5),
    Cuts(top_k=FEW + 20),
    Cuts(top_k=5000),  # more than there are
    Cuts(top_p=0.5),
    Cuts(top_p=0.9, temperature=0.8),
    Cuts(top_p=0.999),  # of flat distributions more than `FEW`
    Cuts(top_p=1e-6),
    Cuts(top_p=0.0),
    Cuts(min_p=0.3),
    Cuts(min_p=1e-4),
    Cuts(min_p=1.0),
    Cuts(top_k=20, top_p=0.8, min_p=0.05, temperature=1.3),
    Cuts(top_k=200, top_p=0.99),
    Cuts(top_p=0.9, min_p=0.01, suppressed=(0, 3, 7)),
]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_cuts_leave_what_transformers_leaves(cuts):
    for vocabulary, spread in product((5, FEW, 300, 2000), (0.1, 1.0, 4.0)):  # flat to peaked: few or many are kept
        logits = logits_of(vocabulary, spread)
        if max(cuts.suppressed, default=0) < vocabulary:
            assert torch.equal(left_by(cuts, logits), processors(cuts)(None, logits.clone()))


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_among_equally_likely_tokens_as_many_are_left(cuts):
    """Which of them, transformers leaves to how it sorts. Without top-p, it keeps all."""
    for spread in (0.5, 2.0):
        logits = logits_of(300, spread).bfloat16()
        found, right = left_by(cuts, logits), processors(cuts)(None, logits.float())
        assert torch.equal(found.sort(dim=1).values, right.sort(dim=1).values)
        if cuts.top_p is None:
            assert torch.equal(found, right)


def test_the_border_may_lie_among_many_equally_likely_tokens():
    """More than are looked at first, so that all must be."""
    logits = torch.zeros(2, 500)
    logits[:, :3] = torch.tensor([5.0, 4.0, 3.0])
    assert left_by(Cuts(top_k=10), logits).isfinite().all()
    half = left_by(Cuts(top_p=0.5), logits).isfinite().sum(dim=1)
    assert torch.equal(half, TopPLogitsWarper(0.5)(None, logits.clone()).isfinite().sum(dim=1))


def test_one_flat_row_makes_no_other_row_differ():
    flat, peaked = logits_of(1000, 0.01, 1), logits_of(1000, 6.0, 1)
    cuts = Cuts(top_p=0.9)
    both = left_by(cuts, torch.cat([flat, peaked]))
    assert torch.equal(both[1], left_by(cuts, peaked)[0])
    assert both[0].isfinite().sum() > FEW > both[1].isfinite().sum()


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_processors_of_transformers_are_read(cuts):
    assert Cuts.of(processors(cuts)) == cuts


OTHERS = {
    "another kind": [RepetitionPenaltyLogitsProcessor(1.2)],
    "another order": [TopPLogitsWarper(0.9), TemperatureLogitsWarper(0.7)],
    "one twice": [TopPLogitsWarper(0.9), TopPLogitsWarper(0.8)],
    "more than the cut": [TopPLogitsWarper(0.9, min_tokens_to_keep=2)],
    "not quite cut": [MinPLogitsWarper(0.1, filter_value=-50.0)],
}


@pytest.mark.parametrize("others", OTHERS)
def test_other_processors_are_none_of_these_cuts(others):
    assert Cuts.of(LogitsProcessorList(OTHERS[others])) is None


# -- the stream of transformers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [FEW, 2000])
def test_equally_likely_tokens_stand_in_the_order_of_ids_however_many_are_looked_at(few, monkeypatch):
    monkeypatch.setattr(sampling, "FEW", few)
    values, ids = Cuts(top_k=40).kept(logits_of(2000, 1.0).bfloat16().float())
    assert values.shape[1] == min(few + 40, 2000)
    alike = (values[:, 1:] == values[:, :-1]) & values[:, 1:].isfinite()
    assert alike.sum() > 100
    assert bool((ids[:, 1:] > ids[:, :-1])[alike].all())
