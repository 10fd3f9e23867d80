"""Held-out results as report and card show them: read from what the evaluating commands write."""

from pathlib import Path
from typing import Any

from data.io.records import RecordError, read_json
from rewards.scoring.statistics import Interval


def read_held_out(path: str | Path) -> dict[str, Any]:
    """A table of results.

    Args:
        path: `comparison.json` of `rewards.eval --compare`, or `summary.json` of `rewards.reward_bench` or of
            `rollouts.in_context`.

    Returns:
        {"source": the file, "title", "columns": titles, "rows": texts}.

    Raises:
        RecordError: no such file, or another one.
    """
    content = read_json(Path(path))
    for read in (_comparison, _reward_bench, _in_context):
        try:
            table = read(content)
        except (KeyError, TypeError, AttributeError):
            continue
        return {"source": str(path), **table}
    raise RecordError(
        [
            f"{path}: expected comparison.json of rewards.eval --compare, or summary.json of rewards.reward_bench or "
            "rollouts.in_context"
        ]
    )


def read_diagnosis(path: str | Path) -> dict[str, Any] | None:
    """What `rewards.reward_bench --diagnose` adds to its `summary.json`, as an entry of `RunRecord.diagnoses`.

    `None` if a file of results has no diagnosis.
    """
    content = read_json(Path(path))
    if not isinstance(content, dict) or not content.get("diagnosis"):
        return None
    return {"source": str(path), "name": content["model"], "figures": content["diagnosis"]}


def _comparison(content: dict) -> dict[str, Any]:
    rows = [
        [
            name,
            f"{found['before']:.3f}",
            f"{found['after']:.3f}",
            str(Interval(found["estimate"], found["low"], found["high"])),
            f"{found['rows']:,}",
        ]
        for name, found in content.items()
    ]
    return {
        "title": "before and after training, with 95% intervals of the paired difference (bootstrap over rows)",
        "columns": ["reward", "before", "after", "difference [95% interval]", "rows"],
        "rows": rows,
    }


def _share(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "none"
    bounds = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{100 * value:.1f}%{bounds}"


def _reward_bench(content: dict) -> dict[str, Any]:
    groups = {name: found for name, found in content["groups"].items() if found["count"]}
    rows = [
        [name, _share(found["accuracy"], found["wilson"]), f"{found['count']:,}"] for name, found in groups.items()
    ]
    rows.append(["overall", _share(content["overall"], content["overall_wilson"]), f"{content['count']:,}"])
    return {
        "title": "pairs in people's order, with 95% intervals (Wilson)",
        "columns": ["pairs", "accuracy [95% interval]", "decided pairs"],
        "rows": rows,
    }


def _in_context(content: dict) -> dict[str, Any]:
    rows = [
        [
            found["method"],
            str(found["shots"]),
            f"{found['estimate']:.3f} [{found['low']:.3f}, {found['high']:.3f}]",
            f"{found['n']:,}",
        ]
        for found in content["accuracy"]
    ]
    return {
        "title": "VQA accuracy of the model that is shown the chosen examples, with 95% intervals (bootstrap)",
        "columns": ["method", "examples shown", "accuracy [95% interval]", "queries"],
        "rows": rows,
    }
