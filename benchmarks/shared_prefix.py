"""Shared prompts beside TRL's own code: time and memory of GRPO's update, by visual tokens, completion and group.

    python benchmarks/shared_prefix.py                        # the sweep on a CPU; goes on where it was stopped
    python benchmarks/shared_prefix.py --visual 256 --completion 64 --group 8 --rounds 7
    python benchmarks/shared_prefix.py --group 1 --prompts 4 --visual 256 --completion 64  # no prompt repeats

Every family: shared_prefix_families.py; whole steps and other trainers: shared_prefix_steps.py; a GPU:
shared_prefix_gpu.py.

One trainer computes the same log-probabilities and gradients in turn as `trl.GRPOTrainer` does (`shared_prefix:
false` is its code) and with each prompt and image once. Both sides are warm, in one process, on pinned threads.
`tokens` is the ratio of tokens that the language model reads, G (P + C) / (P + G C). Peak memory is that of a new
process on a CPU, above the model at rest.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[0] = str(Path(__file__).parents[1])  # this folder has a rewards.py, which is not the package

import torch

from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from models import tiny
from trainers.grpo import GRPOConfig, GRPOTrainer

TEXT = 202
SWEEP = {"visual": (64, 256, 1024), "completion": (64, 256), "group": (2, 4, 8, 16)}


@dataclass(frozen=True)
class Case:
    """Tokens of an image, of the text around it, of a completion; completions of a prompt, and prompts."""

    visual: int
    completion: int
    group: int
    prompts: int = 1
    text: int = TEXT

    @property
    def token_ratio(self) -> float:
        """How many times as many tokens the language model reads if every row has its own prompt."""
        prompt = self.visual + self.text
        return self.group * (prompt + self.completion) / (prompt + self.group * self.completion)

    def name(self) -> str:
        return f"{self.visual} visual, {self.completion} completion, G={self.group}"


def make_inputs(case: Case, config, device: torch.device) -> dict:
    """What `_get_per_token_logps_and_entropies` takes, one square image for each prompt."""
    generator = torch.Generator().manual_seed(0)
    side = int(case.visual**0.5) * config.vision_config.spatial_merge_size
    vision = config.vision_config
    width = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    prompts, completions, pixels = [], [], []
    for _ in range(case.prompts):
        before = torch.randint(0, 250, (case.text // 2,), generator=generator)
        after = torch.randint(0, 250, (case.text - case.text // 2,), generator=generator)
        prompts += [torch.cat([before, torch.full((case.visual,), config.image_token_id), after])] * case.group
        completions += list(torch.randint(0, 250, (case.group, case.completion), generator=generator))
        pixels += [torch.randn(side * side, width, generator=generator)] * case.group
    ids = torch.cat([torch.stack(prompts), torch.stack(completions)], dim=1).to(device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "logits_to_keep": case.completion,
        "pixel_values": torch.cat(pixels).to(device),
        "image_grid_thw": torch.tensor([[1, side, side]] * len(pixels), device=device),
        "num_images": [1] * len(pixels),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
    }


def make_trainer(model, processor, folder: str, **settings) -> GRPOTrainer:
    """A trainer around a model that is there; its data are not used."""
    from datasets import Dataset

    peft_config = settings.pop("peft_config", None)
    args = GRPOConfig(
        output_dir=folder,
        report_to="none",
        num_generations=2,
        per_device_train_batch_size=2,
        beta=0.0,
        freeze_vision_tower=settings.pop("freeze_vision_tower", False),
        **settings,
    )
    return GRPOTrainer(
        model,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}]}] * 2),
        processing_class=processor,
        peft_config=peft_config,
    )


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def backward(trainer: GRPOTrainer, inputs: dict, shared: bool) -> torch.Tensor:
    """Forward and backward; returns the log-probabilities and leaves the gradients."""
    trainer.sharing.mode = "true" if shared else "false"
    found, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, **inputs, compute_entropy=True)
    advantages = torch.linspace(-1, 1, len(found), device=found.device).unsqueeze(1)
    (-(torch.exp(found - found.detach()) * advantages).mean()).backward()
    return found.detach()


def update(trainer: GRPOTrainer, inputs: dict, shared: bool) -> torch.Tensor:
    """Forward and backward; returns the log-probabilities."""
    found = backward(trainer, inputs, shared)
    trainer.model.zero_grad(set_to_none=True)
    return found


def gradient(trainer: GRPOTrainer, inputs: dict, shared: bool) -> torch.Tensor:
    """Of all weights that learn, one behind the other."""
    backward(trainer, inputs, shared)
    found = [one.grad.flatten().float() for one in trainer.model.parameters() if one.grad is not None]
    trainer.model.zero_grad(set_to_none=True)
    return torch.cat(found)


@torch.no_grad()
def score(trainer: GRPOTrainer, inputs: dict, shared: bool) -> torch.Tensor:
    """Log-probabilities alone, as of the old policy and the reference."""
    trainer.sharing.mode = "true" if shared else "false"
    return trainer._get_per_token_logps_and_entropies(trainer.model, **inputs)[0]


def seconds_of(function: Callable, *arguments) -> float:
    synchronise()
    started = time.perf_counter()
    function(*arguments)
    synchronise()
    return time.perf_counter() - started


def in_turn(function: Callable, trainer: GRPOTrainer, inputs: dict, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of TRL's way and of ours, one after the other, after one round that is not counted."""
    plain, ours = [], []
    for number in range(rounds + 1):
        times = seconds_of(function, trainer, inputs, False), seconds_of(function, trainer, inputs, True)
        if number:
            plain.append(times[0])
            ours.append(times[1])
    return plain, ours


