"""Ways to choose filtering agents for the same reports: predicted factors alone, and a VLM with and without them.

    python -m rollouts.compare_factors --dataset_name outputs/factor_agents/without --config agent_selection_tiny \\
        --routing outputs/factors/routing.yaml --predictors resnet=outputs/factors/damages_model \\
        --vlm outputs/factor_agents/grpo_without --vlm_with_factors outputs/factor_agents/grpo_with \\
        --output_dir outputs/factor_agents/comparison

A predictor chooses the agents to which the factors lead that it finds on a pool's images. A VLM reads the report;
`--vlm_with_factors` also reads what the first predictor finds, and its time includes that. Each way runs in a process
of its own: its memory is that process's peak, its time leaves loading out. Writes each way's completions and scores
below the output folder, and one table as comparison.json.
"""

import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.agent_selection import AgentSelectionRecord, as_row, load_records
from data.cli.arguments import UNNAMED, limit_option, option, split_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.processes import process_pool
from data.cli.ranges import AT_LEAST_1
from data.errors import UserError
from data.io.output_folder import writing
from data.io.records import being_written, write_json, write_jsonl
from data.reports.measurements import check_pools
from models.errors import ModelError
from models.model_paths import check_model_place, model_option
from models.vlm_places import ModelFolder
from rewards.eval import read_recipe
from rewards.scoring.inputs import generate_completions
from rewards.scoring.rows import score_rows
from rewards.scoring.statistics import bootstrap_mean, paired_difference
from rollouts.factor_reports import predict_records, routed_selection, with_factors
from rollouts.factor_routing import load_routes

REWARDS = ("agent_selection", "filtering_quality")
WITHOUT, WITH = "vlm", "vlm_with_factors"


class ComparisonError(UserError, ValueError):
    """Arguments that do not fit together."""


@dataclass(frozen=True)
class Way:
    """One way to choose agents; plain values, because it is sent to another process.

    Attributes:
        name: in the table.
        model: factor predictor, or VLM.
        predictor: for a VLM, the predictor whose factors it reads, if any.
        is_vlm: whether `model` reads reports.
    """

    name: str
    model: str
    predictor: str | None = None
    is_vlm: bool = False


@dataclass(kw_only=True)
class CompareFactorsArguments:
    """Which ways are compared, on which reports."""

    dataset_name: str = option(
        "agent-selection records with pools, without factors in their reports", old=("reports", UNNAMED)
    )
    split: str = split_option("test")
    predictors: tuple[str, ...] = option("factor predictors, each NAME=MODEL")
    routing: Path = option("table of factors and agents (rollouts.factor_routing)")
    vlm: str | None = model_option("trained on reports without factors", None)
    vlm_with_factors: str | None = model_option("trained on reports with those of the first predictor", None)
    config: Path | None = option("recipe of the VLMs: agents, image sizes, length", None, old=("recipe",))
    agents: tuple[str, ...] | None = option("in place of the recipe's", None)
    least_images: int = option("images with a factor that bring its agent in", 1, within=AT_LEAST_1)
    batch_size: int = option("reports read at once", 32, within=AT_LEAST_1)
    limit: int | None = limit_option("reports")
    output_dir: Path = option("folder to write completions, scores and the table to")

    def __post_init__(self):
        self.recipe = read_recipe(self.config) if self.config else {}
        if self.agents:
            self.recipe["agents"] = list(self.agents)


