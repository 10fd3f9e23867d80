"""What is left of a distribution is what transformers' processors leave, and tokens are drawn from just that."""

from itertools import product

import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.decoding import sampling
from models.decoding.sampling import FEW, AsTransformers, Cuts, Likeliest, OwnNumbers

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


def processors(cuts: Cuts) -> LogitsProcessorList:
    """Transformers' own, in its order."""
    found = LogitsProcessorList()
    if cuts.suppressed:
        found.append(SuppressTokensLogitsProcessor(list(cuts.suppressed)))
    if cuts.temperature != 1.0:
        found.append(TemperatureLogitsWarper(cuts.temperature))
    for value, kind in (
        (cuts.top_k, TopKLogitsWarper),
        (cuts.top_p, TopPLogitsWarper),
        (cuts.min_p, MinPLogitsWarper),
    ):
        if value is not None:
            found.append(kind(value))
    return found


def logits_of(vocabulary: int, spread: float, rows: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocabulary)
    return torch.randn(rows, vocabulary, generator=generator) * spread


def left_by(cuts: Cuts, logits: torch.Tensor) -> torch.Tensor:
    """(N, V), scores with -inf where tokens are cut."""
    scores = cuts.scores(logits)
    if not cuts.cuts:
        return scores
    values, ids = cuts.kept(scores)
    assert bool((values[:, 1:] <= values[:, :-1]).all())  # likeliest first
    return torch.full_like(scores, -torch.inf).scatter(1, ids, values)


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

ROWS, VOCABULARY, STEPS = 6, 400, 5


