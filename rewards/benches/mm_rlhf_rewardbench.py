"""MM-RLHF-RewardBench: accuracy of 170 pairs, and Acc+, the share of prompts of which every pair is right.

Source: arXiv 2502.10391; Kwai-YuanQi/MM-RLHF, llava/eval/cal_performance_mmreweard_bench.py, the same as
yfzhang114/r1_reward, inference/MM-RLHF-Reward/get_acc.py (176aba8), beside which the published file lies:
`mm_reward_bench.jsonl`, also on the Hub (yifanzhang114/MM-RLHF-RewardBench) with

    id               of the prompt: rows of one prompt share it
    prompt           the prompt
    image, video     path, one of the two; it says the category: mcq, long, short, safety or video
    chosen           the better response
    rejected         the worse one
    chosen_reason    why, by the annotator; not read, as is rejected_reason

Rule: a pair is right if the chosen response has the higher score, so a tie is wrong. The category is the first of the
five words that occurs in the path; rows without any count in the overall figures alone, and stand here as `other`. In
Acc+ of a category a prompt counts below the line for every one of the words that occurs in its paths, and above it for
the first alone, as in the published script.
"""

from collections.abc import Sequence

from data.io.records import field_error
from rewards.benches.base import Bench, Figures, published_field
from rewards.benches.counts import Counts, accuracy_figures
from rewards.preferences.scored import ScoredPreference

CATEGORIES = ("mcq", "long", "short", "safety", "video")
_OTHER = "other"
_TIES_ARE_WRONG = 0.0


def _media(row: dict) -> tuple[str, str]:
    """Name and path of the row's image, or else of its video."""
    for name in ("image", "video"):
        value = row.get(name)
        path = value.get("path") if isinstance(value, dict) else value
        if path is not None and not isinstance(path, str):
            raise field_error(name, "expected a path", path)
        if path:
            return name, path
    raise field_error("image", "expected a path, here or in 'video'", row.get("image"))


def _convert(row: dict) -> dict:
    name, path = _media(row)
    words = [word for word in CATEGORIES if word in path]
    return {
        "id": published_field(row, "id"),
        "query": published_field(row, "prompt"),
        "images": [row[name]] if name == "image" else [],
        "video": row[name] if name == "video" else None,
        "response": [published_field(row, "chosen"), published_field(row, "rejected")],
        "human_ranking": [0, 1],
        "category": " ".join(words) or _OTHER,
        "scores": row.get("scores"),
    }


def _right(preference: ScoredPreference) -> bool:
    return preference.scores[0] > preference.scores[1]


def _acc_plus(prompts: Sequence[Sequence[ScoredPreference]], category: str) -> float | None:
    """Of the prompts that have a category in a path, the share that are right in every pair and count in it."""
    right = total = 0
    for rows in prompts:
        words = [word for word in (*CATEGORIES, _OTHER) if any(word in row.category.split() for row in rows)]
        total += category in words
        right += words[0] == category and all(map(_right, rows))
    return right / total if total else None


def _figures(preferences: Sequence[ScoredPreference]) -> Figures:
    gaps: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    by_prompt: dict[int | str, list[ScoredPreference]] = {}
    for row in preferences:
        gaps.setdefault(row.category.split()[0], []).append(row.scores[0] - row.scores[1])
        by_prompt.setdefault(row.id, []).append(row)
    groups = {name: Counts.of_gaps(of_group, _TIES_ARE_WRONG) for name, of_group in gaps.items()}
    total = Counts.of_gaps([gap for of_group in gaps.values() for gap in of_group], _TIES_ARE_WRONG)
    figures = accuracy_figures(groups, total, CATEGORIES)
    prompts = list(by_prompt.values())
    for name, group in figures["groups"].items():
        group["acc_plus"] = _acc_plus(prompts, name)
    right = sum(all(map(_right, rows)) for rows in prompts)
    return figures | {"acc_plus": right / len(prompts), "prompts": len(prompts)}


MM_RLHF_REWARDBENCH = Bench(
    name="mm_rlhf_rewardbench",
    title="MM-RLHF-RewardBench",
    fields=frozenset({"prompt", "chosen", "rejected", "chosen_reason", "rejected_reason"}),
    convert=_convert,
    names={"query": "prompt", "images": "image", "response.0": "chosen", "response.1": "rejected"},
    figures=_figures,
    columns=(("acc_plus", "Acc+"),),
)
