"""Few rows at once: others begin where some end, and every row is completed as if all were computed together."""

import pytest
from prefix_cases import prompts_of
from rollout_cases import (
    MAKERS,
    OTHER_TEXT,
    PICTURE,
    PICTURES,
    SAMPLERS,
    TEXT,
    assert_as_generate,
    batch,
    complete,
    inputs_of,
    put,
    spread_model,
)
from rollout_mistakes import with_numbers_of
from transformers import StoppingCriteriaList

from data.errors import UserError
from models.decoding.attention import StepMask
from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.drafts.store import DraftStore
from models.decoding.prompts import WaitingRows
from models.decoding.rollout import RollOut
from models.decoding.streams import OwnNumbers
from models.families.registry import family_of


def decoding(slots: int | None, drafts: int = 0, stream: str = "own") -> Decoding:
    return Decoding(stream, Drafting(DraftStore((3, 2)), drafts) if drafts else None, slots)


@pytest.mark.parametrize("family", MAKERS)
def test_every_family_completes_as_by_generate_with_three_rows_at_once(family):
    """By `generate`'s numbers too, which a rollout of few rows then has to keep."""
    ways = [decoding(3, drafts, "transformers") for drafts in (0, 4, 4)]
    assert_as_generate(spread_model(family), inputs_of(family, "groups"), *ways)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_the_likeliest_tokens_are_those_of_generate(slots):
    model, inputs = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "mixed order")
    assert_as_generate(model, inputs, decoding(slots, stream="transformers"), **SAMPLERS["greedy"])


WAYS = [(None, 0), (1, 0), (3, 0), (8, 0), (1, 4), (3, 4)]
"""Rows at once, and drafted tokens."""
ROWS = (TEXT, PICTURES, TEXT, PICTURE, PICTURES, OTHER_TEXT, PICTURE, TEXT, PICTURES, PICTURE)


def assert_rows_depend_on_their_numbers_alone(family: str) -> None:
    """On seed, number and logits, not on how many are computed at once, on drafts, or on the prompts of others."""
    model, inputs = spread_model(family), prompts_of(batch(*ROWS), spread_model(family))
    expected, _ = complete(model, inputs, decoding(None))
    for slots, drafts in WAYS:
        way = decoding(slots, drafts)
        for _ in range(2 if drafts else 1):
            assert complete(model, inputs, way)[0] == expected
    # The first and fourth row keep their number and prompt; the width of the batch stays.
    others = (TEXT, PICTURE, OTHER_TEXT, PICTURE, TEXT, TEXT, PICTURES, PICTURES, PICTURES, OTHER_TEXT)
    found, _ = complete(model, prompts_of(batch(*others), model), decoding(3))
    assert [found[0], found[3]] == [expected[0], expected[3]]
    assert len({tuple(row) for row in found}) == len(found)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_5", "gemma3"])
def test_a_row_depends_on_seed_number_and_its_logits_alone(family):
    assert_rows_depend_on_their_numbers_alone(family)


def test_each_prompt_is_read_once_and_no_more_rows_are_computed_than_there_are_places():
    model, inputs = spread_model("qwen2_vl"), prompts_of(batch(*ROWS), spread_model("qwen2_vl"))
    sizes = []
    hook = (
        family_of(model.config)
        .language_model(model.model)
        .register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
        )
    )
    way = decoding(3)
    complete(model, inputs, way)
    hook.remove()
    width, lengths = inputs["input_ids"].shape[1], [len(ids) for ids in way.last.ids]
    read, computed = ([rows for rows, tokens in sizes if (tokens == width) == whole] for whole in (True, False))
    assert sum(read) == 4
    assert read[0] == 1  # three rows of the first prompt begin
    assert max(computed) == 3
    assert sum(computed) == sum(lengths) - len(lengths)
    assert len([rows for rows in computed if rows < 3]) < max(lengths)  # places stay empty only at the end


def test_processors_and_criteria_that_look_at_all_rows_are_refused():
    model, inputs = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "groups")
    with pytest.raises(UserError, match=r"^rollout_slots: 3: rows at different .*, found Repetition\w+, TopP\w+$"):
        complete(model, inputs, decoding(3), **SAMPLERS["repetition penalty"])
    ends = StoppingCriteriaList([lambda ids, scores, **_: ids[:, -1] == 3])
    with pytest.raises(UserError, match=r"^rollout_slots: 3: .* tokens and length alone, found function$"):
        complete(model, inputs, decoding(3), stopping_criteria=ends)


# -- mistakes ---------------------------------------------------------------------------------------------------------

BEGIN, TAKE = WaitingRows.begin, RollOut._take


def of_waiting_rows(self, logits, rows, drafts):
    count, waiting = len(self.found.ids), len(self.waiting.rows)
    wrong = with_numbers_of(OwnNumbers, lambda place, rows, steps: ((rows[place] + waiting) % count, steps[place]))
    with put(OwnNumbers, "pick", wrong):
        TAKE(self, logits, rows, drafts)


def one_further(self, count):
    begun = BEGIN(self, count)
    if len(begun.rows) + len(self.rows) < len(self.prompts.of_row):  # others were before
        self.prompts.positions.add_(1)
    return begun


MISTAKES = {
    "rows share numbers": (
        OwnNumbers,
        "pick",
        with_numbers_of(OwnNumbers, lambda place, rows, steps: (0, steps[place])),
    ),
    "numbers go by place": (
        OwnNumbers,
        "pick",
        with_numbers_of(OwnNumbers, lambda place, rows, steps: (place, steps[place])),
    ),
    "a drafted place has the number of the one before": (
        OwnNumbers,
        "pick",
        with_numbers_of(
            OwnNumbers, lambda place, rows, steps: (rows[place], steps[place] - (rows[place] in rows[:place]))
        ),
    ),
    "numbers of rows that wait": (RollOut, "_take", of_waiting_rows),
    "rows that begin later stand one further": (WaitingRows, "begin", one_further),
    "rows see what stood at their place": (StepMask, "own_bias", lambda *_: None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistake):
    with put(*MISTAKES[mistake]), pytest.raises(AssertionError):
        assert_rows_depend_on_their_numbers_alone("qwen2_vl")
