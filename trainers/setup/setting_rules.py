"""What the settings of TRL and transformers may be, where those find out late or never.

A misspelt `loss_type` would stop a run in its first loss, after the first rollout; a `top_p` of 2 would be taken.
Ranges of this toolkit's own settings stand here too; what depends on two settings is checked by their classes.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from enum import Enum
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from data.cli.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, FINITE, POSITIVE_SHARE, SHARE, Range

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
TRACKERS = ("azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow",
            "neptune", "swanlab", "tensorboard", "trackio", "wandb")  # fmt: skip

CHOICES: dict[str, tuple] = {
    "bnb_4bit_quant_storage": ("uint8", "int8", "float16", "bfloat16", "float32", "float64"),
    "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "quantized"),
    "importance_sampling_level": ("token", "sequence"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
    "lora_task_type": ("CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "report_to": ("none", "all", *TRACKERS),
    "scale_rewards": ("group", "batch", "none"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers", "auto"),
}
"""Settings whose annotation is a plain text. `loss_type` is GRPO's; other configurations annotate theirs."""

NEVER_NULL = ("max_completion_length", "num_generations", "lora_r")
"""Settings that could be null by their type, but for which nothing works without a value."""

MAPPINGS_OR_FILES = ("accelerator_config", "fsdp_config")
"""Settings that are a mapping, or the name of a file with one."""


