"""Recipes with vLLM that cannot work are refused before anything is loaded. vLLM itself: tests/vllm."""

from types import SimpleNamespace

import pytest
from fake_vllm import install_fake_vllm
from refused_recipes import refusal

from trainers.setup.recipes import RecipeError
from trainers.setup.task_data import TokenCounts
from trainers.vllm_engine.checks import check_heads, check_image_limit, check_length
from trainers.vllm_engine.versions import check_platform

VLLM = {"use_vllm": True, "vllm_mode": "colocate"}


@pytest.fixture
def vllm(monkeypatch):
    install_fake_vllm(monkeypatch)


def test_a_right_recipe_is_valid(run, vllm):
    kwargs = {"dtype": "float32", "enforce_eager": True, "limit_mm_per_prompt": {"image": 4}}
    status, printed = run("grpo", **VLLM, vllm_max_model_length=4096, vllm_kwargs=kwargs)
    assert status == 0, printed
    assert printed.splitlines()[-1] == "valid"


@pytest.mark.parametrize(
    ("version", "transformers", "expected"),
    [
        ("0.21.0", "5.21.0", "with vllm 0.21.0: TRL 1.16.0 works with vllm <=0.31.0,>=0.22.0: pip"),
        ("0.33.0", "5.21.0", "with vllm 0.33.0: TRL 1.16.0 works with vllm <=0.31.0,>=0.22.0: pip"),
        ("0.24.0", "5.24.0", "with vllm 0.24.0 and transformers 5.24.0: .* expected transformers 5.21.0"),
    ],
)
def test_versions_that_do_not_work_together(run, monkeypatch, version, transformers, expected):
    install_fake_vllm(monkeypatch, version, transformers)
    found = refusal(run("grpo", **VLLM))
    assert found.startswith("error: use_vllm: true ")
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(found)


def test_a_machine_on_which_vllm_cannot_compute(run, monkeypatch):
    install_fake_vllm(monkeypatch, device="")
    assert "vLLM finds no GPU on this machine, and is not built for a CPU" in refusal(run("grpo", **VLLM))


def test_a_vllm_for_a_cpu_beside_a_trainer_on_a_gpu(vllm):
    args = SimpleNamespace(device=SimpleNamespace(type="cuda"), vllm_mode="colocate", vllm_enable_sleep_mode=False)
    with pytest.raises(RecipeError, match="this vLLM is built for a CPU, and the trainer computes on cuda; expected"):
        check_platform(args)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"vllm_enable_sleep_mode": True}, "vllm_enable_sleep_mode: true: vLLM has no sleep mode on cpu; expected"),
        ({"vllm_tensor_parallel_size": 3}, "vllm_tensor_parallel_size: 3: expected a divisor of the number of"),
        ({"vllm_max_model_length": 20}, "vllm_max_model_length: 20: the prompt of row "),
        ({"load_in_4bit": True, "use_peft": True}, "load_in_4bit: true with use_vllm: true: TRL sends vLLM"),
        ({"vllm_kwargs": {"enforce_egaer": True}}, "vllm_kwargs: unknown key 'enforce_egaer'; did you mean 'enforce_"),
        (
            {"vllm_kwargs": {"dtype": "half"}},
            "vllm_kwargs: dtype: expected 'auto', 'float32' or 'bfloat16', found 'half'",
        ),
        ({"vllm_kwargs": {"enforce_eager": "no"}}, "vllm_kwargs: enforce_eager: expected a valid boolean, found 'no'"),
        ({"vllm_kwargs": {"max_num_seqs": 1.5}}, "vllm_kwargs: max_num_seqs: expected a valid integer, found 1.5"),
        ({"vllm_kwargs": {"limit_mm_per_prompt": 2}}, "vllm_kwargs: limit_mm_per_prompt: expected a mapping, found 2"),
        (
            {"vllm_kwargs": {"limit_mm_per_prompt": {"image": "two"}}},
            "vllm_kwargs: limit_mm_per_prompt: image: expected at least 0, the most images of a row, found 'two'",
        ),
        (
            {"vllm_mode": "server", "vllm_server_base_url": "localhost:8000"},
            "vllm_mode: server: expected http://host:port of a server (vllm_server_base_url, or vllm_server_host and "
            "vllm_server_port), found 'localhost:8000'",
        ),
        ({"vllm_mode": "server", "vllm_server_host": "my host"}, "found 'http://my host:8000'"),
        ({"generation_kwargs": {"sede": 1}}, "generation_kwargs: unknown key 'sede'; did you mean 'seed'"),
        ({"vllm_mode": "server"}, "vllm_mode: server: TRL sends its weights from GPU to GPU, and this trainer"),
        (
            {"vllm_mode": "server", "vllm_max_model_length": 512},
            "vllm_max_model_length: 512: with vllm_mode: server the engine is the server's; leave it out, and start "
            "the server with --max-model-len 512",
        ),
    ],
)
def test_settings_that_cannot_work(run, vllm, keys, expected):
    assert expected in refusal(run("grpo", **VLLM | keys))


def test_the_right_length_is_said(run, vllm):
    found = refusal(run("grpo", **VLLM, vllm_max_model_length=20, max_completion_length=5))
    needed = int(found.rpartition("expected at least ")[2])
    assert run("grpo", **VLLM, vllm_max_model_length=needed, max_completion_length=5)[0] == 0
    assert "expected at least" in refusal(
        run("grpo", **VLLM, vllm_max_model_length=needed - 1, max_completion_length=5)
    )


def test_a_length_that_is_only_estimated_is_no_reason():
    args = SimpleNamespace(vllm_max_model_length=20, max_completion_length=5)
    check_length(args, TokenCounts(100, "a", 0, exact=False))
    check_length(args, None)


def test_more_images_than_the_recipe_allows():
    rows = [{"images": ["a", "b"]}, {}]
    for limits in ({}, {"image": 2}, {"image": {"count": 1}}):
        check_image_limit(limits, rows)
    with pytest.raises(RecipeError, match="image: expected at least 2, the most images of a row, found 1"):
        check_image_limit({"image": 1}, rows)


def test_attention_heads_that_cannot_be_divided():
    text, tower = SimpleNamespace(num_attention_heads=12), SimpleNamespace(num_heads=16)
    config = SimpleNamespace(get_text_config=lambda: text, vision_config=tower)
    check_heads(config, 4)
    with pytest.raises(
        RecipeError, match="size: 8: expected a divisor of the 12 attention heads of the language model"
    ):
        check_heads(config, 8)
    with pytest.raises(RecipeError, match="size: 3: expected a divisor of the 16 attention heads of the vision tower"):
        check_heads(config, 3)
    check_heads(None, 3)
