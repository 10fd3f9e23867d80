"""Published figures of a bench, newest first, and one's own beside them where the same rows were scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from rewards.benches.base import Figures

TABLE = Path(__file__).with_name("published.yaml")
OVERALL_TOLERANCE = 1.0
"""Points of a hundred; judges whose answer cannot be read leave pairs out, which moves the weights of the groups."""
MACRO_TOLERANCE = 0.2


@dataclass(frozen=True)
class Published:
    """One line of a bench: percent, by column, of those that its source prints.

    Attributes:
        rows: how many it is of, where those are not the rows that the bench's other lines are of.
    """

    model: str
    figures: Mapping[str, float]
    source: str
    date: str
    rows: int | None = None

    def inconsistent(self, sizes: Mapping[str, int]) -> bool:
        """Whether overall or macro is not what the figures of the groups give; unknown ones are not."""
        groups = [self.figures[group] for group in sizes if group in self.figures]
        if not groups or len(groups) < len(sizes):
            return False
        weighted = sum(size * self.figures[group] for group, size in sizes.items()) / sum(sizes.values())
        overall, macro = self.figures.get("overall", weighted), self.figures.get("macro", sum(groups) / len(groups))
        return abs(weighted - overall) > OVERALL_TOLERANCE or abs(sum(groups) / len(groups) - macro) > MACRO_TOLERANCE


@dataclass(frozen=True)
class PublishedBench:
    """The columns of a bench's table, what its figures were measured on, and its lines.

    Attributes:
        columns: heading -> the figure's key in a summary, in a group or at its top.
        sizes: rows of each group, or of all (`items`); `None` where no source says.
    """

    columns: Mapping[str, str]
    sizes: Mapping[str, int] | None
    lines: tuple[Published, ...]

    def same_rows(self, line: Published, summary: Figures) -> bool:
        """Whether an evaluation is of as many rows as a line, of each group where that is known."""
        found = {"items": summary["items"], **{name: group["n"] for name, group in summary["groups"].items()}}
        sizes = self.sizes if line.rows is None else {"items": line.rows}
        return sizes is not None and all(found.get(name) == size for name, size in sizes.items())


@cache
def published_benches() -> dict[str, PublishedBench]:
    """Every bench of the table, by name."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    lines: dict[str, list[Published]] = {name: [] for name in content["benches"]}
    for line in content["models"]:
        lines[line.pop("bench")].append(Published(**line))
    return {
        name: PublishedBench(bench["columns"], bench["sizes"], tuple(lines[name]))
        for name, bench in content["benches"].items()
    }


def _own_figure(summary: Figures, key: str) -> float | None:
    share = summary["groups"][key]["accuracy"] if key in summary["groups"] else summary.get(key)
    return None if share is None else 100 * share


def _line(name: str, figures: list[float | None], source: str, width: int) -> str:
    cells = "".join(f"{'-' if figure is None else format(figure, '.1f'):>15}" for figure in figures)
    return f"{name:<{width}}{cells}   {source}".rstrip()


def published_table(bench: str, name: str, summary: Figures) -> str:
    """The published lines of a bench, newest first, below one's own line, if any of them is of the same rows.

    Args:
        summary: of `rewards.benches.summary.summarise`.
    """
    published = published_benches()[bench]
    same = [published.same_rows(line, summary) for line in published.lines]
    marks = [
        (" *" if line.inconsistent(published.sizes or {}) else "") + (" +" if any(same) and not as_own else "")
        for line, as_own in zip(published.lines, same, strict=True)
    ]
    names = [line.model + mark for line, mark in zip(published.lines, marks, strict=True)]
    width = max(map(len, [f"> {name}", *names])) + 3
    heading = f"{'published, percent':<{width}}" + "".join(f"{column:>15}" for column in published.columns)
    lines = [f"{heading}   source", "-" * (len(heading) + 9)]
    if any(same):
        own = [_own_figure(summary, key) for key in published.columns.values()]
        lines.append(_line(f"> {name}", own, "this evaluation", width))
    for shown, line in zip(names, published.lines, strict=True):
        figures = [line.figures.get(column) for column in published.columns]
        lines.append(_line(shown, figures, f"{line.source}, {line.date}", width))
    return "\n".join([*lines, "", *_notes("".join(marks), any(same), summary["items"])])


def _notes(marks: str, comparable: bool, rows: int) -> list[str]:
    notes = ["* the source's overall or macro figure is not what its groups give"] if "*" in marks else []
    if not comparable:
        return [*notes, f"no source says that its figures are of your {rows:,} rows, so yours are not shown beside"]
    return notes + (["+ of other rows than yours, as far as is known"] if "+" in marks else [])
