"""A stand-in for a server that speaks OpenAI's API: answers by content, and fails where and how it is told to."""

import base64
import hashlib
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

FAULTS = (
    "500",
    "503",
    "429",
    "408",
    "timeout",
    "reset",
    "closed",
    "truncated",
    "half json",
    "html",
    "no choices",
    "fewer",
    "unfinished",
    "aborted",
    "null",
    "error object",
)
"""What an attempt can meet that the next one may not."""
SECONDS_OF_TIMEOUT = 1.5
"""How long an answer takes that comes too late."""


def content_of(body: dict[str, Any]) -> str:
    """What a request shows, in short: its last text and the pixels of its images."""
    parts = body["messages"][-1]["content"]
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    pictures = [picture_of(part) for part in parts if part["type"] == "image_url"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    digests = [hashlib.sha256(repr(one.size).encode() + one.tobytes()).hexdigest()[:8] for one in pictures]
    return " ".join([*texts, *digests])


def picture_of(part: dict[str, Any]) -> Image.Image:
    """The picture of a part of a message."""
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


class FaultyChatServer:
    """Context manager: a server with one model, or several.

    Args:
        faults: (number of the attempt, counted from 0, body) -> one of `FAULTS`, "HTTP n", all that is sent with HTTP
            200 as bytes, or `None` for an answer.
        answer: body -> texts of the completions; by default the content of the request and the completion's number.
        models: their names.
        key: without it nobody is let in; by default everybody is.
        owner: what the server calls itself.
        root: what it says that it has loaded.
        delay: seconds that an answer takes.
        retry_after: what is said with a 429.

    Attributes:
        bodies: of all requests for completions, in the order in which they came.
        answered: the bodies of those that were answered in whole.
        most_at_once: requests under way at the same time.
        keys: bearer tokens that came.
    """

    def __init__(
        self,
        faults: Callable[[int, dict[str, Any]], str | bytes | None] = lambda number, body: None,
        answer: Callable[[dict[str, Any]], list[str]] | None = None,
        models: tuple[str, ...] = ("policy",),
        key: str | None = None,
        owner: str = "stand-in",
        root: str | None = None,
        delay: float = 0.0,
        retry_after: str | None = None,
        first_tokens: Callable[[dict[str, Any]], list[tuple[str, float]]] | None = None,
    ):
        self.faults, self.models, self.key, self.owner = faults, models, key, owner
        self.root = root
        self.answer = answer or (lambda body: [f"{content_of(body)} {number}" for number in range(body["n"])])
        self.delay, self.retry_after, self.first_tokens = delay, retry_after, first_tokens
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.answered: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lists_models: int | str = 200
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": self}))
        self.address = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "FaultyChatServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def begin(self, body: dict[str, Any]) -> str | bytes | None:
        """Notes a request; how it is to fail, if it is."""
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self.delay)
        return self.faults(number, body)

    def end(self, body: dict[str, Any], whole: bool) -> None:
        with self._lock:
            self._at_once -= 1
            if whole:
                self.answered.append(body)


def _choice(number: int, text: str, tokens: list[tuple[str, float]] | None) -> dict[str, Any]:
    choice = {"index": number, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if tokens is not None:
        top = [{"token": token, "logprob": value} for token, value in tokens]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return choice


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: FaultyChatServer

    def do_GET(self) -> None:
        if self._let_in():
            cards = [
                {"id": name, "owned_by": self.server_.owner, "root": self.server_.root} for name in self.server_.models
            ]
            status = self.server_.lists_models
            if isinstance(status, str):
                self._send(200, status.encode(), "text/html")
            else:
                self._send(status, {"object": "list", "data": cards} if status == 200 else {"error": "no list"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._let_in():
            return
        fault = self.server_.begin(body)
        whole = False
        try:
            if fault is None:
                texts = self.server_.answer(body)
                tokens = self.server_.first_tokens(body) if self.server_.first_tokens else None
                choices = [_choice(number, text, tokens) for number, text in enumerate(texts)]
                self.server_.end(body, True)  # before the answer, after which the client may ask the next thing
                whole = True
                self._send(200, {"choices": choices[::-1]})
            else:
                self._fail(fault, body)
        finally:
            if not whole:
                self.server_.end(body, False)

    def _let_in(self) -> bool:
        self.server_.keys.append(self.headers.get("Authorization"))
        if self.server_.key in (None, (self.headers.get("Authorization") or "").removeprefix("Bearer ")):
            return True
        self._send(401, {"error": {"message": "Unauthorized"}})
        return False

    def _fail(self, fault: str | bytes, body: dict[str, Any]) -> None:
        if isinstance(fault, bytes):
            self._send(200, fault)
            return
        choices = [_choice(number, text, None) for number, text in enumerate(self.server_.answer(body))]
        if fault.removeprefix("HTTP ").isdigit():
            status = int(fault.removeprefix("HTTP "))
            waiting = self.server_.retry_after if status == 429 else None
            self._send(status, {"error": {"message": f"failing with {status}"}}, retry_after=waiting)
        elif fault == "timeout":
            time.sleep(SECONDS_OF_TIMEOUT)
            self.close_connection = True
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()
            self.close_connection = True
        elif fault == "closed":
            self.close_connection = True
        elif fault == "truncated":
            self._send(200, json.dumps({"choices": choices}).encode(), cut=20)
        elif fault == "half json":
            self._send(200, json.dumps({"choices": choices}).encode()[:-20])
        elif fault == "html":
            self._send(200, b"<html><body>Bad gateway</body></html>", "text/html")
        else:
            self._send(200, _half_answer(fault, choices))

    def _send(
        self, status: int, content: Any, kind: str = "application/json", retry_after: str | None = None, cut: int = 0
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data[: len(data) - cut])
        self.close_connection = self.close_connection or cut > 0

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


def _half_answer(fault: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    if fault == "no choices":
        return {"choices": []}
    if fault == "fewer":
        return {"choices": choices[:-1]}
    if fault == "error object":
        return {"error": {"message": "the engine is dead"}}
    last = choices[-1]
    if fault == "unfinished":
        del last["finish_reason"]
    elif fault == "aborted":
        last["finish_reason"] = "abort"
    elif fault == "null":
        last["message"]["content"] = None
    else:
        raise ValueError(f"unknown fault {fault!r}")
    return {"choices": choices}
