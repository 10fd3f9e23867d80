"""GRPO steps and greedy answers of the quick start with rollouts by the loop of models/decoding, and without it.

    make run OUT=outputs                                   # or any finished quick start
    python benchmarks/rollouts/quickstart.py outputs --steps 30 --rounds 7

Each step of recipes/agent_selection_tiny.yaml is made by all ways in turn, from the same weights, prompts and random
numbers, and learns from the last way's gradients. Its time is split into rollout, update (forward and backward),
rewards, and the rest, to which the optimizer and the loading of rows belong. Then the held-out reports are answered
greedily. One process, one thread, CPU time; the first step and the first round are not counted. `generate` also
updates as TRL does, without shared prompts. Completions by one stream of random numbers must be the same: that is
counted, and another one ends the run with status 1. A way's drafts are of what it has rolled out itself.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)

import torch
from transformers import PrinterCallback
from trl import ModelConfig

from benchmarks.rollouts.ways import WAYS, Way, count_as_expected, ratio_and_range, ratios
from benchmarks.shared_prefix import pin
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1
from data.tasks import load_rows
from filter_agents.registry import described_agents
from models.decoding.engine import Engine, rolling_out
from models.vlm import LocalVLM, Prompt, Sampling
from rewards.eval import read_recipe
from rewards.registry import build_rewards
from trainers.grpo import GRPOConfig, GRPOScriptArguments, GRPOTrainer
from trainers.run.script import load_rows_and_held_out
from trainers.setup.model import policy_arguments
from trainers.setup.model_settings import checked_model
from trainers.setup.recipes import parse_recipe
from trainers.setup.task_data import to_dataset

RECIPE = ROOT / "recipes" / "agent_selection_tiny.yaml"
PARTS = ("rollout", "update", "rewards", "rest")
Seconds = dict[str, list[float]]
"""By way."""


class InTurn(GRPOTrainer):
    """Makes each step by all ways, and notes the CPU seconds of its parts.

    Attributes:
        seconds: of each step but the first, by part, then way.
        same: completions of each way that are as they must be; rolled_out: all of one way.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.engines = {name: way.engine() for name, way in WAYS.items()}
        self.seconds: dict[str, Seconds] = {part: {name: [] for name in WAYS} for part in PARTS}
        self.same, self.rolled_out = dict.fromkeys(WAYS, 0), 0
        self._spent: dict[str, float] = {}
        self._ended: float | None = None  # the last step, when

    @contextmanager
    def _noted(self, part: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self._spent[part] = time.process_time() - began

    def training_step(self, model: torch.nn.Module, inputs: list[dict], *args: Any) -> torch.Tensor:
        between = None if self._ended is None else time.process_time() - self._ended
        state, found = torch.get_rng_state(), {}
        for name, way in WAYS.items():
            torch.set_rng_state(state)
            self.model.zero_grad()
            self.engine, self.sharing.mode = self.engines[name], "true" if way.shares else "false"
            with self._noted("whole"):
                loss = super().training_step(model, [dict(row) for row in inputs], *args)
            found[name] = self._completions
            if between is not None:
                self._keep(name, between)
        for name, count in count_as_expected(found).items():
            self.same[name] += count
        self.rolled_out += len(self._completions)
        self._ended = time.process_time()
        return loss

    def _keep(self, way: str, between: float) -> None:
        spent = self._spent
        parts = {
            "rollout": spent["rollout"],
            "update": spent["whole"] - spent["prepared"],
            "rewards": spent["rewards"],
            "rest": spent["prepared"] - spent["rollout"] - spent["rewards"] + between,
        }
        for part, seconds in parts.items():
            self.seconds[part][way].append(seconds)

    def _prepare_inputs(self, *args: Any) -> dict[str, Any]:
        with self._noted("prepared"):
            return super()._prepare_inputs(*args)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple:
        with self._noted("rollout"):
            found = super()._generate_single_turn(*args, **kwargs)
        self._completions = found[0]
        return found

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._noted("rewards"):
            return super()._calculate_rewards(*args, **kwargs)


def make_trainer(folder: Path, steps: int, output: str) -> InTurn:
    """Of the recipe, from the quick start's warm start and on its data."""
    options = {
        "config": RECIPE,
        "model_name_or_path": folder / "sft",
        "dataset_name": folder / "data",
        "output_dir": output,
        "max_steps": steps,
        "lr_scheduler_type": "constant_with_warmup",
        "lr_scheduler_kwargs": "{}",
    }
    argv = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    script, args, model_args, _ = parse_recipe((GRPOScriptArguments, GRPOConfig, ModelConfig), argv)
    args.remove_unused_columns, args.disable_tqdm = False, True
    model = checked_model(script, args, model_args)
    rows, _, _ = load_rows_and_held_out(script, args, model)
    trainer = InTurn(
        reward_funcs=build_rewards(script.reward_funcs, script.agents),
        args=args,
        train_dataset=to_dataset(rows, model.bounds),
        processing_class=model.processor,
        **policy_arguments(args, model_args),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def say_steps(trainer: InTurn) -> None:
    """A table of milliseconds, medians over steps; ratios are to shared prefill."""
    seconds = trainer.seconds
    whole = {
        name: [sum(parts) for parts in zip(*(seconds[part][name] for part in PARTS), strict=True)] for name in WAYS
    }
    print(
        "| way | rollout, ms | ratio | update, ms | rewards, ms | rest, ms | step, ms | ratio | the same completions |"
    )
    print("|" + "---|" * 9)
    for name in WAYS:
        rollout, *others = (f"{1000 * median(seconds[part][name]):.0f}" for part in PARTS)
        step = [f"{1000 * median(whole[name]):.0f}", ratio_and_range(ratios(whole, name))]
        same = f"{trainer.same[name]} of {trainer.rolled_out}"
        faster = ratio_and_range(ratios(seconds["rollout"], name))
        print(f"| {' | '.join([name, rollout, faster, *others, *step, same])} |")


# -- greedy answers ---------------------------------------------------------------------------------------------------


def answer(vlm: LocalVLM, prompts: list[Prompt], most: int, batch_size: int, way: Way, engine: Engine) -> Any:
    """Texts of all prompts; CPU seconds of generation, and with the reading of images and texts."""
    spent = 0.0

    @contextmanager
    def generating(model: torch.nn.Module, _: Engine) -> Iterator[None]:
        nonlocal spent
        began = time.process_time()
        with rolling_out(model, engine, way.shares):
            yield
        spent += time.process_time() - began

    began, texts = time.process_time(), []
    with mock.patch("models.generation.rolling_out", generating):
        for start in range(0, len(prompts), batch_size):
            texts += vlm.complete(prompts[start : start + batch_size], Sampling(most))
    return texts, spent, time.process_time() - began


def say_answers(folder: Path, rounds: int, batch_size: int) -> bool:
    """A table of milliseconds, as above; whether all ways give the same answers."""
    recipe = read_recipe(RECIPE)
    rows = load_rows(str(folder / "data"), "test", described_agents(recipe["agents"]))
    prompts = [Prompt(row["prompt"], row["images"], number) for number, row in enumerate(rows)]
    vlm = LocalVLM.from_name(str(folder / "sft"), max_pixels=recipe["max_pixels"])
    ways = {name: way for name, way in WAYS.items() if way.stream != "own"}  # nothing is drawn
    generated: Seconds = {name: [] for name in ways}
    whole: Seconds = {name: [] for name in ways}
    expected, same = None, dict.fromkeys(ways, 0)
    for _ in range(rounds + 1):
        for name, way in ways.items():
            most = recipe["max_completion_length"]
            texts, *spent = answer(vlm, prompts, most, batch_size, way, way.engine())
            expected = expected or texts
            same[name] += sum(one == other for one, other in zip(texts, expected, strict=True))
            generated[name].append(spent[0])
            whole[name].append(spent[1])
    generated, whole = ({name: of_way[1:] for name, of_way in one.items()} for one in (generated, whole))
    print("\n| way | generation, ms | ratio | with reading, ms | ratio | the same answers |")
    print("|" + "---|" * 6)
    for name in ways:
        times = [
            f"{1000 * median(one[name]):.0f} | {ratio_and_range(ratios(one, name))}" for one in (generated, whole)
        ]
        print(f"| {name} | {' | '.join(times)} | {same[name]} of {len(prompts) * (rounds + 1)} |")
    return min(same.values()) == len(prompts) * (rounds + 1)


@dataclass(kw_only=True)
class QuickStartBenchmark:
    """The finished quick start, and how often everything is measured."""

    folder: Path = option("output folder of a quick start", positional=True)
    steps: int = option("of training that are counted", 30, within=AT_LEAST_1)
    rounds: int = option("of greedy answers that are counted", 7, within=AT_LEAST_1)
    batch_size: int = option("reports that are answered at once", 80, within=AT_LEAST_1)


def main() -> None:
    arguments = parse_arguments(QuickStartBenchmark)
    pin(1)
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(arguments.folder, arguments.steps + 1, output)
        trainer.train()
    say_steps(trainer)
    same = min(trainer.same.values()) == trainer.rolled_out
    same &= say_answers(arguments.folder, arguments.rounds, arguments.batch_size)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
