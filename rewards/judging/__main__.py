"""Data to train and measure pairwise judges on, and what their verdicts come to.

    python -m rewards.judging rows --dataset_name outputs/preferences --output_dir outputs/judge
    python -m rewards.judging figures --completions outputs/after/completions.jsonl --output_dir outputs/after

`rows` turns preferences (data/preferences.py) into chat rows, each pair in both orders and in one split. A judge is
trained on them (recipes/judge_grpo.yaml), or asked by `rewards.eval --model`, whose completions `figures` reads.
"""

import random
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.cli.arguments import option, seed_option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import SHARE
from data.io.output_folder import refuse_own_input, relative_image_path, write_split, writing
from data.io.records import available_splits, write_json
from data.io.splits import SPLITS
from data.preferences import load_preferences
from data.tasks import load_rows
from rewards.judging.order_swaps import accuracy_gain, format_swaps, load_swaps, summarise_swaps
from rewards.judging.prompts import PAIR_RUBRIC
from rewards.judging.rows import judge_rows


@dataclass(kw_only=True)
class RowsArguments:
    """Writes preferences as rows for pairwise judges."""

    dataset_name: str = option("preferences: JSONL, JSON or parquet file, folder with splits, or Hub data set")
    output_dir: Path = option("folder to write the rows to: a file a split, or one called like the file that is read")
    rubric: str = option("what makes a response better, in words", PAIR_RUBRIC)
    hasty_share: float = option(
        "of the annotators whose verdicts are in `completion`, those who take the first response", 0.0, within=SHARE
    )
    seed: int = seed_option("of who is hasty")
    skip_bad_rows: bool = option("leave out unusable rows of dataset_name instead of stopping", False)


def _splits_of(source: str) -> list[str]:
    place = Path(source)
    if place.is_file():
        return [place.stem]
    return (available_splits(place, SPLITS) or list(SPLITS)) if place.is_dir() else ["train"]


def write_rows(arguments: RowsArguments) -> None:
    """Reads every split, and writes it as rows."""
    refuse_own_input(arguments.dataset_name, arguments.output_dir)
    read = partial(load_preferences, arguments.dataset_name, skip_bad_rows=arguments.skip_bad_rows)
    splits = {split: read(split) for split in _splits_of(arguments.dataset_name)}
    with writing(arguments.output_dir) as folder:
        base = folder.resolve()
        for split, (records, counts) in splits.items():
            rng = random.Random(f"{arguments.seed} {split}")
            made = (judge_rows(record, arguments.rubric, arguments.hasty_share, rng) for record in records)
            rows = [row for of_record in made for row in of_record]
            stored = [{**row, "images": [relative_image_path(one, base) for one in row["images"]]} for row in rows]
            write_split(folder, split, stored, partial(load_rows, check_files=False))
            sys.stdout.write(f"{split}: {len(rows)} rows; {counts}\n")


@dataclass(kw_only=True)
class FiguresArguments:
    """Counts right verdicts, those that the order of the responses decides, and unreadable ones."""

    completions: Path = option("completions.jsonl of rewards.eval on such rows")
    before: Path | None = option("the same of an earlier judge, to be compared with", None)
    output_dir: Path = option("folder to write verdicts.json to")


def write_figures(arguments: FiguresArguments) -> None:
    """Counts, writes and prints."""
    sources = {"before": arguments.before, "after": arguments.completions}
    verdicts = {name: load_swaps(path) for name, path in sources.items() if path is not None}
    figures: dict[str, Any] = {name: summarise_swaps(list(pairs.values())) for name, pairs in verdicts.items()}
    if arguments.before is not None:
        figures["gain"] = vars(accuracy_gain(**verdicts))
    write_json(arguments.output_dir / "verdicts.json", figures)
    sys.stdout.write(f"{format_swaps(figures)}\n")


COMMANDS = {"rows": RowsArguments, "figures": FiguresArguments}


@command
def main(argv: list[str] | None = None) -> None:
    arguments: Any = parse_and_hold(COMMANDS, argv)
    (write_rows if isinstance(arguments, RowsArguments) else write_figures)(arguments)


if __name__ == "__main__":
    main()
