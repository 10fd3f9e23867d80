"""What an evaluation says: the content of `summary.json`, and the same as a table."""

from collections.abc import Sequence

from data.io.records import RecordError
from rewards.benches.base import Bench, Figures
from rewards.preferences.calibration import calibration, score_summary
from rewards.preferences.scored import ScoredPreference, equal_ranks

SKIPPED = {
    "duplicates": "repeated pairs left out",
    "equal_ranks": "pairs of responses of equal rank left out",
    "bad_rows": "unusable rows left out",
}
"""Counts of what is in no figure, and what the table calls them."""


def summarise(bench: Bench, preferences: Sequence[ScoredPreference], source: str) -> Figures:
    """The content of `summary.json`.

    Raises:
        RecordError: no two responses of unequal rank.
    """
    pairs = bench.pairs(preferences)
    if not pairs:
        raise RecordError([f"{source}: field 'human_ranking': no row has two responses of unequal rank"])
    return {
        "bench": bench.name,
        **bench.figures(preferences),
        "rows": len(preferences),
        "equal_ranks": equal_ranks(preferences),
        "scores": score_summary(pairs),
        "calibration": calibration(pairs),
    }


def percent(share: float | None) -> str:
    """With two decimals, or `-`."""
    return "-" if share is None else f"{100 * share:.2f}"


def _cells(bench: Bench, row: Figures) -> list[str]:
    interval = "-" if row["wilson"] is None else " to ".join(percent(bound) for bound in row["wilson"])
    further = [percent(row[key]) for key, _ in bench.columns]
    counts = [str(row[key]) for key in ("count", "ties", "n")]
    return [percent(row["accuracy"]), interval, *counts, percent(row["strict_accuracy"]), *further]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<34}" + "".join(f"{cell:>16}" for cell in cells)


def format_summary(bench: Bench, summary: Figures) -> str:
    """Groups, overall and macro as a text table, in percent."""
    further = [heading for _, heading in bench.columns]
    lines = [_line("group", ["accuracy", "95% interval", "decided", "ties", bench.unit, "strict", *further])]
    lines.append("-" * len(lines[0]))
    overall = {
        "accuracy": summary["overall"],
        "wilson": summary["overall_wilson"],
        "count": summary["count"],
        "ties": summary["ties"],
        "n": summary["items"],
        "strict_accuracy": summary["strict_overall"],
        **{key: summary[key] for key, _ in bench.columns},
    }
    rows = {**summary["groups"], "overall": overall}
    lines += [_line(name, _cells(bench, row)) for name, row in rows.items()]
    lines.append(_line("macro", [percent(summary["macro"]), "", "", "", "", percent(summary["strict_macro"])]))
    lines.append("")
    lines.append(
        f"coverage {percent(summary['coverage'])}% ({bench.unit} that are no ties; strict counts ties as wrong)"
    )
    empty = [name for name, row in summary["groups"].items() if row["accuracy"] is None]
    if empty:
        lines.append(
            f"no decided {bench.unit.removesuffix('s')} in {', '.join(empty)}: macro is the mean of the other groups"
        )
    lines += [f"{summary[key]:,} {text}" for key, text in SKIPPED.items() if summary.get(key)]
    return "\n".join(lines)
