"""Scoring a group of responses to one prompt in one pass, beside one response after the other, on a CPU.

    python benchmarks/reward_models/groups.py                       # every family
    python benchmarks/reward_models/groups.py --family qwen2_vl --rounds 7

The reward model stands on the model of models/tiny.py of width 512 with 8 layers; its vision tower stays tiny. Both
ways are `model.score`, images read and texts tokenised each time, in turn in one process; what is timed is the
process's CPU time. Peak memory is that of a new process, above the model at rest: of one pass, beside a pass over the
same rows that have a prompt each (`shared_prefix: false`), and beside one response after the other.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[0] = str(Path(__file__).parents[2])

import torch
from transformers.utils.logging import set_verbosity_error

from benchmarks.shared_prefix import TEXT, memory_of, pin
from benchmarks.shared_prefix_families import bound, pictures, visual_tokens
from benchmarks.shared_prefix_steps import text_of
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from models import tiny
from models.reward.load import reward_model_of
from models.shared_prefix.sharing import SharedPrefix
from models.tiny_families.size import TinySize

WAYS = ("one pass", "a prompt each", "one by one")
HEADER = """\
| family | visual tokens | one by one, s | one pass, s | ratio (range) | largest difference \
| peak memory, one pass / a prompt each | one by one |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Setting:
    """A reward model, and the group that it scores."""

    family: str
    visual: int
    response: int
    group: int
    text: int
    width: int
    layers: int


def build(setting: Setting) -> tuple[Any, Callable[[str], torch.Tensor], int]:
    """The model, the scores of the group by one of `WAYS`, and the visual tokens of its prompt."""
    size = TinySize(setting.width, setting.layers, initializer_range=0.02)
    backbone, processor = tiny.build_family(setting.family, tiny.DEFAULT_CORPUS, 1024, size)
    model = reward_model_of(backbone.config).eval()
    model.processor = processor
    bound(processor, backbone.config, setting.visual)
    images = pictures(processor, backbone.config.image_token_id, setting.visual, 0)

    def tokens(text: str) -> int:
        return len(processor.tokenizer(text)["input_ids"])

    prompts = [text_of(setting.text, tokens)] * setting.group
    response = text_of(setting.response - 1, tokens)
    responses = [f"{number}{response}" for number in range(setting.group)]

    def score(way: str) -> torch.Tensor:
        model.sharing = SharedPrefix("false" if way == "a prompt each" else "auto")
        return model.score(prompts, [images] * setting.group, responses, 1 if way == "one by one" else setting.group)

    return model, score, visual_tokens(processor, backbone.config.image_token_id, images)


def peak_in_new_process(setting: Setting, way: str, threads: int) -> int:
    """Bytes that scoring the group for the first time adds."""
    command = [sys.executable, __file__, "--peak_of", json.dumps(asdict(setting) | {"way": way})]
    done = subprocess.run([*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def table_line(setting: Setting, rounds: int, threads: int) -> str:
    _, score, visual = build(setting)
    difference = (score("one by one") - score("one pass")).abs().max()  # warms both up
    seconds: dict[str, list[float]] = {"one by one": [], "one pass": []}
    for _ in range(rounds):
        for way, found in seconds.items():
            began = time.process_time()
            score(way)
            found.append(time.process_time() - began)
    ratios = [alone / together for alone, together in zip(*seconds.values(), strict=True)]
    times = " | ".join(f"{statistics.median(found):.2f}" for found in seconds.values())
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    peaks = {way: peak_in_new_process(setting, way, threads) for way in WAYS}
    share = f"{peaks['one pass'] / peaks['a prompt each']:.2f} of {peaks['a prompt each'] / 1e6:.0f} MB"
    alone = f"{peaks['one by one'] / 1e6:.0f} MB"
    return f"| {setting.family} | {visual} | {times} | {ratio} | {difference:.0e} | {share} | {alone} |"


@dataclass(kw_only=True)
class RewardGroupsBenchmark:
    """Which families, and what they score."""

    family: tuple[str, ...] = option("model types", tiny.FAMILIES, choices=tiny.FAMILIES)
    visual: int = option("visual tokens of a prompt, at least", 256, within=AT_LEAST_1)
    response: int = option("tokens of a response", 32, within=AT_LEAST_1)
    group: int = option("responses to a prompt", 8, within=AT_LEAST_1)
    text: int = option("text tokens of a prompt, at most", TEXT, within=AT_LEAST_1)
    width: int = option("of the language model, a multiple of 32", 512, within=AT_LEAST_1)
    layers: int = option("of the language model", 8, within=AT_LEAST_1)
    rounds: int = option("how often everything is measured", 5, within=AT_LEAST_1)
    threads: int = option("of the processor", 1, within=AT_LEAST_1)
    peak_of: str | None = option("a setting as JSON: only its memory is measured, in this process", None)


def main() -> None:
    arguments = parse_arguments(RewardGroupsBenchmark)
    pin(arguments.threads)
    set_verbosity_error()
    if arguments.peak_of:
        values = json.loads(arguments.peak_of)
        way = values.pop("way")
        score = build(Setting(**values))[1]
        print(memory_of(score, way))
        return
    print(HEADER, flush=True)
    sizes = (arguments.visual, arguments.response, arguments.group, arguments.text, arguments.width, arguments.layers)
    for family in arguments.family:
        print(table_line(Setting(family, *sizes), arguments.rounds, arguments.threads), flush=True)


if __name__ == "__main__":
    main()
