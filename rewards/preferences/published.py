"""Published accuracies on VL-RewardBench, as a table beside one's own."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from rewards.preferences.accuracy import GROUPS

TABLE = Path(__file__).with_name("published_reward_bench.yaml")
COLUMNS = (*GROUPS, "overall", "macro")
OVERALL_TOLERANCE = 1.0
"""Points of a hundred; judges whose answer cannot be read leave pairs out, which moves the weights of the groups."""
MACRO_TOLERANCE = 0.2


@dataclass(frozen=True)
class Published:
    """One line: percent, in the order of `COLUMNS`."""

    name: str
    scores: tuple[float, ...]
    source: str

    def inconsistent(self, pairs: dict[str, int]) -> bool:
        """Whether overall or macro is not what the figures of the groups give."""
        groups, (overall, macro) = self.scores[: len(GROUPS)], self.scores[len(GROUPS) :]
        weighted = sum(score * pairs[group] for score, group in zip(groups, GROUPS, strict=True)) / sum(pairs.values())
        return abs(weighted - overall) > OVERALL_TOLERANCE or abs(sum(groups) / len(groups) - macro) > MACRO_TOLERANCE


@cache
def published_scores() -> tuple[dict[str, int], tuple[Published, ...]]:
    """Pairs of each group in the published benchmark, and the published lines."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    lines = (Published(line["name"], tuple(line["scores"]), line["source"]) for line in content["models"])
    return content["pairs"], tuple(lines)


def _line(name: str, scores: list[float | None], source: str, width: int) -> str:
    cells = "".join(f"{'-' if score is None else format(score, '.1f'):>15}" for score in scores)
    return f"{name:<{width}}{cells}   {source}".rstrip()


def published_table(name: str, summary: dict) -> str:
    """The published lines by rising macro accuracy, and one's own among them, marked.

    Args:
        summary: of `rewards.preferences.accuracy.preference_accuracy`.
    """
    pairs, lines = published_scores()
    own = [summary["groups"][group]["accuracy"] for group in GROUPS] + [summary["overall"], summary["macro"]]
    own = [None if share is None else 100 * share for share in own]
    width = max(len(text) for text in (name, *(line.name for line in lines))) + 3
    rows = []
    for line in lines:
        mark = " *" if line.inconsistent(pairs) else ""
        rows.append((line.scores[-1], _line(line.name + mark, list(line.scores), line.source, width)))
    rows.append((-1.0 if own[-1] is None else own[-1], _line(f"> {name}", own, "this evaluation", width)))
    heading = f"{'accuracy in percent':<{width}}" + "".join(f"{column:>15}" for column in COLUMNS) + "   source"
    sizes = ", ".join(f"{count} {group}" for group, count in pairs.items())
    found = ", ".join(f"{summary['groups'][group]['n']} {group}" for group in GROUPS)
    notes = [
        "* the paper's overall or macro figure is not what its groups give; rank by macro, and look at the groups",
        f"published: {sum(pairs.values()):,} pairs ({sizes}); here: {summary['items']:,} ({found})",
    ]
    if any(pairs[group] != summary["groups"][group]["n"] for group in GROUPS):
        notes.append("these are other pairs than the published ones, so the lines cannot be compared")
    body = [text for _, text in sorted(rows, key=lambda row: row[0])]
    return "\n".join([heading, "-" * len(heading), *body, "", *notes])
