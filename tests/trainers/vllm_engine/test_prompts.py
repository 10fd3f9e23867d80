"""Prompts with images on their way to vLLM: one token an image there, and the trainer's tokens back."""

import pytest

from models.families.loading import load_processor
from models.tiny import main
from trainers.setup.recipes import RecipeError
from trainers.vllm_engine.prompts import (
    ExpandedPrompts,
    PromptMismatch,
    as_vllm_takes_it,
    check_images_are_runs,
    one_token_an_image,
)

IMAGE, START, END = 9, 7, 8


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([IMAGE], [IMAGE]),
        ([1, START, IMAGE, IMAGE, IMAGE, END, 2, 2], [1, START, IMAGE, END, 2, 2]),
        ([START, IMAGE, IMAGE, END, START, IMAGE, END, 1], [START, IMAGE, END, START, IMAGE, END, 1]),
    ],
)
def test_runs_of_image_tokens_become_one(tokens, expected):
    assert one_token_an_image(tokens, IMAGE) == expected


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_families_whose_images_are_runs_of_one_token(family, tmp_path):
    check_images_are_runs(_processor(family, tmp_path))


def test_other_families_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="use_vllm: true: the prompts of Gemma3Processor hold more of an image"):
        check_images_are_runs(_processor("gemma3", tmp_path))


def test_a_tokenizer_sees_no_images(tmp_path):
    check_images_are_runs(_processor("qwen2_vl", tmp_path).tokenizer)


def _processor(family, folder):
    main(["--output_dir", str(folder / "tiny"), "--family", family])
    return load_processor(str(folder / "tiny"))


def test_a_prompt_without_images_is_left_as_it_is():
    prompt = {"prompt_token_ids": [1, IMAGE, IMAGE]}
    assert as_vllm_takes_it(prompt, IMAGE) is prompt


class _Output:
    def __init__(self, tokens):
        self.prompt_token_ids = tokens


class _Library:
    """As vLLM: each image becomes so many visual tokens; the prompts that it was given stay at hand."""

    visual = 3

    def generate(self, prompts, **kwargs):
        self.given = prompts
        return [_Output(self._put_in(prompt)) for prompt in prompts]

    def _put_in(self, prompt):
        if "multi_modal_data" not in prompt:
            return prompt["prompt_token_ids"]
        tokens = prompt["prompt_token_ids"]
        return [other for token in tokens for other in [token] * (self.visual if token == IMAGE else 1)]


class _Engine(ExpandedPrompts, _Library):
    image_token = IMAGE


PROMPTS = [
    {"prompt_token_ids": [1, 2]},
    {"prompt_token_ids": [START, *[IMAGE] * 3, END, 2], "multi_modal_data": {"image": "picture"}},
]


def test_the_engine_reads_the_trainers_tokens():
    engine = _Engine()
    outputs = engine.generate(PROMPTS, sampling_params=None)
    assert [output.prompt_token_ids for output in outputs] == [prompt["prompt_token_ids"] for prompt in PROMPTS]
    assert engine.given[1]["prompt_token_ids"] == [START, IMAGE, END, 2]
    assert PROMPTS[1]["prompt_token_ids"] == [START, *[IMAGE] * 3, END, 2]


def test_other_sizes_of_images_stop_the_rollout():
    engine = _Engine()
    engine.visual = 4
    with pytest.raises(PromptMismatch, match="prompt 1 .* reads 6 tokens, 3 of them visual, vLLM 7, 4 of them visual"):
        engine.generate(PROMPTS, sampling_params=None)


def test_a_model_that_sees_no_images_is_given_what_there_is():
    class TextEngine(ExpandedPrompts, _Library):
        """Its tokenizer has no token for images."""

    engine = TextEngine()
    engine.generate(PROMPTS[:1])
    assert engine.given is PROMPTS[:1] or engine.given == PROMPTS[:1]
