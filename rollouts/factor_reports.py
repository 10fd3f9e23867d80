"""Data-quality reports with what a factor predictor finds on their images as a further sentence.

    python -m rollouts.factor_reports --dataset_name outputs/data --factors outputs/factors/damages_model \\
        --output_dir outputs/data_with_factors

Records of agent selection in, records out (`data/agent_selection.py`): `trainers/sft.py`, `trainers/grpo.py` and
`rewards.eval` take either. The predictor looks at every image of a report's pool, or at those shown with a report
that has no pool. Killed and started again, the same command goes on; the splits are written together, in the end.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.agent_selection import AgentSelectionRecord, as_row, load_records
from data.cli.arguments import UNNAMED, device_option, option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import AT_LEAST_1
from data.io.digests import rows_digest
from data.io.images import ImageSource
from data.io.output_folder import refuse_own_input, write_split, writing
from data.io.records import RecordError, available_splits
from data.io.shards import RestartArguments, ShardStore, end_processes, process_state, work_folder
from data.io.splits import SPLITS
from data.prompts import format_selection
from data.reports.pool import load_pool
from data.reports.wording import factor_sentence
from data.tasks import DEFAULT_PROMPT
from models.model_paths import model_option
from rollouts.factor_routing import Routes, routed_agents

ROUTED_REASONING = "The predicted factors lead to these agents."


def images_of(record: AgentSelectionRecord) -> list[ImageSource]:
    """What is looked at for a record."""
    if record.pool is None:
        return list(record.images)
    pool = load_pool(record.pool)
    return [str(pool.image_path(item)) for item in pool.items]


def predict_records(records: Sequence[AgentSelectionRecord], model: Any, batch_size: int = 64) -> list[Counter]:
    """For each record, the number of its images that each factor applies to.

    Args:
        model: a factor predictor (`models/factors/predictor.py`).
    """
    images = [images_of(record) for record in records]
    found = iter(model.predict([image for part in images for image in part], batch_size))
    return [Counter(factor for _ in part for factor in next(found)) for part in images]


def with_factors(
    record: AgentSelectionRecord, counts: Mapping[str, int], factors: Sequence[str], names: Mapping[str, str]
) -> AgentSelectionRecord:
    """The record with a sentence on its factors at the end of its report.

    Args:
        counts: factor id -> number of images.
        factors: ids in the order in which they are to be named.
        names: id -> readable name.
    """
    named = {names.get(factor, factor): counts.get(factor, 0) for factor in factors}
    sentence = factor_sentence(named, len(images_of(record)))
    return record.model_copy(update={"report": f"{record.report} {sentence}"})


def routed_selection(counts: Mapping[str, int], routes: Routes, least_images: int = 1) -> str:
    """What a model would answer that chose the agents of all factors found on at least so many images."""
    agents = routed_agents([factor for factor, count in counts.items() if count >= least_images], routes)
    return format_selection(dict.fromkeys(agents, DEFAULT_PROMPT), ROUTED_REASONING)


def predict_split(
    records: list[AgentSelectionRecord],
    model: Any,
    fingerprint: str,
    work: Path,
    batch_size: int,
    restart: bool = False,
) -> list[Counter]:
    """For each record, the number of its images that each factor applies to; what is in `work` is not made again."""
    ids = list(range(len(records)))
    reports = rows_digest({"report": record.report, "images": images_of(record)} for record in records)
    settings = {"model": fingerprint, "reports": reports}

    def rows_of(chunk: list[int]) -> Iterator[dict]:
        found = predict_records([records[number] for number in chunk], model)
        return ({"id": number, "factors": dict(counts)} for number, counts in zip(chunk, found, strict=True))

    predicted = work / "predicted.jsonl"
    with ShardStore(work, settings, sync_every=batch_size, restart=restart) as store:
        store.fill(predicted, ids, rows_of, batch_size, unit="report")
    # Not by `read_rows`: it refuses the folder after a kill while the splits were written, which a new start mends.
    with predicted.open(encoding="utf-8") as file:
        return [Counter(json.loads(line)["factors"]) for line in file]


def splits_of(source: Path) -> list[str]:
    """The splits that a folder has; a file is taken as its name says."""
    if source.is_file():
        return [source.stem]
    found = available_splits(source, SPLITS) if source.is_dir() else []
    if not found:
        raise RecordError([f"{source}: found none of the splits {', '.join(SPLITS)}"])
    return found


def write_reports(output_dir: Path, records: dict[str, list[AgentSelectionRecord]]) -> None:
    """Writes the splits as a whole; others in the folder stay as they are."""
    base = output_dir.resolve()
    with writing(output_dir) as folder:
        for split, part in records.items():
            write_split(folder, split, [as_row(record, base) for record in part], read=load_records)


@dataclass(kw_only=True)
class FactorReportArguments(RestartArguments):
    """Which reports get a further sentence, from which predictor."""

    dataset_name: str = option("reports: file, or folder with splits", old=("reports", UNNAMED))
    factors: str = model_option("factor predictor: folder or Hub id")
    output_dir: Path = option("folder to write the reports to")
    batch_size: int = option("reports whose images are looked at together", 32, within=AT_LEAST_1)
    device: str | None = device_option()


@command(shares_work=True)
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(FactorReportArguments, argv)

    from data.reports.measurements import check_pools
    from models.factors.predictor import load_factor_predictor
    from models.run_folders import find_model, model_fingerprint

    source = Path(arguments.dataset_name)
    refuse_own_input(source, arguments.output_dir)
    records = {split: load_records(source, split) for split in splits_of(source)}
    check_pools(record.pool for part in records.values() for record in part if record.pool is not None)
    model = load_factor_predictor(arguments.factors, arguments.device)
    factors, names = model.config.factors, model.config.factor_names or {}
    fingerprint = model_fingerprint(find_model(arguments.factors))
    counts = {}
    for split, part in records.items():
        work = work_folder(arguments.output_dir / split)
        counts[split] = predict_split(part, model, fingerprint, work, arguments.batch_size, arguments.restart)
    if process_state().is_main_process:
        changed = {
            split: [with_factors(*pair, factors, names) for pair in zip(part, counts[split], strict=True)]
            for split, part in records.items()
        }
        write_reports(arguments.output_dir, changed)
        for split, found in counts.items():
            empty = sum(not one for one in found)
            print(f"{split}: {len(found)} reports written, {empty} of them without a predicted factor")
    end_processes()


if __name__ == "__main__":
    main()
