"""The VLM that is shown examples equals the plain processor and model, one request at a time, whatever the batch."""

import itertools
import math
import random
from typing import Any

import pytest
import vlm_cases as cases

from data.prompts import IN_CONTEXT_SYSTEM_PROMPT
from rollouts.frozen_vlm.engine import InContextVLM
from rollouts.frozen_vlm.requests import InContextRequest, first_answer, shown_order

RECORDS = cases.records()
ANSWERS = ("red", "a red circle", "triangle", "no", "red, white and blue")
styles = pytest.mark.parametrize("style", ["chat", "single_turn"])


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def tiny(request):
    return cases.build_qwen2() if request.param == "qwen2_vl" else cases.build_qwen25()


def _related_requests() -> list[InContextRequest]:
    """Prompts with beginnings in common, as beams have them; some are the same but for the answer."""
    made = []
    for query, first in itertools.product(RECORDS[:2], RECORDS[2:5]):
        made += [InContextRequest(query, (first,), answer) for answer in ("red", "blue", "a red circle")]
        made += [InContextRequest(query, (first, second), "no") for second in RECORDS[5:7]]
        made += [InContextRequest(query, (first, RECORDS[5], third), "a red square") for third in RECORDS[6:]]
    made.append(InContextRequest(RECORDS[7], (RECORDS[0],), "yes"))
    random.Random(0).shuffle(made)
    return made


