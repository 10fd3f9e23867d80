"""Addresses of servers in the place of a model: `http://host:port/v1`, as OpenAI's API and `vllm serve` have it."""

import ipaddress
import os
import re
from urllib.parse import urlsplit

from models.served.errors import ServerError

EXPECTED = "expected http://host:port/v1"
_SCHEME = re.compile(r"https?:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WITHOUT_SCHEME = re.compile(r"(?:\[[\da-fA-F:.]+\]|[\w-]+(?:\.[\w-]+)*):\d+(?:/|\Z)")
_HOST = re.compile(r"[\w.:%-]+", re.ASCII)
_PATH = re.compile(r"[!-~]*")
_ENDPOINTS = ("/chat/completions", "/completions", "/models")


def is_server(name: str) -> bool:
    """Whether the name of a model can only be meant as the address of a server.

    >>> [is_server(name) for name in ("http://localhost:8000/v1", "localhost:8000/v1", "Qwen/Qwen2-VL-2B-Instruct")]
    [True, True, False]
    """
    name = name.strip()
    if _SCHEME.match(name):
        return True
    return _WITHOUT_SCHEME.match(name) is not None and not os.path.exists(name)


def checked_address(name: str) -> str:
    """The address without a slash at its end, or spaces around it.

    Raises:
        ServerError: no address of the API of a server. A password in it is not repeated.
    """
    name = name.strip()
    if not _SCHEME.match(name):
        raise ServerError(f"{EXPECTED}, found {name!r}; an address begins with http:// or https://")
    if "@" in name:
        raise ServerError(f"{EXPECTED}, found a login before the '@'; a key is read from an environment variable")
    for sign in ("?", "#"):
        if sign in name:
            raise ServerError(f"{EXPECTED}, found more after it, from {sign} on")
    try:
        parts = urlsplit(name)
        usable = (
            parts.port != 0
            and parts.scheme.lower() in ("http", "https")
            and _HOST.fullmatch(parts.hostname or "")
            and _PATH.fullmatch(parts.path)
        )
    except ValueError:  # a port that is no number, or half a bracket
        usable = False
    if not usable:
        raise ServerError(f"{EXPECTED}, found {name!r}")
    path = parts.path.rstrip("/")
    if not path:
        raise ServerError(f"{EXPECTED}, found {name!r}; the path is missing, which is /v1 for most servers")
    for endpoint in _ENDPOINTS:
        if path.endswith(endpoint):
            raise ServerError(f"{EXPECTED}, found {name!r}; leave out {endpoint}")
    return f"{parts.scheme.lower()}://{parts.netloc}{path}"


def is_this_machine(address: str) -> bool:
    """Whether an address is one of this machine's own, which no proxy can reach.

    >>> is_this_machine("http://127.0.0.1:8000/v1")
    True
    """
    host = urlsplit(address).hostname or ""
    if host.rstrip(".") == "localhost":
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_loopback or found.is_unspecified  # 0.0.0.0 is what `vllm serve` says that it listens at
