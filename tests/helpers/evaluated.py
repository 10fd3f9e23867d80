"""Whether an evaluation logs what `trainers.setup.checks` says that `metric_for_best_model` may name."""

from collections.abc import Iterable
from types import SimpleNamespace

from trainers.setup.checks import logged_metrics

UNLISTED = {"eval_model_preparation_time"}
"""A duration that transformers logs with the first evaluation alone."""


def check_listed(method: str, logged: Iterable[str], args=None, reward_funcs=()) -> None:
    """Compares the names of an evaluation's figures with those listed for the method."""
    found = {name.removeprefix("eval_") for name in set(logged) - UNLISTED if name.startswith("eval_")}
    args = args or SimpleNamespace(beta=0.0, lm_loss_weight=0.0)
    listed = set(logged_metrics(method, SimpleNamespace(reward_funcs=reward_funcs), args))
    assert found == listed, f"not listed: {sorted(found - listed)}; never logged: {sorted(listed - found)}"
