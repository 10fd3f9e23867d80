"""Scores of many responses by a reward model: in batches of similar length, on all processes, resumable.

Used by `rewards.reward_bench` and `rewards.score`.
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.cli.arguments import device_option, dtype_option, option
from data.cli.ranges import AT_LEAST_1
from data.io.digests import rows_digest
from data.io.images import ImageSource
from data.io.pixel_bounds import ImageReader
from data.io.records import RecordError, read_rows
from data.io.shards import KeptWorkArguments, ShardStore, process_state
from data.rows.messages import message_texts, promised_images, texts_of
from data.rows.responses import Response, response_images
from models.errors import ModelError
from models.run_folders import find_model, model_fingerprint

VERSION = 2
"""Of the stored rows; raised when what they hold changes."""
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class ScoreRequest:
    """One prompt, with its images, and the responses to be scored.

    Attributes:
        prompt: a question, or chat messages without the response.
        images: of the prompt, in order.
        responses: texts, or texts with images.
    """

    prompt: str | Sequence[dict[str, Any]]
    images: Sequence[ImageSource]
    responses: Sequence[Response]


def _texts(prompt: str | Sequence[dict[str, Any]]) -> list[str]:
    """Roles and texts of a prompt; images in it count as a place."""
    if isinstance(prompt, str):
        return [prompt]
    texts = []
    for turn in prompt:
        content = turn["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        texts += [turn["role"], *(part.get("text", "<image>") for part in parts)]
    return texts


def _texts_alone(prompt: str | Sequence[dict[str, Any]]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else message_texts(prompt)


def prompt_text(prompt: str | Sequence[dict[str, Any]]) -> str:
    """A question as it is; of chat messages, roles and texts."""
    return "\n".join(_texts(prompt))


def _length(request: ScoreRequest, bounds: ImageReader) -> float:
    """About how many tokens the longest response has with its prompt; only for sorting."""

    def of(texts: Iterable[str], images: Iterable[ImageSource]) -> float:
        return sum(map(len, texts)) / _CHARACTERS_A_TOKEN + sum(map(bounds.tokens, images))

    responses = (of(texts_of(response), response_images(response)) for response in request.responses)
    return of(_texts(request.prompt), request.images) + max(responses)


def _longest_first(requests: Sequence[ScoreRequest], processor: Any) -> list[int]:
    """The numbers of the requests, those of similar length together: what does not fit fails at once."""
    from models.families.loading import image_reader

    bounds = image_reader(processor)
    return sorted(range(len(requests)), key=lambda number: _length(requests[number], bounds))[::-1]


def _unless_gone(_: Any, path: str, found: tuple) -> None:
    """Another process may remove the lock of its own shard just now."""
    if not issubclass(found[0], FileNotFoundError):
        raise found[1]


@dataclass(frozen=True)
class StoredScores:
    """Where and how scores are made.

    Attributes:
        model: folder (of a run too) or Hub id of a reward model.
        work_dir: scores are kept here until `forget`; other settings or requests are refused.
        batch_size: responses a forward pass.
        device: by default the process's own.
        restart: discard the scores that are kept there.
    """

    model: str
    work_dir: Path
    batch_size: int = 16
    device: str | None = None
    dtype: str = "auto"
    restart: bool = False

    def _load(self) -> Any:
        from models.reward.load import load_reward_model

        device = self.device or process_state().device
        try:
            return load_reward_model(self.model, device, self.dtype)[0]
        except (OSError, ValueError) as error:
            raise RecordError([f"--model {self.model}: cannot be loaded as a reward model: {error}"]) from error

    def _settings(self, requests: Sequence[ScoreRequest]) -> dict[str, Any]:
        try:
            fingerprint = model_fingerprint(find_model(self.model))
        except ModelError as error:
            raise error.at("--model") from error
        settings = {"version": VERSION, "model": fingerprint, "data": rows_digest(requests), "dtype": self.dtype}
        return {**settings, "batch_size": self.batch_size}

    def _check_texts(self, requests: Sequence[ScoreRequest], source: str) -> None:
        """Raises `RecordError` for texts with a token that stands for pictures in the model's family."""
        from models.families.loading import image_tokens, load_processor

        tokens = image_tokens(load_processor(find_model(self.model)))
        problems = [
            problem
            for number, one in enumerate(requests, start=1)
            for problem in promised_images(
                {
                    "prompt": _texts_alone(one.prompt),
                    "response": [text for said in one.responses for text in texts_of(said)],
                },
                f"{source}: row {number}",
                tokens,
            )
        ]
        if problems:
            raise RecordError(problems)

    def score(self, requests: Sequence[ScoreRequest], source: str) -> list[list[float]] | None:
        """Scores of every request's responses, in order, on the main process; `None` on the others.

        Args:
            source: of the requests, for messages.

        Raises:
            RecordError: no such reward model, a folder with scores of other requests or settings, or a model that
                gives NaN or infinity.
            ValueError: prompt and images that do not fit.
        """
        if not requests:
            raise RecordError(["there is nothing to score: no rows"])
        settings = self._settings(requests)
        with ShardStore(self.work_dir, settings, restart=self.restart) as store:
            complete = store.done.issuperset(range(len(requests)))
            if not complete:
                self._check_texts(requests, source)
            model = None if complete else self._load()
            numbers = range(len(requests)) if complete else _longest_first(requests, model.processor)
            merged = self.work_dir / "scores.jsonl"
            together = max(1, self.batch_size // max(len(request.responses) for request in requests))
            store.fill(merged, numbers, lambda chunk: self._rows(model, requests, chunk), together, unit="prompt")
            if not store.is_main:
                return None
            scores = {row["id"]: row["scores"] for _, row in read_rows(merged)}
            return [scores[number] for number in range(len(requests))]

    def forget(self) -> None:
        """Removes the kept scores; for the main process, when what is made of them is written."""
        shutil.rmtree(self.work_dir, onerror=_unless_gone)

    def _rows(self, model: Any, requests: Sequence[ScoreRequest], chunk: list[int]) -> Iterator[dict[str, Any]]:
        scores = self._score_chunk(model, [requests[number] for number in chunk])
        return ({"id": number, "scores": row} for number, row in zip(chunk, scores, strict=True))

    def _score_chunk(self, model: Any, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        prompts = [request.prompt for request in requests for _ in request.responses]
        images = [request.images for request in requests for _ in request.responses]
        responses = [response for request in requests for response in request.responses]
        values = model.score(prompts, images, responses, batch_size=self.batch_size).tolist()
        for value, response in zip(values, responses, strict=True):
            if not math.isfinite(value):
                raise RecordError([f"{self.model}: the score is {value} of the response {response!r:.200}"])
        scores = iter(values)
        return [[next(scores) for _ in request.responses] for request in requests]


@dataclass(kw_only=True)
class ScoringArguments(KeptWorkArguments):
    """How the reward model scores."""

    batch_size: int = option("responses a forward pass", 16, within=AT_LEAST_1)
    device: str | None = device_option()
    dtype: str = dtype_option()

    def stored_scores(self, model: str, output: Path) -> StoredScores:
        """The scores of what an output is made of."""
        return StoredScores(model, self.work(output), self.batch_size, self.device, self.dtype, self.restart)
