"""Choosing: beams against all sequences, samples against their probabilities, and what may never happen."""

import itertools
import math

import pytest
import torch
from selector_variants import FEW_VARIANTS, build, draw, variant_name

variants = pytest.mark.parametrize("variant", FEW_VARIANTS, ids=variant_name)


def all_sequences(places: list[int], shots: int, stop: bool) -> torch.Tensor:
    """(n, shots): every sequence of `shots` examples, and every shorter one if the model can stop."""
    lengths = range(1, shots + 1) if stop else [shots]
    rows = [list(rows) for length in lengths for rows in itertools.permutations(places, length)]
    return torch.tensor([row + [-1] * (shots - len(row)) for row in rows])


@variants
@pytest.mark.parametrize("shots", [1, 2, 4])
def test_wide_beams_are_all_sequences_in_order(variant, shots):
    selector, batch = build(variant), draw([4])
    places = (batch.pools[0] >= 0).nonzero().flatten().tolist()
    every = all_sequences(places, shots, selector.config.stop)
    log_probs = selector(*batch.inputs, every[None]).log_probs.sum(-1)[0].detach()
    # A model that could choose more examples gives the rest to longer sequences.
    rest = 0.0 if not selector.config.stop or shots == selector.config.max_shots else 1.0
    assert 1 - rest - 1e-5 < log_probs.exp().sum().item() < 1 + 1e-5
    found = selector.select(*batch.inputs, shots, method="beam", num_beams=len(every) + 3)
    order = log_probs.argsort(descending=True)
    torch.testing.assert_close(found.log_probs[0, : len(every)], log_probs[order], rtol=0, atol=1e-5)
    score = dict(zip(map(tuple, every.tolist()), log_probs.tolist(), strict=True))
    beams = [tuple(pointer) for pointer in found.pointers[0].tolist()]
    assert set(beams[: len(every)]) == set(score)
    assert [score[beam] for beam in beams[: len(every)]] == pytest.approx(
        found.log_probs[0, : len(every)].tolist(), abs=1e-5
    )
    assert (found.log_probs[0, len(every) :] == -math.inf).all()
    assert (found.pointers[0, len(every) :] == -1).all()


@variants
def test_narrow_beams_are_those_of_a_plain_beam_search(variant):
    selector, batch = build(variant), draw([6, 3])
    found = selector.select(*batch.inputs, 3, method="beam", num_beams=4)
    for query in range(2):
        alone = batch.alone(query)
        pool = (batch.pools[query] >= 0).nonzero().flatten().tolist()
        beams = _plain_beams(selector, alone, 3, 4)
        expected = [[pool[position] for position in pointer] + [-1] * (3 - len(pointer)) for pointer, _ in beams]
        assert found.pointers[query, : len(beams)].tolist() == expected
        assert found.log_probs[query, : len(beams)].tolist() == pytest.approx([score for _, score in beams], abs=1e-5)


def _plain_beams(selector, alone, shots: int, width: int) -> list[tuple[tuple[int, ...], float]]:
    """Beam search of one query in plain Python, from `forward` alone."""
    count = alone.pools.shape[1]

    def next_step(pointer: tuple[int, ...]) -> list[float]:
        if len(pointer) == count:
            return [0.0 if selector.config.stop and column == count else -math.inf for column in range(count + 1)]
        asked = torch.tensor([[[*pointer, 0]]])
        if asked.shape[2] > selector.config.max_shots:
            return [-math.inf] * (count + selector.config.stop)
        logits = selector(*alone.inputs, asked, return_logits=True).logits[0, 0, len(pointer)].clone()
        logits[list(pointer)] = -math.inf
        return logits.log_softmax(-1).tolist()

    beams = [((), 0.0, False)]
    for _ in range(shots):
        grown = []
        for pointer, score, stopped in beams:
            if stopped:
                grown.append((pointer, score, True))
                continue
            for position, gain in enumerate(next_step(pointer)):
                if gain > -math.inf:
                    ended = position == count
                    grown.append((pointer if ended else (*pointer, position), score + gain, ended))
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    if selector.config.stop and shots < selector.config.max_shots:
        beams = [(p, score if stopped else score + next_step(p)[count], stopped) for p, score, stopped in beams]
    return [(pointer, score) for pointer, score, _ in sorted(beams, key=lambda beam: -beam[1])]


