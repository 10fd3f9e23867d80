"""Completions that are stored: `samples.jsonl` of a run, or candidate groups of `rollouts.completions`."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from data.candidate_groups import load_groups
from data.io.records import RecordError, read_rows
from models.families.base import KnownFamily
from models.families.registry import family_of_processor
from trainers.diagnosis import causes
from trainers.diagnosis.findings import Finding, wrong
from trainers.diagnosis.rollout import Prompts, Sampled
from trainers.diagnosis.sampling_options import check_options
from trainers.mixins.sampling_difference import NEUTRAL
from trainers.report.publishing import RECIPE_FILE
from trainers.report.samples import MAX_TEXT, SampleLog, message_text
from trainers.run.origin import read_run
from trainers.setup.recipes import recipe_value

STATE_FILE = "trainer_state.json"
GRID = "image_grid_thw"
"""What is stored of images, in families that lay them out as grids of patches."""


@dataclass(frozen=True)
class StoredPrompt:
    """One prompt with its completions, as a file has it.

    Attributes:
        row: id of its row, if it is stored.
        turns: role and text of each message, images in brackets; by them and the id the row is found.
        step: optimizer steps that the model had made, of samples of a run.
        temperatures: with which completions were sampled, where that is stored.
        texts: of completions whose tokens are stored, which say which tokenizer they are of.
    """

    row: Any
    turns: list[tuple[str, str]]
    completions: list[Sampled]
    step: int | None = None
    temperatures: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass
class StoredRollouts:
    """Completions of a file, in place of new ones.

    Args:
        path: the file.
        model: whose update is looked at; of samples of a run, those of its step are taken.

    Raises:
        RecordError: no such file, or one of another kind.
    """

    path: Path
    model: str = ""
    chosen: list[StoredPrompt] = field(default_factory=list, init=False)
    lost: list[StoredPrompt] = field(default_factory=list, init=False)

    name = "stored"

    def __post_init__(self):
        self.stored = list(read_stored(self.path))
        self.made = self._steps_of_model()
        if not self.stored:
            raise RecordError([f"{self.path}: expected samples of a run or completions, found none"])

    # -- which rows ---------------------------------------------------------------------------------------------------

    def rows(self, rows: Sequence[dict], limit: int) -> list[dict]:
        """Those of the data set whose prompts are in the file, of samples of a run at the model's step."""
        found = []
        for stored in self._of_the_step():
            row = next((row for row in rows if _is_of(stored, row)), None)
            if row is None:
                self.lost.append(stored)
            elif len(found) < limit and all(row is not other for other in found):
                found.append(row)
                self.chosen.append(stored)
        if not found:
            raise RecordError(
                [f"{self.path}: none of its {len(self.stored)} prompts is a row of the recipe's training data"]
            )
        return found

    def _of_the_step(self) -> list[StoredPrompt]:
        """Samples of the step that the model has made, or of the nearest."""
        steps = {one.step for one in self.stored if one.step is not None}
        if not steps:
            return self.stored
        nearest = min(steps, key=lambda step: abs(step - self.made))
        return [one for one in self.stored if one.step == nearest]

    def _steps_of_model(self) -> int:
        """Optimizer steps that the model has made in the run of the samples; 0 for any model of elsewhere."""
        run, model = self.path.parent.resolve(), Path(self.model).resolve()
        return steps_of(model) if run in (model, *model.parents) else 0

    def size(self, recipes: int) -> int:
        """Completions of each prompt that are looked at, at least 2; a prompt with fewer repeats its last."""
        return max(2, min([recipes, *(len(one.completions) for one in self.chosen)]))

    def places(self) -> list[str]:
        """Folders whose weights may have drawn the samples: of their run, and what it began with."""
        run = self.path.parent
        start = recipe_value(["--config", str(run / RECIPE_FILE)], "model_name_or_path")
        return [str(run), *([] if start is None else [str(start)])]

    def step(self) -> int | None:
        """Optimizer steps before the samples that are looked at, where the file says."""
        return next((one.step for one in self.chosen if one.step is not None), None)

    def stale(self) -> bool:
        """Whether the file says that other weights than the model's have drawn them."""
        return self.step() not in (None, self.made)

    # -- in place of sampling -----------------------------------------------------------------------------------------

    def generate(self, trainer: Any, generate: Callable, prompts: Prompts, size: int) -> list[Sampled]:
        """The stored completions of all prompts, in their order.

        Raises:
            RecordError: their tokens are of another tokenizer.
        """
        self._check_tokenizer(trainer.processing_class.tokenizer)
        family = family_of_processor(trainer.processing_class)
        grids_tell = isinstance(family, KnownFamily) and GRID in family.image_inputs
        found = []
        for stored in self.chosen:
            given = [_with_tokens(one, trainer) for one in stored.completions[:size]]
            if not grids_tell:
                given = [replace(one, images=None) for one in given]
            found += given + [given[-1]] * (size - len(given))
        return found

    def _check_tokenizer(self, tokenizer: Any) -> None:
        pairs = [
            (tokenizer.decode(one.completion_ids, skip_special_tokens=True)[:MAX_TEXT].strip(), text.strip())
            for stored in self.chosen
            for one, text in zip(stored.completions, stored.texts, strict=False)
            if text.strip()
        ]
        if pairs and not any(one and (text.startswith(one) or one.startswith(text)) for one, text in pairs):
            decoded, text = pairs[0]
            raise RecordError(
                [
                    f"{self.path}: its token ids are of another tokenizer than that of {self.model}: the completion "
                    f"{text[:40]!r} would be {decoded[:40]!r}; expected samples of the recipe's model"
                ]
            )

    def findings(self, temperature: float) -> Iterator[Finding]:
        """What the file says by itself: its prompts, its step and its temperature.

        Args:
            temperature: of the update.
        """
        check, count = "stored prompts", len(self.chosen) + len(self.lost)
        if self.lost:
            found = f"{len(self.lost)} of {count} are in no row of the training data"
            yield wrong(check, found, "all", causes.OTHER_PROMPT)
        else:
            yield Finding(check, f"{count} of {count} are rows of the training data", "all")
        run = read_run(self.path.parent)
        if run is not None:
            yield from check_options(sampling_settings(run["settings"]), "the samples' run")
        step = self.step()
        if step is not None:
            check, limit = "weights of the samples", f"after {self.made} steps, as the model"
            found = f"after {step} steps"
            yield wrong(check, found, limit, causes.STALE) if self.stale() else Finding(check, found, limit)
        used = Counter(value for one in self.chosen for value in one.temperatures)
        other = [value for value in used if abs(value - temperature) > 1e-6 * temperature]
        if other:
            yield wrong("temperature of the samples", f"{other[0]:g}", f"{temperature:g}", causes.TEMPERATURE)
        elif used:
            yield Finding("temperature of the samples", f"{temperature:g}", f"{temperature:g}")


