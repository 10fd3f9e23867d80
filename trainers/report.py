"""The report that every run leaves in its output folder: one HTML file with curves, samples, recipe and versions."""

import base64
import importlib.metadata
import io
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.images import open_image
from data.records import atomic_write

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
SAMPLES_FILE = "samples.jsonl"
FIGURES_FOLDER = "figures"
TEMPLATES = Path(__file__).parent / "templates"

SAMPLED_STEPS = 20
"""At about so many steps of a run a group is kept for the report."""
THUMBNAIL_SIDE = 160
MAX_TEXT = 4_000
PACKAGES = ("vlm-posttrain", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed")

# Title and vertical axis of each figure, and the logged keys it shows; only those that were logged appear.
FIGURES = (
    ("reward", "reward", ("reward", "eval_reward")),
    ("reward parts", "mean score", ("rewards/*/mean", "eval_rewards/*/mean")),
    ("accuracy", "of the best-scored candidate", ("accuracy", "eval_accuracy")),
    ("F1", "of factors, micro and macro", ("eval_f1_micro", "eval_f1_macro")),
    ("average precision", "mean over factors", ("eval_map",)),
    ("precision and recall", "micro", ("eval_precision_micro", "eval_recall_micro")),
    ("expected reward", "reward", ("expected_reward", "eval_expected_reward")),
    ("score gap", "better - worse", ("score_gap", "eval_score_gap")),
    ("scores", "score", ("score_mean", "score_min", "score_max", "eval_score_mean")),
    ("spread of the scores", "standard deviation", ("score_std", "eval_score_std")),
    ("saturated scores", "share", ("saturation", "eval_saturation")),
    ("KL to the reference", "nats a token", ("kl", "eval_kl")),
    ("KL coefficient", "beta", ("beta",)),
    ("completion length", "tokens", ("completions/mean_length", "completions/max_length")),
    ("share of groups without contrast", "share", ("frac_reward_zero_std", "dynamic_sampling/frac_zero_std_left")),
    ("entropy", "nats a token", ("entropy",)),
    ("rollout temperature", "temperature", ("rollout_temperature",)),
    ("temperature of the weights", "temperature", ("temperature",)),
    ("probability ratio", "ratio to the old policy", ("ratio",)),
    ("clipped steps", "share", ("clip_fraction",)),
    ("policy loss", "loss", ("policy_loss",)),
    ("advantages", "standard deviations", ("advantage_mean", "advantage_std", "advantage_max")),
    ("reward errors", "rows", ("rewards/*/errors",)),
    ("loss", "loss", ("loss", "eval_loss")),
    ("parts of the loss", "loss", ("preference_loss", "lm_loss")),
    ("token accuracy", "share", ("mean_token_accuracy", "eval_mean_token_accuracy")),
    ("gradient norm", "norm", ("grad_norm",)),
    ("learning rate", "learning rate", ("learning_rate",)),
)


@dataclass(frozen=True)
class SampleGroup:
    """One prompt with its completions, as it was scored.

    Attributes:
        prompt: chat messages.
        images: of the prompt.
        completions: texts.
        scores: of each completion, by reward.
        advantages: of each completion; the best is marked.
        advantage_name: what the report calls them.
    """

    prompt: Sequence[dict]
    images: Sequence[Any]
    completions: Sequence[str]
    scores: Sequence[dict[str, float | None]]
    advantages: Sequence[float]
    advantage_name: str = "advantage"


def _message_text(message: dict) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", f"[{part.get('type')}]") for part in content)


def _thumbnail(image: Any) -> str:
    """A small PNG as a data address."""
    small = open_image(image).copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    encoded = io.BytesIO()
    small.save(encoded, "PNG")
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


class SampleLog:
    """Keeps a few groups of a run in `samples.jsonl`, for the report. It may fail, but never ends a run.

    Args:
        output_dir: of the run.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / SAMPLES_FILE
        self._last_step = -1

    def wants(self, step: int, max_steps: int) -> bool:
        """Whether a group should be kept at this optimizer step."""
        return step != self._last_step and step % max(1, max_steps // SAMPLED_STEPS) == 0

    def add(self, step: int, group: SampleGroup) -> None:
        """Appends a group."""
        self._last_step = step
        try:
            row = {
                "step": step,
                "prompt": [{"role": turn["role"], "text": _message_text(turn)[:MAX_TEXT]} for turn in group.prompt],
                "images": [_thumbnail(image) for image in group.images],
                "completions": [text[:MAX_TEXT] for text in group.completions],
                "scores": list(group.scores),
                "advantages": list(group.advantages),
                "advantage_name": group.advantage_name,
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except Exception as error:  # a report is not worth a run
            logger.warning("could not keep a sample for the report: %s", error)

    def read(self) -> list[dict]:
        """Groups kept so far, by step; of several from one step (before and after resuming) the last."""
        if not self.path.is_file():
            return []
        rows: dict[int, dict] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                rows[row["step"]] = row
            except (json.JSONDecodeError, KeyError):  # a line cut short when the run was killed
                continue
        return [rows[step] for step in sorted(rows)]


@dataclass
class RunInfo:
    """What a run was, for its report and model card.

    Attributes:
        method: "GRPO", "SFT", ...
        command: the command line.
        recipe: text of the recipe.
        dataset: name or path of the data.
        rewards: one line a reward.
        base_model: that training started from.
        results: label -> figure, shown at the top.
        kind: "vlm", "selector", "reward" or "factors".
    """

    method: str
    command: str
    recipe: str
    dataset: str
    base_model: str
    rewards: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    kind: str = "vlm"


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run does."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _matching(pattern: str, keys: Sequence[str]) -> list[str]:
    if "*" not in pattern:
        return [pattern] if pattern in keys else []
    start, end = pattern.split("*")
    return [key for key in keys if key.startswith(start) and key.endswith(end)]


def _curve(history: Sequence[dict], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[key]) for entry in history if isinstance(entry.get(key), int | float)]
    return [step for step, _ in points], [value for _, value in points]


def _label(key: str) -> str:
    short = key.removeprefix("eval_").removeprefix("rewards/").removeprefix("completions/")
    short = short.removesuffix("/mean").removesuffix("/errors")
    return f"{short} (evaluation)" if key.startswith("eval_") else short


def draw_figures(history: Sequence[dict]) -> dict[str, Any]:
    """A matplotlib figure for each entry of `FIGURES` that has something to show, by title."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib.figure import Figure
    keys = list(dict.fromkeys(key for entry in history for key in entry))
    figures = {}
    for title, axis, patterns in FIGURES:
        shown = [key for pattern in patterns for key in _matching(pattern, keys)]
        curves = {key: _curve(history, key) for key in shown}
        curves = {key: curve for key, curve in curves.items() if curve[0]}
        if not curves:
            continue
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.subplots()
        for key, (steps, values) in curves.items():
            marker = "o" if len(steps) < 3 or key.startswith("eval_") else None
            axes.plot(steps, values, label=_label(key), marker=marker, markersize=3, linewidth=1.4)
        if title == "reward" and (spread := _curve(history, "reward_std"))[0]:
            steps, values = curves.get("reward", ([], []))
            if steps == spread[0]:
                low = [value - std for value, std in zip(values, spread[1], strict=True)]
                high = [value + std for value, std in zip(values, spread[1], strict=True)]
                axes.fill_between(steps, low, high, alpha=0.15, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.set_ylabel(axis, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        if len(curves) > 1:  # below the axes: curves of one figure often fill them
            figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False)
        figures[title] = figure
    return figures


def _as_svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    content = text.getvalue()
    return content[content.index("<svg") :]


def _spaced(rows: list[dict], count: int) -> list[dict]:
    if len(rows) <= count:
        return rows
    return [rows[round(number * (len(rows) - 1) / (count - 1))] for number in range(count)]


def write_report(output_dir: str | Path, info: RunInfo, history: Sequence[dict], max_samples: int = 6) -> Path:
    """Writes `report.html`, which needs no other file, and each figure as PNG below `figures/`.

    Args:
        history: `trainer.state.log_history`.
        max_samples: groups shown, spread over the run.

    Returns:
        Path of the report.
    """
    from jinja2 import Environment, FileSystemLoader

    output_dir = Path(output_dir)
    figures = draw_figures(history)
    for title, figure in figures.items():
        with atomic_write(output_dir / FIGURES_FOLDER / f"{title.replace(' ', '_')}.png", "wb") as file:
            figure.savefig(file, format="png", dpi=140)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    page = environment.get_template("report.html.jinja").render(
        info=asdict(info),
        figures={title: _as_svg(figure) for title, figure in figures.items()},
        samples=_spaced(SampleLog(output_dir).read(), max_samples),
        versions=versions(),
        final={key: value for entry in history[-2:] for key, value in entry.items() if isinstance(value, int | float)},
    )
    with atomic_write(output_dir / REPORT_FILE) as file:
        file.write(page)
    return output_dir / REPORT_FILE
