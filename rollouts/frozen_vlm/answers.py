"""Answers of a VLM to queries with shown examples, each asked for once: answers are kept by content, on disk too.

What an answer depends on makes its key: the VLM's weights and settings, the shown examples in their order, and the
query; ids and places of files do not. A folder of answers serves any number of runs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from data.io.digests import rows_digest
from data.io.shards import process_state
from data.vqa import VqaRecord, common_answer
from models.run_folders import model_fingerprint
from models.served.answer_files import append_line, open_own_file, stored_lines
from models.vlm_places import VLMPlace
from rewards.vqa_accuracy import vqa_accuracy
from rollouts.frozen_vlm.arguments import VLMArguments, generation_options, load_in_context_vlm
from rollouts.frozen_vlm.engine import InContextVLM
from rollouts.frozen_vlm.plain_engine import PlainInContextVLM
from rollouts.frozen_vlm.requests import InContextRequest
from rollouts.frozen_vlm.served import ServedInContextVLM

FULL_WEIGHT = 3
"""Annotators whose agreement makes an answer fully right, in the official VQA accuracy."""


@dataclass(frozen=True)
class Answer:
    """What the VLM wrote, and the answer read from it."""

    raw: str
    text: str


class ContentKeys:
    """Keys of requests, by content; a record is looked at once.

    Args:
        image_key: image -> key of its content.
    """

    def __init__(self, image_key: Callable[[Any], str]):
        self._image_key = image_key
        self._known: dict[tuple[int, bool], tuple[VqaRecord, str]] = {}

    def _of_record(self, record: VqaRecord, with_answer: bool) -> str:
        place = (id(record), with_answer)
        if place not in self._known:
            content: list = [record.question, [self._image_key(image) for image in record.images]]
            content += [common_answer(record)] if with_answer else []
            self._known[place] = (
                record,
                rows_digest(content),
            )  # the record is kept, so that no other gets its identity
        return self._known[place][1]

    def of_request(self, request: InContextRequest) -> str:
        """The key of a request under one VLM."""
        parts = [*(self._of_record(example, True) for example in request.examples)]
        parts.append(self._of_record(request.query, False))
        if request.answer is not None:
            parts.append(f"answer {request.answer}")
        return rows_digest(parts)


class AnswerBook:
    """Asks a VLM what has not been asked yet.

    Args:
        vlm: the frozen VLM.
        settings: everything that its answers depend on beside the requests (model, prompt, generation), as JSON.
        folder: where answers are kept, a file for each process; without one they are forgotten at the end.
        generation: arguments of `InContextVLM.generate`.

    Attributes:
        settings: as given, with those of generation.
        counts: how many requests were looked up (`asked`), and how many of them the VLM computed (`computed`).

    What is asked at once is stored as one line, or not at all: a run that is killed and started again asks the VLM the
    same batches as an undisturbed one.
    """

    def __init__(
        self,
        vlm: InContextVLM | PlainInContextVLM | ServedInContextVLM,
        settings: dict,
        folder: str | Path | None = None,
        generation: dict | None = None,
    ):
        self.vlm = vlm
        self.generation = generation or {}
        self.counts: Counter[str] = Counter()
        self.settings = {**settings, **self.generation}
        self._settings = rows_digest([self.settings])
        self._keys = ContentKeys(vlm.images.key)
        self._known: dict[str, str | float] = {}
        self._folder: Path | None = None
        self._file: BinaryIO | None = None
        if folder is not None:
            self._folder = Path(folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            state = process_state()
            self._file = open_own_file(self._folder, "answers", state.process_index, state.num_processes)
            self.reload()

    def reload(self) -> None:
        """Reads what all processes have stored under the same settings."""
        if self._folder is not None:
            for path in sorted(self._folder.glob("answers-*.jsonl")):
                for _, stored in stored_lines(path, "settings", "answers"):
                    if stored["settings"] == self._settings:
                        self._known.update(stored["answers"])

    def answers(self, requests: Sequence[InContextRequest]) -> list[Answer]:
        """The VLM's answer to each request."""
        raws = self._look_up(requests, self._generate)
        return [Answer(raw, self.vlm.first_answer(raw)) for raw in raws]

    def _generate(self, requests: Sequence[InContextRequest]) -> list[str]:
        return self.vlm.generate(requests, **self.generation)

    def prepare(
        self, requests: Sequence[InContextRequest], chunk: int = 2_048, description: str = "answering"
    ) -> None:
        """Asks for the answers to many requests, the work divided among the processes, with a progress bar.

        Afterwards every process knows all of them. What is done when a run is killed is not done again.
        """
        state = process_state()
        missing = list(self._missing(requests).values())
        state.wait_for_everyone()  # nobody writes while another still reads, so that all divide the same list
        if state.num_processes > 1 and self._file is None:
            raise ValueError("several processes share answers in a folder; give one")
        mine = missing[state.process_index :: state.num_processes]
        with tqdm(total=len(mine), desc=description, unit="answer", disable=not state.is_main_process) as bar:
            for start in range(0, len(mine), chunk):
                part = mine[start : start + chunk]
                self._compute(self._missing(part), self._generate)
                bar.update(len(part))
        state.wait_for_everyone()
        if state.num_processes > 1:
            self.reload()

    def probabilities(self, requests: Sequence[InContextRequest]) -> list[float]:
        """P(the request's `answer` | its prompt), the geometric mean over the answer's tokens."""
        return self._look_up(requests, self._rounded_probabilities)

    def _rounded_probabilities(self, requests: Sequence[InContextRequest]) -> list[float]:
        return [round(value, 7) for value in self.vlm.answer_probabilities(requests)]  # float32 has no more digits

    def right_answer_probabilities(self, requests: Sequence[InContextRequest]) -> list[float]:
        """Of each query: the sum over its annotators' answers of P(answer | prompt) * min(annotators / 3, 1)."""
        asked, weights = [], []
        for request in requests:
            counted = Counter(request.query.answers)
            asked += [InContextRequest(request.query, request.examples, answer) for answer in counted]
            weights.append([min(count / FULL_WEIGHT, 1.0) for count in counted.values()])
        found = iter(self.probabilities(asked))
        return [sum(weight * next(found) for weight in row) for row in weights]

    def _look_up(self, requests: Sequence[InContextRequest], compute: Callable) -> list:
        self.counts["asked"] += len(requests)
        self._compute(self._missing(requests), compute)
        return [self._known[self._keys.of_request(request)] for request in requests]

    def _compute(self, missing: dict[str, InContextRequest], compute: Callable) -> None:
        if missing:
            self.counts["computed"] += len(missing)
            self._store(dict(zip(missing, compute(list(missing.values())), strict=True)))

    def _missing(self, requests: Sequence[InContextRequest]) -> dict[str, InContextRequest]:
        """The requests that are not known, by key, each once."""
        by_key = {self._keys.of_request(request): request for request in requests}
        return {key: request for key, request in by_key.items() if key not in self._known}

    def _store(self, answers: dict[str, str | float]) -> None:
        self._known.update(answers)
        if self._file is not None:
            append_line(self._file, {"settings": self._settings, "answers": answers})


