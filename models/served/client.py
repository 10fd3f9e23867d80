"""One attempt to ask a server that speaks OpenAI's API, and what its failure means."""

import asyncio
import json
import re
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from data.cli.secrets import remember_secrets
from models.served.address import is_this_machine
from models.served.errors import Fault, ServerError

ASK_AGAIN = (408, 409, 425, 429)
"""Of 400 to 499, those by which a server says that the same request may succeed later."""
NOT_JSON = (ValueError, RecursionError)
"""What is raised for a text that is no JSON, or has brackets in brackets without end."""
CONNECT_SECONDS = 10.0
LIST_SECONDS = 60.0
"""For a server to say what models it has, however long it may take for completions."""
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
        try:
            self._http = httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
                limits=httpx2.Limits(
                    max_connections=None, max_keepalive_connections=connections
                ),  # who asks bounds them
                verify=httpx2.create_ssl_context() if address.startswith("https:") else True,
                trust_env=not is_this_machine(address),  # a proxy of the environment could not reach it
            )
        except (ImportError, OSError, ValueError) as error:
            raise ServerError(
                f"found an environment in which no connection can be made ({error}); expected a proxy that is known "
                "(HTTP_PROXY, HTTPS_PROXY, ALL_PROXY), and certificates that are there (SSL_CERT_FILE, SSL_CERT_DIR)",
                address,
            ) from error

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """What is answered as JSON; see `_ask`. A server that is there tells of itself soon."""
        return await self._ask("GET", path, None, min(self.timeout, LIST_SECONDS))

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """What is answered as JSON; see `_ask`."""
        return await self._ask("POST", path, body, self.timeout)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        """One attempt.

        Raises:
            Fault: no connection, no answer in time, half an answer, or one that says to ask again.
            ServerError: the server refuses.
        """
        import httpx2

        content = None if body is None else json.dumps(body)  # in ASCII, which also has halves of characters
        kind = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(timeout):
                response = await self._http.request(method, f"{self.address}{path}", content=content, headers=kind)
        except (TimeoutError, httpx2.TimeoutException) as error:
            connecting = isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout)
            seconds = CONNECT_SECONDS if connecting else timeout
            raise Fault(f"no {'connection' if connecting else 'answer'} within {seconds:g} seconds") from error
        except httpx2.RequestError as error:
            raise Fault(f"{_in_words(type(error).__name__)} ({error or 'the connection was dropped'})") from error
        if response.status_code in ASK_AGAIN or response.status_code >= 500:
            wait = seconds_to_wait(response.headers.get("retry-after"))
            raise Fault(_described(response), wait, status=response.status_code)
        if not response.is_success:
            raise ServerError(f"found {_described(response)}", status=response.status_code)
        try:
            answer = response.json()
        except NOT_JSON as error:
            kind = response.headers.get("content-type", "no content type")
            raise Fault(f"no JSON but {kind}: {_excerpt(response.text)!r}") from error
        if isinstance(answer, dict) and answer.get("error"):
            raise Fault(f"an error with HTTP {response.status_code}: {_excerpt(_said(answer, response.text))}")
        return answer


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
    with suppress(*NOT_JSON):
        said = _said(response.json(), said)
    target = response.headers.get("location")
    return f"HTTP {response.status_code}" + (f" to {target}" if target else "") + f": {_excerpt(said)}".rstrip(": ")


def _said(content: Any, text: str) -> str:
    """What a server says of an error.

    Args:
        content: what it answered, as JSON.
        text: the same, as it came.
    """
    inner = (content.get("error") or content) if isinstance(content, dict) else text
    return str(inner.get("message") or inner.get("detail") or text if isinstance(inner, dict) else inner)


def _excerpt(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= LONGEST_SHOWN else f"{words[:LONGEST_SHOWN]}.."
