"""A trained model reads the data-quality report on a data set, and the agents that it selects filter the data set.

    python -m data.quality_reports --source my_images/ --output_dir outputs/report --no_damage
    python -m rollouts.filter_dataset --dataset_name outputs/report/report.jsonl --model outputs/grpo \\
        --config recipes/agent_selection_tiny.yaml --output outputs/report/kept.jsonl

Reads rows of `{"report", "pool", "images"?, "id"?}`. Writes a row each: `{"id", "completion", "agents": {name:
prompt}, "kept": [ids], "removed": [ids], "unread_prompts", "unknown_agents"}`. The data set itself is not changed.
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, StrictStr, model_validator

from data.cli.arguments import UNNAMED, option, rows_file_option, skip_unreadable_option, split_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1
from data.io.images import resolve_images, resolve_path
from data.io.records import base_folder, parse_rows, read_some_rows, write_jsonl
from data.io.shards import work_folder
from data.io.unreadable import Skipping, readable_rows, refuse_unreadable, with_positions_as_ids
from data.reports.pool import ItemId, images_of_pools, load_pool, readable_pool
from data.rows.messages import without_leading_marks
from data.rows.row_images import RecordWithImages
from filter_agents.executor import Executor
from models.model_paths import model_option
from models.served.arguments import ServerArguments
from models.vlm import Prompt, Sampling
from models.vlm_places import VLMPlace, find_vlm


class Report(RecordWithImages):
    """What a model needs to select agents for a data set."""

    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True)

    report: StrictStr = Field(min_length=1)
    pool: StrictStr
    id: ItemId | None = None

    @model_validator(mode="after")
    def _images_come_first(self) -> "Report":
        self.report = without_leading_marks("report", self.report, self.images)
        return self


def load_reports(source: str, split: str) -> list[Report]:
    """Reports with absolute paths, in the order of the file.

    Raises:
        RecordError: lists what is wrong, missing pools too.
    """
    base = base_folder(source)
    reports = [
        report.model_copy(
            update={"pool": resolve_path(report.pool, base), "images": resolve_images(report.images, base)}
        )
        for report in parse_rows(read_some_rows(source, split), Report)
    ]
    for report in reports:
        load_pool(report.pool)
    return reports


def readable_reports(reports: list[Report], source: str, skipping: Skipping, work: Path) -> list[Report]:
    """The reports, all of whose images and of whose pools' images can be read.

    Args:
        skipping: leaves out reports with an image of their own that cannot be read, and such items of pools.
        work: folder for pools without the items that are left out.

    Raises:
        RecordError: names all images that cannot be read, where none is to be left out.
    """
    places = [f"{source}: report {report.id!r}" for report in reports]
    if not skipping.wanted:
        of_reports = [(place, image) for place, one in zip(places, reports, strict=True) for image in one.images]
        folders = dict.fromkeys(report.pool for report in reports)
        refuse_unreadable([*of_reports, *images_of_pools(load_pool(folder) for folder in folders)])
        return reports
    left_out = skipping.of("reports")
    reports = readable_rows(with_positions_as_ids(reports, left_out), places, left_out=left_out)
    pools = {
        folder: readable_pool(folder, skipping.of(f"items of {folder}"), work / str(number))
        for number, folder in enumerate(dict.fromkeys(report.pool for report in reports))
    }
    skipping.report()
    return [report.model_copy(update={"pool": pools[report.pool]}) for report in reports]


def select_agents(
    reports: list[Report], place: VLMPlace, recipe: dict[str, Any], agents: dict, work: Path, batch_size: int = 8
) -> list[str]:
    """The model's answer to each report, most likely token by token.

    Args:
        place: of the model.
        recipe: `min_pixels`, `max_pixels` and `max_completion_length`, as in training.
        agents: that may be selected, by name.
        work: folder for answers of a server.
    """
    from tqdm import tqdm

    from data.prompts import selection_messages

    vlm = place.load(recipe.get("min_pixels"), recipe.get("max_pixels"), work)
    available = [(agent.name, agent.description) for agent in agents.values()]
    sampling = Sampling(recipe.get("max_completion_length") or 256)
    size = vlm.chunk_size(batch_size)
    answers = []
    for start in tqdm(range(0, len(reports), size), desc="selecting", unit="batch"):
        prompts = [
            Prompt(selection_messages(report.report, available), report.images, number)
            for number, report in enumerate(reports[start : start + size], start)
        ]
        answers += [text for [text] in vlm.complete(prompts, sampling)]
    return answers


def filter_datasets(reports: list[Report], answers: list[str], executor: Executor) -> list[dict]:
    """Runs each answer's selection on its report's data set; a row each, as in the module's description.

    An answer without a readable selection keeps nothing and removes nothing: `kept` is `None`.
    """
    from rewards.agent_selection import parse_selection

    rows = []
    for number, (report, answer) in enumerate(zip(reports, answers, strict=True)):
        row: dict[str, Any] = {"id": report.id if report.id is not None else number, "completion": answer}
        selection = parse_selection(answer).unescaped()
        if selection.agents is None:
            rows.append({**row, "agents": None, "kept": None, "removed": None})
            continue
        outcome = executor.run(report.pool, selection.prompts)
        kept = set(outcome.kept)
        row |= {"agents": selection.prompts, "kept": outcome.kept}
        row["removed"] = [item_id for item_id in load_pool(report.pool).ids if item_id not in kept]
        rows.append({**row, "unread_prompts": outcome.unread_prompts, "unknown_agents": outcome.unknown_agents})
    return rows


def describe(row: dict) -> str:
    """One line on what a row says."""
    if row["agents"] is None:
        return f"report {row['id']}: the answer holds no readable selection: {row['completion']!r:.120}"
    chosen = ", ".join(row["agents"]) or "no agent"
    return f"report {row['id']}: {chosen}; {len(row['kept'])} items kept, {len(row['removed'])} removed"


@dataclass(kw_only=True)
class FilterDatasetArguments(ServerArguments):
    """Which reports are read, by which model."""

    dataset_name: str = option("reports: JSONL, JSON or parquet file, or folder with splits", old=("reports", UNNAMED))
    split: str = split_option("test")
    model: str = model_option("folder, Hub id, or http://host:port/v1 of a server", served=True)
    config: Path | None = option(
        "recipe that the model was trained with: agents, image sizes, length", None, old=("recipe",)
    )
    batch_size: int = option("reports read at once", 8, within=AT_LEAST_1)
    skip_unreadable: bool = skip_unreadable_option()
    output: Path = rows_file_option("JSONL file of what is selected and kept")


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(FilterDatasetArguments, argv)

    from filter_agents.registry import build_agents
    from rewards.eval import read_recipe

    recipe = read_recipe(arguments.config) if arguments.config else {}
    agents = build_agents(recipe.get("agents"))
    executor = Executor(agents)
    place = find_vlm(arguments.model, arguments)
    skipping = Skipping(arguments.skip_unreadable)
    reports = load_reports(arguments.dataset_name, arguments.split)
    with tempfile.TemporaryDirectory() as work:
        reports = readable_reports(reports, arguments.dataset_name, skipping, Path(work))
        unfinished = work_folder(arguments.output)
        folder = arguments.answer_cache or unfinished
        answers = select_agents(reports, place, recipe, agents, folder, arguments.batch_size)
        rows = filter_datasets(reports, answers, executor)
    skipping.write(arguments.output)
    write_jsonl(arguments.output, rows)
    shutil.rmtree(unfinished, ignore_errors=True)
    for row in rows:
        print(describe(row))
        if row["kept"] == []:
            print(f"warning: report {row['id']}: nothing is kept of its data set", file=sys.stderr)
    print(f"written to {arguments.output}")
    if any(row["agents"] is None for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
