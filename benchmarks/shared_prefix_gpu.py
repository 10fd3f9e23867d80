"""Shared prompts beside TRL's own code on a GPU: update, log-probabilities alone, memory, whole steps.

    python benchmarks/shared_prefix_gpu.py --models Qwen/Qwen2-VL-2B-Instruct Qwen/Qwen2-VL-7B-Instruct
    python benchmarks/shared_prefix_gpu.py --models tiny             # in float32: are the GPU's kernels exact?
    python benchmarks/shared_prefix_gpu.py --models tiny --smoke     # the same path on a CPU

Published shapes have random weights in bfloat16, LoRA adapters and gradient checkpointing; 1,024 visual tokens,
completions of 256, 8 of a prompt. Each figure is printed as soon as it is there.
"""

import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[0] = str(Path(__file__).parents[1])  # this folder has a rewards.py, which is not the package

import torch
from torch.nn.attention.bias import causal_lower_right

from benchmarks.shared_prefix import Case, gradient, make_inputs, make_trainer, score, seconds_of, update
from benchmarks.shared_prefix_steps import alternating, say_steps, step_trainer
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from models import tiny
from models.families.published import published_config
from models.shared_prefix import attention as prefix_attention
from models.shared_prefix import packing as shared_prefix
from trainers.grpo import GRPOTrainer


def table_mask(layout, implementation, dtype, device, tables=()):
    """The packed sequence's whole table as an ordinary mask, in place of two calls."""
    return prefix_attention.additive_mask(layout, dtype, device, tables)


def no_table(queries: int, keys: int, device: torch.device):
    return causal_lower_right(queries, keys)


PATHS = ("two calls, a table for the rests", "two causal calls", "one call, a table for all")


def set_path(path: str, saved: dict) -> None:
    """Chooses how attention keeps continuations apart; the first path is the toolkit's."""
    prefix_attention._lower_right = no_table if path == PATHS[1] else saved["lower_right"]
    shared_prefix.mask_for = table_mask if path == PATHS[2] else saved["mask_for"]


def adapters():
    """LoRA on the language model."""
    from peft import LoraConfig

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    config.exclude_modules = r".*\bvisual\..*"
    return config


def build_gpu(name: str, folder: str, device: str) -> GRPOTrainer:
    """Random weights of a published shape, adapters on the language model, gradient checkpointing."""
    from transformers import AutoModelForImageTextToText

    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS)
    if name == "tiny":
        model = tiny.build_model(tokenizer).to(device)
    else:
        config = published_config(name)
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny.SPECIAL_TOKENS}
        config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
        config.vision_start_token_id = ids["<|vision_start|>"]
        config.text_config.pad_token_id = config.text_config.eos_token_id = ids["<|endoftext|>"]
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    trainer = make_trainer(
        model,
        tiny.build_processor(tokenizer),
        folder,
        peft_config=adapters(),
        use_cpu=device == "cpu",
        bf16=name != "tiny",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        freeze_vision_tower=True,
    )
    trainer.model.train()
    return trainer


def peak_of(function: Callable, *arguments) -> float:
    """GB that are allocated at most while a function runs."""
    if not torch.cuda.is_available():
        return float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    function(*arguments)
    return torch.cuda.max_memory_allocated() / 1e9


def median_of(function: Callable, *arguments, rounds: int) -> tuple[float, str]:
    times = [seconds_of(function, *arguments) for _ in range(rounds + 1)][1:]
    return statistics.median(times), f"{min(times):.3f} to {max(times):.3f}"


@dataclass(kw_only=True)
class GpuBenchmark:
    """Which models."""

    models: tuple[str, ...] = option("published shapes, or tiny")
    rounds: int = option("how often everything is measured", 3, within=AT_LEAST_1)
    smoke: bool = option("tiny: on a CPU", False)


def measure_gpu(name: str, arguments: GpuBenchmark) -> None:
    """Prints a line for each way as soon as it is measured."""
    device = "cpu" if arguments.smoke else "cuda"
    case = Case(16, 8, 4, text=20) if name == "tiny" else Case(1024, 256, 8)
    where = "CPU" if arguments.smoke else torch.cuda.get_device_name()
    print(f"\n{name} on {where}, torch {torch.__version__}: {case.name()}, {case.text} text tokens", flush=True)
    print(f"the language model reads {case.token_ratio:.2f} times fewer tokens", flush=True)
    print("| way | update, s (range) | ratio | log-probs alone, s | ratio | peak memory |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_gpu(name, folder, device)
        inputs = make_inputs(case, trainer.model.config, torch.device(device))
        right, learned = score(trainer, inputs, False), gradient(trainer, inputs, False)
        saved = {"lower_right": prefix_attention._lower_right, "mask_for": shared_prefix.mask_for}
        base: tuple[float, float] = (0.0, 0.0)
        for path in ("TRL", *PATHS, "TRL again"):
            ours = not path.startswith("TRL")
            try:
                set_path(path, saved)
                difference = (score(trainer, inputs, ours) - right).abs().mean().item()
                turned = ((gradient(trainer, inputs, ours) - learned).norm() / learned.norm()).item()
                memory = peak_of(update, trainer, inputs, ours)
                times = median_of(update, trainer, inputs, ours, rounds=arguments.rounds)
                alone = median_of(score, trainer, inputs, ours, rounds=arguments.rounds)
            except Exception:  # a kernel that a device does not have is a result too
                print(
                    f"| {path} | failed: {traceback.format_exc(limit=-1).splitlines()[-1][:200]} | | | | |", flush=True
                )
                continue
            base = base if base[0] else (times[0], alone[0])
            ratios = base[0] / times[0], base[1] / alone[0]
            print(
                f"| {path} | {times[0]:.3f} ({times[1]}) | {ratios[0]:.2f} | {alone[0]:.3f} | {ratios[1]:.2f} | "
                f"{memory:.1f} GB |  off by {difference:.2e} in a log-prob (mean), by {turned:.2e} in the gradient",
                flush=True,
            )
        set_path(PATHS[0], saved)
        model = trainer.model.unload()
        del trainer, inputs
        gpu_steps(case, model, folder, arguments)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gpu_steps(case: Case, model, folder: str, arguments: GpuBenchmark) -> None:
    """Whole GRPO steps with rollouts by transformers, KL to the model without adapters, and checkpointing."""
    from transformers import Qwen2VLImageProcessor

    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS)
    processor = tiny.build_processor(tokenizer, max_pixels=1 << 20)
    if model.dtype == torch.bfloat16:  # of a published shape
        processor.image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 1 << 20})
    config = {
        "use_cpu": arguments.smoke,
        "bf16": model.dtype == torch.bfloat16,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "freeze_vision_tower": True,
        "beta": 0.04,
        "max_steps": 2 * (min(arguments.rounds, 2) + 1),
    }
    trainer, prompt = step_trainer(case, model, processor, folder, config=config, peft_config=adapters())
    callback = alternating(trainer)
    trainer.add_callback(callback)
    print(f"steps with rollouts, prompt of {prompt} tokens", flush=True)
    trainer.train()
    say_steps(callback.times)


def main() -> None:
    arguments = parse_arguments(GpuBenchmark)
    for name in arguments.models:
        measure_gpu(name, arguments)


if __name__ == "__main__":
    main()
