"""Multimodal RewardBench: accuracy of 5,211 pairs by category, of which two are divided further.

Source: arXiv 2502.14191; facebookresearch/multimodal_rewardbench, README.md, scripts/1_run_model_as_judge_gpt4o.py and
scripts/2_get_accuracy.py (3366b34). The published file is `data/all_data.json`, a list of objects with

    ID        text, such as "nocaps_13062"; what it begins with divides `safety` and `reasoning`
    Text      the prompt
    Image     path below `data/`
    Output1   a response
    Output2   another
    Better    "Output1" or "Output2"
    Category  "open_generation/correctness_task", "open_generation/preference_task", "knowledge", "reasoning", "safety"
              or "vqa"; rows of a judge's output have it in `Meta`

Rule: of `safety`, ids that begin with "pairs" are bias, and the others toxicity; of `reasoning`, ids that begin with
"math" are math, and the others coding, whatever their capital letters. A choice that cannot be read is replaced by the
flip of a coin; here a tie counts one half, which is what the coin gives on average. Overall is over all pairs. The
script prints no macro accuracy; here it is the plain mean of the categories, undivided. The Hateful Memes, most of
toxicity, are in the paper's figures and not in the public file.
"""

from collections.abc import Sequence

from data.io.records import field_error
from rewards.benches.base import Bench, Figures, published_field
from rewards.benches.counts import Counts, accuracy_figures
from rewards.preferences.scored import ScoredPreference, all_pairs

_DIVIDED = {"reasoning": ("math", "math", "coding"), "safety": ("pairs", "bias", "toxicity")}
"""Category -> what some ids begin with, the part of those, the part of the others."""
_ORDER = (
    "open_generation/correctness_task", "open_generation/preference_task", "knowledge", "reasoning", "reasoning/math",
    "reasoning/coding", "safety", "safety/bias", "safety/toxicity", "vqa",
)  # fmt: skip
_COIN = 0.5


def _category(row: dict) -> str:
    """The category, with its part.

    >>> _category({"ID": "Math_17", "Category": "reasoning"})
    'reasoning/math'
    """
    meta = row.get("Meta")
    category = row.get("Category") or (meta.get("Category") if isinstance(meta, dict) else None)
    if not isinstance(category, str):
        raise field_error("Category", "expected a text, here or in 'Meta'", category)
    if category not in _DIVIDED:
        return category
    beginning, part, other = _DIVIDED[category]
    return f"{category}/{part if str(row['ID']).lower().startswith(beginning) else other}"


def _convert(row: dict) -> dict:
    outputs = ("Output1", "Output2")
    better = published_field(row, "Better")
    if better not in outputs:
        raise field_error("Better", "expected 'Output1' or 'Output2'", better)
    return {
        "id": published_field(row, "ID"),
        "query": published_field(row, "Text"),
        "images": [published_field(row, "Image")],
        "response": [published_field(row, name) for name in outputs],
        "human_ranking": [int(name != better) for name in outputs],
        "category": _category(row),
        "scores": row.get("scores"),
    }


def _figures(preferences: Sequence[ScoredPreference]) -> Figures:
    gaps: dict[str, list[float]] = {}
    for preference in preferences:
        [pair] = preference.pairs()
        domain = preference.category.split("/")[0]
        for name in {preference.category, *([domain] if domain in _DIVIDED else [])}:
            gaps.setdefault(name, []).append(pair.gap)
    names = sorted(gaps, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    groups = {name: Counts.of_gaps(gaps[name], _COIN) for name in names}
    total = Counts.of_gaps([pair.gap for pair in all_pairs(preferences)], _COIN)
    undivided = [name for name in names if name.split("/")[0] not in _DIVIDED or name in _DIVIDED]
    return accuracy_figures(groups, total, undivided)


MULTIMODAL_REWARDBENCH = Bench(
    name="multimodal_rewardbench",
    title="Multimodal RewardBench",
    fields=frozenset({"Output1", "Output2", "Better"}),
    convert=_convert,
    names={
        "id": "ID",
        "query": "Text",
        "images": "Image",
        "response.0": "Output1",
        "response.1": "Output2",
        "category": "Category",
    },
    figures=_figures,
)
