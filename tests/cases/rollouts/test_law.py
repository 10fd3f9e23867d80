"""Whole completions have the law of the model: chi-square against the exact probability of each that there can be."""

from collections import Counter
from functools import cache
from itertools import product

import pytest
import torch
from prefix_cases import tiny_qwen2_vl
from rollout_cases import PLAIN, put, spread
from rollout_mistakes import OF_DRAFTS, with_numbers_of
from sampling_cases import processors
from scipy.stats import chisquare
from torch import nn

from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.drafts.store import DraftStore
from models.decoding.engine import Engine, rolling_out
from models.decoding.rollout import Counts
from models.decoding.sampling import Cuts
from models.decoding.streams import AsTransformers, OwnNumbers

PROMPT = (1, 4, 2, 3)
VOCABULARY, END, MOST = 6, 5, 3
CUTS = {"whole": Cuts(), "cut": Cuts(temperature=1.2, top_k=5, top_p=0.9)}


@cache
def model() -> nn.Module:
    """It knows six tokens."""
    found = spread(tiny_qwen2_vl().eval(), 3)
    found.resize_token_embeddings(VOCABULARY)
    return found


@cache
def exact(cuts: str) -> dict[tuple[int, ...], float]:
    """The probability of each completion, by plain forwards."""
    found, begun = {}, {(): 1.0}
    for step in range(MOST):
        ids = torch.tensor([PROMPT + completion for completion in begun])
        with torch.no_grad():
            logits = model()(input_ids=ids, use_cache=False).logits[:, -1]
        shares = processors(CUTS[cuts])(ids, logits).double().softmax(dim=1).tolist()
        behind = {
            (*completion, token): before * share
            for (completion, before), of_one in zip(begun.items(), shares, strict=True)
            for token, share in enumerate(of_one)
        }
        begun = {one: share for one, share in behind.items() if one[-1] != END and step + 1 < MOST}
        found |= {one: share for one, share in behind.items() if one not in begun}
    return found


def sampled(count: int, stream: str, cuts: str, drafts: int = 0, slots: int | None = None) -> tuple[Counter, Counts]:
    """So many completions; what is drafted was seen in some before."""
    drafting = Drafting(DraftStore((2, 1)), drafts) if drafts else None
    decoding = Decoding(stream, drafting, slots)
    left = {name: value for name in ("temperature", "top_k", "top_p") if (value := getattr(CUTS[cuts], name))}
    options = {**PLAIN, **left, "max_new_tokens": MOST, "eos_token_id": END, "pad_token_id": 0}
    torch.manual_seed(7)
    with torch.no_grad(), rolling_out(model(), Engine("true", decoding)):
        for rows in (100, count):
            model().generate(input_ids=torch.tensor([PROMPT]), num_return_sequences=rows, **options)
    return Counter(map(tuple, decoding.last.ids)), decoding.last.counts


def chance(found: Counter, cuts: str) -> float:
    """Of so large a difference, by chi-square: 0 with completions that there cannot be. Those that are expected fewer
    than five times count together."""
    total, right = found.total(), exact(cuts)
    if any(right.get(one, 0.0) == 0.0 for one in found):
        return 0.0
    often = [one for one, share in right.items() if share * total >= 5]
    observed = [found[one] for one in often]
    expected = [right[one] * total for one in often]
    if total - sum(expected) >= 5:
        observed.append(total - sum(observed))
        expected.append(total - sum(expected))
    return chisquare(observed, [one * sum(observed) / sum(expected) for one in expected]).pvalue


CELLS = list(product(("transformers", "own"), CUTS))


@pytest.mark.parametrize(("stream", "cuts"), CELLS)
def test_completions_have_the_exact_law(stream, cuts):
    """Of 20,000, with drafts, 2,000 at once."""
    found, counts = sampled(20_000, stream, cuts, drafts=2, slots=2_000)
    assert 0 < counts.accepted < counts.drafted
    assert chance(found, cuts) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "cuts"), CELLS)
@pytest.mark.parametrize("way", [{}, {"drafts": 2, "slots": 20_000}], ids=["plain", "drafts"])
def test_many_completions_have_the_exact_law(stream, cuts, way):
    found, _ = sampled(200_000, stream, cuts, **way)
    assert chance(found, cuts) > 0.01


def same_for_four(place, rows, steps):
    return rows[place] // 4 * 4, steps[place]


def of_the_place_before(place, rows, steps):
    return rows[place], steps[place] - (rows[place] in rows[max(place - 2, 0) : place])


MISTAKES = {
    "drafts are taken as they are": ("own", *OF_DRAFTS["drafts are taken as they are"]),
    "a drafted place has the number of the one before": (
        "own",
        OwnNumbers,
        "pick",
        with_numbers_of(OwnNumbers, of_the_place_before),
    ),
    "and so in the other stream": (
        "transformers",
        AsTransformers,
        "pick",
        with_numbers_of(AsTransformers, of_the_place_before),
    ),
    "four rows share numbers": ("own", OwnNumbers, "pick", with_numbers_of(OwnNumbers, same_for_four)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistake):
    stream, *place = MISTAKES[mistake]
    with put(*place):
        found, _ = sampled(8_000, stream, "whole", drafts=2, slots=2_000)
    assert chance(found, "whole") < 1e-6
