"""The options that vLLM's engine gets beside those of TRL, so that it computes as the trainer does."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from datasets import Dataset
from transformers import ProcessorMixin

from trainers.setup.memory import BYTES
from trainers.setup.task_data import RowLoader
from trainers.vllm_engine.arguments import COMPLETED

AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}
"""Setting of the trainer -> the precision that it computes in, whatever its weights are kept in."""


def engine_settings(
    args: Any, weights: torch.dtype | str, processor: Any, images: int | None = None
) -> dict[str, Any]:
    """What `vllm.LLM` is given beside TRL's own arguments.

    Args:
        args: of the trainer, with `VLLMArguments`; what its `vllm_kwargs` say comes last.
        weights: precision that the model is kept in.
        processor: of the trainer, whose image sizes the engine shall have.
        images: most images in a prompt; `None` where that is not known, and vLLM expects any number.
    """
    given = dict(args.vllm_kwargs or {})
    settings: dict[str, Any] = {"dtype": engine_dtype(args, weights)}
    if isinstance(processor, ProcessorMixin):
        most = {} if images is None else {"image": images}
        settings["limit_mm_per_prompt"] = {**most, "video": 0}
        settings["mm_processor_kwargs"] = image_sizes(processor)
    for name in COMPLETED:
        given[name] = {**settings.get(name, {}), **given.get(name, {})}
    return {name: value for name, value in {**settings, **given}.items() if value != {}}


def engine_dtype(args: Any, weights: torch.dtype | str) -> str:
    """The precision that the trainer computes in: that of its autocast, or of its weights."""
    autocast = next((name for key, name in AUTOCAST.items() if getattr(args, key)), None)
    return autocast or str(weights).removeprefix("torch.")


def vllm_load(args: Any, model_args: Any) -> dict[str, Any]:
    """What an engine in the trainer's processes adds to `trainers.setup.memory.MemoryDemand`."""
    if not args.use_vllm or args.vllm_mode != "colocate":
        return {}
    weights = model_args.dtype if model_args.dtype in BYTES else "float32"
    given = (args.vllm_kwargs or {}).get("dtype", "auto")
    return {
        "vllm_share": args.vllm_gpu_memory_utilization,
        "vllm_dtype": given if given in BYTES else engine_dtype(args, weights),
        "vllm_processes": args.vllm_tensor_parallel_size,
    }


def image_sizes(processor: Any) -> dict[str, Any]:
    """Options by which the engine's own processor resizes images as this one does."""
    size = dict(getattr(processor.image_processor, "size", None) or {})
    return {"size": size} if {"shortest_edge", "longest_edge"} <= {*size} else {}


def most_images(datasets: Iterable[Any]) -> int | None:
    """Most images in a row of any of the data sets; `None` where that takes reading them all."""
    counts = [_most_images(dataset) for dataset in datasets if dataset is not None]
    return None if None in counts else max(counts, default=None)


def _most_images(dataset: Any) -> int | None:
    if isinstance(dataset, Mapping):
        return most_images(dataset.values())
    loader = dataset.format["format_kwargs"].get("transform") if isinstance(dataset, Dataset) else None
    if not isinstance(loader, RowLoader):
        return None
    return max((len(row.get("images") or ()) for row in loader.rows), default=0)
