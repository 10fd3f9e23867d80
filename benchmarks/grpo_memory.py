"""Peak memory of GRPO on a GPU under a recipe's settings, beside the recipe's own estimate.

    python benchmarks/grpo_memory.py                          # the QLoRA recipe, Qwen2-VL-7B's shape, 3 steps
    python benchmarks/grpo_memory.py --accumulation 4         # the same peak from shorter steps
    python benchmarks/grpo_memory.py --smoke                  # the same path with a tiny model, on a CPU

Gradients accumulate in place, so that the peak does not depend on how many batches a step has. No weights are
downloaded: the model has the published shape and random weights, and is built here (17 GB on disk for 7B). Its
tokenizer is a small one, so that reports have more tokens than with the real one. Images are easy-VQA's, enlarged to
the recipe's `max_pixels` by `min_pixels`. Ends with status 1 if the estimate is off by more than 20%.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[0] = str(Path(__file__).parents[1])  # this folder has a rewards.py, which is not the package

import torch
import yaml

from data import quality_reports
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from models import tiny
from models.families.published import published_config
from trainers import grpo

TOLERANCE = 0.2


def build_model(name: str, folder: Path) -> None:
    """Saves a model of a published shape with random bfloat16 weights, and a processor for it."""
    from transformers import AutoModelForImageTextToText, GenerationConfig, Qwen2VLImageProcessor

    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny.SPECIAL_TOKENS}
    config = published_config(name)
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id, config.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForImageTextToText.from_config(config)
    torch.set_default_dtype(torch.float32)
    end = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=ids["<|endoftext|>"])
    model.save_pretrained(folder)
    processor = tiny.build_processor(tokenizer)
    processor.image_processor = Qwen2VLImageProcessor()
    processor.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


class Echo(io.StringIO):
    """Keeps what is printed, and prints it, with the peak so far beside what a step logs."""

    def write(self, text: str) -> int:
        if text.startswith("step ") and torch.cuda.is_available():
            text += f"  (peak reserved {torch.cuda.max_memory_reserved() / 1e9:.2f} GB)"
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


def train(recipe: Path, model: Path, data: Path, folder: Path, more: list[str]) -> float:
    """Three steps of the recipe; returns its estimate of the peak in GB."""
    overrides = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", str(folder)]
    overrides += ["--max_steps", "3", "--save_strategy", "no", *more]
    printed = Echo()
    with contextlib.redirect_stdout(printed):
        grpo.main(["--config", str(recipe), *overrides])
    return float(re.search(r"peak +([\d.]+) GB", printed.getvalue())[1])


@dataclass(kw_only=True)
class MemoryBenchmark:
    """Under which settings."""

    config: Path = option("recipe", Path("recipes/agent_selection_qlora.yaml"))
    accumulation: int | None = option("gradient_accumulation_steps; by default the recipe's", None, within=AT_LEAST_1)
    smoke: bool = option("a tiny model on the CPU: does the path work?", False)


def main() -> None:
    arguments = parse_arguments(MemoryBenchmark)
    settings = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = ["--source", "easy_vqa", "--reports", "80", "--pool_size", "8"]
        quality_reports.main([*source, "--output_dir", str(folder / "data")])
        model = folder / "model"
        if arguments.smoke:
            tiny.main(["--output_dir", str(model)])
            more = ["--use_cpu", "true", "--bf16", "false", "--dtype", "float32", "--optim", "adamw_torch"]
            more += ["--max_pixels", "1024", "--gradient_checkpointing", "false", "--max_completion_length", "8"]
            more += ["--gradient_accumulation_steps", "4"]
        else:
            build_model(settings["model_name_or_path"], model)
            more = ["--min_pixels", str(settings["max_pixels"])]
            if arguments.accumulation:
                more += ["--gradient_accumulation_steps", str(arguments.accumulation)]
            torch.cuda.reset_peak_memory_stats()
        estimate = train(arguments.config, model, folder / "data", folder / "run", more)
    if arguments.smoke:
        print(f"works; estimate {estimate:.2f} GB")
        return
    allocated, reserved = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
    ratio = estimate / reserved
    print("| recipe | estimate | peak reserved | peak allocated | estimate / reserved |\n|---|---|---|---|---|")
    sizes = f"{estimate:.1f} GB | {reserved:.1f} GB | {allocated:.1f} GB"
    print(f"| {arguments.config.name} | {sizes} | {ratio:.2f} |")
    sys.exit(1 if abs(ratio - 1) > TOLERANCE else 0)


if __name__ == "__main__":
    main()
