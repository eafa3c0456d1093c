"""Server-sent events, incrementally: bytes in, events out, whatever the boundaries of the reads."""

from __future__ import annotations

from typing import NamedTuple


class SseEvent(NamedTuple):
    """One event: `name` is empty when the stream gives none; `data` joins its data lines by newlines."""

    name: bytes
    data: bytes


class SseParser:
    """Parses one stream. Comments, ids and retry hints are dropped; LF, CRLF and CR end a line, as in the standard."""

    __slots__ = ("_after_cr", "_buffer", "_data", "_name")

    def __init__(self) -> None:
        self._buffer = b""
        self._after_cr = False
        self._name = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that `chunk` completes."""
        if self._after_cr and chunk:
            # The CR ended its line already; its LF, if it is one, belongs to it.
            self._after_cr = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._after_cr = chunk[-1:] == b"\r"
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._buffer + chunk if self._buffer else chunk).split(b"\n")
        self._buffer = lines.pop()
        events: list[SseEvent] = []
        for line in lines:
            if not line:
                if self._data:
                    data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    events.append(SseEvent(self._name, data))
                    self._data = []
                self._name = b""
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line.startswith(b"event:"):
                self._name = line[7:] if line[6:7] == b" " else line[6:]
        return events

    @property
    def pending(self) -> bool:
        """Whether an incomplete event is buffered: a stream that ends now was cut inside it."""
        return bool(self._buffer or self._data or self._name)
