"""Rollouts by the loop of models/decoding beside transformers' own, by group, new tokens and lengths, on a CPU.

    python benchmarks/rollouts/sweep.py                    # goes on where it was stopped
    python benchmarks/rollouts/sweep.py --group 8 --new_tokens 64 --lengths varied --rounds 7

The quick start's rollouts, and the step that they are part of: quickstart.py. Rollouts by vLLM: ../vllm/rollouts.py.

The model is that of ../shared_prefix.py, with random weights: it repeats nothing that drafts could be looked up in,
so what they show here is what they cost. One group is rolled out by all ways in turn in one process, on one thread;
ratios are taken within a round, after one that is not counted, from CPU time with the reading of prompts and images.
Lengths are forced, the same ones for all ways. Ways by one stream of random numbers must give the same completions:
that is counted, and another one ends the run with status 1. As all tokens are nearly as likely, that shows a mistake
of sampling, hardly one of attention; the quick start's model has learned, and shows both. Peak memory is that of
new processes, above the model at rest, a median of three.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[0] = str(Path(__file__).parents[2])

import torch

from benchmarks.rollouts.lengths import SPREADS, Lengths, lengths_of
from benchmarks.rollouts.ways import BASE, DRAFTED, WAYS, count_as_expected, ratio_and_range, ratios
from benchmarks.shared_prefix import CPU_MODEL, Case, Line, draw, make_inputs, memory_of, pin
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from models import tiny
from models.decoding.engine import Engine, rolling_out

VISUAL = 256
PROCESSES = 3
"""In which the peak memory of a way is measured."""


@dataclass(frozen=True)
class Rollout:
    """Completions of one prompt, tokens of each at most, and how long they are."""

    group: int
    new_tokens: int
    lengths: str

    @property
    def tokens(self) -> list[int]:
        """Of each completion."""
        return lengths_of(self.lengths, self.group, self.new_tokens)


class Sampler:
    """Samples completions of one group by any way, as TRL does by default."""

    def __init__(self, case: Rollout):
        tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 400)
        self.model = tiny.build_model(tokenizer, **CPU_MODEL).eval()
        config = self.model.config
        inputs = make_inputs(Case(VISUAL, 0, case.group), config, torch.device("cpu"))
        self.inputs = {name: inputs[name] for name in inputs if name not in ("logits_to_keep", "num_images")}
        self.prompt = inputs["input_ids"].shape[1]
        self.forced = Lengths(case.tokens, tokenizer.eos_token_id, self.prompt)
        self.options = {
            "max_new_tokens": case.new_tokens,
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "suppress_tokens": [config.image_token_id, config.video_token_id],
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }

    def complete(self, way: str, engine: Engine, seed: int) -> list[list[int]]:
        """Tokens of each row, with the padding behind its end."""
        torch.manual_seed(seed)
        processors = [self.forced] if WAYS[way].stream is None else []
        with torch.no_grad(), self.forced.in_the_loop(), rolling_out(self.model, engine, WAYS[way].shares):
            found = self.model.generate(**self.inputs, **self.options, logits_processor=processors)
        return found[:, self.prompt :].tolist()


def peak_in_new_process(case: Rollout, way: str) -> int:
    """Bytes that a rollout adds to a process with the model at rest."""
    command = [sys.executable, __file__, "--peak_of", json.dumps(asdict(case) | {"way": way})]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def measure(case: Rollout, rounds: int) -> dict[str, Any]:
    sampler, engines = Sampler(case), {name: way.engine() for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    same = dict.fromkeys(WAYS, 0)
    for number in range(rounds + 1):
        found = {}
        for name, engine in engines.items():
            began = time.process_time()
            found[name] = sampler.complete(name, engine, number)
            seconds[name].append(time.process_time() - began)
        for name, count in count_as_expected(found).items():
            same[name] += count
    return {
        **asdict(case),
        "seconds": {name: of_way[1:] for name, of_way in seconds.items()},
        "same": same,
        "completions": case.group * (rounds + 1),
        "mean": mean(case.tokens),
        "memory": {name: median(peak_in_new_process(case, name) for _ in range(PROCESSES)) for name in (BASE, "loop")},
    }


LOOPS = tuple(name for name, way in WAYS.items() if way.stream is not None)
HEADER = f"""\
| G | new tokens (mean) | `generate`, s | shared prefill, s | tokens/s | loop, s | tokens/s | `generate` | loop | \
with {DRAFTED} drafts | own stream | both | the same completions | peak memory |
|{"---|" * 14}"""


def table_line(found: dict[str, Any]) -> str:
    """Ratios are to shared prefill, as is that of the memory."""
    seconds, memory = found["seconds"], found["memory"]
    tokens = found["group"] * found["mean"]
    times = [f"{median(seconds['generate']):.2f}"]
    for name in (BASE, "loop"):
        times += [f"{median(seconds[name]):.2f}", f"{tokens / median(seconds[name]):.0f}"]
    speeds = [f"{median(ratios(seconds, 'generate')):.2f}"]
    speeds += [ratio_and_range(ratios(seconds, name)) for name in LOOPS]
    same = f"{min(found['same'].values())} of {found['completions']}"
    peak = f"{memory['loop'] / memory[BASE]:.2f} of {memory[BASE] / 1e6:.0f} MB"
    sizes = [str(found["group"]), f"{found['new_tokens']} {found['lengths']} ({found['mean']:.0f})"]
    return f"| {' | '.join([*sizes, *times, *speeds, same, peak])} |"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Ratios to shared prefill over the size of the group."""
    panels: dict[str, list[Line]] = {}
    for most in sorted({one["new_tokens"] for one in results}):
        lines = panels.setdefault(f"at most {most} new tokens", [])
        for color, name in enumerate(("loop", "loop, own stream", "generate")):
            for lengths, style in zip(SPREADS, (":", "-"), strict=True):
                own = [one for one in results if (one["new_tokens"], one["lengths"]) == (most, lengths)]
                values = {one["group"]: median(ratios(one["seconds"], name)) for one in own}
                lines.append((values, f"C{color}o{style}", name if style == "-" else None))
    draw(panels, f"times as fast as {BASE}", "dotted: of equal lengths", path)


