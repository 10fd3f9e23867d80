"""GRPO with rollouts by vLLM beside rollouts by transformers: held-out F1 of agent selection after the same steps.

    pipelines/quickstart.sh 0 outputs                                # the warm start and the data, once
    .venv-vllm/bin/python benchmarks/vllm/agreement.py --warm_start outputs/sft --dataset_name outputs/data \\
        --output_dir outputs/vllm_agreement [--steps 60] [--seeds 3]

For each seed the recipe of the quick start trains twice from one warm start, without cutting (`top_p: 1`), in
float32, and both models answer the test questions. Prints F1 by seed, and the mean difference with its 95% interval:
Student's t over the seeds, because the two runs of a seed draw other answers, so that trainings are compared, and not
questions. Status 1 if the interval leaves 0 out. A run that is there is not made again.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)

from benchmarks.vllm.cpu import EAGER, ENVIRONMENT
from data.cli.arguments import option, parse_arguments
from data.cli.ranges import AT_LEAST_1, Range
from data.io.records import read_some_rows
from rewards.scoring.statistics import Interval

RECIPE = str(ROOT / "recipes" / "agent_selection_tiny.yaml")
REWARD = "agent_selection"


@dataclass(kw_only=True)
class AgreementBenchmark:
    """What is trained, how long and how often."""

    warm_start: Path = option("folder of the model that both sides start from")
    dataset_name: str = option("reports with splits for training and test")
    output_dir: Path = option("folder of the runs and their evaluations")
    steps: int = option("of each run", 60, within=AT_LEAST_1)
    seeds: int = option("how many, from 0 on", 3, within=Range(2))


def run(*words: str | Path) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    environment = {**ENVIRONMENT, **os.environ, **quiet}
    subprocess.run([sys.executable, *map(str, words)], check=True, env=environment)


def score(arguments: AgreementBenchmark, seed: int, side: str) -> float:
    """Mean F1 of the answers to the test questions, after training."""
    folder = arguments.output_dir / f"{side}-{seed}"
    evaluation = folder / "evaluation"
    if not (evaluation / "scores.jsonl").exists():
        words = ["--config", RECIPE, "--model_name_or_path", arguments.warm_start, "--output_dir", folder / "model"]
        words += ["--dataset_name", arguments.dataset_name, "--seed", seed, "--max_steps", arguments.steps]
        words += ["--top_p", "1.0"]
        if side == "vllm":
            words += ["--use_vllm", "true", "--vllm_mode", "colocate", "--vllm_gpu_memory_utilization", "0.05"]
            words += ["--vllm_max_model_length", "1024", "--vllm_kwargs", json.dumps(EAGER)]
        run("-m", "trainers.grpo", *words)
        words = ["--dataset_name", arguments.dataset_name, "--split", "test", "--model", folder / "model"]
        run("-m", "rewards.eval", *words, "--config", RECIPE, "--batch_size", "80", "--output_dir", evaluation)
    return statistics.mean(row[REWARD] for _, row in read_some_rows(evaluation / "scores.jsonl"))


def mean_of_seeds(differences: Sequence[float]) -> Interval:
    mean, error = statistics.mean(differences), stats.sem(differences)
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return Interval(mean, low, high)


def main() -> None:
    arguments = parse_arguments(AgreementBenchmark)
    differences = []
    print("| seed | transformers | vLLM |\n|---|---|---|")
    for seed in range(arguments.seeds):
        plain, by_vllm = (score(arguments, seed, side) for side in ("transformers", "vllm"))
        print(f"| {seed} | {plain:.3f} | {by_vllm:.3f} |", flush=True)
        differences.append(by_vllm - plain)
    interval = mean_of_seeds(differences)
    print(f"\nvLLM - transformers: {interval}")
    sys.exit(0 if interval.low <= 0 <= interval.high else 1)


if __name__ == "__main__":
    main()
