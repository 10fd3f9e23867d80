"""OmniRewardBench: which of two responses is better by a criterion in free words, with and without ties.

Source: arXiv 2510.23451; HongbangYuan/OmniReward, evaluation_experiments/run_exp.py (60b170a), utils/video_utils.py
(cd292e7); columns of the data set HongbangYuan/OmniRewardBench on the Hub, one configuration a task, split `test`:

    id                   text; the files that the evaluator reads have none
    prompt               text
    criteria             text, by what the responses are compared
    response1            text; of tasks that make images an image, or the name of its file
    response2            the same
    criteria_preference  "response1", "response2" or "tie"
    image, video, audio  of the prompt, where the task has one

Read are the tasks of texts and images: text_to_text and text_image_to_text, which are understanding, text_to_image and
text_image_to_image. The task is told from what a row holds, or by a column `task`; 3D objects are judged by pictures
of them, and are text_to_image without it. Rows with a video or audio are refused, or counted with `scores`. Names of
files are relative to the file of the rows. The criterion stands behind the prompt.

Rule: the accuracy is the share of all rows whose verdict is the one of people, and a verdict that cannot be read is
wrong. Without ties, rows that people found equal are left out, and a tie is wrong: that is `accuracy`. With ties, all
rows count: `with_ties`, where equal scores are the verdict "tie". What margin should be a tie of a reward model is not
published. The paper's overall figure is the mean of the tasks, `macro` here.
"""

from collections.abc import Sequence
from typing import Any

from data.io.images import IMAGE_ENDINGS
from data.io.records import field_error
from rewards.benches.base import Bench, Figures, published_field
from rewards.benches.counts import Counts, accuracy_figures
from rewards.preferences.scored import ScoredPreference, all_pairs

CRITERION = "Judge the response by this criterion alone:"
_RANKS = {"response1": [0, 1], "response2": [1, 0], "tie": [0, 0]}


def _is_image(response: Any) -> bool:
    return not isinstance(response, str) or response.lower().endswith(IMAGE_ENDINGS)


def _response(row: dict, name: str) -> Any:
    """A text, or the parts of a response that is an image."""
    response = published_field(row, name)
    return [{"type": "image", "image": response}] if _is_image(response) else response


def _task(row: dict) -> str:
    asked = next((f"text_{kind}" for kind in ("image", "video", "audio") if row.get(kind)), "text")
    return f"{asked}_to_{'image' if _is_image(row['response1']) else 'text'}"


def _text(row: dict, name: str) -> str:
    text = published_field(row, name)
    if not isinstance(text, str):
        raise field_error(name, "expected a text", text)
    return text


def _convert(row: dict) -> dict:
    preference = published_field(row, "criteria_preference")
    if not isinstance(preference, str) or preference not in _RANKS:
        raise field_error("criteria_preference", "expected 'response1', 'response2' or 'tie'", preference)
    if row.get("audio") and row.get("scores") is None:
        raise field_error("audio", "audio is not read: leave such rows out, or give their scores", row["audio"])
    return {
        **{name: row[name] for name in ("id",) if row.get(name) is not None},
        "query": f"{_text(row, 'prompt')}\n\n{CRITERION} {_text(row, 'criteria')}",
        "images": [row["image"]] if row.get("image") else [],
        "video": row.get("video"),
        "response": [_response(row, name) for name in ("response1", "response2")],
        "human_ranking": _RANKS[preference],
        "category": row.get("task") or _task(row),
        "scores": row.get("scores"),
    }


def _agrees(preference: ScoredPreference) -> bool:
    """Whether the verdict is the one of people, of whom some found both equal."""
    pairs = preference.pairs()
    return pairs[0].gap > 0 if pairs else preference.scores[0] == preference.scores[1]


def _share(preferences: Sequence[ScoredPreference]) -> float:
    return sum(map(_agrees, preferences)) / len(preferences)


def _counts(preferences: Sequence[ScoredPreference]) -> Counts:
    return Counts.of_gaps([pair.gap for pair in all_pairs(preferences)], tie_credit=0.0)


def _figures(preferences: Sequence[ScoredPreference]) -> Figures:
    tasks: dict[str, list[ScoredPreference]] = {}
    for preference in preferences:
        tasks.setdefault(preference.category, []).append(preference)
    names = sorted(tasks)
    figures = accuracy_figures({name: _counts(tasks[name]) for name in names}, _counts(preferences), names)
    for name, group in figures["groups"].items():
        group |= {"with_ties": _share(tasks[name]), "n_with_ties": len(tasks[name])}
    return figures | {"with_ties": _share(preferences), "n_with_ties": len(preferences)}


OMNI_REWARDBENCH = Bench(
    name="omni_rewardbench",
    title="OmniRewardBench",
    fields=frozenset({"criteria", "criteria_preference", "response1", "response2"}),
    convert=_convert,
    names={
        "query": "prompt",
        "images": "image",
        "response.0": "response1",
        "response.1": "response2",
        "human_ranking": "criteria_preference",
        "category": "task",
    },
    figures=_figures,
    columns=(("with_ties", "with ties"),),
    numbered=True,
    keeps_ties=True,
)
