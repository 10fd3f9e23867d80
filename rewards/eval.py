"""Scores completions from a file with any rewards, or generates them first.

    python -m rewards.eval --dataset_name completions.jsonl --rewards agent_selection --output_dir out
    python -m rewards.eval --dataset_name outputs/data --model outputs/grpo --config R.yaml --output_dir out
    python -m rewards.eval --dataset_name outputs/data --model http://localhost:8000/v1 --output_dir out
    python -m rewards.eval --compare before/scores.jsonl after/scores.jsonl
    python -m rewards.eval --list

Rows of `--dataset_name` hold `completion` (a text, or chat messages) and the columns that the rewards need. Writes
`scores.jsonl` (a row's `id`, or its number, and every score, in input order) and `summary.json`.
"""

import inspect
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.cli.arguments import OptionError, limit_option, option, seed_option, split_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.package_files import RECIPES, shipped_file
from data.cli.ranges import AT_LEAST_0, AT_LEAST_1
from data.io.records import RecordError, write_json, write_jsonl
from models.model_paths import model_option
from models.served.arguments import ServerArguments
from models.vlm_places import find_vlm
from rewards.base import Reward
from rewards.registry import (
    ALIASES,
    REWARDS,
    RewardSpec,
    RewardSpecError,
    build_rewards,
    check_there,
    import_reward,
    reward_parameters,
    spec_name,
    with_tables,
)
from rewards.scoring.columns import check_columns
from rewards.scoring.comparison import compare
from rewards.scoring.failure_policy import ON_ERROR
from rewards.scoring.inputs import generate_completions, read_completions
from rewards.scoring.rows import score_rows
from rewards.scoring.statistics import summarise


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a recipe that matter for scoring.

    Args:
        path: may be the name of a recipe of the toolkit.

    Raises:
        RecordError: no such file, or not a YAML mapping.
    """
    import yaml

    path = shipped_file(path, RECIPES)
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError([f"{path}: cannot be read as a recipe: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecordError([f"{path}: not valid YAML: {error}"]) from error
    if not isinstance(recipe, dict):
        raise RecordError([f"{path}: expected a YAML mapping, found {type(recipe).__name__}"])
    return recipe


def choose_specs(names: Sequence[str] | None, recipe: dict[str, Any], on_error: str) -> list[RewardSpec]:
    """Entries for the rewards asked for, with the recipe's parameters and tables; by default all of the recipe's.

    Args:
        on_error: "skip" counts the rows that fail, all of them where the recipe sets no `max_error_rate`.
    """
    in_recipe = recipe.get("reward_funcs") or []
    if not isinstance(in_recipe, list):
        raise RewardSpecError(f"reward_funcs: expected a list of entries, found {in_recipe!r}")
    in_recipe = [{"name": spec} if isinstance(spec, str) else spec for spec in in_recipe]
    by_name = {spec_name(spec): spec for spec in in_recipe} | {spec["name"]: spec for spec in in_recipe}
    specs = in_recipe if names is None else [by_name.get(ALIASES.get(name, name), {"name": name}) for name in names]
    if not specs:
        raise RewardSpecError("no rewards: name some with --rewards, or give a --config that has reward_funcs")
    filled: list[Any] = with_tables(specs, recipe)  # mappings, as `specs` are
    return [{"max_error_rate": 1.0, **spec, "on_error": on_error} for spec in filled]


def _storable(row: dict) -> dict:
    """A row as JSON: images that are not paths are left out."""
    stored = dict(row)
    if "images" in stored:
        stored["images"] = [image for image in stored["images"] if isinstance(image, str)]
    return stored


def score_row_key(row: dict, number: int) -> dict:
    """What identifies a row in `scores.jsonl`."""
    key: dict[str, Any] = {"id": row["id"]} if row.get("id") is not None else {"row": number}
    if "generation" in row:
        key["generation"] = row["generation"]
    return key


def format_table(summaries: dict[str, dict]) -> str:
    """The summary as a text table, one line a reward."""
    titles = ("mean", "std", "min", "5%", "50%", "95%", "max", "rows", "none", "errors")
    header = f"{'reward':<24}" + "".join(f"{title:>9}" for title in titles)
    lines = [header, "-" * len(header)]
    for name, summary in summaries.items():
        total = summary["count"] + summary["none"]
        if summary["count"]:
            quantiles = summary["quantiles"]
            figures = [summary["mean"], summary["std"], summary["min"], quantiles["0.05"], quantiles["0.5"]]
            figures += [quantiles["0.95"], summary["max"]]
            shown = "".join(f"{figure:>9.3f}" for figure in figures)
        else:
            shown = f"{'-':>9}" * 7
        none = f"{100 * summary['none'] / total:.1f}%" if total else "-"
        lines.append(f"{name:<24}{shown}{total:>9}{none:>9}{summary['errors']:>9}")
    return "\n".join(lines)


@dataclass(kw_only=True)
class EvalArguments(ServerArguments):
    """What is scored, by which rewards."""

    dataset_name: str | None = option(
        "completions: JSONL, JSON or parquet file, folder with splits, or Hub data set", None, old=("input",)
    )
    split: str = split_option("test")
    rewards: tuple[str, ...] | None = option("names, or dotted paths of your own; by default the recipe's", None)
    config: Path | None = option("takes parameters, agents and image sizes from a recipe", None, old=("recipe",))
    output_dir: Path | None = option("folder to write the scores to", None)
    on_error: str = option("stop at a failing row, or count it", "skip", choices=ON_ERROR)
    limit: int | None = limit_option()
    workers: int | None = option(
        "processes for rewards that read texts only; by default one a core", None, within=AT_LEAST_1
    )
    model: str | None = model_option(
        "folder, Hub id, or http://host:port/v1 of a server: generate the completions first", None, served=True
    )
    num_generations: int = option("completions of a prompt", 1, within=AT_LEAST_1)
    temperature: float = option("of sampling; 0 takes the most likely token", 0.0, within=AT_LEAST_0)
    max_new_tokens: int | None = option(
        "of a completion; by default the recipe's max_completion_length, or 256", None, within=AT_LEAST_1
    )
    batch_size: int = option("prompts generated at once", 32, within=AT_LEAST_1)
    seed: int = seed_option("of sampling")
    compare: tuple[Path, Path] | None = option(
        "scores.jsonl before and after: they are compared, nothing is scored", None
    )
    list: bool = option("show every reward, and nothing else", False)

    def __post_init__(self):
        if self.list or self.compare:
            return
        missing = [f"--{name}" for name in ("dataset_name", "output_dir") if getattr(self, name) is None]
        if missing:
            raise OptionError(f"missing: {', '.join(missing)}; needed unless --compare or --list is given")
        if self.num_generations > 1 and self.temperature <= 0:
            raise OptionError("--num_generations above 1 needs a --temperature above 0, or all are the same")


def evaluate(arguments: EvalArguments) -> None:
    """Scores, writes and prints."""
    assert arguments.dataset_name is not None  # as `EvalArguments` demands
    assert arguments.output_dir is not None
    recipe = read_recipe(arguments.config) if arguments.config else {}
    specs = choose_specs(arguments.rewards, recipe, arguments.on_error)
    agents = recipe.get("agents")
    rewards = build_rewards(specs, agents)  # before anything slow: names and parameters
    check_there(rewards)
    if arguments.model:
        unfinished = arguments.output_dir / "server_answers"
        rows = generate_completions(
            arguments.dataset_name,
            arguments.split,
            find_vlm(arguments.model, arguments),
            recipe,
            num_generations=arguments.num_generations,
            temperature=arguments.temperature,
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            limit=arguments.limit,
            answers=arguments.answer_cache or unfinished,
        )
        for name in ("scores.jsonl", "summary.json"):  # of an earlier run: they must not stand beside new completions
            (arguments.output_dir / name).unlink(missing_ok=True)
        write_jsonl(arguments.output_dir / "completions.jsonl", (_storable(row) for row in rows))
        shutil.rmtree(unfinished, ignore_errors=True)
    else:
        arguments.check_unused()
        with_images = any(getattr(reward.function, "needs_model", False) for reward in rewards)
        rows = read_completions(arguments.dataset_name, arguments.split, with_images, arguments.limit)
    check_columns(rewards, rows, arguments.dataset_name)
    scores, failures = score_rows(specs, agents, rows, arguments.workers, rewards)
    keys = [score_row_key(row, number) for number, row in enumerate(rows)]
    write_jsonl(
        arguments.output_dir / "scores.jsonl",
        ({**key, **{name: values[number] for name, values in scores.items()}} for number, key in enumerate(keys)),
    )
    errors = {name: sum(failure.reward == name for failure in failures) for name in scores}
    summaries = {name: summarise(values, errors[name]) for name, values in scores.items()}
    told = {reward.name: reward.function.figures() for reward in rewards if isinstance(reward.function, Reward)}
    figures = {name: found for name, found in told.items() if found}
    write_json(
        arguments.output_dir / "summary.json", {"rewards": summaries, **({"figures": figures} if figures else {})}
    )
    print(format_table(summaries))
    for name, found in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in found.items()))
    for failure in list(dict.fromkeys(failures))[:5]:
        print(failure.describe(), file=sys.stderr)
    print(f"written to {arguments.output_dir}")


def list_rewards() -> None:
    """Prints every reward with its parameters, columns and range."""
    for name in REWARDS:
        reward: Any = import_reward(name)
        summary = (inspect.getdoc(reward) or "").partition("\n")[0]
        parameters = ", ".join(f"{key}={value.default!r}" for key, value in reward_parameters(reward).items())
        print(f"{name}\n    {summary}")
        print(f"    parameters: {parameters or 'none'}")
        print(f"    columns:    {', '.join(reward.columns) or 'none'}")
        if issubclass(reward, Reward):
            print(f"    reads:      {'texts only' if reward.text_only else 'texts and the data set'}")


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(EvalArguments, argv)
    if arguments.list:
        list_rewards()
    elif arguments.compare:
        compare(*arguments.compare, arguments.output_dir)
    else:
        evaluate(arguments)


if __name__ == "__main__":
    main()
