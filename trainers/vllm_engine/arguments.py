"""What a recipe says of vLLM's engine, and which of its options the trainer itself sets."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainers.setup.recipes import RecipeError, parse_mapping

SET_ELSEWHERE = {
    "model": "model_name_or_path",
    "tokenizer": "model_name_or_path",
    "revision": "model_revision",
    "tokenizer_revision": "model_revision",
    "code_revision": "model_revision",
    "trust_remote_code": "trust_remote_code",
    "seed": "seed",
    "tensor_parallel_size": "vllm_tensor_parallel_size",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "max_model_len": "vllm_max_model_length",
    "enable_sleep_mode": "vllm_enable_sleep_mode",
    "model_impl": "vllm_model_impl",
}
"""Options of the engine -> the key of a recipe that sets each."""
FIXED = {
    "distributed_executor_backend": "the engine runs in the trainer's own processes",
    "logprobs_mode": "the trainer compares itself with the probabilities that tokens were drawn by",
    "pipeline_parallel_size": "the engine runs in the trainer's own processes",
    "data_parallel_size": "each process has an engine of its own",
    "skip_tokenizer_init": "the engine needs the tokens that it must not draw",
    "runner": "the engine generates",
    "language_model_only": "the model would not see the images",
}
"""Options of the engine that no recipe sets -> why."""
COMPLETED = ("limit_mm_per_prompt", "mm_processor_kwargs")
"""Options of the engine that are mappings: what a recipe leaves out of them comes from model and data."""
OF_IMAGE_SIZES = ("min_pixels", "max_pixels", "size")
"""Keys of `mm_processor_kwargs` that are the recipe's own: both sides must resize alike."""


@dataclass
class VLLMArguments:
    """What recipes of GRPO say of vLLM's engine. Stands before `trl.GRPOConfig`."""

    vllm_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Options of vLLM's engine, by their names in EngineArgs: dtype, limit_mm_per_prompt, "
            "mm_processor_kwargs, quantization, speculative_config, enforce_eager, kv_cache_dtype, .. "
            "(use_vllm with vllm_mode: colocate)."
        },
    )

    def __post_init__(self):
        self.vllm_kwargs = parse_mapping("vllm_kwargs", self.vllm_kwargs)
        super().__post_init__()
        if self.vllm_kwargs is not None:
            check_who_sets(self)


def check_who_sets(args: Any) -> None:
    """Raises `RecipeError` for options of the engine that others set, or that are a server's."""
    given = args.vllm_kwargs
    if not isinstance(given, Mapping):
        raise RecipeError(f"vllm_kwargs: expected a mapping, found {given!r}")
    for key in given:
        if key in SET_ELSEWHERE:
            raise RecipeError(f"vllm_kwargs: {key}: the trainer sets it; set {SET_ELSEWHERE[key]} in its place")
        if key in FIXED:
            raise RecipeError(f"vllm_kwargs: {key}: cannot be set, because {FIXED[key]}")
    for name in COMPLETED:
        if not isinstance(given.get(name, {}), Mapping):
            raise RecipeError(f"vllm_kwargs: {name}: expected a mapping, found {given[name]!r}")
    for key in given.get("mm_processor_kwargs", {}):
        if key in OF_IMAGE_SIZES:
            raise RecipeError(
                f"vllm_kwargs: mm_processor_kwargs: {key}: rollout and update must see images of one size; set "
                "min_pixels and max_pixels of the recipe, which reach both"
            )
    if given and args.use_vllm and args.vllm_mode == "server":
        raise RecipeError(
            "vllm_kwargs: with vllm_mode: server the engine is the server's; leave it out, and start the server with "
            + server_flags(given)
        )


def server_flags(settings: Mapping[str, Any]) -> str:
    """Options of the engine as `vllm serve` takes them.

    >>> server_flags({"dtype": "bfloat16", "enforce_eager": True, "limit_mm_per_prompt": {"image": 2}})
    '--dtype bfloat16 --enforce-eager --limit-mm-per-prompt \\'{"image": 2}\\''
    """
    return " ".join(_flag(key.replace("_", "-"), value) for key, value in settings.items())


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    text = json.dumps(value) if isinstance(value, Mapping | list | tuple) else str(value)
    return f"--{name} {shlex.quote(text)}"
