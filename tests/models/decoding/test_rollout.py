"""The loop itself: how likely its tokens were, what it computes, and that the comparison with `generate` sees each
mistake that it might make."""

import pytest
import torch
from rollout_cases import (
    MAKERS,
    MOST,
    SHAPES,
    complete,
    distributions_of,
    inputs_of,
    log_probs_of,
    put,
    spread_model,
)
from rollout_mistakes import MISTAKES, OF_DRAFTS

from models.decoding.choice import ByCuts
from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.drafts.store import DraftStore
from models.decoding.engine import RolloutError
from models.families.registry import family_of

CLOSE = 2e-5
ROUNDING = 1.25
"""A factor of weights under which logits have no more digits before the point than those of trained models."""


def drafted() -> Decoding:
    return Decoding(drafting=Drafting(DraftStore((3, 2)), 4))


def farthest(found: list[list[float]], expected: list[list[float]]) -> float:
    assert [*map(len, found)] == [*map(len, expected)]
    return max(
        abs(one - other)
        for ours, theirs in zip(found, expected, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )


def text_only(model) -> list[int]:
    """Tokens that no completion may have, as they promise pictures."""
    names = ("image_token_id", "video_token_id")
    return sorted({getattr(model.config, name) for name in names if getattr(model.config, name, None) is not None})


# -- how likely tokens were -------------------------------------------------------------------------------------------


def assert_likely_as_by_forward(family: str, shape: str, **options) -> None:
    """With drafts; cuts are no part of it."""
    model, inputs, way = spread_model(family, ROUNDING), inputs_of(family, shape), drafted()
    complete(model, inputs, way, suppress_tokens=text_only(model), **options)
    expected = log_probs_of(model, inputs, way.last.ids, options["temperature"])
    assert farthest(way.last.log_probs, expected) < CLOSE


@pytest.mark.parametrize("family", MAKERS)
def test_log_probabilities_are_those_of_a_plain_forward(family):
    assert_likely_as_by_forward(family, "groups", temperature=0.7, top_p=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probabilities_of_every_family_and_batch(family, shape):
    for temperature in (1.0, 0.7, 1.5):
        assert_likely_as_by_forward(family, shape, temperature=temperature, top_p=0.9)


def test_the_whole_distribution_is_that_of_a_plain_forward():
    """At every place, of every token, also where drafts were computed at once."""
    model, inputs = spread_model("qwen2_vl", ROUNDING), inputs_of("qwen2_vl", "mixed order")
    way, seen, choose = drafted(), {}, ByCuts.choose

    def note(self, logits, rows, steps):
        seen.update(zip(zip(rows, steps, strict=True), logits.log_softmax(dim=1), strict=True))
        return choose(self, logits, rows, steps)

    for _ in range(2):
        seen.clear()
        with put(ByCuts, "choose", note):
            complete(model, inputs, way, suppress_tokens=text_only(model))
    assert way.last.counts.accepted > 0
    right = distributions_of(model, inputs, way.last.ids)
    for row, ids in enumerate(way.last.ids):
        found = torch.stack([seen[row, place] for place in range(len(ids))])
        assert (found - right[row, : len(ids)]).abs().max() < CLOSE


# -- what is computed -------------------------------------------------------------------------------------------------


def test_rows_that_ended_are_not_computed_and_prompts_are_read_once():
    model, inputs, decoding = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "mixed order"), Decoding()
    sizes = []
    text = family_of(model.config).language_model(model.model)
    hook = text.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    complete(model, inputs, decoding)
    hook.remove()
    lengths = [len(ids) for ids in decoding.last.ids]
    assert sizes[0] == (4, inputs["input_ids"].shape[1])
    assert sizes[1:] == [(sum(length > step for length in lengths), 1) for step in range(1, max(lengths))]
    counts = decoding.last.counts
    assert (counts.forwards, counts.rows, counts.places) == (max(lengths) - 1, sum(lengths) - 8, sum(lengths) - 8)


def test_right_drafts_save_forwards():
    model, inputs, way = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "one group"), drafted()
    complete(model, inputs, way, eos_token_id=None)
    first = way.last.counts
    complete(model, inputs, way, eos_token_id=None)
    assert first.forwards > way.last.counts.forwards
    assert way.last.counts.forwards < MOST / 3


def test_states_that_cannot_go_back_take_no_drafts():
    way = drafted()
    for _ in range(2):
        complete(spread_model("qwen3_5"), inputs_of("qwen3_5", "one group"), way, max_new_tokens=4)
    assert way.last.counts.drafted == 0


def test_a_store_that_is_full_of_other_texts_changes_nothing():
    model, inputs = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "groups")
    way = Decoding(drafting=Drafting(DraftStore((1,)), 4))
    expected, state = complete(model, inputs)
    rng = torch.Generator().manual_seed(0)
    for token in range(264):  # whatever comes, something was drafted, and is nearly always wrong
        way.drafting.store.note([token, *torch.randint(0, 264, (8,), generator=rng).tolist()], 1)
    found, after = complete(model, inputs, way)
    counts = way.last.counts
    assert found == expected
    assert torch.equal(state, after)
    assert counts.drafted > 100
    assert counts.accepted < counts.drafted / 4


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistake):
    family, *of_place = MISTAKES[mistake]
    assert_shows(family, Decoding(), *of_place)


@pytest.mark.parametrize("mistake", OF_DRAFTS)
def test_a_mistake_of_drafts_shows(mistake):
    assert_shows("qwen2_vl", drafted(), *OF_DRAFTS[mistake])


def assert_shows(family: str, decoding: Decoding, place, name: str, wrong) -> None:
    """In tokens or the generator, also to `rollout_check`, and only with the mistake. Prompts and tokens are longer
    than Gemma's windows."""
    model, inputs = spread_model(family), inputs_of(family, "groups")
    expected, state = complete(model, inputs, max_new_tokens=24)
    right, after = complete(model, inputs, decoding, check=True, max_new_tokens=24)
    assert right == expected
    assert torch.equal(after, state)
    with put(place, name, wrong):
        found, after = complete(model, inputs, decoding, max_new_tokens=24)
        with pytest.raises(RolloutError, match="rollout_check"):
            complete(model, inputs, decoding, check=True, max_new_tokens=24)
    assert found != expected or not torch.equal(after, state)
