"""The table of docs/families.md, written from what the tests of all families found.

    python tests/helpers/families/family_table.py

Takes over what the last tests wrote (`FOUND`) to the stored record (`STORED`), and writes the table into the page. No
part of either is written by hand: `make families-table`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "families.md"
FOUND = ROOT / "build" / "families" / "outcomes.json"
"""What the tests found since it was last removed, cell by cell."""
STORED = ROOT / "tests" / "families" / "outcomes.json"

COLUMNS = (
    "SFT",
    "GRPO",
    "RCE",
    "offline GRPO",
    "reward model",
    "shared prompts",
    "vLLM",
    "QLoRA",
    "in-context",
)
BEGIN = "<!-- Written by `make families-table`: do not edit. -->"
END = "<!-- The end of what is written. -->"
NOT_RUN = "not run"

Record = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Family -> column -> outcome, reason and versions."""


@dataclass(frozen=True)
class Outcome:
    """What happened in a cell.

    Attributes:
        result: `yes`; `plain`, which works without sharing prompts; or `no`.
        reason: of `plain` and `no`.
    """

    result: str
    reason: str | None = None


def read_record(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """An empty one where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_record(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def note(path: Path, family: str, column: str, outcome: Outcome, libraries: tuple[str, ...] = ()) -> None:
    """Adds what happened in a cell to a file, with the versions that it happened with."""
    versions = {name: version(name) for name in ("transformers", "trl", *libraries)}
    record = read_record(path)
    record.setdefault(family, {})[column] = {**asdict(outcome), "versions": versions}
    write_record(path, record)


def table(record: Record) -> str:
    """Markdown: a line a family, and below it each reason once."""
    reasons: list[str] = []

    def cell(of_family: Mapping[str, Mapping[str, Any]], column: str) -> str:
        found = of_family.get(column)
        if found is None:
            return NOT_RUN
        if found["reason"] is None:
            return found["result"]
        if found["reason"] not in reasons:
            reasons.append(found["reason"])
        return f"{found['result']} ({reasons.index(found['reason']) + 1})"

    lines = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for family, of_family in sorted(record.items()):
        lines.append(f"| `{family}` | {' | '.join(cell(of_family, column) for column in COLUMNS)} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    cells = [found for of_family in record.values() for found in of_family.values()]
    used = sorted({f"{name} {number}" for found in cells for name, number in found["versions"].items()})
    return "\n".join([*lines, *([""] if reasons else []), f"Found with {', '.join(used)}."])


def with_table(page: str, record: Record) -> str:
    """The page with the record's table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(record)}\n\n{END}{after}"


def merged(stored: Record, found: Record) -> dict[str, dict[str, Any]]:
    """What was found now, and of other cells what was found before."""
    return {name: {**stored.get(name, {}), **found.get(name, {})} for name in {*stored, *found}}


def main() -> None:
    record = merged(read_record(STORED), read_record(FOUND))
    write_record(STORED, record)
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
    print(f"{len(record)} families: {STORED.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
