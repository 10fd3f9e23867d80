"""Values that libraries would find out late, or never: each is refused by its own message."""

import importlib
import json
from types import SimpleNamespace

import pytest
from refused_recipes import EVALUATES, METHODS, refusal

# -- T25: values that are found late, or never ------------------------------------------------------------------------

WRONG_VALUES = {
    "all": [
        ("optim", "adamw_torhc", "adamw_torch_fused"),
        ("lr_scheduler_type", "cosinus", "cosine_with_restarts"),
        ("eval_strategy", "sometimes", "one of no, steps, epoch"),
        ("save_strategy", "never", "one of no, steps, epoch, best"),
        ("logging_strategy", "step", "one of no, steps, epoch"),
        ("hub_strategy", "ever_save", "every_save"),
        ("report_to", "tensorbord", "tensorboard"),
        ("report_to", ["wandb", "tensorbord"], "found 'tensorbord'"),
        ("dtype", "bf16", "one of auto, bfloat16, float16, float32"),
        ("attn_implementation", "flash", "flash_attention_2"),
        ("bnb_4bit_quant_type", "nf5", "one of fp4, nf4"),
        ("bnb_4bit_quant_storage", "int4", "uint8"),
        ("learning_rate", -1e-6, "expected at least 0, found -1e-06"),
        ("learning_rate", "fast", "expected float, found 'fast'"),
        ("learning_rate", float("nan"), "at least 0"),
        ("num_train_epochs", 0, "above 0"),
        ("max_steps", 0, "expected -1"),
        ("max_steps", -3, "expected -1"),
        ("max_steps", None, "expected int, found null"),
        ("per_device_train_batch_size", 0, "at least 1"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("save_steps", 0, "above 0"),
        ("logging_steps", -1, "above 0"),
        ("save_total_limit", 0, "at least 1"),
        ("max_grad_norm", -1.0, "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("adam_beta1", 1.0, "a number from 0 to below 1"),
        ("warmup_steps", -1, "at least 0"),
        ("seed", -1, "a number from 0 to"),
        ("lora_r", 0, "at least 1"),
        ("lora_dropout", 1.5, "a number from 0 to below 1"),
    ],
    "grpo": [
        ("loss_type", "GRPO", "one of grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo, vespo, found 'GRPO'"),
        ("importance_sampling_level", "tokens", "one of token, sequence"),
        ("scale_rewards", "groups", "one of group, batch, none"),
        ("scale_rewards", False, "one of group, batch, none"),
        ("multi_objective_aggregation", "sum", "one of sum_then_normalize, normalize_then_sum"),
        ("vllm_mode", "colocated", "one of colocate, server"),
        ("vllm_importance_sampling_mode", "mask", "token_truncate"),
        ("max_completion_length", None, "expected a value, found null"),
        ("max_completion_length", 0, "at least 1"),
        ("num_generations", 1, "at least 2, found 1"),
        ("reward_weights", [float("nan")], "reward_weights': expected finite numbers, found [nan]"),
        ("reward_weights", [float("-inf")], "reward_weights': expected finite numbers, found [-inf]"),
        ("num_generations", None, "found null"),
        ("temperature", 0, "above 0"),
        ("top_p", 2, "a number from above 0 to 1, found 2"),
        ("top_p", 0.0, "a number from above 0 to 1"),
        ("top_k", -1, "at least 0"),
        ("min_p", 1.5, "a number from 0 to 1"),
        ("repetition_penalty", 0, "above 0"),
        ("beta", -0.1, "at least 0"),
        ("epsilon", -0.2, "at least 0"),
        ("num_iterations", 0, "at least 1"),
        ("vllm_gpu_memory_utilization", 30, "a number from above 0 to 1"),
        ("temperature_schedule", "cosine", "'linear'"),
    ],
    "sft": [("loss_type", "dapo", "one of nll, dft"), ("max_length", 10, "max_length cuts images in two")],
    "reward": [
        ("loss_type", "bt", "'bradley_terry'"),
        ("center_rewards_coefficient", -1, "at least 0"),
        ("score_max", float("inf"), "a finite number, found inf"),
    ],
    "rce": [("reward_normalization", "zscore", "'z_score'"), ("label_smoothing_factor", 1.0, "below 1")],
    "offline_grpo": [("ratio_level", "token", "'sequence'"), ("clip_epsilon", 0, "above 0")],
    "factors": [("pos_weight", "equal", "'balanced'"), ("image_size", 2, "at least 8")],
}
CASES = [(method, *case) for method in METHODS for case in WRONG_VALUES["all"] + WRONG_VALUES[method]]


@pytest.fixture(scope="module")
def keys_of():
    """Function: method -> the dataclasses that read its recipes."""
    from trl import ModelConfig

    names = {"grpo": ("GRPOScriptArguments", "GRPOConfig"), "sft": ("DataArguments", "SFTConfig"),
             "rce": ("GroupArguments", "RCEConfig"), "offline_grpo": ("GroupArguments", "OfflineGRPOConfig"),
             "reward": ("PreferenceArguments", "RewardConfig"),
             "factors": ("FactorArguments", "FactorTrainingConfig")}  # fmt: skip

    def read(method: str) -> tuple:
        module = importlib.import_module(f"trainers.{method}")
        return (*(getattr(module, name) for name in names[method]), ModelConfig)

    return read


@pytest.mark.parametrize(("method", "key", "value", "message"), CASES)
def test_t25_a_value_that_is_not_allowed(keys_of, tmp_path, method, key, value, message):
    from trainers.setup.recipes import RecipeError, parse_recipe

    recipe = tmp_path / "recipe.yaml"
    given = {"dataset_name": "somewhere", "use_cpu": True, "bf16": False, key: value}
    given |= {"reward_funcs": ["strict_xml_format"]} if method == "grpo" else {}
    recipe.write_text(json.dumps(given, indent=0, allow_nan=True).replace("NaN", ".nan"), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        parse_recipe(keys_of(method), ["--config", str(recipe)])
    assert message in str(error.value)
    assert key in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("method", "key", "value"), [case[:3] for case in CASES if case[0] == "grpo" and isinstance(case[2], int | str)]
)
def test_t25_the_same_on_the_command_line(keys_of, method, key, value):
    from trainers.setup.recipes import RecipeError, parse_recipe

    argv = ["--dataset_name", "x", "--reward_funcs", "strict_xml_format", f"--{key}", json.dumps(value).strip('"')]
    with pytest.raises(RecipeError, match=f"command line: --{key}: expected "):
        parse_recipe(keys_of(method), argv)


PYTHON = [
    ("grpo", "GRPOConfig", {"loss_type": "GRPO"}, "loss_type: expected one of grpo"),
    ("grpo", "GRPOConfig", {"top_p": 2.0}, "top_p: expected a number from above 0 to 1, found 2.0"),
    ("grpo", "GRPOConfig", {"max_sampling_difference": -0.1}, "max_sampling_difference: expected at least 0, found"),
    ("grpo", "GRPOConfig", {"num_generations": 1}, "num_generations: expected at least 2"),
    ("grpo", "GRPOConfig", {"temperature_schedule": "cosine"}, "temperature_schedule: expected one of constant"),
    ("sft", "SFTConfig", {"learning_rate": -1.0}, "learning_rate: expected at least 0"),
    ("rce", "RCEConfig", {"reward_normalization": "zscore"}, "reward_normalization: expected one of raw"),
    ("offline_grpo", "OfflineGRPOConfig", {"ratio_level": "token"}, "ratio_level: expected one of sequence, step"),
    ("reward", "RewardConfig", {"report_to": "tensorbord"}, "report_to: expected one of none, all"),
    ("factors", "FactorTrainingConfig", {"pos_weight": "equal"}, "pos_weight: expected one of none, balanced"),
]


@pytest.mark.parametrize(("module", "name", "settings", "message"), PYTHON)
def test_t25_the_same_from_python(tmp_path, module, name, settings, message):
    cls = getattr(importlib.import_module(f"trainers.{module}"), name)
    with pytest.raises(ValueError, match=message):
        cls(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_t25_what_trl_takes_is_what_is_listed():
    """Each listed value is compared with somewhere in TRL's own trainer, and no other text is."""
    import inspect
    import re

    from trl.trainer import grpo_trainer

    from trainers.setup.setting_rules import CHOICES

    source = inspect.getsource(grpo_trainer)
    for key in ("loss_type", "importance_sampling_level", "scale_rewards", "multi_objective_aggregation"):
        compared = re.findall(rf"\.{key} (?:[!=]=|in|not in) (\[[^\]]*\]|\"[a-z_]+\")", source)
        values = {value for found in compared for value in re.findall(r"\"([a-z_]+)\"", found)}
        assert values == set(CHOICES[key]), key


def test_t25_trackers_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from trainers.setup.checks import TRACKERS as NEEDED
    from trainers.setup.setting_rules import TRACKERS

    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK) >= set(NEEDED)


# -- T8: what libraries find out late, or never -----------------------------------------------------------------------

RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 8}
REFUSED = [
    ("sft", {"packing": True}, "error: packing: expected false: sequences would be cut"),
    ("sft", {"padding_free": True}, "error: padding_free: expected false: TRL has it for texts only"),
    ("sft", {"assistant_only_loss": True}, "error: assistant_only_loss: expected false: rows are prompt and"),
    ("sft", {"chat_template_path": "some/model"}, "chat_template_path: expected a file *.jinja or *.j2, which suits"),
    ("sft", {"chat_template_path": "./no.jinja"}, "error: chat_template_path: './no.jinja': no such file"),
    ("reward", {"chat_template_path": "./none"}, "error: chat_template_path: './none': no such folder"),
    ("sft", {"eos_token": "<nope>"}, "error: eos_token: the model's tokenizer has no token '<nope>'"),
    ("sft", {"pad_token": "<nope>"}, "error: pad_token: the model's tokenizer has no token '<nope>'"),
    ("reward", {"eos_token": "<nope>"}, "error: eos_token: the model's tokenizer has no token '<nope>'"),
    ("grpo", {"load_in_4bit": True}, "error: load_in_4bit: quantised weights are not trained themselves"),
    ("reward", {"load_in_8bit": True}, "error: load_in_8bit: quantised weights are not trained themselves"),
    ("offline_grpo", {"use_peft": True}, "error: use_peft: a selector is trained as it is; leave it out"),
    ("factors", {"use_peft": True}, "error: use_peft: a factor predictor is trained as it is; leave it out"),
    ("grpo", {"model_init_kwargs": {"dtipe": 1}}, "model_init_kwargs: unknown key 'dtipe'; did you mean 'dtype'"),
    ("reward", {"model_init_kwargs": {"foo": 1}}, "error: model_init_kwargs: unknown key 'foo'; "),
    ("grpo", {"model_init_kwargs": {"dtype": "float99"}}, "dtype: expected one of auto, bfloat16, float16, float32, "),
    ("grpo", {"generation_kwargs": {"top_q": 1}}, "generation_kwargs: unknown key 'top_q'; did you mean 'top_"),
    ("sft", {"lr_scheduler_kwargs": {"foo": 1}}, "lr_scheduler_kwargs: unknown key 'foo'; it takes none"),
    ("rce", {"lr_scheduler_type": "warmup_stable_decay"}, "warmup_stable_decay: get_wsd_schedule() missing"),
    ("rce", {"lr_scheduler_type": "cosine_with_min_lr"}, "cosine_with_min_lr: One of min_lr or min_lr_rate should be"),
    ("grpo", {"gradient_checkpointing_kwargs": "x"}, "'gradient_checkpointing_kwargs': expected a mapping, found 'x'"),
    ("sft", {"gradient_checkpointing_kwargs": {"x": 1}}, "gradient_checkpointing_kwargs: unknown key 'x'; expected"),
    ("sft", {"torch_compile_backend": "foo"}, "torch_compile_backend: expected one of no, eager, "),
    ("factors", {"optim": "sgd", "optim_args": "a"}, "optim_args: expected KEY=VALUE, KEY=VALUE, ..., found 'a'"),
    (
        "grpo",
        {"accelerator_config": "no.json"},
        "expected a mapping or a JSON file, found 'no.json', which is no file",
    ),
    ("rce", {"resume_from_checkpoint": "./none"}, "resume_from_checkpoint: no checkpoint in 'none' (expected trainer"),
    ("reward", {"head_activation": "relux"}, "head_activation: did you mean 'relu' or "),
    (
        "factors",
        {"backbone": RESNET | {"hidden_sise": 1}},
        "backbone: unknown key 'hidden_sise'; did you mean 'hidden",
    ),
    ("factors", {"backbone": GPT2}, "expected an image model, found GPT2Model"),
    ("reward", {"system_prompt": "a\ud83d"}, "recipe.yaml:1: key 'system_prompt': half of a surrogate pair"),
    ("grpo", {"env": {"A": "\ud83d"}}, "recipe.yaml:1: key 'env': half of a surrogate pair"),
    ("factors", {"backbone": "./none"}, "backbone: expected a mapping with its model_type, found './none'"),
]
"""Method, keys, and what the message says."""
WSD = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 50}}
ALLOWED = {
    "grpo": {"generation_kwargs": {"top_k": 5}, "model_init_kwargs": {"dtype": "float32", "output_attentions": False}}
    | WSD,
    "sft": {"eos_token": "<|im_end|>", "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reward": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
    "rce": {"optim": "adamw_torch", "optim_args": "betas=0.9, eps=1e-8", "lr_scheduler_type": "reduce_lr_on_plateau"}
    | EVALUATES,
    "offline_grpo": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-9}},
}


