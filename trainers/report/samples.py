"""Sample prompts of a run, with what the model made of them: kept in `samples.jsonl`, shown in the report."""

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data.io.images import open_image
from data.io.records import atomic_write
from data.io.shards import cut_incomplete_line
from trainers.report.logged_figures import number_of
from trainers.report.sampled_tokens import SampledTokens
from trainers.run.console import warn

SAMPLES_FILE = "samples.jsonl"
SAMPLED_STEPS = 20
"""At about so many steps of a run samples are kept."""
THUMBNAIL_SIDE = 160
MAX_TEXT = 4_000

Source = Literal["batch", "held out", "training data"]
"""Where a prompt is from: the batch of its step, or a fixed set that is shown at every sampled step."""

ANSWER_COLUMNS = (
    "gold", "ground_truth_agents", "ground_truth_prompts", "answers", "answer", "ground_truth", "solution", "target",
    "reference", "label",
)  # fmt: skip
"""Columns that hold the right answer of a row."""
NO_ANSWERS = ("id", "prompt", "images", "image", "question", "pool", "candidates", "shots")


@dataclass(frozen=True)
class SampleGroup:
    """One prompt with its completions, as they were scored.

    Attributes:
        prompt: chat messages.
        images: of the prompt.
        completions: texts.
        scores: of each completion, by reward.
        advantages: of each completion, the best is marked; none where nothing is compared by them.
        advantage_name: what the report calls them.
        answers: what is right, by what the report calls it.
        marks: of each completion, such as "chosen"; none where nothing is known of them.
        verdict: whether the model is right about the whole prompt, and what the report says of it.
        tokens: behind the texts, where the sampler of a rollout is known.
    """

    prompt: Sequence[Mapping[str, Any]]
    images: Sequence[Any]
    completions: Sequence[str]
    scores: Sequence[Mapping[str, float | None]]
    advantages: Sequence[float] = ()
    advantage_name: str = "advantage"
    answers: Mapping[str, str] = field(default_factory=dict)
    marks: Sequence[str] = ()
    verdict: tuple[bool, str] | None = None
    tokens: SampledTokens | None = None


class Turn(BaseModel):
    """A message of a stored prompt."""

    role: str
    text: str


class StoredImage(BaseModel):
    """A picture as a data address, or why there is none."""

    address: str | None = None
    problem: str = ""


