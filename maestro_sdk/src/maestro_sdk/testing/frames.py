"""HTTP/1.1 as bytes, for servers of tests: the steps of a scripted answer as they go over the socket, and requests."""

from __future__ import annotations

import asyncio
import http
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_JSON = "application/json"
_BYTES = "application/octet-stream"
_EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Headers:
    """Sends the head of the answer. Left out, the first step that sends something implies one with status 200."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Send:
    """Sends bytes: one chunk, one write."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SendJson:
    """Sends an object as JSON. As the only content of an answer it goes with a content-length, else as a chunk."""

    value: Any


@dataclass(frozen=True, slots=True)
class Sse:
    """Sends one server-sent event; `data` is sent as it is when it is text, else as JSON."""

    event: str | None
    data: Any


@dataclass(frozen=True, slots=True)
class Wait:
    """Waits that many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Waits until the test sets the event."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class Cut:
    """Closes the socket after what was written so far, whatever was promised; `reset` drops it with a TCP reset."""

    reset: bool = False


@dataclass(frozen=True, slots=True)
class Stall:
    """Sends nothing more and holds the connection until the peer closes it."""


@dataclass(frozen=True, slots=True)
class End:
    """Ends the answer cleanly; implied after the last step."""


Step = Headers | Send | SendJson | Sse | Wait | WaitFor | Cut | Stall | End


@dataclass(slots=True, eq=False)
class Seen:
    """A request that arrived. `path` has no query; header names are lower case; times are `time.monotonic()`."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    received_at: float = field(default_factory=time.monotonic)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the peer closed its socket; never by the server's own closing."""
    closed_at: float | None = None
    sent: int = 0
    """Bytes of the answer that the socket took, as far as they were written: a peer that reads nothing holds it up."""

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


Reply = Callable[[Seen], Sequence[Step]]
"""Chooses the steps by the request."""


class Framing:
    """Framing of one answer: content-length for a single document, chunks for everything else."""

    def __init__(self) -> None:
        self._begun = False
        self._chunked = False
        self._held: Headers | None = None

    def encode(self, step: Headers | Send | SendJson | Sse, rest: Sequence[Step]) -> bytes:
        """The bytes of a step that `rest` follows."""
        match step:
            case Headers():
                if self._begun or self._held is not None:
                    raise ValueError("an answer has one head")
                self._held = step
                # Content decides the framing, so its head goes with it; before a wait the head goes alone.
                return b"" if not rest or isinstance(rest[0], Send | SendJson | Sse | End) else self.begin(_BYTES)
            case SendJson(value):
                data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
                if not self._begun and (not rest or isinstance(rest[0], End)):
                    implied = {"content-type": _JSON, "content-length": str(len(data))}
                    return self._head(self._held or Headers(), implied) + data
                return self.begin(_JSON) + self._chunk(data)
            case Send(data):
                return self.begin(_BYTES) + self._chunk(data)
            case Sse():
                return self.begin(_EVENT_STREAM) + self._chunk(encode_sse(step))

    def begin(self, content_type: str) -> bytes:
        """The head, when it was not sent yet."""
        if self._begun:
            return b""
        head = self._held or Headers()
        if any(name.lower() == "content-length" for name in head.headers):
            return self._head(head, {"content-type": content_type})
        self._chunked = True
        return self._head(head, {"content-type": content_type, "transfer-encoding": "chunked"})

    def end(self) -> bytes:
        """What a clean end needs."""
        if not self._begun:
            return self._head(self._held or Headers(), {"content-length": "0"})
        return b"0\r\n\r\n" if self._chunked else b""

    def _head(self, head: Headers, implied: Mapping[str, str]) -> bytes:
        self._begun, self._held = True, None
        given = {name.lower(): value for name, value in head.headers.items()}
        try:
            phrase = http.HTTPStatus(head.status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"{name}: {value}" for name, value in {**implied, **given}.items()]
        return "\r\n".join([f"HTTP/1.1 {head.status} {phrase}", *lines, "", ""]).encode("latin-1")

    def _chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data


def encode_sse(step: Sse) -> bytes:
    """The bytes of a server-sent event."""
    value = step.data
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    lines = [f"event: {step.event}\n"] if step.event else []
    lines += [f"data: {line}\n" for line in text.split("\n")]
    return "".join([*lines, "\n"]).encode()


def parse_request(buffer: bytes) -> tuple[Seen, int] | None:
    """The first whole request in `buffer` and its length, or None when more bytes are needed."""
    split = buffer.find(b"\r\n\r\n")
    if split < 0:
        return None
    request_line, *header_lines = buffer[:split].decode("latin-1").split("\r\n")
    method, target, _ = request_line.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in header_lines)}
    rest = split + 4
    if headers.get("transfer-encoding", "").lower() == "chunked":
        unchunked = _unchunk(buffer, rest)
        if unchunked is None:
            return None
        body, length = unchunked
    else:
        length = rest + int(headers.get("content-length", "0"))
        if len(buffer) < length:
            return None
        body = buffer[rest:length]
    parts = urlsplit(target)
    return Seen(method, parts.path, parts.query, headers, body), length


def _unchunk(buffer: bytes, position: int) -> tuple[bytes, int] | None:
    pieces: list[bytes] = []
    while True:
        line_end = buffer.find(b"\r\n", position)
        if line_end < 0:
            return None
        size = int(buffer[position:line_end].split(b";")[0], 16)
        begin = line_end + 2
        if len(buffer) < begin + size + 2:
            return None
        if size == 0:
            return b"".join(pieces), begin + 2
        pieces.append(buffer[begin : begin + size])
        position = begin + size + 2
