"""Whole prompts have the results of each request by itself, in every family, and those of prompts from pieces."""

import math
from functools import cache

import pytest
import torch
import vlm_cases as cases

from data.errors import UserError
from data.io.images import ImageError
from data.prompts import IN_CONTEXT_SYSTEM_PROMPT
from data.vqa import VqaRecord
from models.tiny import FAMILIES
from rollouts.frozen_vlm.engine import InContextVLM
from rollouts.frozen_vlm.plain_engine import PlainInContextVLM
from rollouts.frozen_vlm.prompt_pieces import PiecesError
from rollouts.frozen_vlm.requests import InContextRequest

RECORDS = cases.records()
REQUESTS = [
    InContextRequest(RECORDS[0], (), "red"),
    InContextRequest(RECORDS[1], (RECORDS[2],), "a red circle"),
    InContextRequest(RECORDS[1], (RECORDS[2], RECORDS[3]), "no"),
    InContextRequest(RECORDS[1], (RECORDS[2], RECORDS[3]), "red, white and blue"),
    InContextRequest(RECORDS[5], (RECORDS[6], RECORDS[0]), "triangle"),
]
BY_PIECES = ("qwen2_vl", "qwen3_vl")
WHOLE = ("qwen3_5", "gemma3")
OTHERS = [pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES if one not in (*BY_PIECES, *WHOLE)]


@cache
def tiny(family: str):
    return cases.build_qwen2() if family == "qwen2_vl" else cases.build_family(family)


@cache
def expected(family: str) -> tuple[list[float], list[str]]:
    settings = ("chat", IN_CONTEXT_SYSTEM_PROMPT)
    scores = [cases.plain_log_prob(*tiny(family), request, *settings) for request in REQUESTS]
    texts = [cases.plain_answer(*tiny(family), request, *settings, max_new_tokens=4) for request in REQUESTS]
    return scores, texts


@pytest.mark.parametrize("family", [*BY_PIECES, *WHOLE, *OTHERS])
def test_whole_prompts_have_the_results_of_each_request_by_itself(family):
    scores, texts = expected(family)
    assert len({round(score, 3) for score in scores}) == len(scores)
    assert len(set(texts)) > 2 or family not in (*BY_PIECES, "gemma3")  # others say one thing
    for budget in (1, 100_000):
        vlm = PlainInContextVLM(*tiny(family), max_batch_tokens=budget)
        noise = 1e-4 if family == "gemma4" else 2e-5  # Gemma 4 differs by 4e-5 from itself with other padding
        assert vlm.answer_log_probs(REQUESTS) == pytest.approx(scores, abs=noise)
        assert vlm.generate(REQUESTS, max_new_tokens=4) == texts
    assert vlm.answer_probabilities(REQUESTS[:1]) == pytest.approx([math.exp(scores[0])], abs=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_each_image_of_a_batch_is_encoded_once_for_answers(beams):
    model, processor = tiny("qwen2_vl")
    encoded = []
    hook = model.model.visual.register_forward_pre_hook(
        lambda _, args, kwargs: encoded.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    vlm = PlainInContextVLM(model, processor)
    vlm.generate(REQUESTS, max_new_tokens=4, num_beams=beams)
    hook.remove()
    shown = [image for one in REQUESTS for record in (one.query, *one.examples) for image in record.images]
    different = {vlm.images.key(image) for image in shown}
    assert len(different) < 0.6 * len(shown)
    assert encoded == [len(different)]


@pytest.mark.parametrize("family", BY_PIECES)
@pytest.mark.parametrize("beams", [1, 3])
def test_pieces_and_whole_prompts_have_the_same_results(family, beams):
    """Of Qwen3-VL also the features of its later layers, which reach the language model beside the embeddings."""
    fast, plain = InContextVLM(*tiny(family)), PlainInContextVLM(*tiny(family))
    assert fast.answer_log_probs(REQUESTS) == pytest.approx(plain.answer_log_probs(REQUESTS), abs=1e-5)
    settings = {"max_new_tokens": 4, "num_beams": beams, "length_penalty": 0.0}
    assert fast.generate(REQUESTS, **settings) == plain.generate(REQUESTS, **settings)


def test_features_of_later_layers_decide_what_is_answered(monkeypatch):
    """What the comparisons above would miss if the tiny model did not look at them."""
    model, processor = tiny("qwen3_vl")
    vlm = InContextVLM(model, processor)
    monkeypatch.setattr(vlm._family, "later_features", lambda layers, places: {})
    scores, _ = expected("qwen3_vl")
    assert vlm.answer_log_probs(REQUESTS) != pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("qwen3_5", "found linear_attention"), ("gemma3", "models of type 'gemma3' are not among")],
)
def test_a_family_without_pieces_is_asked_with_whole_prompts_and_that_is_said(family, reason, tiny_family, capsys):
    with pytest.raises(PiecesError, match=reason):
        InContextVLM(*tiny(family))
    vlm = InContextVLM.load(str(tiny_family(family)), device="cpu", prompt_style="single_turn", max_batch_tokens=500)
    assert (type(vlm), vlm.max_batch_tokens) == (PlainInContextVLM, 500)
    said = capsys.readouterr().err
    assert said.count("is asked with whole prompts, which is slower") == 1
    assert reason in said


def test_a_token_of_another_family_in_a_question_is_an_error_that_names_the_query():
    record = VqaRecord(id=7, question="what is <image_soft_token>?", answers=["a"], images=RECORDS[0].images)
    with pytest.raises(UserError, match="query 7: found <image_soft_token>, which promises an image"):
        PlainInContextVLM(*tiny("gemma3")).generate([InContextRequest(record)])


def test_pictures_are_looked_at_before_anything_is_asked(tmp_path):
    vlm = PlainInContextVLM(*tiny("gemma3"))
    with pytest.raises(ImageError, match=r"gone.png: no such image file"):
        vlm.images.prepare([str(tmp_path / "gone.png")])
    with pytest.raises(ValueError, match="query 0: expected an answer to score, found None"):
        vlm.answer_probabilities([InContextRequest(RECORDS[0])])


def test_a_training_model_is_left_training():
    model, processor = tiny("gemma3")
    model.train()
    try:
        PlainInContextVLM(model, processor).answer_probabilities(REQUESTS[:1])
        assert model.training
        assert torch.is_grad_enabled()
    finally:
        model.eval()
