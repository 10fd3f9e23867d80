"""What this toolkit's GRPO step costs beside TRL's on the same work.

    python benchmarks/grpo_overhead.py [--steps 12] [--rounds 5]

Four trainers take turns on the CPU with the tiny model, the same reports, rewards and number of generated tokens:

TRL             trl.GRPOTrainer
additions off   GRPOTrainer with everything beyond TRL switched off
additions on    clipping, std floor, adaptive KL, temperature schedule, curriculum, groups kept together, samples kept
                for the report, rewards that skip errors (dynamic sampling apart, which generates more)
shared prompts  the same additions on shared prompts, as recipes have it by default

The first three compute every prompt for each of its completions, so that what shared prompts save cannot hide what
the additions cost.

Every completion has the same length (generation cannot end before it), so that another policy is no other work. A
round runs each trainer once, in an order that rotates; the ratio is taken within a round. Prints the median ratio and
its range, and ends with status 1 if a target is missed.
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

sys.path[0] = str(Path(__file__).parents[1])  # this folder has a rewards.py, which is not the package

import trl
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from data import quality_reports
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from data.tasks import load_rows
from filter_agents.registry import DEFAULT_AGENTS, described_agents
from models import tiny
from models.families.loading import image_reader, image_token_ids, load_processor
from rewards.registry import build_rewards
from trainers.grpo import GRPOConfig, GRPOTrainer
from trainers.report.samples import SampleLog
from trainers.setup.task_data import to_dataset

TARGETS = {"additions off": 1.03, "additions on": 1.10}
SHARED = "shared prompts"
NEW_TOKENS = 48
BETA = 0.05
OFF = {"advantage_clip": None, "keep_groups_together": False, "shared_prefix": "false"}
ON = {
    "shared_prefix": "false",
    "advantage_clip": 5.0,
    "advantage_std_floor": 0.01,
    "adaptive_kl": True,
    "temperature_schedule": "linear",
    "temperature_end": 0.9,
    "curriculum_top_k": 3,
    "curriculum_share": 1.0,
}


class StepClock(TrainerCallback):
    """Seconds of every optimizer step, generation and rewards included."""

    def __init__(self):
        self.seconds: list[float] = []
        self._last = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self._last)


class Bench:
    """Model and data, made once in a temporary folder."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        self.model = str(folder / "tiny")
        tiny.main(["--output_dir", self.model])
        quality_reports.main(
            ["--source", "easy_vqa", "--output_dir", str(folder / "data"), "--reports", "80", "--pool_size", "8"]
        )
        agents = described_agents()
        self.rows = load_rows(folder / "data", "train", agents)
        self.processor = load_processor(self.model, max_pixels=1024)

    def _common(self) -> dict:
        suppressed = image_token_ids(self.processor)
        return {
            "output_dir": str(self.folder / "run"),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "max_completion_length": NEW_TOKENS,
            "generation_kwargs": {"min_new_tokens": NEW_TOKENS, "suppress_tokens": suppressed},
            "max_steps": self.steps,
            "learning_rate": 1e-6,
            "beta": BETA,
            "report_to": "none",
            "save_strategy": "no",
            "remove_unused_columns": False,
            "logging_steps": 1,
            "disable_tqdm": True,
            "model_init_kwargs": {"dtype": "float32"},
        }

    def trainer(self, name: str):
        """A fresh trainer of the given kind."""
        names = ["agent_selection", "filtering_quality", "strict_xml_format"]
        specs = [{"name": reward, "on_error": "skip"} for reward in names]
        added = name in ("additions on", SHARED)
        rewards = build_rewards(specs if added else names, list(DEFAULT_AGENTS))
        data = {
            "train_dataset": to_dataset(self.rows, image_reader(self.processor)),
            "processing_class": self.processor,
        }
        if name == "TRL":
            functions = [reward.function for reward in rewards]
            return trl.GRPOTrainer(self.model, functions, args=trl.GRPOConfig(**self._common()), **data)
        settings, samples = (ON, SampleLog(self.folder / "run")) if added else (OFF, None)
        if name == SHARED:
            settings = settings | {"shared_prefix": "auto"}
        config = GRPOConfig(**self._common(), **settings)
        return GRPOTrainer(self.model, rewards, args=config, samples=samples, **data)

    def seconds(self, name: str) -> float:
        """Median seconds of a step, the first two left out."""
        trainer, clock = self.trainer(name), StepClock()
        trainer.add_callback(clock)
        trainer.train()
        return statistics.median(clock.seconds[2:])


@dataclass(kw_only=True)
class OverheadBenchmark:
    """How long each trainer runs, how often."""

    steps: int = option("of a trainer in each round", 12, within=AT_LEAST_1)
    rounds: int = option("how often everything is measured", 5, within=AT_LEAST_1)


def main() -> None:
    arguments = parse_arguments(OverheadBenchmark)
    disable_progress_bar()
    names = ["TRL", *TARGETS, SHARED]
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.steps)
        for number in range(arguments.rounds):
            first = number % len(names)
            order = names[first:] + names[:first]
            rounds.append({name: bench.seconds(name) for name in order})
    print(f"\nseconds a step, medians of {arguments.rounds} rounds of {arguments.steps} steps\n")
    print("| trainer | seconds a step | ratio to TRL | range of ratios | target |\n|---|---|---|---|---|")
    missed = False
    for name in names:
        ratios = [figures[name] / figures["TRL"] for figures in rounds]
        median = statistics.median(ratios)
        target = TARGETS.get(name)
        missed |= target is not None and median > target
        seconds = statistics.median(figures[name] for figures in rounds)
        print(f"| {name} | {seconds:.3f} | {median:.3f} | {min(ratios):.3f} to {max(ratios):.3f} | {target or ''} |")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
