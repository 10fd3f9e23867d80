"""Data-quality reports written from measurements, on pools of real images that were damaged in known ways.

    python -m data.quality_reports --source easy_vqa --output_dir outputs/data --reports 640 --pool_size 12
    python -m data.quality_reports --source my_images/ --output_dir outputs/report --no_damage

With damage: records for `data.agent_selection` in train.jsonl, validation.jsonl and test.jsonl, whose right answer is
known because the damage is. Without: a report on the images as they are, for a trained model to read.
Killed and started again, the same command keeps the pools that are finished.
"""

import json
import math
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.agent_selection import load_records
from data.cli.arguments import OptionError, option, seed_option, skip_unreadable_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.processes import process_pool
from data.cli.ranges import AT_LEAST_1, Range
from data.io.image_sources import SourceItem, load_all, load_splits, readable_items
from data.io.images import open_image
from data.io.output_folder import write_split, writing
from data.io.records import write_json, write_jsonl
from data.io.splits import SPLITS, ShareArguments, Shares, split_sizes
from data.io.unreadable import Skipping
from data.reports.aspects import (
    ASPECTS,
    EXACT_COPIES,
    NEAR_COPIES,
    TEXT_LENGTH,
    Aspect,
    aspects_of,
    healthy_bounds,
    remarkable_ids,
    resolution_limit,
)
from data.reports.damage import DAMAGES
from data.reports.damaged_pools import DamagedPool, DamageError, PoolDrawer, as_items
from data.reports.measurements import Measurement, measure_pool, store_measurements
from data.reports.pool import Item, Pool
from data.reports.wording import OPENINGS, VAGUE, WORDINGS, choose

RECORD_FILE = "record.json"
MAX_IMAGES = 4
AGENTS = tuple(aspect.agent for aspect in ASPECTS)


@dataclass(frozen=True)
class Settings:
    """What every report depends on besides its own number; stored with it, so that a changed command starts anew.

    Attributes:
        shares: of training, validation and test.
        images: sample images shown with a report.
        damages: smallest and largest number of damages in a pool.
        vague: reports say that something is wrong and not what.
        left_out: positions in the source of items whose images cannot be read.
    """

    source: str
    pool_size: int
    seed: int
    agents: tuple[str, ...]
    images: int
    damages: tuple[int, int]
    shares: Shares
    vague: bool = False
    left_out: tuple[int, ...] = ()


def format_number(value: float) -> str:
    """At most two decimals and no trailing zeros, as a person would write it."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def agent_prompt(aspect: Aspect, side_limit: float) -> str:
    """What the right answer tells an agent: the healthy bounds, in the grammar of `filter_agents/grammar.py`."""
    if aspect == EXACT_COPIES:
        return "drop exact copies"
    if aspect == NEAR_COPIES:
        return "drop near copies"
    clauses = []
    for quantity, bound in healthy_bounds(aspect, math.ceil(side_limit)).items():
        if quantity == "answer_words":  # the bound on questions is what matters; a prompt should be short
            continue
        name = quantity.replace("_", " ")
        if bound.minimum is not None and bound.maximum is not None:
            clauses.append(f"{name} between {format_number(bound.minimum)} and {format_number(bound.maximum)}")
        elif bound.minimum is not None:
            clauses.append(f"{name} at least {format_number(bound.minimum)}")
        elif bound.maximum is not None:
            clauses.append(f"{name} at most {format_number(bound.maximum)}")
    return "keep " + ", ".join(clauses)


def _aspect_sentence(
    aspect: Aspect, items: list[Item], measurements: list[Measurement], split: str, rng: random.Random
) -> str:
    count = len(remarkable_ids(aspect, items, measurements))
    sentences = WORDINGS[aspect].remarkable if count else WORDINGS[aspect].healthy
    values = [getattr(row, aspect.quantities[0]) for row in measurements] if aspect.quantities else []
    if aspect == TEXT_LENGTH:
        values = [words for words in values if words]  # of the questions that are there
    values = values or [0.0]
    verb = "is" if count == 1 else "are"
    return choose(rng, sentences, split).format(
        count=count,
        total=len(items),
        of_images=f"{count} of {len(items)} images {verb}",
        images_are=f"{count} image{'' if count == 1 else 's'} {verb}",
        items_are=f"{count} item{'' if count == 1 else 's'} {verb}",
        blown=round(100 * max(row.clipping for row in measurements)),
        percent=round(100 * count / len(items)),
        median=float(np.median(values)),
        minimum=min(values),
        extreme=max(values),
    )


def _vague_sentence(
    aspects: list[Aspect], items: list[Item], measurements: list[Measurement], split: str, rng: random.Random
) -> str:
    count = len({item_id for aspect in aspects for item_id in remarkable_ids(aspect, items, measurements)})
    sentence = choose(rng, VAGUE.remarkable if count else VAGUE.healthy, split)
    return sentence.format(count=count, total=len(items), percent=round(100 * count / len(items)))


def write_report(
    items: list[Item],
    measurements: list[Measurement],
    agents: tuple[str, ...],
    split: str,
    rng: random.Random,
    vague: bool = False,
) -> str:
    """The text of a report, from the measurements alone, in random order.

    Args:
        agents: the report is about the aspects that these can mend, as far as they can be judged.
        split: decides which sentences may be used.
        vague: one sentence that says how much is wrong and not what, in place of one for each aspect.
    """
    aspects = [aspect for aspect in aspects_of(items) if aspect.agent in agents]
    rng.shuffle(aspects)
    opening = choose(rng, OPENINGS, split).format(total=len(items))
    if vague:
        return f"{opening} {_vague_sentence(aspects, items, measurements, split, rng)}"
    return " ".join([opening, *(_aspect_sentence(aspect, items, measurements, split, rng) for aspect in aspects)])


def _store_pool(folder: Path, drawn: DamagedPool) -> Pool:
    """Writes images, items and measurements, and returns the pool."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    items, measurements = as_items(drawn.members)
    for item, member in zip(items, drawn.members, strict=True):
        member.draft.image.save(folder / "images" / f"{item.id:04d}.png", compress_level=1)
    stored = [item.model_copy(update={"image": f"images/{item.id:04d}.png"}) for item in items]
    pool = Pool(folder, stored)
    pool.save_items()
    store_measurements(pool, measurements)
    return pool