def accuracies(answers: Sequence[Answer], requests: Sequence[InContextRequest]) -> list[float]:
    """Official VQA accuracy of each answer, 0 to 1."""
    return [
        vqa_accuracy(answer.text, request.query.answers) for answer, request in zip(answers, requests, strict=True)
    ]


def open_answer_book(arguments: VLMArguments, folder: str | Path | None, server: VLMPlace | None = None) -> AnswerBook:
    """Loads the VLM of a command line (`rollouts/frozen_vlm/arguments.py`).

    Args:
        folder: where answers are kept.
        server: the VLM's place, where that is a server.

    Raises:
        ModelError: there is no such model.
    """
    settings = {
        "model": model_fingerprint(arguments.model) if server is None else server.fingerprint(),
        "prompt_style": arguments.prompt_style,
        "system_prompt": arguments.system_prompt,
        "min_pixels": arguments.min_pixels,
        "max_pixels": arguments.max_pixels,
        "dtype": arguments.dtype,
    }
    if server is None:
        return AnswerBook(load_in_context_vlm(arguments), settings, folder, generation_options(arguments))
    vlm = server.load(arguments.min_pixels, arguments.max_pixels, folder)
    asked = ServedInContextVLM(vlm, arguments.prompt_style, arguments.system_prompt)
    return AnswerBook(asked, settings, folder, {"max_new_tokens": arguments.max_new_tokens})
