"""Training a reward model on a GPU: pairs a second and peak memory, by kind of attention.

    python benchmarks/reward_models/training.py [--model ID] [--pairs 8] [--side 448] [--steps 6]

Random weights of the published shape in bfloat16, gradient checkpointing, fused AdamW. A step is forward, backward and
update on so many pairs: one image each, a question of 32 tokens and two responses of 128. With `--model tiny` it runs
on a CPU, as a check of the script.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from models.families.published import published_config
from models.reward.config import Qwen2VLRewardConfig
from models.reward.model import Qwen2VLForRewardModel
from trainers.losses import preference_loss

QUESTION, RESPONSE = 32, 128
KINDS = {
    "sdpa": ("sdpa", None),
    "sdpa, flash kernel": ("sdpa", SDPBackend.FLASH_ATTENTION),
    "sdpa, memory-efficient kernel": ("sdpa", SDPBackend.EFFICIENT_ATTENTION),
    "sdpa, plain arithmetic": ("sdpa", SDPBackend.MATH),
    "eager": ("eager", None),
    "flash_attention_2": ("flash_attention_2", None),
}


def reward_config(name: str) -> Qwen2VLRewardConfig:
    """Of a published model's shape, or of a tiny one."""
    if name == "tiny":
        from models.tiny import build_model, build_tokenizer

        return Qwen2VLRewardConfig(**_without_type(build_model(build_tokenizer(["a"], 400), 32).config))
    config = published_config(name)
    if config is None:
        sys.exit(f"error: --model: unknown name {name!r}")
    return Qwen2VLRewardConfig(**_without_type(config))


def _without_type(config) -> dict:
    return {key: value for key, value in config.to_dict().items() if key != "model_type"}


def make_batch(config: Qwen2VLRewardConfig, pairs: int, side: int, device: str) -> dict[str, torch.Tensor]:
    """Inputs of `pairs` prompts with two responses each; both read their prompt's image."""
    patch, merge = config.vision_config.patch_size, config.vision_config.spatial_merge_size
    grid = side // patch // merge * merge
    visual = (grid // merge) ** 2
    channels = config.vision_config.in_channels * config.vision_config.temporal_patch_size * patch**2
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(0, 200, (2 * pairs, QUESTION + RESPONSE), generator=generator)
    images = torch.full((2 * pairs, visual), config.image_token_id)
    batch = {
        "input_ids": torch.cat([images, texts], dim=1),
        "pixel_values": torch.randn(pairs * grid**2, channels, generator=generator),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * pairs),
        "image_index": torch.arange(pairs).repeat_interleave(2),
    }
    batch["mm_token_type_ids"] = (batch["input_ids"] == config.image_token_id).long()
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return {key: value.to(device) for key, value in batch.items()}


@contextmanager
def kernel(backend: SDPBackend | None) -> Iterator[None]:
    with nullcontext() if backend is None else sdpa_kernel([backend]):
        yield


@dataclass(kw_only=True)
class RewardModelBenchmark:
    """Which model, on what."""

    model: str = option("published shape, or tiny", "Qwen/Qwen2-VL-2B-Instruct")
    pairs: int = option("in a step", 8, within=AT_LEAST_1)
    side: int = option("of the square images, in pixels", 448, within=AT_LEAST_1)
    steps: int = option("timed, after two others", 6, within=AT_LEAST_1)


def measure(config: Qwen2VLRewardConfig, kind: str, arguments: RewardModelBenchmark, device: str) -> str:
    """A line of the table."""
    attention, backend = KINDS[kind]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    try:
        with torch.device(device):
            model = Qwen2VLForRewardModel._from_config(config, attn_implementation=attention, dtype=dtype)
    except ImportError as error:
        return f"{kind:<32}not installed ({str(error).splitlines()[0][:60]})"
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device != "cpu")
    batch = make_batch(config, arguments.pairs, arguments.side, device)
    ranks = torch.tensor([[0.0, 1.0]], device=device).expand(arguments.pairs, 2)
    valid = torch.ones_like(ranks, dtype=torch.bool)

    def step() -> None:
        scores = model(**batch).logits.view(-1, 2)
        preference_loss(scores, ranks, valid).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    synchronise = torch.accelerator.synchronize if device != "cpu" else lambda: None
    seconds = []
    try:
        with kernel(backend):
            for number in range(arguments.steps + 2):
                if number == 2 and device != "cpu":
                    torch.cuda.reset_peak_memory_stats()
                synchronise()
                started = time.perf_counter()
                step()
                synchronise()
                seconds.append(time.perf_counter() - started)
    except RuntimeError as error:
        return f"{kind:<32}not possible ({str(error).splitlines()[0][:70]})"
    median = statistics.median(seconds[2:])
    memory = torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else float("nan")
    spread = f"{arguments.pairs / max(seconds[2:]):.2f} - {arguments.pairs / min(seconds[2:]):.2f}"
    return f"{kind:<32}{arguments.pairs / median:10.2f}   ({spread}){memory:12.1f} GB"


def main() -> None:
    arguments = parse_arguments(RewardModelBenchmark)
    device = "cpu" if arguments.model == "tiny" else "cuda"
    config = reward_config(arguments.model)
    where = "the CPU" if device == "cpu" else torch.cuda.get_device_name()
    print(f"{arguments.model} on {where}, torch {torch.__version__}: {arguments.pairs} pairs a step, one image of")
    print(f"{arguments.side}x{arguments.side} and two responses of {RESPONSE} tokens each\n")
    print(f"{'attention':<32}{'pairs/s':>10}   (range){'peak memory':>22}")
    for kind in KINDS:
        print(measure(config, kind, arguments, device), flush=True)
        if device != "cpu":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
