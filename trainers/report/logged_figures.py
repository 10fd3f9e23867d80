"""What trainers log, in one table: the curve and axis that show a figure, and whether card and console show it too.

Anything may stand under a logged key: `None` where a reward applied to no row, NaN, a text of a library. All of it is
shown as what it is, and none of it ends a run.
"""

import math
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RUN_TOTALS = re.compile(r"(epoch|step|total_flos|train_.*|eval_(runtime|.*_per_second))")
"""Keys that say nothing of the model at one step: Trainer logs most of them once, of the whole run."""
MAX_TEXT = 80


@dataclass(frozen=True)
class Logged:
    """A logged key.

    Attributes:
        key: as it is logged; `*` stands for any name.
        console: what the console's line calls it; a key with `*` is called by that name. `None`: not shown there.
        card: whether the model card shows it.
    """

    key: str
    console: str | None = None
    card: bool = False

    def keys_in(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that this row is about."""
        if "*" not in self.key:
            return [self.key] if self.key in keys else []
        start, end = self.key.split("*")
        return [key for key in keys if key.startswith(start) and key.endswith(end) and len(key) > len(start + end)]

    def console_name(self, key: str) -> str:
        start, star, end = self.key.partition("*")
        return key[len(start) : len(key) - len(end)] if star else str(self.console)


@dataclass(frozen=True)
class Panel:
    """Figures that are drawn together.

    Attributes:
        title: of the figure; `None` for keys that are not drawn.
        axis: what its vertical axis says.
        logged: its curves.
        axes: what the axis says instead for a kind of run (`RunInfo.kind`).
        card: whether the model card shows the figure.
        band: logged key whose value is drawn above and below the first curve.
        caption: what a reader must know to read the figure.
    """

    title: str | None
    axis: str
    logged: tuple[Logged, ...]
    axes: Mapping[str, str] = field(default_factory=dict)
    card: bool = False
    band: str | None = None
    caption: str = ""


PANELS = (
    Panel(
        "reward",
        "reward",
        (Logged("reward", "reward", card=True), Logged("eval_reward", "eval reward", card=True)),
        card=True,
        band="reward_std",
        caption="Line: mean reward of the completions of a step. Band: one standard deviation of these rewards above "
        "and below the mean. It shows how much completions differ, not how sure the mean is.",
    ),
    Panel(
        "reward parts",
        "mean score",
        (
            Logged("rewards/*/mean", "*", card=True),
            Logged("eval_rewards/*/mean", "*", card=True),
        ),
        card=True,
        caption="Each reward by itself, before it is weighted; rows to which it does not apply are left out.",
    ),
    Panel(
        "accuracy",
        "of the best-scored candidate",
        (Logged("accuracy", "accuracy"), Logged("eval_accuracy", "eval accuracy", card=True)),
        axes={"reward": "share of pairs in people's order"},
        card=True,
    ),
    Panel(
        "F1",
        "of factors, micro and macro",
        (Logged("eval_f1_micro", "eval F1", card=True), Logged("eval_f1_macro", card=True)),
        card=True,
    ),
    Panel("average precision", "mean over factors", (Logged("eval_map", "eval mAP", card=True),)),
    Panel("precision and recall", "micro", (Logged("eval_precision_micro"), Logged("eval_recall_micro"))),
    Panel(
        "expected reward",
        "reward",
        (
            Logged("expected_reward", "expected reward"),
            Logged("eval_expected_reward", "eval expected reward", card=True),
        ),
        caption="Mean reward of the stored candidates, each weighted by the probability that the policy gives it "
        "among them.",
    ),
    Panel(
        "score gap",
        "score: better minus worse",
        (Logged("score_gap", "gap"), Logged("eval_score_gap", "eval gap", card=True)),
    ),
    Panel(
        "scores", "score", (Logged("score_mean"), Logged("score_min"), Logged("score_max"), Logged("eval_score_mean"))
    ),
    Panel("spread of the scores", "standard deviation", (Logged("score_std"), Logged("eval_score_std"))),
    Panel("saturated scores", "share", (Logged("saturation", "saturation"), Logged("eval_saturation", card=True))),
    Panel("KL to the reference", "nats a token", (Logged("kl", "KL", card=True), Logged("eval_kl", "eval KL"))),
    Panel("KL coefficient", "beta", (Logged("beta", "beta"),)),
    Panel(
        "completion length",
        "tokens",
        (Logged("completions/mean_length", "length", card=True), Logged("completions/max_length")),
    ),
    Panel(
        "share of groups without contrast",
        "share",
        (Logged("frac_reward_zero_std", "flat groups", card=True), Logged("dynamic_sampling/frac_zero_std_left")),
    ),
    Panel("entropy", "nats a token", (Logged("entropy"),)),
    Panel(
        "sampler against trainer",
        "nats a token",
        (
            Logged("sampling/sampling_logp_difference/mean"),
            Logged("eval_sampling/sampling_logp_difference/mean"),
        ),
        caption="Mean absolute difference between the log-probabilities that sampler and trainer give the sampled "
        "tokens, before the first update on them. Nearly 0 means that the update sees what the rollout saw; in half "
        "precision it is about 0.01. It grows where they differ in weights, images, template, precision or sampling.",
    ),
    Panel(
        "sampler against trainer at one token",
        "nats, largest of a step",
        (Logged("sampling/sampling_logp_difference/max"), Logged("eval_sampling/sampling_logp_difference/max")),
    ),
    Panel(
        "importance ratio of vLLM samples",
        "trainer's over sampler's probability",
        (
            Logged("sampling/importance_sampling_ratio/min"),
            Logged("sampling/importance_sampling_ratio/mean"),
            Logged("sampling/importance_sampling_ratio/max"),
        ),
        caption="What the loss of each completion, or token, is multiplied by. 1: sampler and trainer agree.",
    ),
    Panel("rollout temperature", "temperature", (Logged("rollout_temperature"),)),
    Panel("temperature of the weights", "temperature", (Logged("temperature"),)),
    Panel("probability ratio", "ratio to the old policy", (Logged("ratio", "ratio"), Logged("eval_ratio"))),
    Panel("clipped steps", "share", (Logged("clip_fraction"),)),
    Panel("policy loss", "loss", (Logged("policy_loss"),)),
    Panel(
        "advantages",
        "standard deviations",
        (Logged("advantage_mean"), Logged("advantage_std"), Logged("advantage_max")),
    ),
    Panel("reward errors", "rows", (Logged("rewards/*/errors"),)),
    Panel("loss", "loss", (Logged("loss", "loss", card=True), Logged("eval_loss", "eval loss", card=True)), card=True),
    Panel("parts of the loss", "loss", (Logged("preference_loss"), Logged("lm_loss"))),
    Panel(
        "token accuracy",
        "share of tokens",
        (
            Logged("mean_token_accuracy", "token accuracy"),
            Logged("eval_mean_token_accuracy", "eval token accuracy", card=True),
        ),
        caption="Tokens of the right answer that the model finds most likely, each after the right ones before it.",
    ),
    Panel("gradient norm", "norm", (Logged("grad_norm", "gradient norm"),)),
    Panel("learning rate", "learning rate", (Logged("learning_rate", "lr"),)),
    Panel(None, "", (Logged("train_runtime", "seconds"),)),
)


# -- values -----------------------------------------------------------------------------------------------------------


def number_of(value: Any) -> float | None:
    """The number that a logged value is: NumPy's and tensors of one element too. `None` for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Real):
        return float(value)
    if callable(getattr(value, "item", None)) and getattr(value, "size", None) is not None:
        try:
            return number_of(value.item())
        except (ValueError, RuntimeError):  # more than one element
            return None
    return None


def format_value(value: Any, digits: int = 3) -> str:
    """A logged value as text; `none` for `None`.

    >>> [format_value(value) for value in (0.12345, None, float("nan"), "cosine", True)]
    ['0.123', 'none', 'nan', 'cosine', 'true']
    """
    if value is None:
        return "none"
    number = number_of(value)
    if number is not None:
        return f"{number:.{digits}g}"
    text = " ".join(str(value).lower().split() if isinstance(value, bool) else str(value).split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def logged_values(logs: Mapping[str, Any], shown: Sequence[Logged]) -> Iterator[tuple[Logged, str, Any]]:
    """(row of the table, key, value) of what `logs` has, in the order of the table."""
    keys = list(logs)
    for logged in shown:
        for key in logged.keys_in(keys):
            yield logged, key, logs[key]


CONSOLE = tuple(logged for panel in PANELS for logged in panel.logged if logged.console is not None)
CARD = tuple(logged for panel in PANELS for logged in panel.logged if logged.card)


# -- the history of a run ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LastFigure:
    """The last value under a key, and the optimizer step after which it was logged."""

    value: Any
    step: int

    @property
    def text(self) -> str:
        return format_value(self.value, digits=5)


def last_figures(history: Sequence[Mapping[str, Any]], step: int | None = None) -> dict[str, LastFigure]:
    """Key -> what was logged last, `None` and NaN included.

    Args:
        history: `trainer.state.log_history`.
        step: of the model that is kept; what was logged later is of another one.
    """
    figures: dict[str, LastFigure] = {}
    for entry in history:
        if step is None or entry["step"] <= step:
            figures |= {
                key: LastFigure(value, entry["step"]) for key, value in entry.items() if not RUN_TOTALS.fullmatch(key)
            }
    return figures


def curve(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a key; NaN, which is drawn as a gap, where it was logged without a finite number."""
    points = [(entry["step"], number_of(entry[key])) for entry in history if key in entry]
    values = [value if value is not None and math.isfinite(value) else math.nan for _, value in points]
    return [step for step, _ in points], values