@dataclass(kw_only=True)
class RolloutSweep:
    """The cases of the sweep."""

    group: tuple[int, ...] = option("completions of the prompt", (1, 8, 16), within=AT_LEAST_1)
    new_tokens: tuple[int, ...] = option("of a completion at most", (64, 256), within=AT_LEAST_1)
    lengths: tuple[str, ...] = option("of completions", SPREADS, choices=SPREADS)
    rounds: int = option("how often everything is measured", 5, within=AT_LEAST_1)
    results: Path = option("file of what has been measured", Path("outputs/rollouts.jsonl"))
    plot: Path | None = option("SVG file", None)
    peak_of: str | None = option("a case and a way as JSON: only its memory is measured, in this process", None)


def peak(described: dict[str, Any]) -> int:
    way = described.pop("way")
    return memory_of(Sampler(Rollout(**described)).complete, way, WAYS[way].engine(), 0)


def main() -> None:
    arguments = parse_arguments(RolloutSweep)
    pin(1)
    if arguments.peak_of:
        print(peak(json.loads(arguments.peak_of)))
        return
    path = arguments.results
    path.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in path.read_bytes().split(b"\n") if line] if path.is_file() else []
    known = [Rollout(one["group"], one["new_tokens"], one["lengths"]) for one in done]
    print("\n".join([HEADER, *map(table_line, done)]), flush=True)
    cases = [
        Rollout(group, most, lengths)
        for most in arguments.new_tokens
        for lengths in arguments.lengths
        for group in arguments.group
    ]
    for case in [one for one in cases if one not in known]:
        done.append(measure(case, arguments.rounds))
        print(table_line(done[-1]), flush=True)
        with path.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    if arguments.plot:
        plot(done, arguments.plot)
    sys.exit(int(any(count < one["completions"] for one in done for count in one["same"].values())))


if __name__ == "__main__":
    main()
