"""A server that completes conversations: what is asked of it, how often, and how much at once.

    server = ChatServer(ServerSettings("http://localhost:8000/v1"), cache="outputs/answers")
    server.answers([ChatRequest([{"role": "user", "content": "Is it red?"}])])
    await server.ask(request)     # from asynchronous code

An answer that was given once is never asked for again, in this run or a later one with the same cache.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from data.io.digests import rows_digest
from models.served.address import checked_address
from models.served.answer_files import AnswerCache
from models.served.attempts import Attempts
from models.served.client import Client
from models.served.completions import Completion, read_completions, tokens_used
from models.served.errors import ServerError, Stopped
from models.served.messages import with_image_data
from models.served.model_list import ModelCard, choose_model, read_models
from models.served.requests import ChatRequest

CHAT, MODELS = "/chat/completions", "/models"

Result = TypeVar("Result")


@dataclass(frozen=True)
class ServerSettings:
    """Where a server is, and how it is asked.

    Attributes:
        address: `http://host:port/v1`.
        model: its name at the server; by default the only one.
        key: sent as bearer token. Never shown or stored.
        key_variable: the environment variable that holds the key, for messages.
        concurrency: requests at once.
        timeout: seconds from a request to the end of its answer.
        retries: of one request, after its first attempt.
        max_calls: requests for completions that are made at most, retries among them; by default any number.

    Raises:
        ServerError: a key that no request could be sent with. It is not repeated.
    """

    address: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    key_variable: str = ""
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 6
    max_calls: int | None = None

    def __post_init__(self):
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            where = f"environment variable {self.key_variable}" if self.key_variable else "key"
            raise ServerError("expected a key of one line of ASCII characters", where)


class ChatServer:
    """A server that is there; asks it what has not been answered yet.

    Args:
        cache: folder of answers that runs share; without one they are kept in memory.

    Attributes:
        model: at the server.
        counts: requests that were `asked`, of them `cached`; `calls` to the server, of them `retries`; and
            `prompt_tokens` and `completion_tokens`, where the server counts them.

    Raises:
        ServerError: nobody answers at the address, it does not speak OpenAI's API, or does not have the model.
    """

    def __init__(self, settings: ServerSettings, cache: str | Path | None = None):
        self.settings = settings
        self.address = checked_address(settings.address)
        self._attempts = Attempts(settings.retries)
        self.counts: Counter[str] = self._attempts.counts
        self._loop: asyncio.AbstractEventLoop | None = None
        self.model: ModelCard = self._run(self._find_model())
        self._attempts.calls_left = settings.max_calls
        self.cache = AnswerCache(cache)

    # -- from code that is not asynchronous --------------------------------------------------------------------------

    def answers(self, requests: Sequence[ChatRequest]) -> list[list[Completion]]:
        """The completions of each request.

        Raises:
            ServerError: one was refused, or failed in every attempt. Those that are under way are waited for and kept,
                and no others are made.
        """
        return self._run(self.ask_all(requests))

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        async def and_close() -> Result:
            try:
                return await work
            finally:
                await self.close()

        return asyncio.run(and_close())

    # -- from asynchronous code --------------------------------------------------------------------------------------

    async def ask_all(self, requests: Sequence[ChatRequest]) -> list[list[Completion]]:
        """See `answers`."""
        stop = asyncio.Event()
        found = await asyncio.gather(*(self._ask(one, stop) for one in requests), return_exceptions=True)
        problems = [one for one in found if isinstance(one, BaseException)]
        if problems:
            raise min(problems, key=lambda problem: isinstance(problem, Stopped))
        return [one for one in found if not isinstance(one, BaseException)]

    async def ask(self, request: ChatRequest) -> list[Completion]:
        """The completions of one request, which waits while as many as allowed are under way.

        Raises:
            ServerError: it was refused, or failed in every attempt.
            CallsSpent: `max_calls` are made.
        """
        return await self._ask(request, asyncio.Event())

    async def close(self) -> None:
        """Closes the connections; they are made again where needed."""
        if self._loop is asyncio.get_running_loop():
            self._loop = None
            await self._client.close()

    def _connect(self) -> None:
        """Makes what belongs to one event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            settings = self.settings
            self._client = Client(self.address, settings.key, settings.timeout, settings.concurrency)
            self._loop = loop
            self._places = asyncio.Semaphore(settings.concurrency)
            self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def _ask(self, request: ChatRequest, stop: asyncio.Event) -> list[Completion]:
        self._connect()
        self.counts["asked"] += 1
        settings = request.settings(self.model.name, self.model.owner)
        content = {"conversation": list(request.conversation), "images": list(request.images)}
        key = rows_digest([{**settings, **content}])
        async with self._locks.setdefault(key, asyncio.Lock()):  # an equal one waits for the first
            stored = self.cache.get(key)
            if stored is not None:
                self.counts["cached"] += 1
                return [Completion.read(one) for one in stored]
            try:
                async with self._places:
                    answer = await self._answer(request, settings, stop)
                self.cache.keep(key, [asdict(one) for one in answer])
            except Exception:  # also a full disk, which could keep no further answer
                stop.set()
                raise
        return answer

    async def _answer(self, request: ChatRequest, settings: dict[str, Any], stop: asyncio.Event) -> list[Completion]:
        if stop.is_set():
            raise Stopped
        messages = await asyncio.to_thread(with_image_data, request.conversation, request.images)

        async def attempt() -> list[Completion]:
            answer = await self._client.post(CHAT, {**settings, "messages": messages})
            completions = read_completions(answer, request.num_generations, request.first_tokens)
            self.counts.update(tokens_used(answer))
            return completions

        several = "s" if request.num_generations > 1 else ""
        return await self._asked(CHAT, attempt, f"{request.num_generations} whole completion{several}", stop)

    async def _asked(
        self, path: str, attempt: Callable[[], Awaitable[Result]], wanted: str, stop: asyncio.Event, **how: bool
    ) -> Result:
        """`Attempts.until_answered`, with an error that says where and what may be behind it."""
        try:
            return await self._attempts.until_answered(attempt, wanted, stop, **how)
        except ServerError as error:
            text, variable = error.text, self.settings.key_variable
            if error.status is not None:
                text += f"; expected {wanted}"
            if error.status in (401, 403) and variable:
                state = "was sent" if self.settings.key else "is not set"
                text += f". The key is read from the environment variable {variable}, which {state}"
            if error.status == 413:
                text += ". Images are smaller with a lower max_pixels"
            if path == CHAT and self.cache.folder is not None:
                text += f". What was answered is kept in {self.cache.folder}: run the command again to go on"
            raise ServerError(text, f"{self.address}{path}", status=error.status) from error

    async def _find_model(self) -> ModelCard:
        """The model's entry in the list of the server, which must be there."""
        self._connect()

        async def attempt() -> ModelCard:
            return choose_model(read_models(await self._client.get(MODELS)), self.settings.model)

        wanted = "a server that speaks OpenAI's API, as `vllm serve MODEL` does once its model is loaded"
        try:
            return await self._asked(MODELS, attempt, wanted, asyncio.Event(), must_be_there=True)
        except ServerError as error:
            if error.status == 404 and self.settings.model:
                return ModelCard(self.settings.model)  # some gateways do not list what they have
            raise
