"""Scores the right answers of a recipe's data, without a model: what they do not earn in full, no model can.

    python -m rewards.validate --config recipes/agent_selection_tiny.yaml

Lists every row below a reward's maximum and ends with status 1 if there is one.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.cli.arguments import limit_option, option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.io.records import RecordError, available_splits
from data.tasks import load_rows
from filter_agents.registry import described_agents
from rewards.base import Reward
from rewards.eval import read_recipe
from rewards.registry import RewardSpec, build_rewards, import_reward
from rewards.scoring.columns import check_columns
from rewards.scoring.rows import score_rows

MAX_ROWS_SHOWN = 20
TOLERANCE = 1e-9


def _needs_model(spec: RewardSpec) -> bool:
    name = spec["name"] if isinstance(spec, dict) and "name" in spec else spec
    return isinstance(name, str) and getattr(import_reward(name), "needs_model", False)


def without_models(specs: Sequence[RewardSpec]) -> list[RewardSpec]:
    """The rewards that no trained model gives: a right answer is sure of their maximum alone."""
    return [spec for spec in specs if not _needs_model(spec)]


def _counting_all(spec: RewardSpec) -> RewardSpec:
    """The entry with its failures listed, however many there are, where they do not stop at the first."""
    spec = {"name": spec} if isinstance(spec, str) else spec
    return {**spec, "max_error_rate": 1.0} if isinstance(spec, dict) else spec


def shortfalls(rows: list[dict], recipe: dict, source: str) -> list[str]:
    """A sentence for every right answer that a reward of the recipe scores below its maximum, or fails on.

    Rewards that need a model are left out (`without_models`).
    """
    specs = recipe.get("reward_funcs") or []
    if isinstance(specs, list):
        specs = [_counting_all(spec) for spec in without_models(specs)]
    check_columns(build_rewards(specs, recipe.get("agents")), rows, source)
    scores, failures = score_rows(specs, recipe.get("agents"), [{**row, "completion": row["gold"]} for row in rows])
    found = [failure.describe() for failure in failures]
    for reward in build_rewards(specs, recipe.get("agents")):
        maximum = reward.function.maximum if isinstance(reward.function, Reward) else 1.0
        for row, score in zip(rows, scores[reward.name], strict=True):
            if score is not None and score < maximum - TOLERANCE:
                found.append(f"row {row['id']!r}: {reward.name} is {score:.4g}, at most {maximum:.4g}: {row['gold']}")
    return found


def validate(recipe: dict, splits: Sequence[str], limit: int | None) -> list[str]:
    """Checks every split named; prints a line for each."""
    agents = described_agents(recipe.get("agents"))
    problems = []
    for split in splits:
        rows = load_rows(recipe["dataset_name"], split, agents, bool(recipe.get("answer_tags")), limit=limit)
        if any("gold" not in row for row in rows):
            raise RecordError([f"{recipe['dataset_name']}: rows of this task carry no right answer to validate"])
        found = shortfalls(rows, recipe, recipe["dataset_name"])
        print(f"{split}: {len(rows)} right answers, {len(found)} scores below the maximum")
        problems += found
    return problems


def splits_of(recipe: dict) -> list[str]:
    """The recipe's training and test splits; where it names none, `train`, and `test` if the data has it."""
    train = recipe.get("dataset_train_split") or "train"
    source = Path(recipe["dataset_name"])
    if source.is_file():  # it has no splits
        return [train]
    named = recipe.get("dataset_test_split")
    test = [named] if named else available_splits(source, ["test"]) if source.is_dir() else []
    return list(dict.fromkeys([train, *test]))


@dataclass(kw_only=True)
class ValidateArguments:
    """Of which recipe, and how many rows."""

    config: Path = option("recipe")
    dataset_name: str | None = option("instead of the recipe's dataset_name", None, old=("dataset",))
    splits: tuple[str, ...] | None = option("by default the recipe's training and test splits", None)
    limit: int | None = limit_option("rows of each split")


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(ValidateArguments, argv)
    recipe = read_recipe(arguments.config)
    if arguments.dataset_name:
        recipe["dataset_name"] = arguments.dataset_name
    for key in ("dataset_name", "reward_funcs"):
        if not recipe.get(key):
            raise RecordError([f"{arguments.config}: field '{key}': missing"])
    problems = validate(recipe, arguments.splits or splits_of(recipe), arguments.limit)
    for problem in problems[:MAX_ROWS_SHOWN]:
        print(problem)
    if len(problems) > MAX_ROWS_SHOWN:
        print(f"... and {len(problems) - MAX_ROWS_SHOWN} more")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
