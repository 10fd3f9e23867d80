"""The difference between two evaluations of the same rows, with an interval."""

import json
from collections import defaultdict
from pathlib import Path

from data.io.records import RecordError, read_some_rows, write_json
from rewards.scoring.statistics import paired_difference


def _mean_scores(path: Path) -> dict[str, dict[str, float]]:
    """Reward -> row -> mean over its generations, leaving out `None`."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for location, row in read_some_rows(path):
        if not isinstance(row, dict) or ("id" not in row and "row" not in row):
            raise RecordError([f"{location}: expected an object with 'id' or 'row', as rewards.eval writes it"])
        key = json.dumps(row.get("id", row.get("row")))
        for name, score in row.items():
            if name in ("id", "row", "generation") or score is None:
                continue
            if not isinstance(score, int | float):
                raise RecordError([f"{location}: field '{name}': expected a number or null, found {score!r:.80}"])
            values[name][key].append(score)
    return {name: {key: sum(found) / len(found) for key, found in rows.items()} for name, rows in values.items()}


def compare(before: Path, after: Path, output_dir: Path | None) -> dict[str, dict]:
    """Prints the paired difference of every reward that both files have, with a 95% bootstrap interval."""
    scores = [_mean_scores(path) for path in (before, after)]
    names = [name for name in scores[0] if name in scores[1]]
    if not names:
        raise RecordError([f"{before} and {after} have no reward in common"])
    result = {}
    print(f"{'reward':<24}{'before':>8}{'after':>8}   difference [95% interval]        rows")
    for name in names:
        keys = [key for key in scores[0][name] if key in scores[1][name]]
        if not keys:
            raise RecordError([f"{before} and {after} have no row in common for '{name}'"])
        values = [[part[name][key] for key in keys] for part in scores]
        means = [sum(part) / len(part) for part in values]
        interval = paired_difference(*values)
        print(f"{name:<24}{means[0]:>8.3f}{means[1]:>8.3f}   {interval!s:<30}{len(keys):>7}")
        result[name] = {"before": means[0], "after": means[1], **vars(interval), "rows": len(keys)}
    if output_dir is not None:
        write_json(output_dir / "comparison.json", result)
    return result
