"""What an evaluation leaves: every answer, a summary, a table with intervals, and a plot."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data.io.records import atomic_write, write_json, write_jsonl
from rewards.scoring.statistics import Interval, bootstrap_mean, paired_difference
from rollouts.example_selection.evaluation import BEST_OF, MEAN_OF, BestOf, Evaluation, Outcome
from rollouts.example_selection.selection_methods import RANDOM

BASELINES = (RANDOM, "image_text_similarity")
"""Methods that every other one is compared with, if they were evaluated."""
RESAMPLES = 2_000
SIZE = (7.5, 5.0)
"""Of the plot, in inches."""
COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
"""Of the lines; grey is left out."""


def gap_closed(values: list[float], low: list[float], high: list[float], seed: int = 0) -> Interval | None:
    """The share of the way from `low` to `high` that `values` go: (values - low) / (high - low), of the means.

    All lists are of the same queries, which are resampled together. `None` if there is no gap.
    """
    table = np.array([values, low, high], dtype=np.float64)  # (3, queries)
    estimate = table.mean(axis=1)
    if estimate[2] <= estimate[1]:
        return None
    rng = np.random.default_rng(seed)
    means = np.stack([table[:, rng.integers(table.shape[1], size=table.shape[1])].mean(1) for _ in range(RESAMPLES)])
    gaps = means[:, 2] - means[:, 1]
    shares = (means[:, 0] - means[:, 1])[gaps > 0] / gaps[gaps > 0]
    share = (estimate[0] - estimate[1]) / (estimate[2] - estimate[1])
    return Interval(float(share), *(float(end) for end in np.quantile(shares, [0.025, 0.975])))


def _accuracy(method: str, shots: int, values: list[float]) -> dict:
    return {"method": method, "shots": shots, **asdict(bootstrap_mean(values)), "n": len(values)}


def _comparisons(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """(method, what it is compared with): each with the baselines, and each selector with the one before it."""
    names = [method.name for method in evaluation.methods]
    selectors = [method.name for method in evaluation.methods if method.selector is not None]
    pairs = [(name, base) for base in BASELINES if base in names for name in names if name not in BASELINES[:1]]
    pairs += list(zip(selectors[1:], selectors, strict=False))
    yield from ((name, against) for name, against in dict.fromkeys(pairs) if name != against)


def summarise_evaluation(evaluation: Evaluation) -> dict:
    """Accuracies, paired differences and shares of the gap to the best sets, with 95% bootstrap intervals."""
    by_place = {(outcome.method, outcome.shots): outcome.accuracies for outcome in evaluation.outcomes}
    accuracy = [_accuracy(method, shots, values) for (method, shots), values in by_place.items()]
    differences, gaps = [], []
    for method, against in _comparisons(evaluation):
        for shots in evaluation.shots:
            after = by_place.get((method, shots), by_place.get((method, 0)))
            before = by_place[against, shots]
            found = {"method": method, "against": against, "shots": shots}
            differences.append({**found, **asdict(paired_difference(before, after)), "n": len(after)})
    for best in evaluation.best_of:
        accuracy.append(_accuracy(best.name, best.shots, best.best))
        accuracy.append(_accuracy(f"{MEAN_OF}{best.count}", best.shots, best.mean))
        for (method, shots), values in by_place.items():
            if shots == best.shots:
                share = gap_closed(values, best.mean, best.best)
                figures = {"estimate": None} if share is None else asdict(share)
                gaps.append({"method": method, "shots": shots, **figures, "n": len(values)})
    return {
        "queries": len(evaluation.data.queries),
        "shots": evaluation.shots,
        "accuracy": accuracy,
        "differences": differences,
        "gap_closed": gaps,
        "answers": evaluation.counts,
    }


# -- text -------------------------------------------------------------------------------------------------------------


def _cell(row: dict | None, signed: bool) -> str:
    if row is None:
        return ""
    if row["estimate"] is None:
        return "no gap"
    numbers = [f"{row[name]:+.3f}" if signed else f"{row[name]:.3f}" for name in ("estimate", "low", "high")]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _section(title: str, rows: dict[str, dict[int, dict]], columns: list[int], signed: bool) -> list[str]:
    """A titled table: label -> number of shots -> figures."""
    width = max(len(label) for label in (*rows, title)) + 2
    heads = [f"{shots} shot" + ("" if shots == 1 else "s") for shots in columns]
    lines = ["", (f"{title:<{width}}" + "".join(f"{head:<26}" for head in heads)).rstrip()]
    lines.append("-" * (width + 26 * len(columns) - 3))
    for label, cells in rows.items():
        lines.append((f"{label:<{width}}" + "".join(f"{_cell(cells.get(s), signed):<26}" for s in columns)).rstrip())
    return lines


def _by_label(found: list[dict], label: str) -> dict[str, dict[int, dict]]:
    rows: dict[str, dict[int, dict]] = {}
    for row in found:
        rows.setdefault(label.format(**row), {})[row["shots"]] = row
    return rows


def format_summary(summary: dict) -> str:
    """The summary as text: a line a method, a column a number of shots."""
    shots = summary["shots"]
    columns = [0] * any(row["shots"] == 0 for row in summary["accuracy"]) + shots
    lines = [f"VQA accuracy of {summary['queries']} queries, each with its 95% bootstrap interval"]
    lines += _section("method", _by_label(summary["accuracy"], "{method}"), columns, signed=False)
    if summary["differences"]:
        lines += _section(
            "paired difference", _by_label(summary["differences"], "{method} - {against}"), shots, signed=True
        )
    if summary["gap_closed"]:
        lines += _section(
            "share of the gap from a random set to the best",
            _by_label(summary["gap_closed"], "{method}"),
            shots,
            signed=False,
        )
    return "\n".join(lines)


# -- files ------------------------------------------------------------------------------------------------------------


def _answer_rows(evaluation: Evaluation, outcome: Outcome) -> Iterator[dict]:
    rows = zip(evaluation.data.queries, outcome.choices, outcome.answers, outcome.accuracies, strict=True)
    for query, choice, answer, accuracy in rows:
        yield {
            "id": query.id,
            "question": query.question,
            "examples": choice,
            "raw": answer.raw,
            "answer": answer.text,
            "accuracy": accuracy,
            "answers": query.answers,
        }


def _set_rows(evaluation: Evaluation, best: BestOf) -> Iterator[dict]:
    rows = zip(evaluation.data.queries, best.choices, best.answers, best.accuracies, strict=True)
    for query, choices, answers, accuracies in rows:
        sets = [
            {"examples": choice, "raw": answer.raw, "answer": answer.text, "accuracy": accuracy}
            for choice, answer, accuracy in zip(choices, answers, accuracies, strict=True)
        ]
        yield {"id": query.id, "question": query.question, "answers": query.answers, "sets": sets}


def answers_file(output_dir: Path, method: str, shots: int) -> Path:
    """Where a method's answers are stored."""
    return output_dir / "answers" / f"{method}-{shots}.jsonl"