def drawn_by_multinomial(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(steps, rows), and the generator's state."""
    torch.manual_seed(3)
    return torch.stack([torch.multinomial(one.softmax(dim=1), 1).squeeze(1) for one in scores]), torch.get_rng_state()


def test_tokens_are_those_of_multinomial_bit_for_bit():
    """Whatever rows and steps are asked for, in whatever order, and though drafts look beyond the last."""
    scores = torch.stack([logits_of(VOCABULARY + step, 3.0, ROWS)[:, :VOCABULARY] for step in range(STEPS + 2)])
    expected, state = drawn_by_multinomial(scores[:STEPS])
    torch.manual_seed(3)
    draws = AsTransformers(ROWS, VOCABULARY, torch.device("cpu"))
    asked = [[*range(ROWS)], [5, 0, 3], [2]]  # the others have ended
    for step, rows in enumerate(asked):
        assert torch.equal(draws.pick(scores[step][rows], rows, [step] * len(rows), None), expected[step][rows])
        draws.forget_before(step)
    rows, steps = [4, 4, 4, 1, 4], [2, 3, 4, 2, 6]
    found = draws.pick(scores[steps, rows], rows, steps, None)
    assert torch.equal(found[:4], expected[steps[:4], rows[:4]])
    draws.finish(STEPS)
    assert torch.equal(torch.get_rng_state(), state)


def test_of_kept_tokens_each_has_its_own_number():
    scores = logits_of(VOCABULARY, 3.0, ROWS)
    cuts = Cuts(top_p=0.9)
    expected, _ = drawn_by_multinomial(left_by(cuts, scores).unsqueeze(0))
    torch.manual_seed(3)
    draws = AsTransformers(ROWS, VOCABULARY, torch.device("cpu"))
    values, ids = cuts.kept(scores)
    assert torch.equal(draws.pick(values, range(ROWS), [0] * ROWS, ids), expected[0])


def test_numbers_of_earlier_steps_are_let_go():
    draws = AsTransformers(ROWS, VOCABULARY, torch.device("cpu"))
    draws.pick(logits_of(VOCABULARY, 1.0, 1), [0], [9], None)
    assert len(draws._noise) == 10
    draws.forget_before(8)
    assert sorted(draws._noise) == [8, 9]


# -- the own stream ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [Cuts(), Cuts(top_k=3), Cuts(top_p=0.8, temperature=1.4), Cuts(min_p=0.2)], ids=str)
def test_draws_have_the_exact_law(cuts):
    """Chi-square of 200,000 draws."""
    count = 200_000
    logits = torch.tensor([[0.1, 1.2, -0.4, 2.0, -3.0, 0.7, 0.6, -7.0]])
    torch.manual_seed(11)
    draws = OwnNumbers(count, 1, torch.device("cpu"))
    scores = cuts.scores(logits)
    values, ids = cuts.kept(scores) if cuts.cuts else (scores, None)
    every = ids if ids is None else ids.expand(count, -1)
    tokens = draws.pick(values.expand(count, -1), range(count), [0] * count, every)
    exact = processors(cuts)(None, logits.clone()).double().softmax(dim=1)[0]
    found = tokens.bincount(minlength=8).double()
    possible = exact > 0
    assert not found[~possible].any()
    assert chisquare(found[possible], exact[possible] * count).pvalue > 0.01


def test_a_law_that_is_wrong_by_a_hundredth_shows():
    exact = torch.tensor([0.5, 0.3, 0.2]).double()
    torch.manual_seed(11)
    tokens = OwnNumbers(200_000, 1, torch.device("cpu")).pick(
        (exact + torch.tensor([0.01, 0.0, -0.01])).log().expand(200_000, -1), range(200_000), [0] * 200_000, None
    )
    assert chisquare(tokens.bincount(minlength=3), exact * 200_000).pvalue < 1e-6


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_the_least_and_the_largest_number_draw_no_token_that_is_cut(number):
    """Sums of many shares are not quite 1."""
    draws = OwnNumbers(100, 1, torch.device("cpu"))
    draws._numbers.fill_(number)
    scores = logits_of(3000, 1.0, 100)
    scores[:, :50] = scores[:, -50:] = -torch.inf
    tokens = draws.pick(scores, range(100), [0] * 100, None)
    assert set(tokens.tolist()) <= set(range(50, 2950))


def picked(rows: list[int], steps: list[int], scores: torch.Tensor, cuts: Cuts) -> dict[tuple[int, int], int]:
    """Tokens of rows and steps, of a batch of 6 rows and 5 steps, by the numbers of one seed."""
    torch.manual_seed(4)
    draws = OwnNumbers(ROWS, STEPS, torch.device("cpu"))
    left = cuts.scores(scores[steps, rows])
    values, ids = cuts.kept(left) if cuts.cuts else (left, None)
    return dict(zip(zip(rows, steps, strict=True), draws.pick(values, rows, steps, ids).tolist(), strict=True))


@pytest.mark.parametrize("cuts", [Cuts(), Cuts(top_p=0.95), Cuts(top_k=7)], ids=str)
def test_a_token_depends_on_row_step_and_logits_alone(cuts):
    """Six ways: all at once, step by step, row by row, each by itself, from behind, and some of them."""
    scores = torch.stack([logits_of(500 + step, 2.0, ROWS)[:, :500] for step in range(STEPS)])
    every = list(product(range(ROWS), range(STEPS)))
    ways = [
        [every],
        [[(row, step) for row in range(ROWS)] for step in range(STEPS)],
        [[(row, step) for step in range(STEPS)] for row in range(ROWS)],
        [[one] for one in every],
        [every[::-1]],
        [every[::3], every[1::3], every[2::3]],
    ]
    results = []
    for way in ways:
        found: dict = {}
        for part in way:
            found |= picked([row for row, _ in part], [step for _, step in part], scores, cuts)
        results.append(found)
    assert all(result == results[0] for result in results)
    assert len(set(results[0].values())) > 10


@pytest.mark.parametrize("few", [FEW, 2000])
def test_equally_likely_tokens_stand_in_the_order_of_ids_however_many_are_looked_at(few, monkeypatch):
    monkeypatch.setattr(sampling, "FEW", few)
    values, ids = Cuts(top_k=40).kept(logits_of(2000, 1.0).bfloat16().float())
    assert values.shape[1] == min(few + 40, 2000)
    alike = (values[:, 1:] == values[:, :-1]) & values[:, 1:].isfinite()
    assert alike.sum() > 100
    assert bool((ids[:, 1:] > ids[:, :-1])[alike].all())


def test_the_likeliest_token_comes_next_where_nothing_is_drawn():
    scores, state = logits_of(50, 1.0), torch.get_rng_state()
    assert torch.equal(Likeliest().pick(scores, range(24), [0] * 24, None), scores.argmax(dim=1))
    values, ids = Cuts(top_k=5).kept(scores)
    assert torch.equal(Likeliest().pick(values, range(24), [0] * 24, ids), scores.argmax(dim=1))
    assert torch.equal(state, torch.get_rng_state())