def _requests(count: int = 12) -> list[InContextRequest]:
    """Of 0 to 4 examples, so that a batch needs padding."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        query, *examples = rng.sample(RECORDS, 1 + number % 5)
        made.append(InContextRequest(query, tuple(examples), ANSWERS[number % len(ANSWERS)]))
    return made


_computed: dict[tuple, Any] = {}


def _expected_log_probs(tiny, requests: list[InContextRequest], style: str, system: str | None) -> list[float]:
    key = (tiny[0].config.model_type, style, system)
    if key not in _computed:
        _computed[key] = [cases.plain_log_prob(*tiny, request, style, system) for request in requests]
    return _computed[key]


@styles
@pytest.mark.parametrize("budget", [1, 1_000, 100_000], ids=["alone", "few", "all"])
@pytest.mark.parametrize("system", [IN_CONTEXT_SYSTEM_PROMPT, None], ids=["system", "none"])
def test_probabilities_equal_the_plain_computation(tiny, style, budget, system):
    requests = _requests()
    vlm = InContextVLM(*tiny, prompt_style=style, system_prompt=system, max_batch_tokens=budget)
    expected = _expected_log_probs(tiny, requests, style, system)
    assert vlm.answer_log_probs(requests) == pytest.approx(expected, abs=1e-5)
    assert vlm.answer_probabilities(requests) == pytest.approx([math.exp(value) for value in expected], abs=1e-6)
    assert len({round(value, 3) for value in expected}) >= len(requests) - 1


@styles
@pytest.mark.parametrize("budget", [1, 100_000], ids=["alone", "all"])
def test_greedy_answers_equal_the_plain_ones(tiny, style, budget):
    requests = _requests()
    vlm = InContextVLM(*tiny, prompt_style=style, max_batch_tokens=budget)
    expected = [
        cases.plain_answer(*tiny, request, style, IN_CONTEXT_SYSTEM_PROMPT, max_new_tokens=7) for request in requests
    ]
    assert vlm.generate(requests, max_new_tokens=7) == expected
    assert len(set(expected)) > 5


@styles
@pytest.mark.parametrize("prefix_bytes", [0, 20_000, 2**30], ids=["none", "little", "much"])
@pytest.mark.parametrize("budget", [1, 600, 100_000], ids=["alone", "few", "all"])
def test_shared_beginnings_change_nothing(tiny, style, prefix_bytes, budget):
    requests = _related_requests()
    vlm = InContextVLM(*tiny, prompt_style=style, prefix_bytes=prefix_bytes, max_batch_tokens=budget)
    key = (tiny[0].config.model_type, style, "related")
    if key not in _computed:
        system = IN_CONTEXT_SYSTEM_PROMPT
        scores = [cases.plain_log_prob(*tiny, request, style, system) for request in requests]
        texts = [cases.plain_answer(*tiny, request, style, system, max_new_tokens=3) for request in requests]
        _computed[key] = (scores, texts)
    scores, texts = _computed[key]
    assert vlm.answer_log_probs(requests) == pytest.approx(scores, abs=1e-5)
    assert vlm.generate(requests, max_new_tokens=3) == texts


@styles
def test_beam_search_equals_the_plain_one(tiny, style):
    requests = _requests(6)
    settings = {"max_new_tokens": 5, "num_beams": 3, "length_penalty": 0.0}
    vlm = InContextVLM(*tiny, prompt_style=style)
    expected = [
        cases.plain_answer(*tiny, request, style, IN_CONTEXT_SYSTEM_PROMPT, **settings) for request in requests
    ]
    assert vlm.generate(requests, **settings) == expected


def test_answers_are_cut_at_the_prompts_own_marks_and_keep_their_commas():
    assert first_answer(" red, white and blue\nQuestion:what?") == "red, white and blue"
    assert first_answer("two Short answer:three") == "two"
    assert first_answer("\n red") == "red"
    assert first_answer("Question:what?") == ""


def test_construct_order_puts_the_newest_first_or_last():
    assert shown_order([3, 1, 2], "left") == [2, 1, 3]
    assert shown_order((3, 1, 2), "right") == [3, 1, 2]
    with pytest.raises(ValueError, match="construct order: expected one of left, right, found 'up'"):
        shown_order([1], "up")


def test_answers_end_where_the_plain_ones_end(tiny):
    """With end tokens that do come up, rows of a batch end at different steps."""
    model, processor = tiny
    requests = _requests()
    vlm = InContextVLM(model, processor)
    texts = vlm.generate(requests, max_new_tokens=6)
    ends = [processor.tokenizer(text[-2:], add_special_tokens=False)["input_ids"][-1] for text in texts[:4]]
    settings = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [*settings, *ends]
    try:
        found = InContextVLM(model, processor).generate(requests, max_new_tokens=6)
        expected = [
            cases.plain_answer(model, processor, request, "chat", IN_CONTEXT_SYSTEM_PROMPT, max_new_tokens=6)
            for request in requests
        ]
    finally:
        model.generation_config.eos_token_id = settings
    assert found == expected
    assert found != texts


def test_results_do_not_depend_on_the_order_of_requests_or_on_earlier_calls(tiny):
    requests = _related_requests()
    vlm = InContextVLM(*tiny)
    first = vlm.answer_log_probs(requests)
    vlm.generate(requests[:3])
    assert vlm.answer_log_probs(requests) == first
    shuffled = list(range(len(requests)))
    random.Random(1).shuffle(shuffled)
    again = vlm.answer_log_probs([requests[number] for number in shuffled])
    assert again == pytest.approx([first[number] for number in shuffled], abs=1e-5)
    assert vlm.answer_log_probs([]) == []
    assert vlm.generate([]) == []


def test_a_training_model_is_left_training(tiny):
    model, processor = tiny
    model.train()
    try:
        vlm = InContextVLM(model, processor)
        probability = vlm.answer_probabilities(_requests(2))
        assert model.training
    finally:
        model.eval()
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert vlm.answer_probabilities(_requests(2)) == probability


def test_an_empty_answer_is_an_error_that_names_the_query(tiny):
    with pytest.raises(ValueError, match="query 3: expected an answer to score, found '  '"):
        InContextVLM(*tiny).answer_probabilities([InContextRequest(RECORDS[3], (), "  ")])


def test_a_chat_template_that_treats_examples_differently_is_refused():
    model, processor = cases.build_qwen2()
    counting = "{%- for message in messages -%}{{ loop.index }}{%- endfor -%}"
    processor.chat_template = processor.chat_template + counting
    with pytest.raises(ValueError, match="does not write each image as one block and each example alike"):
        InContextVLM(model, processor)


def test_sliding_windows_are_refused():
    model, processor = cases.build_qwen2()
    model.config.text_config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="expected full attention in every layer, found sliding_attention"):
        InContextVLM(model, processor)
