"""The curves of a run, as pictures: for the report as SVG, for the model card as PNG."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.report.logged_figures import PANELS, Panel, curve, format_value

SIZE = (5.2, 3.0)
"""In inches."""
KEPT_STYLE = {"color": "0.35", "linestyle": "--", "linewidth": 1.0}

History = Sequence[Mapping[str, Any]]


def _label(key: str) -> str:
    short = key.removeprefix("eval_")
    for group in ("rewards/", "completions/", "sampling/"):
        short = short.removeprefix(group)
    short = short.removesuffix("/mean").removesuffix("/errors")
    short = short.replace("$", r"\$")  # not the start of a formula
    return f"{short} (evaluation)" if key.startswith("eval_") else short


def _curves(panel: Panel, history: History) -> dict[str, tuple[list[int], list[float]]]:
    """Key -> steps and values, of the keys that have any number."""
    keys = list(dict.fromkeys(key for entry in history for key in entry))
    shown = [key for logged in panel.logged for key in logged.keys_in(keys)]
    found = {key: curve(history, key) for key in shown}
    return {key: points for key, points in found.items() if not all(map(math.isnan, points[1]))}


def draw_figures(history: History, kind: str = "vlm", kept_step: int | None = None) -> dict[str, Any]:
    """A matplotlib figure for each of `PANELS` that has something to show, by title.

    Args:
        history: `trainer.state.log_history`.
        kind: of the run (`RunInfo.kind`), for the axes.
        kept_step: of the model that was kept, marked if it is not the last one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import matplotlib

        matplotlib.use("Agg")
    figures = {}
    for panel in PANELS:
        curves = _curves(panel, history) if panel.title is not None else {}
        if curves:
            figures[panel.title] = _draw(panel, curves, history, kind, kept_step)
    return figures


def _draw(panel: Panel, curves: Mapping[str, Any], history: History, kind: str, kept_step: int | None) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for key, (steps, values) in curves.items():
        few = sum(not math.isnan(value) for value in values) < 3
        marker = "o" if few or key.startswith("eval_") else None
        axes.plot(steps, values, label=_label(key), marker=marker, markersize=3, linewidth=1.4)
    if panel.band is not None:
        _draw_band(axes, next(iter(curves.values())), curve(history, panel.band))
    if kept_step is not None:
        axes.axvline(kept_step, label="model kept", **KEPT_STYLE)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("optimizer step", fontsize=8)
    axes.set_ylabel(panel.axes.get(kind, panel.axis), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    if len(axes.get_legend_handles_labels()[1]) > 1:  # below the axes: curves of one figure often fill them
        figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    figure.get_layout_engine().execute(figure)  # once: as long as there is an engine, each picture is drawn twice
    figure.set_layout_engine(None)
    return figure


def _draw_band(axes: Any, middle: tuple[list[int], list[float]], spread: tuple[list[int], list[float]]) -> None:
    steps, values = middle
    if steps == spread[0]:
        low = [value - std for value, std in zip(values, spread[1], strict=True)]
        high = [value + std for value, std in zip(values, spread[1], strict=True)]
        axes.fill_between(steps, low, high, alpha=0.15, linewidth=0)


def describe_figure(figure: Any) -> str:
    """What a figure shows, for readers who do not see it.

    The words are: title, then of each curve its first and last value.
    """
    axes = figure.axes[0]
    parts = []
    for line in axes.lines:
        points = [(x, y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if y == y]
        if line.get_label() != "model kept":
            (first, start), (last, end) = points[0], points[-1]
            course = f"{format_value(start)} at step {first:.0f}, {format_value(end)} at step {last:.0f}"
            parts.append(f"{line.get_label()} {course}")
    return f"{axes.get_title()}: {'; '.join(parts)}"


def as_svg(figure: Any) -> str:
    """An `<svg>` element, the same for the same figure, with texts as texts."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    content = text.getvalue()
    return content[content.index("<svg") :]
