"""What a recipe says reaches vLLM's engine, and the engine reads the trainer's prompts and pictures."""

from types import SimpleNamespace

import pytest
import torch
from grpo_runs import make_trainer, picture, questions
from vllm_runs import BY_VLLM

pytestmark = pytest.mark.usefixtures("shared_engines")


@pytest.fixture
def trainer(literate_model, tmp_path):
    rows = questions(12, images=lambda number: picture(number) * (number % 3))
    return make_trainer(str(literate_model), tmp_path, len, rows, **BY_VLLM)


@pytest.fixture
def prompts(trainer):
    """Tokens and pictures of prompts with one and two pictures, as TRL hands them over."""
    rows = [trainer.train_dataset[place] for place in (1, 2)]
    chats = [[{"role": "user", "content": [{"type": "image", "image": one} for one in row["images"]]}] for row in rows]
    ids, images, _ = trainer._tokenize_prompts(chats)
    return [
        {"prompt_token_ids": list(tokens), "multi_modal_data": {"image": pictures}}
        for tokens, pictures in zip(ids, images, strict=True)
    ]


def test_precision_sizes_and_numbers_of_images_reach_the_engine(trainer):
    model = trainer.vllm_generation.llm.llm_engine.model_config
    size = trainer.processing_class.image_processor.size
    assert model.dtype == torch.float32
    assert model.enforce_eager
    assert model.multimodal_config.mm_processor_kwargs["size"] == dict(size)
    assert model.multimodal_config.limit_per_prompt["image"].count == 2
    assert model.multimodal_config.limit_per_prompt["video"].count == 0


def test_the_engine_reads_the_trainers_tokens(trainer, prompts):
    outputs = trainer.vllm_generation.llm.generate(prompts, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [prompt["prompt_token_ids"] for prompt in prompts]


def test_prompts_as_trl_hands_them_over_would_be_read_otherwise(trainer, prompts, monkeypatch):
    engine = trainer.vllm_generation.llm
    monkeypatch.setattr(type(engine), "image_token", None)
    outputs = engine.generate(prompts, use_tqdm=False)
    for output, prompt in zip(outputs, prompts, strict=True):
        assert len(output.prompt_token_ids) > len(prompt["prompt_token_ids"])


def test_other_image_sizes_stop_the_rollout(trainer, prompts):
    from trainers.vllm_engine.prompts import PromptMismatch

    for prompt in prompts:
        prompt["mm_processor_kwargs"] = {"size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}}
    with pytest.raises(PromptMismatch, match="prompt 0 of the rollout: the trainer reads .* visual, vLLM .* visual"):
        trainer.vllm_generation.llm.generate(prompts, use_tqdm=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"enforce_egaer": True}, "unknown key 'enforce_egaer'; did you mean 'enforce_eager'"),
        ({"dtype": "float8"}, "dtype: expected .*'bfloat16'.*, found 'float8'"),
        ({"enforce_eager": "yes"}, "enforce_eager: expected a valid boolean, found 'yes'"),
        ({"kv_cache_dtype": "fp9"}, "kv_cache_dtype: expected .*'fp8'.*, found 'fp9'"),
    ],
)
def test_names_and_values_are_those_of_the_installed_vllm(given, expected):
    from trainers.setup.recipes import RecipeError
    from trainers.vllm_engine.checks import check_engine_options

    with pytest.raises(RecipeError, match=expected):
        check_engine_options(given)
    check_engine_options({"quantization": "fp8", "speculative_config": {"method": "ngram"}, "max_num_seqs": 4})


def test_the_installed_versions_and_this_machine_are_taken():
    from trainers.setup.recipes import RecipeError
    from trainers.vllm_engine.versions import check_platform, check_versions

    check_versions()
    settings = {"vllm_mode": "colocate", "vllm_enable_sleep_mode": False, "device": SimpleNamespace(type="cpu")}
    check_platform(SimpleNamespace(**settings))
    with pytest.raises(RecipeError, match="vllm_enable_sleep_mode: true: vLLM has no sleep mode on cpu"):
        check_platform(SimpleNamespace(**settings | {"vllm_enable_sleep_mode": True}))
