"""GRPO's update with shared prompts beside TRL's own, for each family of models whose prompts are shared, on a CPU.

    python benchmarks/shared_prefix_families.py                               # every family
    python benchmarks/shared_prefix_families.py --family qwen3_5 --rounds 7

The model is the one of models/tiny.py of width 512 with 8 layers; its vision tower stays tiny, so that ratios come
from the language model. One run trains by turns as `trl.GRPOTrainer` does (`shared_prefix: false` is its code) and
with each prompt and image once, on groups whose completions are drawn and not generated. What is timed is the loss and
its gradients. Peak memory is that of a new process, above the model at rest.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[0] = str(Path(__file__).parents[1])  # this folder has a rewards.py, which is not the package

import torch
from datasets import Dataset, disable_progress_bars
from PIL import Image
from torch import nn
from transformers import PrinterCallback
from transformers.utils.logging import set_verbosity_error

from benchmarks.shared_prefix import TEXT, Case, memory_of, pin
from benchmarks.shared_prefix_steps import random_image, text_of
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from data.io.pixel_bounds import BoundsError
from models import tiny
from models.families.registry import family_of
from models.shared_prefix.sharing import reason_not_shared
from models.tiny_families.size import TinySize
from trainers.grpo import GRPOConfig, GRPOTrainer

SIDES = range(16, 1025, 16)
"""Of square images that are tried, in pixels."""
BYTES = 250
"""Tokens that completions are drawn from: of single bytes, in every tokenizer here."""


@dataclass(frozen=True)
class Setting:
    """A model, and the group that it learns from in each step."""

    family: str
    visual: int
    completion: int
    group: int
    text: int
    width: int
    layers: int


class Alternating(GRPOTrainer):
    """Learns from drawn completions, in every other step the plain way, and notes the seconds of each update.

    Attributes:
        modes: of the steps, in turn.
        seconds: of each update, by mode.
        prompt: tokens of a prompt.
    """

    modes: tuple[str, ...] = ("false", "true")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seconds: dict[str, list[float]] = {mode: [] for mode in self.modes}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list, None]:
        generator = torch.Generator().manual_seed(self.state.global_step // len(self.modes))
        shape = (len(prompt_ids), self.args.max_completion_length)
        return torch.randint(0, BYTES, shape, generator=generator).tolist(), None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.prompt = inputs["prompt_ids"].shape[1]
        self.began = time.perf_counter()
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.sharing.mode = self.modes[self.state.global_step % len(self.modes)]
        loss = super().training_step(*args, **kwargs)
        self.seconds[self.sharing.mode].append(time.perf_counter() - self.began)
        return loss


class Watched(Alternating):
    """Notes in `bytes` how much memory each step adds, which takes time of its own."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.bytes: list[int] = []

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        losses: list[torch.Tensor] = []
        step = super().training_step
        self.bytes.append(memory_of(lambda: losses.append(step(*args, **kwargs))))
        return losses[0]


def visual_tokens(processor: Any, image_token: int, images: list[Image.Image]) -> int:
    """How many tokens stand for images, between those that begin and end them."""
    message = {"role": "user", "content": [{"type": "image"}] * len(images)}
    text = processor.apply_chat_template([message], tokenize=False)
    return list(processor(text=[text], images=[images])["input_ids"][0]).count(image_token)


def pictures(processor: Any, image_token: int, wanted: int, seed: int) -> list[Image.Image]:
    """Noisy pictures of at least so many visual tokens: one, of the smallest side that has them; several of the side
    that has most where the processor makes no picture so many."""
    counts = {side: visual_tokens(processor, image_token, [random_image(side, 0)]) for side in SIDES}
    side = next((side for side, count in counts.items() if count >= wanted), max(counts, key=counts.__getitem__))
    found = [random_image(side, seed)]
    while visual_tokens(processor, image_token, found) < wanted:  # of several, LLaVA-OneVision cuts none into tiles
        found.append(random_image(side, seed + len(found)))
    return found


def bound(processor: Any, config: Any, wanted: int) -> None:
    """Lets pictures have so many visual tokens, and not many more: Gemma 4 makes all as large as they may be. Those of
    a family without bounds are as large as they get."""
    for pixels in (1 << power for power in range(12, 21)):
        with contextlib.suppress(BoundsError):
            family_of(config).set_bounds(processor, None, pixels)
        if max(visual_tokens(processor, config.image_token_id, [random_image(side, 0)]) for side in SIDES) >= wanted:
            return


def rows(setting: Setting, processor: Any, image_token: int) -> list[dict[str, Any]]:
    """Four prompts of as many text tokens as wanted, or a few fewer, and of pictures."""

    def tokens(text: str) -> int:
        chat = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": text}]}])
        return len(processor.tokenizer(chat)["input_ids"])

    prompt = [{"role": "user", "content": text_of(setting.text, tokens)}]
    return [
        {"prompt": prompt, "images": pictures(processor, image_token, setting.visual, 1000 * number)}
        for number in range(4)
    ]