@pytest.mark.parametrize(("method", "keys", "message"), REFUSED)
def test_t08_what_the_run_would_find_out_late(run, method, keys, message):
    assert message in refusal(run(method, **keys))


@pytest.mark.parametrize("method", ALLOWED)
def test_t08_right_keywords(run, method):
    status, printed = run(method, **ALLOWED[method])
    assert status == 0, printed


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_t08_tokens_are_counted_by_the_template_of_the_recipe(run, tmp_path, method):
    template = tmp_path / "long.jinja"
    template.write_text("word " * 3000 + "{% for turn in messages %}{{ turn.content }}{% endfor %}")
    keys = {"chat_template_path": str(template), "max_prompt_length": 2000}
    assert "expected at most 2000 (max_prompt_length)" in refusal(run(method, **keys))


def test_t08_adapters_are_trained_further_on_quantised_weights(monkeypatch):
    from trainers.setup import checks

    monkeypatch.setattr(checks, "base_of_adapters", lambda name, hub: "base" if name == "adapters" else None)
    named = {"model_revision": "main", "use_peft": False, "load_in_4bit": True, "load_in_8bit": False}
    adapters, model = (SimpleNamespace(model_name_or_path=name, **named) for name in ("adapters", "model"))
    weights = SimpleNamespace(load_weights_only=True, resume_from_checkpoint="adapters")
    checks.check_trained_weights("GRPO", SimpleNamespace(), SimpleNamespace(), adapters)
    checks.check_trained_weights("reward", weights, weights, model)
    with pytest.raises(checks.RecipeError, match="load_in_4bit: quantised weights are not trained"):
        checks.check_trained_weights("reward", SimpleNamespace(), SimpleNamespace(), model)