def sampling_settings(settings: Mapping[str, Any]) -> SimpleNamespace:
    """What a run's settings say of sampling, as its arguments had it."""
    return SimpleNamespace(**{name: settings.get(name) for name in (*NEUTRAL, "temperature", "generation_kwargs")})


def _with_tokens(one: Sampled, trainer: Any) -> Sampled:
    """The completion with tokens made of its text, where it has no others."""
    if one.text is None:
        return one
    ids = trainer.processing_class.tokenizer(one.text, add_special_tokens=False)["input_ids"]
    closed = [*ids, trainer.eos_token_ids[0]][: trainer.max_completion_length]
    return Sampled(closed, text=one.text)


def steps_of(model: Path) -> int:
    """Optimizer steps that a folder's model has made in the run that it is of; 0 of any other."""
    try:
        state = json.loads((model / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    return int(state.get("global_step") or 0)


def _is_of(stored: StoredPrompt, row: dict) -> bool:
    """By id and prompt, of which a file may lack one: rows of another data set may have the same ids."""
    if stored.row is not None and stored.row != row.get("id"):
        return False
    return stored.turns == _turns(row["prompt"]) if stored.turns else stored.row is not None


def _turns(prompt: Sequence[Any]) -> list[tuple[str, str]]:
    return [(str(turn["role"]), message_text(turn)[:MAX_TEXT]) for turn in prompt]


# -- reading ----------------------------------------------------------------------------------------------------------


def read_stored(path: Path) -> Iterator[StoredPrompt]:
    """Prompts and completions of a file of either kind.

    Raises:
        RecordError: it holds neither.
    """
    _, first = next(iter(read_rows(str(path))), (None, None))
    if isinstance(first, dict) and "candidates" in first:
        yield from _of_groups(path)
    elif isinstance(first, dict) and {"step", "completions"} <= first.keys():
        yield from _of_samples(path)
    else:
        raise RecordError([f"{path}: expected samples of a run (samples.jsonl) or groups of completions"])


def _of_samples(path: Path) -> Iterator[StoredPrompt]:
    log = SampleLog(path.parent)
    log.path = path
    for sample in log.read("batch"):
        turns = [(turn.role, turn.text) for turn in sample.prompt]
        tokens = sample.tokens
        if tokens is None:
            yield StoredPrompt(None, turns, [Sampled([], text=text) for text in sample.completions], sample.step)
            continue
        told = tokens.log_probs or [None] * len(tokens.token_ids)
        lengths = [None if values is None else len(values) for values in told]
        if any(length not in (None, len(ids)) for length, ids in zip(lengths, tokens.token_ids, strict=False)):
            raise RecordError([f"{path}: sample of step {sample.step}: expected as many log-probabilities as tokens"])
        images = [{GRID: torch.tensor(grid)} for grid in tokens.image_grids]
        # A completion that was left out of the loss has no tokens here.
        found = [
            (Sampled(ids, tokens.prompt_token_ids, None if values is None or None in values else values, images), text)
            for ids, values, text in zip(tokens.token_ids, told, sample.completions, strict=False)
            if ids
        ]
        if found:
            completions, texts = zip(*found, strict=True)
            yield StoredPrompt(tokens.row, turns, list(completions), sample.step, texts=texts)


def _of_groups(path: Path) -> Iterator[StoredPrompt]:
    for group in load_groups(str(path)):
        if group.kind == "completion":
            heat = tuple(one.temperature for one in group.candidates if one.temperature is not None)
            found = [Sampled([], text=one.completion) for one in group.candidates]
            yield StoredPrompt(
                group.id, _turns((group.model_extra or {}).get("prompt") or []), found, temperatures=heat
            )
