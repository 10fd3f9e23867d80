"""What a check found, and the table of all findings."""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainers.diagnosis.causes import Cause

Verdict = Literal["ok", "note", "wrong", "not told"]
"""`wrong`: the update would not see what the rollout saw. `not told`: what is needed to tell is not at hand."""
COLUMNS = ("check", "found", "limit", "cause", "remedy")
LEAST_WIDTH, MOST_WIDTH = 100, 200
SHARES = (0.2, 0.26, 0.12, 0.16, 0.26)
"""Of the columns in the width of the table."""


@dataclass(frozen=True)
class Finding:
    """A line of the table.

    Attributes:
        check: what was looked at.
        found: what it is.
        limit: what it should be.
        verdict: what follows.
        cause: of what is wrong, or worth a note.
    """

    check: str
    found: str
    limit: str = ""
    verdict: Verdict = "ok"
    cause: Cause | None = None

    def as_row(self) -> dict[str, Any]:
        """For a file of JSON."""
        return {
            "check": self.check,
            "verdict": self.verdict,
            "found": self.found,
            "limit": self.limit,
            "cause": self.cause.name if self.cause else "",
            "remedy": self.cause.remedy if self.cause else "",
        }


def wrong(check: str, found: str, limit: str, cause: Cause) -> Finding:
    """The update would not see what the rollout saw."""
    return Finding(check, found, limit, "wrong", cause)


def not_told(check: str, why: str) -> Finding:
    """What is needed to tell is not at hand."""
    return Finding(check, why, verdict="not told")


def any_wrong(findings: Sequence[Finding]) -> bool:
    """Whether the update would not see what the rollout saw."""
    return any(finding.verdict == "wrong" for finding in findings)


def table(findings: Sequence[Finding], width: int | None = None) -> str:
    """All findings in columns, long cells over several lines; columns in which nothing stands are left out.

    Args:
        width: of a line; by default the console's, between 100 and 200.
    """
    width = width or min(max(shutil.get_terminal_size().columns, LEAST_WIDTH), MOST_WIDTH)
    rows = [_cells(finding) for finding in findings]
    filled = [place for place in range(len(COLUMNS)) if place < 2 or any(row[place] for row in rows)]
    room = (width - 2 * len(filled)) / sum(SHARES[place] for place in filled)
    widths = [int(room * SHARES[place]) for place in filled]
    lines = [_line([COLUMNS[place] for place in filled], widths), _line(["-" * one for one in widths], widths)]
    for row in rows:
        wrapped = [textwrap.wrap(row[place], one) or [""] for place, one in zip(filled, widths, strict=True)]
        for number in range(max(map(len, wrapped))):
            lines.append(_line([cell[number] if number < len(cell) else "" for cell in wrapped], widths))
    return "\n".join(lines)


def _cells(finding: Finding) -> list[str]:
    row = finding.as_row()
    found = row["found"] if finding.verdict == "ok" else f"{finding.verdict.upper()}: {row['found']}"
    return [row["check"], found, row["limit"], row["cause"], row["remedy"]]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