_type_hints = cache(get_type_hints)
PORT = Range(1, 65_535)
RANGES = {
    # transformers.TrainingArguments
    "adam_beta1": BELOW_1,
    "adam_beta2": BELOW_1,
    "adam_epsilon": AT_LEAST_0,
    "data_seed": Range(0, 2**32 - 1),
    "dataloader_num_workers": AT_LEAST_0,
    "dataloader_prefetch_factor": AT_LEAST_1,
    "ddp_bucket_cap_mb": AT_LEAST_1,
    "ddp_timeout": AT_LEAST_1,
    "eval_accumulation_steps": AT_LEAST_1,
    "eval_delay": AT_LEAST_0,
    "eval_steps": ABOVE_0,
    "gradient_accumulation_steps": AT_LEAST_1,
    "label_smoothing_factor": BELOW_1,
    "learning_rate": AT_LEAST_0,
    "logging_steps": ABOVE_0,
    "max_grad_norm": AT_LEAST_0,
    "neftune_noise_alpha": AT_LEAST_0,
    "num_train_epochs": ABOVE_0,
    "per_device_eval_batch_size": AT_LEAST_1,
    "per_device_train_batch_size": AT_LEAST_1,
    "save_steps": ABOVE_0,
    "save_total_limit": AT_LEAST_1,
    "seed": Range(0, 2**32 - 1),
    "torch_empty_cache_steps": AT_LEAST_1,
    "warmup_ratio": BELOW_1,
    "warmup_steps": AT_LEAST_0,
    "weight_decay": AT_LEAST_0,
    # trl.GRPOConfig
    "beta": AT_LEAST_0,
    "delta": Range(1, open_low=True),
    "entropy_coef": AT_LEAST_0,
    "entropy_coef_delta": AT_LEAST_0,
    "entropy_coef_max": AT_LEAST_0,
    "entropy_coef_min": AT_LEAST_0,
    "entropy_target": AT_LEAST_0,
    "epsilon": AT_LEAST_0,
    "epsilon_high": AT_LEAST_0,
    "generation_batch_size": AT_LEAST_1,
    "max_completion_length": AT_LEAST_1,
    "min_p": SHARE,
    "num_completions_to_print": AT_LEAST_1,
    "num_generations": Range(2),
    "num_generations_eval": AT_LEAST_1,
    "num_iterations": AT_LEAST_1,
    "off_policy_mask_threshold": ABOVE_0,
    "ref_model_mixup_alpha": SHARE,
    "ref_model_sync_steps": AT_LEAST_1,
    "repetition_penalty": ABOVE_0,
    "router_aux_loss_coef": AT_LEAST_0,
    "sapo_temperature_neg": ABOVE_0,
    "sapo_temperature_pos": ABOVE_0,
    "steps_per_generation": AT_LEAST_1,
    "temperature": ABOVE_0,
    "top_entropy_quantile": POSITIVE_SHARE,
    "top_k": AT_LEAST_0,
    "top_p": POSITIVE_SHARE,
    "vespo_k_neg": ABOVE_0,
    "vespo_k_pos": ABOVE_0,
    "vespo_lambda_neg": ABOVE_0,
    "vespo_lambda_pos": ABOVE_0,
    "vllm_gpu_memory_utilization": POSITIVE_SHARE,
    "vllm_group_port": PORT,
    "vllm_importance_sampling_clip_max": ABOVE_0,
    "vllm_importance_sampling_clip_min": AT_LEAST_0,
    "vllm_max_model_length": AT_LEAST_1,
    "vllm_server_port": PORT,
    "vllm_server_timeout": ABOVE_0,
    "vllm_tensor_parallel_size": AT_LEAST_1,
    # trl.SFTConfig and trl.RewardConfig
    "center_rewards_coefficient": AT_LEAST_0,
    "dataset_num_proc": AT_LEAST_1,
    "max_length": AT_LEAST_1,
    # trl.ModelConfig
    "lora_alpha": ABOVE_0,
    "lora_dropout": BELOW_1,
    "lora_r": AT_LEAST_1,
    # the data
    "eval_share": Range(0, 1, open_low=True, open_high=True),
    "max_pixels": AT_LEAST_1,
    "max_prompt_length": AT_LEAST_1,
    "min_pixels": AT_LEAST_1,
    # several of this toolkit's trainers
    "advantage_clip": ABOVE_0,
    "advantage_std_floor": AT_LEAST_0,
    "beta_max": ABOVE_0,
    "beta_min": ABOVE_0,
    "curriculum_share": SHARE,
    "curriculum_best_and_worst": AT_LEAST_1,
    "curriculum_top_k": AT_LEAST_1,
    "early_stopping_patience": AT_LEAST_1,
    "kl_factor": ABOVE_0,
    "kl_target_max": AT_LEAST_0,
    "kl_target_min": AT_LEAST_0,
    # GRPO
    "dynamic_sampling_rounds": AT_LEAST_0,
    "max_sampling_difference": AT_LEAST_0,
    "rollout_slots": AT_LEAST_1,
    "temperature_factor": ABOVE_0,
    "temperature_max": ABOVE_0,
    "temperature_min": ABOVE_0,
    # stored groups; temperature_end is GRPO's too
    "best_beams": AT_LEAST_1,
    "clip_epsilon": ABOVE_0,
    "clip_epsilon_high": ABOVE_0,
    "old_policy_epochs": AT_LEAST_0,
    "reward_clamp": ABOVE_0,
    "temperature_end": ABOVE_0,
    "temperature_start": ABOVE_0,
    # reward models
    "diagnosis_rows": AT_LEAST_0,
    "lm_loss_weight": AT_LEAST_0,
    "margin": AT_LEAST_0,
    "score_max": FINITE,
    "score_min": FINITE,
    # factors
    "enlarge": AT_LEAST_1,
    "head_dropout": BELOW_1,
    "head_size": AT_LEAST_1,
    "image_size": Range(8),
    "max_pos_weight": AT_LEAST_1,
    "trained_blocks": AT_LEAST_0,
}


def choices_of(key: str, annotation: Any, metadata: Any) -> tuple | None:
    """What a setting may be, if that can be listed: by its annotation, its metadata, or the table above."""
    if metadata.get("choices"):
        return tuple(metadata["choices"])
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, Enum) and part not in get_args(part):
            return tuple(member.value for member in part)
    if "Literal" in str(annotation):
        return None  # its type says it
    return CHOICES.get(key)