def build(setting: Setting, cls: type[Alternating], folder: str, steps: int) -> tuple[Alternating, int]:
    """A trainer of this class, and the visual tokens of its prompts. More than one step has its first one checked."""
    size = TinySize(setting.width, setting.layers, initializer_range=0.02)
    model, processor = tiny.build_family(setting.family, tiny.DEFAULT_CORPUS, 1024, size)
    bound(processor, model.config, setting.visual)
    of_steps = rows(setting, processor, model.config.image_token_id)
    args = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        num_generations=setting.group,
        per_device_train_batch_size=setting.group,
        max_completion_length=setting.completion,
        max_steps=steps,
        shared_prefix_check=steps > 1,
        router_aux_loss_coef=0.0,  # of mixtures of experts; with it no prompts are shared
    )
    trainer = cls(
        model,
        reward_funcs=lambda completions, completion_ids, **columns: [float(ids[0] % 7) for ids in completion_ids],
        args=args,
        train_dataset=Dataset.from_list(of_steps),
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, visual_tokens(processor, model.config.image_token_id, of_steps[0]["images"])


@contextlib.contextmanager
def running(setting: Setting, steps: int, cls: type[Alternating] = Alternating) -> Iterator[tuple[Alternating, int]]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield build(setting, cls, folder, steps)


def peak(setting: Setting, mode: str) -> int:
    """Bytes that the first update of a run adds: a later one finds memory that the first has left to the process."""
    with running(setting, 1, Watched) as (trainer, _):
        trainer.modes = (mode,)
        trainer.train()
        return trainer.bytes[-1]


def peak_in_new_process(setting: Setting, mode: str, threads: int) -> int:
    command = [sys.executable, __file__, "--peak_of", json.dumps(asdict(setting) | {"mode": mode})]
    done = subprocess.run([*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


HEADER = """\
| family | visual tokens | TRL, s | ours, s | ratio (range) | tokens | share of tokens | peak memory, ours / TRL |
|---|---|---|---|---|---|---|---|"""


def table_line(setting: Setting, rounds: int, threads: int) -> str:
    """What was measured of a family; of one that goes the plain way, why."""
    with running(setting, 2 * (rounds + 1)) as (trainer, visual):
        reason = reason_not_shared(trainer.model)
        if reason is not None:
            return f"| {setting.family} | {visual} | not shared: {reason} | | | | | |"
        trainer.train()
        plain, ours = (trainer.seconds[mode][1:] for mode in Alternating.modes)  # the first of each warms up
        case = Case(visual, setting.completion, setting.group, text=trainer.prompt - visual)
    ratios = [first / second for first, second in zip(plain, ours, strict=True)]
    ratio = statistics.median(ratios)
    bytes_of = {mode: peak_in_new_process(setting, mode, threads) for mode in Alternating.modes}
    times = f"{statistics.median(plain):.2f} | {statistics.median(ours):.2f}"
    memory = f"{bytes_of['true'] / bytes_of['false']:.2f} of {bytes_of['false'] / 1e9:.2f} GB"
    found = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    share = f"{case.token_ratio:.2f} | {100 * ratio / case.token_ratio:.0f}%"
    return f"| {setting.family} | {visual} | {times} | {found} | {share} | {memory} |"


@dataclass(kw_only=True)
class FamiliesBenchmark:
    """Which families, and what they learn from."""

    family: tuple[str, ...] = option("model types", tiny.FAMILIES, choices=tiny.FAMILIES)
    visual: int = option("visual tokens of a prompt, at least", 256, within=AT_LEAST_1)
    completion: int = option("tokens of a completion", 64, within=AT_LEAST_1)
    group: int = option("completions of a prompt", 8, within=AT_LEAST_1)
    text: int = option("text tokens of a prompt, at most", TEXT, within=AT_LEAST_1)
    width: int = option("of the language model, a multiple of 32", 512, within=AT_LEAST_1)
    layers: int = option("of the language model", 8, within=AT_LEAST_1)
    rounds: int = option("how often everything is measured", 5, within=AT_LEAST_1)
    threads: int = option("of the processor", 2, within=AT_LEAST_1)
    peak_of: str | None = option("a setting as JSON: only its memory is measured, in this process", None)


def main() -> None:
    arguments = parse_arguments(FamiliesBenchmark)
    pin(arguments.threads)
    disable_progress_bars()
    set_verbosity_error()
    if arguments.peak_of:
        setting = json.loads(arguments.peak_of)
        mode = setting.pop("mode")
        print(peak(Setting(**setting), mode))
        return
    print(HEADER, flush=True)
    sizes = (arguments.visual, arguments.completion, arguments.group, arguments.text, arguments.width)
    for family in arguments.family:
        print(table_line(Setting(family, *sizes, arguments.layers), arguments.rounds, arguments.threads), flush=True)


if __name__ == "__main__":
    main()