def peak_memory() -> float:
    """Megabytes: of this process at its largest, or of the accelerator where there is one."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _records(arguments: CompareFactorsArguments) -> list[AgentSelectionRecord]:
    records = load_records(arguments.dataset_name, arguments.split, check_files=False)[: arguments.limit]
    for number, record in enumerate(records):
        if record.id is None:
            record.id = number
    return records


def _row(record: AgentSelectionRecord, completion: str) -> dict:
    return {
        "id": record.id,
        "completion": completion,
        "ground_truth_agents": record.ground_truth_agents,
        "ground_truth_filtered_data": record.ground_truth_filtered_data,
        "pool": record.pool,
    }


def _by_factors(way: Way, arguments: CompareFactorsArguments) -> tuple[list[dict], float, int]:
    from tqdm import tqdm

    from filter_agents.registry import build_agents
    from models.factors.predictor import load_factor_predictor

    records = _records(arguments)
    model = load_factor_predictor(way.model)
    routes = load_routes(arguments.routing, model.config.factors, build_agents(arguments.recipe.get("agents")))
    started = time.perf_counter()
    found = []
    for start in tqdm(range(0, len(records), arguments.batch_size), desc=way.name, unit="batch"):
        part = records[start : start + arguments.batch_size]
        counts = predict_records(part, model)
        found += [routed_selection(row, routes, arguments.least_images) for row in counts]
    seconds = time.perf_counter() - started
    rows = [_row(record, text) for record, text in zip(records, found, strict=True)]
    return rows, seconds, model.num_parameters()


def _by_vlm(way: Way, arguments: CompareFactorsArguments) -> tuple[list[dict], float, int]:
    from models.factors.predictor import load_factor_predictor
    from models.families.loading import load_vlm

    records, predicting, parameters = _records(arguments), 0.0, 0
    if way.predictor is not None:
        predictor = load_factor_predictor(way.predictor)
        factors, names = predictor.config.factors, predictor.config.factor_names or {}
        started = time.perf_counter()
        counts = predict_records(records, predictor)
        records = [with_factors(*pair, factors, names) for pair in zip(records, counts, strict=True)]
        predicting = time.perf_counter() - started
        parameters = predictor.num_parameters()
    folder = arguments.output_dir / way.name
    write_jsonl(folder / "reports.jsonl", (as_row(record, folder.resolve()) for record in records))
    load_vlm(way.model)  # so that the clock below does not count reading the files for the first time
    started = time.perf_counter()
    generated = generate_completions(
        folder / "reports.jsonl",
        arguments.split,
        ModelFolder(way.model),
        arguments.recipe,
        batch_size=arguments.batch_size,
    )
    seconds = predicting + time.perf_counter() - started
    parameters += load_vlm(way.model, "cpu")[0].num_parameters()
    rows = [_row(record, row["completion"]) for record, row in zip(records, generated, strict=True)]
    return rows, seconds, parameters


def run_way(way: Way, arguments: CompareFactorsArguments) -> dict[str, Any]:
    """Completions, seconds, parameters and peak memory of one way; called in a process of its own."""
    being_written.add(arguments.output_dir.resolve())  # by the process that called this one
    rows, seconds, parameters = (_by_vlm if way.is_vlm else _by_factors)(way, arguments)
    write_jsonl(arguments.output_dir / way.name / "completions.jsonl", rows)
    return {"rows": rows, "seconds": seconds, "parameters": parameters, "memory_mb": peak_memory()}


def score_way(way: Way, arguments: CompareFactorsArguments, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table, and the scores of every report."""
    specs = [{"name": name} for name in REWARDS]
    scores, _ = score_rows(specs, arguments.recipe.get("agents"), found["rows"], workers=1)
    keys = [row["id"] for row in found["rows"]]
    write_jsonl(
        arguments.output_dir / way.name / "scores.jsonl",
        ({"id": key, **{name: scores[name][number] for name in REWARDS}} for number, key in enumerate(keys)),
    )
    figures = {
        "way": way.name,
        "reports": len(keys),
        "seconds_a_report": found["seconds"] / len(keys),
        "memory_mb": found["memory_mb"],
        "parameters": found["parameters"],
    }
    measured = {name: [value for value in scores[name] if value is not None] for name in REWARDS}
    return {"figures": figures | {name: vars(bootstrap_mean(measured[name])) for name in REWARDS}, "scores": scores}


def compare_ways(ways: Sequence[Way], arguments: CompareFactorsArguments) -> dict[str, Any]:
    """Runs every way, and returns the table; with both VLMs also the difference that factors make to them."""
    scored = {}
    for way in ways:
        with process_pool(1, mp_context=multiprocessing.get_context("spawn")) as process:
            scored[way.name] = score_way(way, arguments, process.submit(run_way, way, arguments).result())
    table: dict[str, Any] = {"ways": [scored[way.name]["figures"] for way in ways]}
    if WITHOUT in scored and WITH in scored:
        table["with_minus_without"] = {
            name: vars(paired_difference(scored[WITHOUT]["scores"][name], scored[WITH]["scores"][name]))
            for name in REWARDS
        }
    return table


def format_comparison(table: dict[str, Any]) -> str:
    """The table as text."""
    lines = [f"{'way':<20}{'agents F1':>24}{'filtering F1':>24}{'ms a report':>13}{'MB':>8}{'M parameters':>14}"]
    for row in table["ways"]:
        shown = [f"{row[name]['estimate']:.3f} [{row[name]['low']:.3f}, {row[name]['high']:.3f}]" for name in REWARDS]
        cost = f"{1000 * row['seconds_a_report']:>13.1f}{row['memory_mb']:>8.0f}{row['parameters'] / 1e6:>14.2f}"
        lines.append(f"{row['way']:<20}" + "".join(f"{text:>24}" for text in shown) + cost)
    for name, found in table.get("with_minus_without", {}).items():
        lines.append(
            f"{name}: factors add {found['estimate']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}] to the VLM"
        )
    return "\n".join(lines)


def _named(entries: Sequence[str]) -> list[Way]:
    ways = []
    for entry in entries:
        name, equals, model = entry.partition("=")
        if not (name and equals and model) or "/" in name:
            raise ComparisonError(f"--predictors: expected NAME=MODEL, found {entry!r}")
        try:
            check_model_place(model, of_a_run=True)
        except ModelError as error:
            raise error.at(f"--predictors {name}") from error
        ways.append(Way(name, model))
    names = [way.name for way in ways] + [WITHOUT, WITH]
    if len(set(names)) < len(names):
        raise ComparisonError(f"--predictors: expected different names, none of them {WITHOUT} or {WITH}")
    return ways


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(CompareFactorsArguments, argv)
    ways = _named(arguments.predictors)
    first = ways[0].model
    if arguments.vlm:
        ways.append(Way(WITHOUT, arguments.vlm, is_vlm=True))
    if arguments.vlm_with_factors:
        ways.append(Way(WITH, arguments.vlm_with_factors, predictor=first, is_vlm=True))
    records = load_records(arguments.dataset_name, arguments.split)
    if any(record.pool is None for record in records):
        raise ComparisonError(f"{arguments.dataset_name}: expected a pool for every report, to filter it")
    check_pools(record.pool for record in records[: arguments.limit] if record.pool is not None)
    with writing(arguments.output_dir) as folder:
        table = compare_ways(ways, arguments)
        write_json(folder / "comparison.json", table)
    print(format_comparison(table))
    print(f"written to {arguments.output_dir / 'comparison.json'}")


if __name__ == "__main__":
    main()
