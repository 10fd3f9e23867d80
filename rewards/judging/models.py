"""The model that judges, here or behind an address: asked in batches or side by side, never twice for the same."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from data.io.digests import rows_digest
from data.io.images import ImageSource
from data.io.shards import process_state
from models.run_folders import find_model, model_fingerprint
from models.served.answer_files import AnswerCache
from models.served.errors import CallsSpent
from models.served.server import ChatServer
from models.vlm import LocalVLM, Prompt, Sampling
from models.zero3 import whole_models
from rewards.judging.prompts import Messages
from rewards.judging.settings import JudgeSettings


@dataclass(frozen=True, eq=False)
class Question:
    """What a judge is asked, with the images in the order of their places."""

    messages: Messages
    images: Sequence[ImageSource]


class JudgeModel(Protocol):
    """A model that is ready.

    Attributes:
        counts: questions that were `asked`, of them `cached`, and `calls`; of a server also `retries`,
            `prompt_tokens` and `completion_tokens`.
    """

    counts: Counter[str]

    async def replies(self, questions: Sequence[Question]) -> list[list[str] | BaseException]:
        """The votes on each question, as texts; or why there are none, `CallsSpent` where no more may be asked."""

    async def rest(self) -> None:
        """Closes connections, which are made again where needed."""


def load_judge(settings: JudgeSettings) -> JudgeModel:
    """The model that a recipe names; from code that is not asynchronous.

    Raises:
        ModelError: no folder with a model, or no server with it.
    """
    processes = process_state().num_processes
    share = None if settings.max_calls is None else settings.max_calls // processes
    return ServedJudge.load(settings, share) if settings.is_served else LocalJudge.load(settings, share)


class ServedJudge:
    """See `JudgeModel`; as many questions are under way as `concurrency` allows."""

    def __init__(self, vlm: Any, sampling: Sampling):
        self.vlm, self.sampling = vlm, sampling

    @classmethod
    def load(cls, settings: JudgeSettings, max_calls: int | None) -> "ServedJudge":
        from models.served.vlm import ServedVLM

        server = ChatServer(
            replace(settings.server_settings(settings.model), max_calls=max_calls), settings.answer_cache
        )
        server.counts.clear()  # finding the model is no question
        return cls(ServedVLM(server, settings.min_pixels, settings.max_pixels), settings.sampling)

    @property
    def counts(self) -> Counter[str]:
        return self.vlm.server.counts

    async def replies(self, questions: Sequence[Question]) -> list[list[str] | BaseException]:
        return await asyncio.gather(*map(self._reply, questions), return_exceptions=True)

    async def _reply(self, question: Question) -> list[str]:
        prompt = Prompt(question.messages, question.images, "")  # no name: equal questions have equal answers
        request = await asyncio.to_thread(self.vlm.request, prompt, self.sampling)
        return [completion.text for completion in await self.vlm.server.ask(request)]

    async def rest(self) -> None:
        await self.vlm.server.close()


class LocalJudge:
    """See `JudgeModel`; questions that wait at the same time are answered in batches.

    Args:
        identity: by which its answers are told from those of other models.
        calls_left: questions that it may still be asked; `None` without a limit.
    """

    def __init__(
        self,
        vlm: LocalVLM,
        identity: str,
        sampling: Sampling,
        batch_size: int,
        cache: AnswerCache,
        calls_left: int | None = None,
    ):
        self.vlm, self.identity, self.sampling, self.batch_size = vlm, identity, sampling, batch_size
        self.cache, self.calls_left = cache, calls_left
        self.counts: Counter[str] = Counter()
        self._waiting: list[tuple[Question, asyncio.Future[list[str]]]] = []

    @classmethod
    def load(cls, settings: JudgeSettings, max_calls: int | None) -> "LocalJudge":
        place, device = find_model(settings.model), process_state().device
        with whole_models():
            vlm = LocalVLM.from_name(place, settings.min_pixels, settings.max_pixels, device, settings.revision)
        identity = f"{model_fingerprint(place)} {settings.revision} {settings.min_pixels} {settings.max_pixels}"
        cache = AnswerCache(settings.answer_cache)
        return cls(vlm, identity, settings.sampling, settings.batch_size, cache, max_calls)

    async def replies(self, questions: Sequence[Question]) -> list[list[str] | BaseException]:
        return await asyncio.gather(*map(self._reply, questions), return_exceptions=True)

    async def rest(self) -> None:
        """Has nothing to close."""

    async def _reply(self, question: Question) -> list[str]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if len(self._waiting) == 1:
            await self._answer_waiting()
        return await future

    async def _answer_waiting(self) -> None:
        """Answers all that wait, and those that come meanwhile; the first one that waits does it for the others."""
        await asyncio.sleep(0)  # until all that are ready to ask have asked
        while self._waiting:
            batch = self._waiting[: self.batch_size]
            try:
                answers: Sequence[Any] = await asyncio.to_thread(self._answers, [question for question, _ in batch])
            except Exception as error:
                answers = [error] * len(batch)
            del self._waiting[: len(batch)]
            for (_, future), answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _answers(self, questions: Sequence[Question]) -> list[list[str] | CallsSpent]:
        content = {"model": self.identity, "sampling": self.sampling}
        keys = [rows_digest([{**content, "messages": one.messages, "images": list(one.images)}]) for one in questions]
        missing = {key: one for key, one in zip(keys, questions, strict=True) if self.cache.get(key) is None}
        self.counts.update(asked=len(keys), cached=len(keys) - len(missing))
        allowed = dict(list(missing.items())[: self.calls_left])
        if allowed:
            self._generate(allowed)
        found = [self.cache.get(key) for key in keys]
        return [CallsSpent() if one is None else one for one in found]

    def _generate(self, questions: Mapping[str, Question]) -> None:
        """Keeps the answers to some questions. What the process draws otherwise does not depend on it."""
        import torch

        if self.calls_left is not None:
            self.calls_left -= len(questions)
        self.counts["calls"] += len(questions)
        prompts = [Prompt(question.messages, question.images, key) for key, question in questions.items()]
        device = self.vlm.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            answers = self.vlm.complete(prompts, self.sampling)
        for key, texts in zip(questions, answers, strict=True):
            self.cache.keep(key, texts)
