"""Multimodal RewardBench 2: accuracy of 1,000 pairs of each of four tasks, whose responses are images, texts or both.

Source: arXiv 2512.16899; facebookresearch/MMRB2, README.md (0d942d7), benchmark/build_from_hf.py (2ef90c7) and
evaluate/compute_scores/compute_accuracy.py (1a09882). The published files are `t2i.json`, `edit.json`,
`interleaved.json` and `reasoning.json`; each is {"pairs": [...]}, a pair an object with

    id              text; README.md calls it pair_id
    prompt_content  list of ["text", a text] and ["image", path below the file's folder]
    response_a      object with `response_content`, a list of the same kind; others of its fields are not read
    response_b      the same
    chosen          "A" or "B"

A folder with these files is the whole bench. Rows with scores have `scores`, of response A and B, in each pair.

Rule: a judge is asked about each pair in both orders, and of all its verdicts that can be read the share of right ones
is the accuracy of a task; overall is the share of all tasks together, and the published average is the mean of the
tasks. One who contradicts himself between the orders is right once in two verdicts: so a tie counts one half here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.io.records import Location, RecordError, field_error, read_json, read_some_rows
from rewards.benches.base import Bench, Figures, published_field
from rewards.benches.counts import Counts, accuracy_figures
from rewards.preferences.scored import ScoredPreference, all_pairs

TASKS = ("t2i", "edit", "interleaved", "reasoning")
_SIDES = ("response_a", "response_b")
_HALF = 0.5


def _read(source: str | Path, split: str) -> Iterator[tuple[Location, Any]]:
    """The pairs of a file, or of all tasks of a folder, with their `task`, which is the name of their file."""
    path = Path(source)
    paths = [path / f"{task}.json" for task in TASKS] if path.is_dir() else [path]
    files = [path for path in paths if path.suffix == ".json" and path.is_file()]
    if not files:
        yield from read_some_rows(source, split)
    for path in files:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("pairs"), list) or not content["pairs"]:
            raise RecordError([f"{path}: field 'pairs': expected a list of pairs"])
        for number, pair in enumerate(content["pairs"], start=1):
            yield Location(str(path), number, "pair"), {"task": path.stem, **pair} if isinstance(pair, dict) else pair


def _parts(place: tuple[str, ...], content: Any) -> list[dict[str, Any]]:
    """Parts of a chat message, of published content; texts without a letter are left out."""
    if not isinstance(content, list):
        raise field_error(place, "expected a list of texts and images", content)
    parts = []
    for number, entry in enumerate(content):
        is_pair = isinstance(entry, list) and len(entry) == 2 and entry[0] in ("text", "image")
        if not is_pair or not isinstance(entry[1], str):
            raise field_error((*place, number), "expected ['text', a text] or ['image', a path]", entry)
        parts += [{"type": entry[0], entry[0]: entry[1]}] if entry[1].strip() else []
    if not parts:
        raise field_error(place, "expected a text or an image at least", content)
    return parts


def _response(row: dict, side: str) -> list[dict[str, Any]]:
    response = published_field(row, side)
    if not isinstance(response, dict):
        raise field_error(side, "expected an object with 'response_content'", response)
    return _parts((side, "response_content"), response.get("response_content"))


def _convert(row: dict) -> dict:
    chosen = published_field(row, "chosen")
    if chosen not in ("A", "B"):
        raise field_error("chosen", "expected 'A' or 'B'", chosen)
    asked = _parts(("prompt_content",), published_field(row, "prompt_content"))
    return {
        "id": row["pair_id"] if row.get("id") is None and "pair_id" in row else published_field(row, "id"),
        "query": [{"role": "user", "content": asked}],
        "response": [_response(row, side) for side in _SIDES],
        "human_ranking": [int(chosen != name) for name in ("A", "B")],
        "category": row.get("task", ""),
        "scores": row.get("scores"),
    }


def _figures(preferences: Sequence[ScoredPreference]) -> Figures:
    gaps: dict[str, list[float]] = {}
    for preference in preferences:
        gaps.setdefault(preference.category, []).extend(pair.gap for pair in preference.pairs())
    names = sorted(gaps, key=lambda name: TASKS.index(name) if name in TASKS else len(TASKS))
    total = Counts.of_gaps([pair.gap for pair in all_pairs(preferences)], _HALF)
    return accuracy_figures({name: Counts.of_gaps(gaps[name], _HALF) for name in names}, total, names)


MMRB2 = Bench(
    name="mmrb2",
    title="Multimodal RewardBench 2",
    fields=frozenset({"prompt_content", "response_a", "response_b", "chosen"}),
    convert=_convert,
    names={"query": "prompt_content", "response.0": "response_a", "response.1": "response_b", "category": "task"},
    figures=_figures,
    read=_read,
)
