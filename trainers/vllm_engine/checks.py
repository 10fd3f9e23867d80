"""What of a recipe cannot work with vLLM, found before anything is loaded."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

from packaging.version import Version
from pydantic import ConfigDict, TypeAdapter, ValidationError

from trainers.run.console import say
from trainers.setup.keyword_settings import check_keywords
from trainers.setup.memory import planned_spread
from trainers.setup.model import ModelInfo
from trainers.setup.recipes import DataArguments, RecipeError
from trainers.setup.task_data import TokenCounts
from trainers.vllm_engine.arguments import SET_ELSEWHERE, server_flags
from trainers.vllm_engine.engine import engine_settings
from trainers.vllm_engine.prompts import check_images_are_runs
from trainers.vllm_engine.server import SCALE_OUT, server_answers, server_command, server_url
from trainers.vllm_engine.versions import check_platform, vllm_version


def check_vllm(script: DataArguments, args: Any, model_args: Any) -> None:
    """Checks what needs neither data nor model.

    Raises:
        RecipeError: a machine or settings with which no engine would start, or none would be given the weights.
    """
    if not args.use_vllm:
        return
    if args.vllm_mode == "server":
        check_nothing_of_colocate(args)
        check_server_url(server_url(args))
    check_platform(args)
    check_weights_reach(args)
    if args.vllm_mode == "colocate":
        check_processes(script, args)
        check_engine_options(args.vllm_kwargs or {})
    check_sampling_options(args.generation_kwargs)


def check_weights_reach(args: Any) -> None:
    """Raises `RecipeError` for a server that the trainer could not send its weights to."""
    if args.vllm_mode == "server" and args.device.type == "cpu":
        raise RecipeError(
            "vllm_mode: server: TRL sends its weights from GPU to GPU, and this trainer computes on a CPU; expected "
            "colocate"
        )


def check_nothing_of_colocate(args: Any) -> None:
    """Raises `RecipeError` for settings of an engine in the trainer's processes, which a server would never see."""
    defaults = {item.name: item.default for item in fields(args)}
    for option, key in SET_ELSEWHERE.items():
        if key.startswith("vllm_") and getattr(args, key) != defaults[key]:
            raise RecipeError(
                f"{key}: {getattr(args, key)}: with vllm_mode: server the engine is the server's; leave it out, and "
                f"start the server with {server_flags({option: getattr(args, key)})}"
            )


def check_processes(script: DataArguments, args: Any) -> None:
    """Raises `RecipeError` where processes cannot be divided into groups that share an engine."""
    planned = script.validate_only and script.accelerate_config is not None
    processes = planned_spread(script.accelerate_config).processes if planned else args.world_size
    if processes % args.vllm_tensor_parallel_size:
        raise RecipeError(
            f"vllm_tensor_parallel_size: {args.vllm_tensor_parallel_size}: expected a divisor of the number of "
            f"processes, which is {processes}"
        )


# -- options of the engine --------------------------------------------------------------------------------------------


def check_engine_options(given: Mapping[str, Any]) -> None:
    """Raises `RecipeError` for names and values of `vllm_kwargs` that vLLM's engine does not take."""
    if not given:
        return
    from vllm.engine.arg_utils import EngineArgs

    types = {item.name: item.type for item in fields(EngineArgs)}
    check_keywords("vllm_kwargs", given, types)
    for name, value in given.items():
        problem = _problem_of(value, types[name])
        if problem is not None:
            raise RecipeError(f"vllm_kwargs: {name}: {problem}")