@variants
def test_greedy_takes_the_best_example_at_each_step(variant):
    selector, batch = build(variant), draw([6, 5, 3])
    chosen = selector.select(*batch.inputs, 3)
    one_beam = selector.select(*batch.inputs, 3, method="beam", num_beams=1)
    assert chosen.pointers.shape == (3, 1, 3)
    assert torch.equal(chosen.pointers, one_beam.pointers)
    torch.testing.assert_close(chosen.log_probs, one_beam.log_probs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("stop", [False, True])
def test_samples_are_as_frequent_as_their_probability(temperature, stop):
    selector, batch = build({"stop": stop}, temperature=1.0, max_shots=2), draw([3], shots=2)
    places = (batch.pools[0] >= 0).nonzero().flatten().tolist()
    every = all_sequences(places, 2, stop)
    output = selector(*batch.inputs, every[None], return_logits=True)
    logits = output.logits[0].detach() / temperature
    expected = []
    for sequence, pointer in enumerate(every.tolist()):
        free = torch.ones(logits.shape[-1], dtype=torch.bool)
        probability = 1.0
        for step, position in enumerate(pointer):
            target = position if position >= 0 else logits.shape[-1] - 1
            probability *= float(logits[sequence, step].masked_fill(~free, -math.inf).softmax(-1)[target])
            free[target] = False
        expected.append(probability)
    assert sum(expected) == pytest.approx(1, abs=1e-5)
    count = 4000
    options = {"num_samples": count, "temperature": temperature, "generator": torch.Generator().manual_seed(0)}
    drawn = selector.select(*batch.inputs, 2, method="sample", **options)
    found = [(drawn.pointers[0] == pointer).all(-1).float().mean().item() for pointer in every]
    for share, probability in zip(found, expected, strict=True):
        assert share == pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / count) + 1e-9)


def test_the_same_generator_draws_the_same_samples():
    selector, batch = build({}), draw([6, 5])
    draws = [
        selector.select(
            *batch.inputs, 2, method="sample", num_samples=8, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0].pointers, draws[1].pointers)
    assert not torch.equal(draws[0].pointers, draws[2].pointers)


@pytest.mark.parametrize("scorer", ["additive", "bilinear"])
def test_nothing_is_chosen_twice_however_large_the_scores(scorer):
    selector, batch = build({"scorer": scorer}, temperature=1e-4), draw([6, 4])
    for search in ({}, {"method": "beam"}, {"method": "sample", "num_samples": 20, "temperature": 1e6}):
        pointers = selector.select(*batch.inputs, 4, **search).pointers
        for sequence in pointers.flatten(0, 1).tolist():
            assert len(set(sequence)) == 4 or set(sequence) == {-1}
    output = selector(*batch.inputs, selector.select(*batch.inputs, 4).pointers)
    assert output.log_probs.isfinite().all()


@variants
def test_a_pool_of_one(variant):
    selector, batch = build(variant), draw([1, 4], shots=1)
    chosen = selector.select(*batch.inputs, 1)
    assert batch.pools[0, chosen.pointers[0, 0, 0]] >= 0
    output = selector(*batch.inputs, chosen.pointers)
    assert output.log_probs[0, 0, 0] == 0


@variants
def test_more_shots_than_candidates_is_an_error(variant):
    batch = draw([5, 2, 3])
    with pytest.raises(ValueError, match="query 1 has 2 candidates, which is fewer than 3 shots"):
        build(variant).select(*batch.inputs, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method: expected one of greedy, beam, sample, found 'best'"),
        ({"shots": 0}, "shots: expected at least 1, found 0"),
        ({"num_beams": 0}, "num_beams: expected at least 1, found 0"),
        ({"num_samples": 0}, "num_samples: expected at least 1, found 0"),
        ({"temperature": 0.0}, "temperature: expected more than 0, found 0.0"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        build({}).select(*draw([4]).inputs, **{"shots": 2, **options})