def _make_record(name: str, split: str, output_dir: Path, settings: Settings, drawer: PoolDrawer) -> dict:
    """Draws, stores and reports one pool; the record's paths are relative to `output_dir`."""
    folder = output_dir / "pools" / name
    finished = folder / RECORD_FILE
    fingerprint = json.loads(json.dumps({**asdict(settings), "split": split}))
    if finished.is_file():
        content = json.loads(finished.read_text(encoding="utf-8"))
        if content["settings"] == fingerprint:
            return content["record"]
    rng = random.Random(f"{settings.seed} {name}")
    drawn = drawer.draw(rng)
    pool = _store_pool(folder, drawn)
    measurements = measure_pool(pool)
    damaged = [DAMAGES[damage].aspect for damage in drawn.damage_of.values()]
    aspects = [aspect for aspect in ASPECTS if aspect in damaged]
    shown = rng.sample(pool.items, min(settings.images, len(pool)))
    record = {
        "id": name,
        "report": write_report(pool.items, measurements, settings.agents, split, rng, settings.vague),
        "ground_truth_agents": [aspect.agent for aspect in aspects],
        "ground_truth_prompts": {
            aspect.agent: agent_prompt(aspect, resolution_limit(measurements)) for aspect in aspects
        },
        "ground_truth_filtered_data": [item.id for item in pool.items if item.id not in drawn.damage_of],
        "images": [f"pools/{name}/{item.image}" for item in shown],
        "pool": f"pools/{name}",
        "metadata": {"damage_of": {str(position): damage for position, damage in drawn.damage_of.items()}},
    }
    write_json(finished, {"settings": fingerprint, "record": record})
    return record


@lru_cache(maxsize=1)
def _drawers(settings: Settings) -> dict[str, PoolDrawer]:
    """One drawer a split; made once in each worker process."""
    splits: dict[str, list[SourceItem]] = load_splits(
        settings.source, settings.shares, settings.seed, set(settings.left_out)
    )
    return {
        split: PoolDrawer(items, settings.pool_size, settings.agents, settings.damages)
        for split, items in splits.items()
        if items
    }


def check_source(reports: int, settings: Settings) -> None:
    """Raises a `DamageError` if a split is to have reports and the source has no images for it."""
    drawers = _drawers(settings)
    for split, size in zip(SPLITS, split_sizes(reports, settings.shares), strict=True):
        if size and split not in drawers:
            raise DamageError(f"--source {settings.source} has no images left for the {split} split")


def _make_task(task: tuple[str, str, Path, Settings]) -> dict:
    name, split, output_dir, settings = task
    return _make_record(name, split, output_dir, settings, _drawers(settings)[split])


def make_reports(output_dir: Path, reports: int, settings: Settings, workers: int) -> Iterator[tuple[str, int]]:
    """Writes the pools and the records of every split; yields (split, number of records) as each is finished."""
    for split, size in zip(SPLITS, split_sizes(reports, settings.shares), strict=True):
        tasks = [(f"{split}-{number:05d}", split, output_dir, settings) for number in range(size)]
        with process_pool(workers) as processes:
            records = list(
                tqdm(processes.map(_make_task, tasks, chunksize=4), total=size, desc=f"{split} reports", unit="report")
            )
        write_split(output_dir, split, records, load_records)
        yield split, size