# -- the sweep on a CPU -----------------------------------------------------------------------------------------------


CPU_MODEL = {"hidden_size": 512, "layers": 8, "initializer_range": 0.02, "vision_depth": 4, "vision_width": 256}


def build_cpu(folder: str) -> GRPOTrainer:
    """A Qwen2-VL of width 512 with 8 layers and a vision tower of 4 layers of width 256."""
    tokenizer = tiny.build_tokenizer(tiny.DEFAULT_CORPUS, 400)
    model = tiny.build_model(tokenizer, **CPU_MODEL)
    return make_trainer(
        model, tiny.build_processor(tokenizer), folder, use_cpu=True, bf16=False, gradient_checkpointing=False
    )


def resident() -> int:
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of(function: Callable, *arguments) -> int:
    """Bytes that a function adds at most to what the process has, looked at every millisecond."""
    before, largest, ended = resident(), resident(), threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(0.001):
            largest = max(largest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    function(*arguments)
    ended.set()
    watcher.join()
    return largest - before


def peak_in_new_process(case: Case, shared: bool, threads: int) -> int:
    """Bytes that an update adds to a process with the model at rest."""
    command = [sys.executable, __file__, "--peak_of", json.dumps(asdict(case)), "--threads", str(threads)]
    done = subprocess.run([*command, "--shared"] if shared else command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure(case: Case, trainer: GRPOTrainer, rounds: int, threads: int) -> dict:
    inputs = make_inputs(case, trainer.model.config, torch.device("cpu"))
    difference = (update(trainer, inputs, False) - update(trainer, inputs, True)).abs().max().item()
    plain, ours = in_turn(update, trainer, inputs, rounds)
    ratios = [first / second for first, second in zip(plain, ours, strict=True)]
    memory = [peak_in_new_process(case, shared, threads) for shared in (False, True)]
    return {
        **asdict(case),
        "trl": statistics.median(plain),
        "ours": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "tokens": case.token_ratio,
        "memory": memory[1] / memory[0],
        "memory_trl": memory[0],
        "difference": difference,
        "threads": threads,
        "rounds": rounds,
    }


HEADER = """\
| visual | completion | G | TRL, s | ours, s | ratio (range) | tokens | share of tokens | peak memory, ours / TRL |
|---|---|---|---|---|---|---|---|---|"""


def table_line(found: dict) -> str:
    share = 100 * found["ratio"] / found["tokens"]
    times = f"{found['trl']:.2f} | {found['ours']:.2f}"
    ratio = f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    memory = f"{found['memory']:.2f} of {found['memory_trl'] / 1e9:.2f} GB"
    sizes = f"{found['visual']} | {found['completion']} | {found['group']}"
    return f"| {sizes} | {times} | {ratio} | {found['tokens']:.2f} | {share:.0f}% | {memory} |"


Line = tuple[dict[int, float], str, str | None]
"""Values over the size of the group, the line's style, and its name in the legend."""


def draw(panels: Mapping[str, Sequence[Line]], what: str, legend: str, path: Path) -> None:
    """Draws panels, by their titles, side by side; `what` their values are, and what the legend says of all lines."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(
        1, len(panels), figsize=(9, 3.6), sharey=True, layout="constrained", squeeze=False
    )
    for panel, (title, lines) in zip(places[0], panels.items(), strict=True):
        for values, style, name in lines:
            groups = sorted(values)
            panel.plot(groups, [values[group] for group in groups], style, label=name)
        sizes = sorted({group for values, _, _ in lines for group in values})
        panel.set(title=title, xlabel="completions of a prompt", xscale="log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    places[0, 0].set_ylabel(what)
    places[0, 0].legend(title=legend)
    figure.savefig(path, metadata={"Date": None})


def plot(results: list[dict], path: Path) -> None:
    """Ratio over the size of the group, with what token arithmetic allows dotted; of batches of one prompt."""
    panels: dict[str, list[Line]] = {}
    for completion in SWEEP["completion"]:
        lines = panels.setdefault(f"completions of {completion} tokens", [])
        for color, visual in enumerate(SWEEP["visual"]):
            wanted = (visual, completion, 1)
            own = [one for one in results if (one["visual"], one["completion"], one["prompts"]) == wanted]
            lines.append(({one["group"]: one["ratio"] for one in own}, f"C{color}o-", f"{visual} visual tokens"))
            lines.append(({one["group"]: one["tokens"] for one in own}, f"C{color}:", None))
    draw(panels, "times as fast as TRL", "dotted: ratio of tokens", path)


@dataclass(kw_only=True)
class SweepBenchmark:
    """The cases of the sweep."""

    visual: tuple[int, ...] = option("visual tokens of a prompt", SWEEP["visual"], within=AT_LEAST_1)
    completion: tuple[int, ...] = option("tokens of a completion", SWEEP["completion"], within=AT_LEAST_1)
    group: tuple[int, ...] = option("completions of a prompt", SWEEP["group"], within=AT_LEAST_1)
    prompts: int = option("in a batch", 1, within=AT_LEAST_1)
    rounds: int = option("how often everything is measured", 3, within=AT_LEAST_1)
    threads: int = option("of the processor", 2, within=AT_LEAST_1)
    results: Path = option("file of what has been measured", Path("outputs/shared_prefix.jsonl"))
    plot: Path | None = option("SVG file", None)
    peak_of: str | None = option("a case as JSON: only its memory is measured, in this process", None)
    shared: bool = option("with peak_of: with shared prompts", False)


def sweep(arguments: SweepBenchmark) -> None:
    path = arguments.results
    done = [json.loads(line) for line in path.read_bytes().split(b"\n") if line] if path.is_file() else []
    known = {(one["visual"], one["completion"], one["group"], one["prompts"]) for one in done}
    print(HEADER)
    for one in done:
        print(table_line(one))
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_cpu(folder)
        for visual in arguments.visual:
            for completion in arguments.completion:
                for group in arguments.group:
                    case = Case(visual, completion, group, arguments.prompts)
                    if (visual, completion, group, arguments.prompts) in known:
                        continue
                    found = measure(case, trainer, arguments.rounds, arguments.threads)
                    print(table_line(found), flush=True)
                    done.append(found)
                    with path.open("a") as file:
                        file.write(json.dumps(found) + "\n")
    if arguments.plot:
        plot(done, arguments.plot)


def pin(threads: int) -> None:
    """Keeps the process to so many cores, and computes on as many threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def main() -> None:
    arguments = parse_arguments(SweepBenchmark)
    pin(arguments.threads)
    if arguments.peak_of:
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_cpu(folder)
            inputs = make_inputs(Case(**json.loads(arguments.peak_of)), trainer.model.config, torch.device("cpu"))
            print(memory_of(update, trainer, inputs, arguments.shared))
        return
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    sweep(arguments)


if __name__ == "__main__":
    main()
