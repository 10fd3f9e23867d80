"""One attempt to ask a server that speaks OpenAI's API, and what its failure means."""

import asyncio
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

from data.cli.secrets import remember_secrets, without_secrets
from models.served.address import is_this_machine
from models.served.errors import Fault, ServerError

ASK_AGAIN = (408, 409, 425, 429)
"""Of 400 to 499, those by which a server says that the same request may succeed later."""
CONNECT_SECONDS = 10.0
LONGEST_SHOWN = 200
"""Characters of an answer in a message."""


class Client:
    """A pool of connections to one server, for the event loop that it is first used in.

    Args:
        address: see `models.served.address.checked_address`.
        key: sent as bearer token; never written anywhere.
        timeout: seconds from a request to the end of its answer.
        connections: kept open between requests.
    """

    def __init__(self, address: str, key: str | None, timeout: float, connections: int):
        import httpx2

        remember_secrets({"api_key": key})
        self.address, self.timeout = address, timeout
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=connections),  # who asks bounds them
            trust_env=not is_this_machine(address),  # a proxy of the environment could not reach it
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """What is answered as JSON; see `_ask`."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """What is answered as JSON; see `_ask`."""
        return await self._ask("POST", path, body)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """One attempt.

        Raises:
            Fault: no connection, no answer in time, half an answer, or one that says to ask again.
            ServerError: the server refuses.
        """
        import httpx2

        try:
            async with asyncio.timeout(self.timeout):
                response = await self._http.request(method, f"{self.address}{path}", json=body)
        except (TimeoutError, httpx2.TimeoutException) as error:
            connecting = isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout)
            seconds = CONNECT_SECONDS if connecting else self.timeout
            raise Fault(f"no {'connection' if connecting else 'answer'} within {seconds:g} seconds") from error
        except httpx2.RequestError as error:
            raise Fault(f"{_in_words(type(error).__name__)} ({error or 'the connection was dropped'})") from error
        if response.status_code in ASK_AGAIN or response.status_code >= 500:
            wait = seconds_to_wait(response.headers.get("retry-after"))
            raise Fault(_described(response), wait, status=response.status_code)
        if not response.is_success:
            raise ServerError(f"found {_described(response)}", status=response.status_code)
        try:
            return response.json()
        except ValueError as error:
            kind = response.headers.get("content-type", "no content type")
            raise Fault(f"no JSON but {kind}: {_excerpt(response.text)!r}") from error


def seconds_to_wait(header: str | None) -> float | None:
    """What `Retry-After` says, in seconds or as a date; `None` if that cannot be read.

    >>> seconds_to_wait("1.5"), seconds_to_wait("soon")
    (1.5, None)
    """
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header, re.ASCII):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _in_words(name: str) -> str:
    """`ReadError` -> "read error"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _described(response: Any) -> str:
    """The status of an answer, and what is said with it."""
    said = response.text
    try:
        content = response.json()
    except ValueError:
        content = None
    if isinstance(content, dict):
        inner = content.get("error", content)
        said = str(inner.get("message") or inner.get("detail") or said if isinstance(inner, dict) else inner)
    target = response.headers.get("location")
    return f"HTTP {response.status_code}" + (f" to {target}" if target else "") + f": {_excerpt(said)}".rstrip(": ")


def _excerpt(text: str) -> str:
    words = " ".join(without_secrets(text).split())
    return words if len(words) <= LONGEST_SHOWN else f"{words[:LONGEST_SHOWN]}.."
