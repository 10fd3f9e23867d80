"""Proposals: exact counts, priorities, and log-probabilities of the selector's own forward pass."""

import itertools
import math
import random

import numpy as np
import pytest
import torch

from models.selectors.gpt2 import GPT2Selector, GPT2SelectorConfig
from models.selectors.pointer import PointerSelector, PointerSelectorConfig
from rollouts.example_selection.candidate_sets import Proposal, Proposer, distinct_key, random_tuples
from rollouts.example_selection.data import PoolBatch, cosines, most_similar_sets
from rollouts.example_selection.proposal_settings import ProposalSettings

WIDTH, EXAMPLES = 6, 15


def make_batch(sizes: list[int], seed: int = 0) -> PoolBatch:
    generator = torch.Generator().manual_seed(seed)
    pools = torch.full((len(sizes), max(sizes)), -1)
    for row, size in enumerate(sizes):
        pools[row, :size] = torch.randperm(EXAMPLES, generator=generator)[:size]
    queries = torch.randn(len(sizes), WIDTH, generator=generator)
    return PoolBatch(queries, torch.randn(EXAMPLES, WIDTH, generator=generator), pools)


def make_selector(**settings):
    return PointerSelector(PointerSelectorConfig(embedding_size=WIDTH, hidden_size=8, **settings)).eval()


def teacher_forced(selector, batch: PoolBatch, row: int, pointer: tuple[int, ...]) -> float:
    """The log-probability of one tuple, by one call for it alone."""
    pools, pointers = batch.pools[row : row + 1], torch.tensor([[pointer]])
    with torch.no_grad():
        return float(selector(batch.queries[row : row + 1], batch.examples, pools, pointers).log_probs.sum())


SELECTORS = {
    "gate": lambda: make_selector(),
    "gru with diversity": lambda: make_selector(history="gru", diversity=True, num_layers=2),
    "stop": lambda: make_selector(stop=True, seed=3),
    "gpt2": lambda: GPT2Selector(
        GPT2SelectorConfig(embedding_size=WIDTH, hidden_size=8, num_layers=1, num_heads=1, max_shots=3)
    ).eval(),
}


@pytest.mark.parametrize("shots", [1, 2, 3])
@pytest.mark.parametrize("name", SELECTORS)
def test_log_probabilities_are_the_teacher_forced_ones(name, shots):
    selector, batch = SELECTORS[name](), make_batch([7, 5, 9])
    settings = ProposalSettings(num_beams=2, num_samples=3, num_retrieval=4, num_random=3)
    made = Proposer(selector, batch, ["a", "b", "c"], settings).propose(shots)
    methods = {item.method for items in made for item in items}
    assert {"beam", "retrieval", "random"} <= methods
    for row, items in enumerate(made):
        for item in items:
            expected = teacher_forced(selector, batch, row, item.pointer)
            assert item.about["logprob_score"] == pytest.approx(expected, abs=1e-5)


def test_beams_are_the_most_likely_tuples_best_first():
    selector, batch = make_selector(), make_batch([5])
    settings = ProposalSettings(num_beams=20, num_samples=0, num_retrieval=0, num_random=0, distinct="orders")
    (made,) = Proposer(selector, batch, [0], settings).propose(2)
    every = list(itertools.permutations(range(5), 2))
    expected = sorted(every, key=lambda pointer: -teacher_forced(selector, batch, 0, pointer))
    assert [item.pointer for item in made] == expected
    assert [item.about["beam_rank"] for item in made] == list(range(20))


@pytest.mark.parametrize("distinct", ["sets", "orders"])
def test_exact_counts_and_no_two_alike(distinct):
    settings = ProposalSettings(num_beams=3, temperatures=[1.0], num_samples=2, num_retrieval=4, num_random=6)
    settings = ProposalSettings(**{**vars(settings), "distinct": distinct})
    made = Proposer(make_selector(), make_batch([9, 9]), [1, 2], settings).propose(2)
    for items in made:
        keys = [distinct_key(item.pointer, distinct) for item in items]
        assert len(set(keys)) == len(keys)
        assert all(len(set(item.pointer)) == 2 for item in items)
        assert sum(item.method == "random" for item in items) == 6
        assert 6 + 4 <= len(items) <= 3 + 2 + 4 + 6


