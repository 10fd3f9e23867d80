"""Stored completions of a VLM to learn from: several for each prompt, each scored by any rewards.

    python -m rollouts.completions --dataset_name outputs/data --split train --model outputs/sft \\
        --config recipes/agent_selection_tiny.yaml --num_completions 8 --output outputs/completions.jsonl

Prompts come from any data set of `data/tasks.py`; rewards, their weights, agents and image sizes from the recipe, as
for `rewards.eval`. Writes candidate groups (`data/candidate_groups.py`) with the prompt and all that its rewards need.
Started again after it was stopped, it goes on; `accelerate launch` divides the prompts among processes.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.cli.arguments import (
    device_option,
    limit_option,
    option,
    rows_file_option,
    seed_option,
    skip_unreadable_option,
    split_option,
)
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import ABOVE_0, AT_LEAST_1
from data.io.output_folder import image_file
from data.io.records import RecordError
from data.io.shards import KeptWorkArguments, ShardStore, end_processes, process_state
from data.io.unreadable import Skipping
from data.reports.pool import ItemId
from models.model_paths import model_option
from models.served.arguments import ServerArguments
from models.vlm import VLM, Prompt, Sampling
from models.vlm_places import check_prompts, find_vlm
from rewards.eval import choose_specs, read_recipe
from rewards.registry import RewardSpec, build_rewards, check_weights, spec_name
from rewards.scoring.failure_policy import ON_ERROR, Failure, GuardedReward, settle

VERSION = 1
"""Raised when the same settings make other rows."""
NOT_STORED = ("gold", "pool")
"""Columns that groups do not bring: the right answer, and the data set to filter (a group's `pool` are examples)."""


def choose_weights(
    specs: Sequence[RewardSpec], given: Sequence[float] | None, recipe: dict[str, Any]
) -> dict[str, float]:
    """Weight of each reward by name: given ones, else the recipe's `reward_weights` of the same reward, else 1.

    Raises:
        RewardSpecError: another number of weights than of rewards.
    """
    names = [spec_name(spec) for spec in specs]
    if given is not None:
        check_weights(specs, given, "--weights")
        return dict(zip(names, map(float, given), strict=True))
    in_recipe, weights = recipe.get("reward_funcs") or [], recipe.get("reward_weights")
    if weights is None:
        return dict.fromkeys(names, 1.0)
    check_weights(in_recipe, weights)
    by_name = dict(zip(map(spec_name, in_recipe), map(float, weights), strict=True))
    return {name: by_name.get(name, 1.0) for name in names}


def weighted_sum(scores: dict[str, float | None], weights: dict[str, float]) -> float | None:
    """The sum of the scores that apply, each times its weight; `None` if none does.

    >>> weighted_sum({"accuracy": 0.5, "format": None}, {"accuracy": 2.0, "format": 1.0})
    1.0
    """
    present = [weights[name] * score for name, score in scores.items() if score is not None]
    return sum(present) if present else None


@dataclass
class CompletionMaker:
    """Completions of a batch of prompts with their scores, as rows of `data.candidate_groups`.

    Attributes:
        vlm: completes the prompts.
        sampling: how.
        rewards: score the completions.
        weights: of the rewards, by name.
        failures: rows that a reward could not score (`on_error: skip`).
    """

    vlm: VLM
    sampling: Sampling
    rewards: Sequence[GuardedReward]
    weights: dict[str, float]
    failures: list[Failure] = field(default_factory=list, init=False)
    _failed: Counter[str] = field(default_factory=Counter, init=False)
    _scored: int = field(default=0, init=False)

    def groups(self, rows: Sequence[dict]) -> list[dict]:
        """A group for each row of `data.tasks.load_rows`."""
        prompts = [Prompt(row["prompt"], row["images"], row["id"]) for row in rows]
        texts = self.vlm.complete(prompts, self.sampling)
        scored = self._score(
            [{**row, "completion": text} for row, found in zip(rows, texts, strict=True) for text in found]
        )
        candidates = [
            {
                "completion": text,
                "reward": weighted_sum(scores, self.weights),
                "scores": scores,
                "gen_method": "model",
                "temperature": self.sampling.temperature,
            }
            for text, scores in zip((text for found in texts for text in found), scored, strict=True)
        ]
        size = self.sampling.num_generations
        return [
            {
                **{name: value for name, value in row.items() if name not in NOT_STORED},
                "candidates": candidates[number * size : (number + 1) * size],
            }
            for number, row in enumerate(rows)
        ]

    def _score(self, rows: list[dict]) -> list[dict[str, float | None]]:
        """Scores of each row by reward name.

        Raises:
            RewardError: see `rewards.scoring.failure_policy.settle`.
        """
        from rewards.scoring.rows import score_chunk

        scores, failures = score_chunk(self.rewards, rows)
        self._scored += len(rows)
        settle(self.rewards, failures, self._failed, self._scored)
        self.failures += failures
        return [{name: values[number] for name, values in scores.items()} for number in range(len(rows))]


def with_image_files(row: dict, folder: Path) -> dict:
    """The row with paths in place of pictures: those that are not files yet are stored in a folder, by content."""
    return {**row, "images": [image_file(image, folder.resolve()) for image in row["images"]]}


@dataclass(kw_only=True)
class CompletionArguments(ServerArguments, KeptWorkArguments):
    """Which prompts are completed, how, and by which rewards completions are scored."""

    dataset_name: str = option("file, folder or Hub data set of any task (data/tasks.py)", old=("dataset",))
    split: str = split_option("train")
    limit: int | None = limit_option()
    model: str = model_option("folder (also of a run), Hub id, or http://host:port/v1 of a server", served=True)
    config: Path | None = option("takes rewards, weights, agents and image sizes from a recipe", None, old=("recipe",))
    rewards: tuple[str, ...] | None = option("names, or dotted paths of your own; by default the recipe's", None)
    weights: tuple[float, ...] | None = option("of the rewards, in their order", None)
    on_error: str = option("stop at a failing row, or count it", "raise", choices=ON_ERROR)
    num_completions: int = option("for each prompt", 8, within=AT_LEAST_1)
    temperature: float = option("of sampling; at 0 all completions were the same", 1.0, within=ABOVE_0)
    max_new_tokens: int | None = option(
        "of a completion; by default the recipe's max_completion_length, or 256", None, within=AT_LEAST_1
    )
    batch_size: int = option("prompts completed at once", 16, within=AT_LEAST_1)
    seed: int = seed_option("of sampling")
    device: str | None = device_option()
    skip_unreadable: bool = skip_unreadable_option()
    output: Path = rows_file_option("JSONL of candidate groups")


def _load_rows(source: str, split: str, limit: int | None, recipe: dict[str, Any], skipping: Skipping) -> list[dict]:
    from data.tasks import load_rows
    from filter_agents.registry import described_agents

    agents = described_agents(recipe.get("agents"))
    answer_tags = bool(recipe.get("answer_tags"))
    rows = load_rows(
        source,
        split,
        agents,
        answer_tags,
        limit=limit,
        left_out=skipping.of("rows"),
    )
    skipping.report()
    repeated = [item for item, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise RecordError([f"{source}: field 'id': duplicate {item!r}" for item in repeated])
    return rows


def make_completions(arguments: CompletionArguments) -> None:
    """Reads and checks everything, makes what is missing, and merges."""
    from rewards.scoring.columns import check_columns

    recipe = read_recipe(arguments.config) if arguments.config else {}
    specs = choose_specs(arguments.rewards, recipe, arguments.on_error)
    weights = choose_weights(specs, arguments.weights, recipe)
    rewards = build_rewards(specs, recipe.get("agents"))
    place = find_vlm(arguments.model, arguments, arguments.device)
    skipping = Skipping(arguments.skip_unreadable)
    rows = _load_rows(arguments.dataset_name, arguments.split, arguments.limit, recipe, skipping)
    check_columns(rewards, [{**row, "completion": ""} for row in rows], arguments.dataset_name)
    check_prompts(place, rows, arguments.dataset_name)

    from data.io.digests import rows_digest

    max_new_tokens = arguments.max_new_tokens or recipe.get("max_completion_length") or 256
    settings = {
        "version": VERSION,
        "data": rows_digest(rows),
        "left_out": skipping.positions(),
        "model": place.fingerprint(),
        "rewards": specs,
        "agents": recipe.get("agents"),
        "weights": weights,
        "pixels": [recipe.get("min_pixels"), recipe.get("max_pixels")],
        "max_new_tokens": max_new_tokens,
        **{name: getattr(arguments, name) for name in ("num_completions", "temperature", "seed", "batch_size")},
    }
    device = arguments.device or process_state().device
    answers = arguments.answer_folder(arguments.work(arguments.output) / "server_answers", arguments.restart)
    vlm = place.load(recipe.get("min_pixels"), recipe.get("max_pixels"), answers, device)
    sampling = Sampling(max_new_tokens, arguments.num_completions, arguments.temperature, arguments.seed)
    maker = CompletionMaker(vlm, sampling, rewards, weights)
    _make_all(maker, rows, settings, arguments, skipping)


def _make_all(
    maker: CompletionMaker, rows: Sequence[dict], settings: dict, arguments: CompletionArguments, skipping: Skipping
) -> None:
    """The groups of all rows, each kept as soon as it is there, and the file at the end."""
    by_id = {row["id"]: row for row in rows}
    images = arguments.output.with_name(arguments.output.stem + "_images")

    def groups_of(chunk: list[ItemId]) -> Iterator[dict]:
        return (with_image_files(group, images) for group in maker.groups([by_id[row_id] for row_id in chunk]))

    with ShardStore(arguments.work(arguments.output), settings, restart=arguments.restart) as store:
        size = maker.vlm.chunk_size(arguments.batch_size)
        store.fill(arguments.output, list(by_id), groups_of, size, unit="prompt")
        if store.is_main:
            skipping.write(arguments.output)
            _report(arguments.output, maker.failures)


def _report(output: Path, failures: Sequence[Failure]) -> None:
    from data.io.records import read_rows
    from rewards.eval import format_table
    from rewards.scoring.statistics import summarise

    found: dict[str, list[float | None]] = {}
    groups = 0
    for _, group in read_rows(output):
        groups += 1
        for candidate in group["candidates"]:
            for name, score in {"reward": candidate["reward"], **candidate["scores"]}.items():
                found.setdefault(name, []).append(score)
    errors = [failure.reward for failure in failures]
    print(format_table({name: summarise(scores, errors.count(name)) for name, scores in found.items()}))
    for failure in list(dict.fromkeys(failures))[:5]:
        print(failure.describe(), file=sys.stderr)
    print(f"{groups} groups written to {output}")


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    make_completions(parse_and_hold(CompletionArguments, argv))
    end_processes()


if __name__ == "__main__":
    main()