class StoredSample(BaseModel):
    """A line of `samples.jsonl`; numbers that JSON does not have (NaN, infinity) are texts in it.

    Attributes:
        step: optimizer steps that the model had made.
        source, number: which prompt it is of those of a step.
    """

    model_config = ConfigDict(extra="ignore")

    step: int
    source: Source = "batch"
    number: int = 0
    prompt: list[Turn]
    images: list[StoredImage]
    completions: list[str]
    scores: list[dict[str, float | str | None]]
    advantages: list[float | str | None]
    advantage_name: str = "advantage"
    answers: dict[str, str] = {}
    marks: list[str] = []
    verdict: tuple[bool, str] | None = None
    tokens: SampledTokens | None = None

    @property
    def score_names(self) -> list[str]:
        """Of all completions, in order."""
        return list(dict.fromkeys(name for scores in self.scores for name in scores))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What a table shows: text, mark, scores, advantage and whether it is the best, of each completion."""
        found = [number_of(value) for value in self.advantages]
        best = max((value for value in found if value is not None and math.isfinite(value)), default=None)
        return [
            {
                "text": text,
                "mark": self.marks[place] if place < len(self.marks) else "",
                "scores": self.scores[place] if place < len(self.scores) else {},
                "advantage": self.advantages[place] if place < len(self.advantages) else None,
                "best": place < len(found) and found[place] == best is not None and best > 0,
            }
            for place, text in enumerate(self.completions)
        ]


# -- what is stored ---------------------------------------------------------------------------------------------------


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a chat message, its images and other media in brackets."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] if isinstance(part.get("text"), str) else f"[{part.get('type')}]" for part in content)


def right_answers(row: Mapping[str, Any]) -> dict[str, str]:
    """The right answers of a row, by what the report calls them; where no column is known to hold them, every column
    that a reward might compare with.

    >>> right_answers({"answers": ["red", "red", "dark red"], "question": "?"})
    {'right (answers)': 'red (2), dark red'}
    """
    given = {name: value for name, value in row.items() if value is not None and name not in NO_ANSWERS}
    known = [name for name in ANSWER_COLUMNS if name in given]
    if known:
        return {f"right ({name})": answer_text(given[name]) for name in known}
    return {f"column {name}": answer_text(value) for name, value in given.items()}


def answer_text(value: Any) -> str:
    """An answer, or several of them with how often each was given."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        counts = Counter(value)
        return ", ".join(f"{text} ({count})" if count > 1 else text for text, count in counts.items()) or "none"
    if isinstance(value, list | tuple) and all(isinstance(one, dict) and "content" in one for one in value):
        return "\n".join(message_text(turn) for turn in value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def _thumbnail(image: Any) -> dict[str, str]:
    """A small PNG as a data address; a picture that cannot be shown costs its sample nothing else."""
    try:
        small = open_image(image).copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        encoded = io.BytesIO()
        small.save(encoded, "PNG")
    except Exception as error:  # any that a picture's decoder has
        return {"problem": str(error) or type(error).__name__}
    return {"address": "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()}


def _storable(value: Any) -> float | str | None:
    """A score as JSON has it."""
    number = number_of(value)
    if number is None:
        return None if value is None else str(value)
    return number if math.isfinite(number) else str(number)


def _clean(text: str) -> str:
    """At most `MAX_TEXT` letters, with U+FFFD for halves of surrogate pairs, which no file holds."""
    return text[:MAX_TEXT].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _as_row(step: int, group: SampleGroup, source: Source, number: int) -> dict[str, Any]:
    prompt = [{"role": _clean(str(turn.get("role"))), "text": _clean(message_text(turn))} for turn in group.prompt]
    return {
        "step": step,
        "source": source,
        "number": number,
        "prompt": prompt,
        "images": [_thumbnail(image) for image in group.images],
        "completions": [_clean(text) for text in group.completions],
        "scores": [{name: _storable(value) for name, value in scores.items()} for scores in group.scores],
        "advantages": [_storable(value) for value in group.advantages],
        "advantage_name": group.advantage_name,
        "answers": {_clean(name): _clean(text) for name, text in group.answers.items()},
        "marks": list(group.marks),
        "verdict": group.verdict,
        "tokens": None if group.tokens is None else group.tokens.model_dump(),
    }


class SampleLog:
    """Keeps a few prompts of a run in `samples.jsonl`, for the report. It may fail, but never ends a run.

    Lines are ASCII: every reader finds the same ends of lines, and no kill leaves half a letter.

    Args:
        output_dir: of the run.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / SAMPLES_FILE
        self.unreadable = 0
        self._begun = False
        self._last_step = -1
        self._warned_of: set[type[Exception]] = set()

    @staticmethod
    def is_due(step: int, max_steps: int) -> bool:
        """Whether samples are kept at this optimizer step."""
        return step % max(1, max_steps // SAMPLED_STEPS) == 0

    def wants(self, step: int, max_steps: int) -> bool:
        """Whether a group of this step's batch should be kept; one is enough."""
        return step != self._last_step and self.is_due(step, max_steps)

    def begin(self, step: int) -> None:
        """Leaves out what the file has from `step` on: samples that this run will make again, or another run's."""
        try:
            if self.path.is_file():
                kept = [line for line, sample in self._lines() if sample.step < step]
                with atomic_write(self.path, "wb") as file:
                    file.writelines(kept)
            self._begun = True
        except OSError as error:
            warn(f"{self.path}: samples of an earlier run cannot be removed: {error}")

    def add(self, step: int, group: SampleGroup, source: Source = "batch", number: int = 0) -> None:
        """Appends a group."""
        if source == "batch":
            self._last_step = step
        try:
            line = json.dumps(_as_row(step, group, source, number), allow_nan=False).encode("ascii") + b"\n"
            StoredSample.model_validate_json(line)
            self._append(line)
        except Exception as error:  # a report is not worth a run
            if type(error) not in self._warned_of:
                warn(f"a sample of step {step} is missing in the report, and others may be: {error}")
            self._warned_of.add(type(error))

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._begun and self.path.is_file():
            cut_incomplete_line(self.path)  # of a run that was killed: this line would become part of it
        self._begun = True
        with self.path.open("ab") as file:
            file.write(line)

    def _lines(self) -> Iterable[tuple[bytes, StoredSample]]:
        """Whole lines that hold a sample; the others are counted as `unreadable`, but for a last one cut short."""
        self.unreadable = 0
        if not self.path.is_file():
            return
        with self.path.open("rb") as lines:
            for line in lines:
                try:
                    sample = StoredSample.model_validate_json(line)
                except ValidationError:
                    self.unreadable += line.endswith(b"\n")
                    continue
                yield line, sample

    def read(self, source: Source | None = None) -> list[StoredSample]:
        """Samples kept so far, by step; of several of one step and number (before and after resuming) the last.

        `unreadable` then counts the lines that hold no sample.
        """
        rows = {(sample.step, sample.source, sample.number): sample for _, sample in self._lines()}
        return [rows[key] for key in sorted(rows) if source in (None, rows[key].source)]