def problem(key: str, value: Any, choices: Sequence | None) -> str | None:
    """What is wrong with the value of a setting: what was expected, and what was found; `None` if nothing is.

    >>> problem("top_p", 2.0, None)
    'expected a number from above 0 to 1, found 2.0'
    >>> problem("loss_type", "GRPO", CHOICES["loss_type"]).split("; ")[0]
    "expected one of grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo, vespo, found 'GRPO'"
    """
    if value is None:
        return "expected a value, found null" if key in NEVER_NULL else None
    if isinstance(value, str) and not value.startswith("{"):  # JSON, of a command line
        if key.endswith("_kwargs"):
            return f"expected a mapping, found {value!r}"
        if key in MAPPINGS_OR_FILES and not Path(value).is_file():
            return f"expected a mapping or a JSON file, found {value!r}, which is no file"
    if isinstance(value, float) and math.isnan(value):  # which passes every comparison of the form `value <= 0`
        allowed = RANGES.get(key, "a number")
        return f"expected {allowed}, found nan"
    if isinstance(value, list | tuple) and any(isinstance(one, float) and not math.isfinite(one) for one in value):
        return f"expected finite numbers, found {value!r}"
    if key == "max_steps" and isinstance(value, int) and value != -1 and value < 1:
        return f"expected -1 (as num_train_epochs says) or at least 1, found {value}"
    if key == "attn_implementation" and isinstance(value, str):
        known = value.removeprefix("paged|") in ATTENTION or "/" in value
        return None if known else f"expected one of {', '.join(ATTENTION)} or a kernel of the Hub, found {value!r}"
    allowed = RANGES.get(key)
    if allowed is not None and isinstance(value, int | float) and value not in allowed:
        return f"expected {allowed}, found {value!r}"
    if choices is not None:
        found = [getattr(one, "value", one) for one in (value if isinstance(value, list | tuple) else [value])]
        wrong = [one for one in found if one not in choices]
        if wrong:
            return f"expected one of {', '.join(map(_shown, choices))}, found {wrong[0]!r}"
    return None


def check_settings(settings: Any) -> None:
    """Checks type and value of every setting of a dataclass. A whole number may be written as 4.0, as in recipes.

    Raises:
        ValueError: names the first one that is wrong, what was expected and what was found.
    """
    annotations = _type_hints(type(settings))
    for item in fields(settings):
        annotation = item.metadata.get("type", annotations[item.name])
        value = getattr(settings, item.name)
        found = _problem_of_type(value, annotation)
        found = found or problem(item.name, value, choices_of(item.name, annotation, item.metadata))
        if found is None and get_origin(annotation) is Literal and value not in get_args(annotation):
            found = f"expected one of {', '.join(map(_shown, get_args(annotation)))}, found {value!r}"
        if found is not None:
            raise ValueError(f"{item.name}: {found}")
        if isinstance(value, float) and _plain_types(annotation) == {int}:
            setattr(settings, item.name, int(value))


def _plain_types(annotation: Any) -> set[type]:
    """Those that an annotation consists of, without `None`."""
    return set(get_args(annotation) or [annotation]) - {type(None)}


def _problem_of_type(value: Any, annotation: Any) -> str | None:
    """What is wrong with the type of a value that is to be a number or a truth value; `None` if nothing is."""
    types = _plain_types(annotation)
    if value is None or not types <= {int, float, bool}:
        return None
    fits = isinstance(value, bool) and bool in types
    if isinstance(value, Real) and not isinstance(value, bool):
        whole = isinstance(value, Integral) or float(value).is_integer()
        fits = float in types or (int in types and (whole or math.isnan(value)))  # NaN has a message of its own
    expected = " or ".join(words for one, words in _WORDS.items() if one in types)
    return None if fits else f"expected {expected}, found {value!r}"


_WORDS = {bool: "true or false", int: "a whole number", float: "a number"}


def _shown(choice: Any) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)
