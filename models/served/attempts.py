"""Asking again after a failure: pauses that grow, and that the server may set."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from models.served.errors import CallsSpent, Fault, ServerError, Stopped

FIRST_PAUSE = 1.0
"""Seconds before the first retry of a request; doubled for each further one."""
LONGEST_PAUSE = 60.0
"""Seconds before a request is made again, unless the server asks for more."""
LONGEST_WAIT = 900.0
"""Seconds that a server may ask to wait; where it asks for more, the run ends."""

SILENT_RETRIES = 3
"""Retries of a request that are not spoken of, after the first one of a run."""

Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


class Attempts:
    """Makes requests of one server until they succeed.

    Args:
        retries: of one request, after its first attempt. Up to half of a pause is left out at random, so that requests
            that failed together do not come back together.

    Attributes:
        counts: `calls` to the server, of them `retries`.
        calls_left: how many more may be made; `None` without a limit.
    """

    def __init__(self, retries: int):
        self.retries = retries
        self.counts: Counter[str] = Counter()
        self.calls_left: int | None = None
        self._not_before = 0.0
        self._has_told = False
        self._random = random.Random()  # no result depends on it

    async def until_answered(
        self,
        attempt: Callable[[], Awaitable[Answer]],
        wanted: str,
        stop: asyncio.Event,
        must_be_there: bool = False,
    ) -> Answer:
        """What an attempt gives.

        Args:
            wanted: what is expected, in words.
            stop: ends pauses, and nothing is asked after it.
            must_be_there: only a server that asks for it is asked again, not one that does not answer.

        Raises:
            ServerError: refused, or every attempt failed.
            CallsSpent: another attempt is not allowed.
            Stopped: before that.
        """
        for number in range(self.retries + 1):
            await self._pause(self._not_before - time.monotonic(), stop)
            self._take_call()
            self.counts["retries"] += number > 0
            try:
                return await attempt()
            except Fault as fault:
                last = fault
            if last.wait is not None and last.wait > LONGEST_WAIT:
                asks = f"which asks to wait {last.wait:.0f} seconds; run the command again then"
                raise ServerError(f"found {last.found}, {asks}")
            if must_be_there and last.status is None:
                raise ServerError(f"found {last.found}; expected {wanted}") from last
            if number < self.retries:
                pause = self._pause_after(number, last)
                self._tell(last, pause, number)
                await self._pause(pause, stop)
        tries = f" in the last of {self.retries + 1} attempts" if self.retries else ""
        raise ServerError(f"found {last.found}{tries}; expected {wanted}") from last

    def _take_call(self) -> None:
        if self.calls_left is not None:
            if not self.calls_left:
                raise CallsSpent
            self.calls_left -= 1
        self.counts["calls"] += 1

    def _tell(self, fault: Fault, pause: float, number: int) -> None:
        """Says that a request is made again: the first one, and those that go on failing."""
        if not self._has_told or number >= SILENT_RETRIES:
            self._has_told = True
            progress = f"retry {number + 1} of at most {self.retries}"
            logger.warning("server: found %s; asked again in %.1f seconds, %s", fault.found, pause, progress)

    def _pause_after(self, number: int, fault: Fault) -> float:
        """Seconds until the next attempt. Where the server says how long, all requests wait."""
        if fault.wait is not None:
            self._not_before = max(self._not_before, time.monotonic() + fault.wait)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**number) * self._random.uniform(0.5, 1.0)
        return max(pause, fault.wait or 0.0)

    async def _pause(self, seconds: float, stop: asyncio.Event) -> None:
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), seconds)
        if stop.is_set():
            raise Stopped