def _plotted(summary: dict) -> dict[str, dict[int, dict]]:
    """Method -> number of shots -> figures, the best first; the mean of random sets only where random is missing."""
    rows = _by_label(summary["accuracy"], "{method}")
    if RANDOM in rows:
        rows = {method: cells for method, cells in rows.items() if not method.startswith(MEAN_OF)}
    return dict(sorted(rows.items(), key=lambda item: -item[1][max(item[1])]["estimate"]))


def draw_plot(summary: dict, path: Path) -> None:
    """Accuracy over the number of shots, a line a method; references of random sets dashed, zero-shot dotted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = _plotted(summary)
    colours = itertools.cycle(COLOURS)
    shift = 0.006 * (max(summary["shots"]) - min(summary["shots"]) or 1)
    for number, (method, cells) in enumerate(rows.items()):
        reference = method.startswith((BEST_OF, MEAN_OF))
        colour = "black" if reference else next(colours)
        if set(cells) == {0}:
            axes.axhline(cells[0]["estimate"], color=colour, linestyle=":", label=method)
            continue
        shots = sorted(cells)
        estimate, low, high = (np.array([cells[s][name] for s in shots]) for name in ("estimate", "low", "high"))
        axes.errorbar(
            np.array(shots) + shift * (number - (len(rows) - 1) / 2),  # so that intervals do not hide each other
            estimate,
            yerr=[estimate - low, high - estimate],
            color=colour,
            linestyle="--" if reference else "-",
            marker="s" if reference else "o",
            markersize=4,
            capsize=2,
            linewidth=1.4,
            label=method,
        )
    axes.set_xticks(summary["shots"])
    axes.set_xlabel("examples shown")
    axes.set_ylabel(f"VQA accuracy, {summary['queries']} queries, 95% intervals")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    entries = [handles[method] for method in rows]  # matplotlib's own order puts lines without intervals first
    axes.legend(entries, list(rows), frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def write_report(evaluation: Evaluation, output_dir: Path, settings: dict) -> dict:
    """Writes answers, `summary.json`, `table.txt` and `accuracy.png`; returns the summary."""
    for outcome in evaluation.outcomes:
        write_jsonl(answers_file(output_dir, outcome.method, outcome.shots), _answer_rows(evaluation, outcome))
    for best in evaluation.best_of:
        write_jsonl(answers_file(output_dir, best.name, best.shots), _set_rows(evaluation, best))
    selectors = {method.name: method.selector for method in evaluation.methods if method.selector is not None}
    summary = summarise_evaluation(evaluation)
    write_json(output_dir / "summary.json", {**summary, "selectors": selectors, "settings": settings})
    with atomic_write(output_dir / "table.txt") as file:
        file.write(format_summary(summary) + "\n")
    draw_plot(summary, output_dir / "accuracy.png")
    return summary
