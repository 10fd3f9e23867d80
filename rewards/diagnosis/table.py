"""The figures of a diagnosis as a table: for the terminal as text, for reports and cards as cells."""

from collections.abc import Mapping
from typing import Any

from rewards.diagnosis.image_variants import BLANK, OTHER, WITH, WITHOUT
from rewards.diagnosis.length_bias import EQUAL, LONGER, SHORTER
from rewards.diagnosis.verdicts import FIRST, FLIPS
from rewards.scoring.statistics import Interval

TITLE = "Does it look at the image?"
COLUMNS = ("accuracy, and what may bias it", "figure [95% interval]", "difference [95% interval]", "rows")
VARIANTS = {
    WITH: "with the image",
    BLANK: "with a blank image of equal size",
    OTHER: "with the image of another row",
    WITHOUT: "without images",
}
LENGTHS = {
    SHORTER: "where the better response is the shorter one",
    LONGER: "where it is the longer one",
    EQUAL: "where both are as long",
}

ORDERS = {
    FLIPS: "verdicts that flip with the order of responses",
    FIRST: "verdicts for the response that stands first",
}


def _percent(found: Mapping[str, Any]) -> str:
    low, high = found["wilson"]
    return f"{100 * found['share']:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _points(found: Mapping[str, float] | None) -> str:
    """A difference of shares, in points of a hundred."""
    if found is None:
        return ""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * found[key] for key in ("estimate", "low", "high")))


def _interval(found: Mapping[str, float]) -> str:
    return str(Interval(**found))


def _share_row(label: str, found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(label, _percent(found), _points(found.get("difference")), f"{found['rows']:,}")] if found["rows"] else []


def table_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells in the order of `COLUMNS`; what there was nothing to count for is left out.

    Args:
        figures: of `rewards.diagnosis.questions.Diagnosis.figures`.
    """
    length, order = figures["length"], figures["order"]
    rows = [cells for name, found in figures["images"].items() for cells in _share_row(VARIANTS[name], found)]
    for name, found in length["accuracy"].items():
        rows += _share_row(LENGTHS[name], found)
    if length["correlation"] is not None:
        prompts = f"{length['prompts']:,}"
        difference = _interval(length["difference"])
        rows.append(("rank correlation of length and score", _interval(length["correlation"]), difference, prompts))
        rows.append(("rank correlation of length and people's order", _interval(length["people"]), "", prompts))
    if order is not None:
        rows += [cells for name, found in order.items() for cells in _share_row(ORDERS[name], found)]
    if figures["calibration"] is not None:
        error = figures["calibration"]["expected_calibration_error"]
        rows.append(("calibration error", f"{error:.3f}", "", f"{figures['rows']:,}"))
    return rows


def notes(figures: Mapping[str, Any]) -> list[str]:
    """Sentences that say what the rows of the table are of."""
    found = [
        f"{figures['rows']:,} of {figures['all_rows']:,} rows; equal scores are half right, and a row's pairs "
        "count as one; differences: to the images as they are, in points, and to the correlation of people's order"
    ]
    if figures["without_images"]:
        found.append(f"{figures['without_images']:,} rows have no images, and are not among those that lose them")
    if figures["order"] is None:
        found.append("no verdict can flip with the order of responses: each is scored by itself")
    elif FIRST not in figures["order"]:
        found.append("verdicts that flip are counted over all pairs that were judged in both orders")
    return found


def format_table(figures: Mapping[str, Any]) -> str:
    """As text, notes below."""
    rows = [(TITLE, *COLUMNS[1:]), *table_rows(figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "   ".join(
            (row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *notes(figures)])
