"""Addresses of servers in the place of a model: `http://host:port/v1`, as OpenAI's API and `vllm serve` have it."""

import ipaddress
import re
from urllib.parse import urlsplit

from models.served.errors import ServerError

EXPECTED = "expected http://host:port/v1"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:/{1,2}", re.IGNORECASE)
_WITHOUT_SCHEME = re.compile(r"(?:localhost|[\w-]+(?:\.[\w-]+)*):\d+(?:/|\Z)")
_ENDPOINTS = ("/chat/completions", "/completions", "/models")


def is_server(name: str) -> bool:
    """Whether the name of a model can only be meant as the address of a server.

    >>> [is_server(name) for name in ("http://localhost:8000/v1", "localhost:8000/v1", "Qwen/Qwen2-VL-2B-Instruct")]
    [True, True, False]
    """
    return _SCHEME.match(name) is not None or _WITHOUT_SCHEME.match(name) is not None


def checked_address(name: str) -> str:
    """The address without a slash at its end.

    Raises:
        ServerError: no address of the API of a server. A password in it is not repeated.
    """
    if not _SCHEME.match(name):
        raise ServerError(f"{EXPECTED}, found {name!r}; an address begins with http:// or https://")
    parts = urlsplit(name)
    if "@" in parts.netloc:
        raise ServerError(f"{EXPECTED}, found a login before the '@'; a key is read from an environment variable")
    if parts.query or parts.fragment:
        raise ServerError(f"{EXPECTED}, found more after it, from {'?' if parts.query else '#'} on")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or port == -1:
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
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
