"""Checks of rewards: right answers score as high as can be, and above wrong ones."""

from collections.abc import Iterator, Sequence
from typing import Any

from rewards.scoring.rows import score_rows
from rewards.validate import shortfalls, without_models
from trainers.diagnosis import causes
from trainers.diagnosis.findings import Finding, not_told, wrong

EMPTY = ""
"""An answer that is wrong everywhere."""


def check_rewards(rows: Sequence[dict], recipe: dict[str, Any]) -> Iterator[Finding]:
    """Scores of the right answers of some rows, and of other rows' answers in their place.

    Args:
        rows: with `gold`, their right answer.
        recipe: with `reward_funcs`, `reward_weights`, `agents` and `dataset_name`.
    """
    check = "rewards of right answers"
    rows = [row for row in rows if row.get("gold") is not None]
    specs = without_models(recipe["reward_funcs"])
    if not rows or not specs:
        yield not_told(check, "the rows carry no right answer" if specs else "every reward is a model")
        return
    low = shortfalls(rows, recipe, recipe["dataset_name"])
    if low:
        yield Finding(check, f"{len(low)} below the maximum: {low[0]}", "the maximum", "note", causes.RIGHT_ANSWERS)
    else:
        yield Finding(check, f"the maximum of each reward in {len(rows)} rows", "the maximum")
    yield check_contrast(rows, specs, recipe)


def check_contrast(rows: Sequence[dict], specs: Sequence[Any], recipe: dict[str, Any]) -> Finding:
    """The right answer of a row scores above the others."""
    check, limit = "right answers against wrong ones", "above"
    others = list(dict.fromkeys(row["gold"] for row in rows))
    blind = 0
    for row in rows:
        answers = [row["gold"], *(gold for gold in others if gold != row["gold"]), EMPTY]
        right, *wrong_ones = totals(row, answers, specs, recipe)
        blind += right <= min(wrong_ones)
    if blind == len(rows):
        return wrong(check, f"in {blind} of {len(rows)} rows not above any", limit, causes.BLIND_REWARD)
    if blind:
        found = f"in {blind} of {len(rows)} rows not above any"
        return Finding(check, found, limit, "note", causes.BLIND_REWARD)
    return Finding(check, f"above in {len(rows)} rows", limit)


def totals(row: dict, answers: Sequence[str], specs: Sequence[Any], recipe: dict[str, Any]) -> list[float]:
    """The weighted sum of the rewards of each answer; what does not apply counts nothing."""
    named = recipe.get("reward_weights") or [1.0] * len(recipe["reward_funcs"])
    weights = [weight for spec, weight in zip(recipe["reward_funcs"], named, strict=True) if spec in specs]
    scores, _ = score_rows(list(specs), recipe.get("agents"), [{**row, "completion": answer} for answer in answers])
    columns = list(scores.values())
    return [
        sum(weight * (column[number] or 0.0) for weight, column in zip(weights, columns, strict=True))
        for number in range(len(answers))
    ]