def test_of_equal_ones_beams_come_before_retrieval_samples_and_random():
    """With 3 tuples in all, each kind proposes every one."""
    batch = make_batch([3])
    settings = ProposalSettings(num_beams=1, temperatures=[50.0], num_samples=40, num_retrieval=1, num_random=5)
    (made,) = Proposer(make_selector(), batch, [0], settings).propose(1)
    assert sorted(item.pointer for item in made) == [(0,), (1,), (2,)]
    methods = [item.method for item in made]
    assert methods[0] == "beam"
    assert methods in (["beam", "retrieval", "sample"], ["beam", "sample", "sample"])
    best = most_similar_sets(cosines(batch.queries[0].numpy(), batch.examples[batch.pools[0]].numpy()), 1, 1)[0]
    assert {item.pointer: item.method for item in made}[best] in ("beam", "retrieval")


def test_the_same_set_in_another_order_counts_as_asked():
    given = [[Proposal((0, 1), "beam"), Proposal((1, 0), "beam")]]
    nothing = {"num_retrieval": 0, "num_random": 0}
    batch = make_batch([4])
    sets = Proposer(None, batch, [0], ProposalSettings(**nothing)).propose(2, given)
    orders = Proposer(None, batch, [0], ProposalSettings(**nothing, distinct="orders")).propose(2, given)
    assert [item.pointer for item in sets[0]] == [(0, 1)]
    assert [item.pointer for item in orders[0]] == [(0, 1), (1, 0)]


def test_without_a_selector_there_are_retrieval_and_random_only():
    made = Proposer(None, make_batch([6]), [0], ProposalSettings(num_retrieval=2, num_random=3)).propose(2)
    assert [item.method for item in made[0]] == ["retrieval"] * 2 + ["random"] * 3
    assert "logprob_score" not in made[0][0].about


def test_a_selector_that_stops_proposes_shorter_tuples_too():
    selector = make_selector(stop=True)
    with torch.no_grad():
        selector.stop_step += 3.0
    settings = ProposalSettings(num_beams=8, num_retrieval=0, num_random=0, num_samples=0)
    made = Proposer(selector, make_batch([6]), [0], settings).propose(3)
    assert {len(item.pointer) for item in made[0]} > {1}


def test_random_tuples_do_not_depend_on_the_batch_and_samples_not_on_what_came_before():
    settings = ProposalSettings(num_beams=2, num_samples=2, num_random=4)
    selector, batch = make_selector(), make_batch([6, 8])
    torch.manual_seed(5)
    first = Proposer(selector, batch, ["a", "b"], settings).propose(2)
    torch.manual_seed(6)
    assert Proposer(selector, batch, ["a", "b"], settings).propose(2) == first
    alone = PoolBatch(batch.queries[1:], batch.examples, batch.pools[1:])
    chance = ProposalSettings(num_beams=0, num_samples=0, num_retrieval=0, num_random=4)
    together = Proposer(None, batch, ["a", "b"], chance).propose(2)[1]
    assert Proposer(None, alone, ["b"], chance).propose(2)[0] == together


def test_other_seeds_make_other_tuples():
    chance = {"num_beams": 0, "num_samples": 0, "num_retrieval": 0, "num_random": 3}
    made = [Proposer(None, make_batch([12]), ["a"], ProposalSettings(**chance, seed=n)).propose(3) for n in (0, 1)]
    assert made[0] != made[1]


@pytest.mark.parametrize(("distinct", "total"), [("sets", 6), ("orders", 12)])
def test_random_tuples_end_when_there_are_no_more(distinct, total):
    found = list(random_tuples(4, 2, 100, random.Random(0), distinct))
    assert len({distinct_key(pointer, distinct) for pointer in found}) == len(found) == total
    taken = {distinct_key(pointer, distinct) for pointer in found[:4]}
    rest = list(random_tuples(4, 2, 100, random.Random(1), distinct, taken))
    assert {distinct_key(pointer, distinct) for pointer in rest} == {
        distinct_key(pointer, distinct) for pointer in found[4:]
    }


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_most_similar_sets_are_those_of_brute_force(size):
    similarities = np.random.default_rng(size).normal(size=9)
    expected = sorted(itertools.combinations(range(9), size), key=lambda found: -similarities[list(found)].sum())
    found = most_similar_sets(similarities, size, 30)
    assert [tuple(sorted(item)) for item in found] == expected[:30]
    for item in found:
        assert list(similarities[list(item)]) == sorted(similarities[list(item)], reverse=True)
    assert len(most_similar_sets(similarities, size, 1_000)) == math.comb(9, size)