def _problem_of(value: Any, annotation: Any) -> str | None:
    """What is wrong with a number, a truth value or a name; other types are vLLM's to read."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not all(part in (bool, int, float, str, NoneType) or get_origin(part) is Literal for part in parts):
        return None
    try:
        TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        expected = "; ".join(dict.fromkeys(one["msg"].removeprefix("Input should be ") for one in error.errors()))
        return f"expected {expected}, found {value!r}"
    return None


def check_sampling_options(given: Mapping[str, Any] | None) -> None:
    """Raises `RecipeError` for names of `generation_kwargs` that vLLM does not sample by."""
    if not given:
        return
    from vllm import SamplingParams

    check_keywords("generation_kwargs", given, SamplingParams.__annotations__)


# -- what the model and its data decide -------------------------------------------------------------------------------


def check_vllm_model(
    args: Any, model_args: Any, model: ModelInfo, counts: TokenCounts | None, rows: Iterable[Mapping[str, Any]]
) -> None:
    """Checks what of the engine follows from the model and its prompts; of a server, prints how to start it.

    Args:
        counts: of the prompts.
        rows: to train and to evaluate on.

    Raises:
        RecipeError: an engine too short for the longest prompt, attention heads that it cannot divide, or a family
            whose images do not reach it.
    """
    if not args.use_vllm:
        return
    if args.vllm_mode == "colocate":
        check_images_are_runs(model.processor)
        check_heads(model.config, args.vllm_tensor_parallel_size)
        check_length(args, counts)
        check_image_limit((args.vllm_kwargs or {}).get("limit_mm_per_prompt", {}), rows)
    else:
        images = max((len(row.get("images") or ()) for row in rows), default=0)
        weights = getattr(model.config, "dtype", "auto") if model_args.dtype in (None, "auto") else model_args.dtype
        say_how_to_serve(args, model_args, engine_settings(args, weights, model.processor, images))


def check_heads(config: Any, size: int) -> None:
    """Raises `RecipeError` where the attention heads of a model within reach cannot be divided among processes."""
    if config is None:
        return
    vision = getattr(config, "vision_config", None)
    found = {"language model": config.get_text_config().num_attention_heads, "vision tower": _vision_heads(vision)}
    for part, heads in found.items():
        if heads is not None and heads % size:
            raise RecipeError(
                f"vllm_tensor_parallel_size: {size}: expected a divisor of the {heads} attention heads of the {part}"
            )


def _vision_heads(config: Any) -> int | None:
    """Qwen's towers name them otherwise than others."""
    return getattr(config, "num_heads", getattr(config, "num_attention_heads", None))


def check_length(args: Any, counts: TokenCounts | None) -> None:
    """Raises `RecipeError` where the longest prompt with a whole completion does not fit the engine."""
    length = args.vllm_max_model_length
    if length is None or counts is None or not counts.exact:
        return
    needed = counts.longest + args.max_completion_length
    if needed > length:
        raise RecipeError(
            f"vllm_max_model_length: {length}: the prompt of row {counts.longest_row!r} has {counts.longest} tokens, "
            f"and max_completion_length is {args.max_completion_length}; expected at least {needed}"
        )


def check_image_limit(limits: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Raises `RecipeError` where the engine would refuse a row, because it has more images than the recipe allows."""
    limit = limits.get("image")
    if limit is None or isinstance(limit, Mapping):
        return
    images = max((len(row.get("images") or ()) for row in rows), default=0)
    if not isinstance(limit, int) or limit < images:
        raise RecipeError(
            f"vllm_kwargs: limit_mm_per_prompt: image: expected at least {images}, the most images of a row, found "
            f"{limit!r}"
        )


# -- a server ---------------------------------------------------------------------------------------------------------


def check_server_url(url: str) -> None:
    """Raises `RecipeError` for an address that no server can have."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", url)
    except ValueError:  # a port that is no number, or half a bracket
        usable = False
    if not usable:
        raise RecipeError(
            f"vllm_mode: server: expected http://host:port of a server (vllm_server_base_url, or vllm_server_host and "
            f"vllm_server_port), found {url!r}"
        )


def say_how_to_serve(args: Any, model_args: Any, settings: Mapping[str, Any]) -> None:
    """Prints where no server answers, and how one is started for this recipe; a run waits for one.

    Args:
        settings: of `engine_settings`.
    """
    url = server_url(args)
    if not server_answers(url):
        version = vllm_version()
        command = server_command(
            model_args.model_name_or_path, args, settings, version is not None and version >= Version(SCALE_OUT)
        )
        say(f"note: no vLLM server answers at {url} yet; to start one for this recipe: {command}")
