"""Tokens are drawn from just what is left of a distribution, by `generate`'s numbers or by own ones."""

from itertools import product

import pytest
import torch
from sampling_cases import left_by, logits_of, processors
from scipy.stats import chisquare

from models.decoding import streams
from models.decoding.sampling import Cuts
from models.decoding.streams import AsTransformers, Likeliest, OwnNumbers

ROWS, VOCABULARY, STEPS = 6, 400, 5


def drawn_by_multinomial(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(steps, rows), and the generator's state."""
    torch.manual_seed(3)
    return torch.stack([torch.multinomial(one.softmax(dim=1), 1).squeeze(1) for one in scores]), torch.get_rng_state()


@pytest.mark.parametrize("by_uniforms", [True, False])
def test_tokens_are_those_of_multinomial_bit_for_bit(by_uniforms, monkeypatch):
    """Whatever rows and steps are asked for, in whatever order, and though drafts look beyond the last."""
    monkeypatch.setattr(streams, "exponentials_are_of_uniforms", lambda device: by_uniforms)
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


@pytest.mark.parametrize("size", [(3, 5), (8, 4001)])
def test_exponentials_are_of_uniforms_where_that_is_so(size):
    """It costs a run nothing but time where it is not: then they are drawn as they are."""
    torch.manual_seed(5)
    exponentials, state = torch.empty(size).exponential_(1), torch.get_rng_state()
    torch.manual_seed(5)
    uniforms = torch.empty(size, dtype=torch.float64).uniform_()
    same = torch.equal(streams._exponentials_of(uniforms), exponentials) and torch.equal(torch.get_rng_state(), state)
    assert streams.exponentials_are_of_uniforms(torch.device("cpu")) == same


def test_whether_exponentials_are_of_uniforms_is_found_without_drawing():
    state = torch.get_rng_state()
    streams.exponentials_are_of_uniforms.__wrapped__(torch.device("cpu"))
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
    assert len(draws._drawn) == 10
    draws.forget_before(8)
    assert sorted(draws._drawn) == [8, 9]


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


def test_the_likeliest_token_comes_next_where_nothing_is_drawn():
    scores, state = logits_of(50, 1.0), torch.get_rng_state()
    assert torch.equal(Likeliest().pick(scores, range(24), [0] * 24, None), scores.argmax(dim=1))
    values, ids = Cuts(top_k=5).kept(scores)
    assert torch.equal(Likeliest().pick(values, range(24), [0] * 24, ids), scores.argmax(dim=1))
    assert torch.equal(state, torch.get_rng_state())