def without_unreadable(settings: Settings, skipping: Skipping) -> Settings:
    """The settings of reports on damaged pools, with the positions of what is left out; every image is decoded.

    Raises:
        RecordError: names the images that cannot be read, where none is to be left out.
    """
    left_out = skipping.of("items")
    readable_items(load_all(settings.source), left_out)
    skipping.report()
    return settings if left_out is None else replace(settings, left_out=tuple(left_out.positions))


def report_on_images(output_dir: Path, settings: Settings, workers: int, skipping: Skipping) -> dict:
    """Measures a source's images as they are and writes the report to `report.jsonl`.

    Images stay where they are; `pool/items.jsonl` refers to them. At most `pool_size` are drawn at random; of those,
    `skipping` may leave some out, and the ids of the others are as without it.

    Raises:
        RecordError: names the images that cannot be read, where none is to be left out.
    """
    rng = random.Random(settings.seed)
    sources = load_all(settings.source)
    if len(sources) > settings.pool_size:
        sources = rng.sample(sources, settings.pool_size)
    folder = output_dir / "pool"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    left_out = skipping.of("items")
    readable_items(sources, left_out)
    skipping.report()
    gone = set() if left_out is None else set(left_out.positions)
    items = []
    for number, source in enumerate(sources):
        if number in gone:
            continue
        path = source.image
        if not isinstance(path, str):
            path = f"images/{number:06d}.png"
            open_image(source.image).save(folder / path)
        items.append(Item(id=number, image=path, question=source.question, answers=source.answers))
    pool = Pool(folder, items)
    pool.save_items()
    measurements = measure_pool(pool, workers)
    shown = rng.sample(items, min(settings.images, len(items)))
    record = {
        "id": "report",
        "report": write_report(items, measurements, settings.agents, "train", rng, settings.vague),
        "images": [str(Path("pool") / item.image) for item in shown],
        "pool": "pool",
    }
    write_jsonl(output_dir / "report.jsonl", [record])
    skipping.write(output_dir)
    return record


@dataclass(kw_only=True)
class QualityReportArguments(ShareArguments):
    """Which images reports are about, and how they are damaged."""

    source: str = option("easy_vqa, a folder of images, or a data set (path or Hub id)")
    output_dir: Path = option("folder to write the reports and their pools to")
    reports: int = option("number of reports, all splits together", 640, within=AT_LEAST_1)
    pool_size: int = option("items that a report is about", 12, within=AT_LEAST_1)
    seed: int = seed_option("of pools, damages and wording")
    agent_list: tuple[str, ...] = option("agents that reports are about", AGENTS, choices=AGENTS)
    damages: tuple[int, int] = option("least and largest number of damages in a pool", (1, 3))
    images: int = option("sample images shown with a report", 1, within=Range(0, MAX_IMAGES))
    vague: bool = option("reports say that something is wrong and not what", False)
    skip_unreadable: bool = skip_unreadable_option()
    no_damage: bool = option("report on the images as they are", False)
    workers: int = option("processes", os.cpu_count(), within=AT_LEAST_1)

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.damages[0] <= self.damages[1]:
            raise OptionError(f"--damages: expected 1 <= least <= most, found {self.damages[0]} {self.damages[1]}")
        if not self.no_damage and self.pool_size < 4:
            raise OptionError(f"--pool_size: expected at least 4, found {self.pool_size}")


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(QualityReportArguments, argv)
    settings = Settings(
        source=arguments.source,
        pool_size=arguments.pool_size,
        seed=arguments.seed,
        agents=arguments.agent_list,
        images=arguments.images,
        damages=arguments.damages,
        shares=arguments.shares,
        vague=arguments.vague,
    )
    skipping = Skipping(arguments.skip_unreadable)
    if arguments.no_damage:
        with writing(arguments.output_dir) as folder:
            record = report_on_images(folder, settings, arguments.workers, skipping)
        print(record["report"])
        print(f"written to {arguments.output_dir / 'report.jsonl'}")
        return
    settings = without_unreadable(settings, skipping)
    check_source(arguments.reports, settings)
    with writing(arguments.output_dir) as folder:
        skipping.write(folder)
        for split, size in make_reports(folder, arguments.reports, settings, arguments.workers):
            print(f"{size} {split} reports written to {folder / f'{split}.jsonl'}" if size else f"no {split} split")


if __name__ == "__main__":
    main()
