"""`rollout_check`: sound rollouts pass and stay as they are, and others are an error that says where they differ."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from prefix_cases import prompts_of
from rollout_cases import MAKERS, SAMPLERS, SHAPES, complete, inputs_of, put, spread, spread_model
from rollout_mistakes import MISTAKES

from models.decoding import check, engine
from models.decoding.choice import ByCuts
from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.drafts.store import DraftStore
from models.decoding.engine import Engine, RolloutError, rolling_out
from models.decoding.rollout import RollOut
from models.shared_prefix import prefill

FORMATS = ("float32", "bfloat16", "autocast")


@contextmanager
def model_in(form: str, family: str = "qwen2_vl") -> Iterator[tuple]:
    """A tiny model that computes in a number format, and inputs for it."""
    model = spread(MAKERS[family]().eval()).bfloat16() if form == "bfloat16" else spread_model(family)
    with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
        yield model, prompts_of(SHAPES["groups"], model)


def assert_passes_unchanged(form: str, family: str, stream: str, sampler: str) -> None:
    with model_in(form, family) as (model, inputs):
        drafting = [Drafting(DraftStore((3, 2)), 4) for _ in range(2)]
        expected, state = complete(model, inputs, Decoding(stream, drafting[0]), **SAMPLERS[sampler])
        found, after = complete(model, inputs, Decoding(stream, drafting[1]), check=True, **SAMPLERS[sampler])
    assert found == expected
    assert torch.equal(after, state)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("stream", ["transformers", "own"])
@pytest.mark.parametrize("sampler", ["plain", "all cuts", "repetition penalty"])
def test_sound_rollouts_pass_and_stay_as_they_are(form, stream, sampler):
    assert_passes_unchanged(form, "qwen2_vl", stream, sampler)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", MAKERS)
def test_sound_rollouts_of_every_family_pass(form, family):
    for sampler in SAMPLERS:
        for stream in ("transformers", "own"):
            assert_passes_unchanged(form, family, stream, sampler)


def test_the_first_batch_by_the_loop_is_checked_and_no_other(monkeypatch):
    checked, model, inputs = [], spread_model("qwen2_vl"), inputs_of("qwen2_vl", "one group")
    both_ways = check.rolled_out_both_ways
    monkeypatch.setattr(engine, "rolled_out_both_ways", lambda *args: checked.append(args) or both_ways(*args))
    asked = Engine("auto", check=True)
    with pytest.warns(UserWarning, match="beam search"), rolling_out(model, asked):
        model.generate(**inputs, num_beams=2, max_new_tokens=2, pad_token_id=0)
    assert not checked
    with rolling_out(model, asked):
        for _ in range(2):
            model.generate(**inputs, max_new_tokens=2, pad_token_id=0)
    assert len(checked) == 1


def assert_is_found(form: str, stream: str, place, name: str, wrong, match: str, family: str = "qwen2_vl") -> None:
    error = pytest.raises(RolloutError, match=f"rollout_check: .*{match}.*; set rollout_engine: false")
    with model_in(form, family) as (model, inputs), put(place, name, wrong), error:
        complete(model, inputs, Decoding(stream), check=True, max_new_tokens=24)


LARGE = (
    "no window in Gemma 4",
    "positions begin too early",
    "rows do not move",
    "positions do not go on",
    "all have the first prompt",
)
SMALL = ("no window", "windows are one too wide", "padding is seen", "states do not move", "prompts are not seen")
IN_16_BITS = [("bfloat16", "transformers"), ("autocast", "own")]
CASES = [(mistake, "float32", "own") for mistake in LARGE + SMALL] + [
    (mistake, *case) for mistake in LARGE for case in IN_16_BITS
]


@pytest.mark.parametrize(("mistake", "form", "stream"), CASES)
def test_mistakes_of_the_model_show_in_log_probabilities(mistake, form, stream):
    """Where tokens are drawn by other numbers, or part by rounding; in 16 bits, small ones do not."""
    family, *of_place = MISTAKES[mistake]
    assert_is_found(form, stream, *of_place, match="log-probabilities of tokens differ .* rounding", family=family)


@pytest.mark.parametrize("form", FORMATS)
def test_other_random_numbers_show_in_tokens(form):
    _, *of_place = MISTAKES["noise goes by place"]
    assert_is_found(form, "transformers", *of_place, match="completions have other tokens than those of transformers")


def test_prompts_that_are_taken_for_equal_are_found():
    assert_is_found(
        "float32", "transformers", prefill, "rows_with_equal_keys", lambda keys: [[*range(len(keys))]], "differ"
    )


CHOOSE, NOTE = ByCuts.choose, RollOut._note


def with_another_token(self, logits, rows, steps):
    """Row 3 gets the least likely token at step 2, with its true log-probability."""
    chosen = CHOOSE(self, logits, rows, steps)
    for number, at in enumerate(zip(rows, steps, strict=True)):
        if at == (3, 2):
            log_probs = logits[number].log_softmax(dim=0)
            chosen.tokens[number] = int(log_probs.argmin())
            chosen.log_probs[number] = float(log_probs.min())
    return chosen


def test_one_other_token_is_named():
    assert_is_found(
        "float32",
        "transformers",
        ByCuts,
        "choose",
        with_another_token,
        r"1 completions have .*; the first is token \d+ at place 2 of completion 3, where transformers draws \d+: "
        r"log-probabilities of -\d.* and -\d.*, \d.* apart",
    )


def ending_early(self, rows, kept):
    NOTE(self, rows, kept)
    self.ended[4] |= len(self.found.ids[4]) >= 2


def going_on(self, rows, kept):
    NOTE(self, rows, kept)
    self.ended = [len(ids) >= 24 for ids in self.found.ids]


@pytest.mark.parametrize(
    ("wrong", "match"), [(ending_early, "1 of 9 .* number 4"), (going_on, "completions end else")]
)
def test_other_ends_are_found(wrong, match):
    assert_is_found("bfloat16", "own", RollOut, "_note", wrong, match)
