"""What a provider says on its wire, as scripts of the fault server: good answers, refusals, and each way to break.

A wire module (`openai_chat`, `anthropic_messages`) says once how an answer begins, goes on and ends; every script and
every fault is derived from that, so all wires break in the same ways. A script is a `Reply`: it answers a unary request
with one document and a streaming one with events.

    server.on("POST", openai_chat.PATH, openai_chat.cut_after(2))

In a unary answer, "after k pieces" means after half of the document's bytes.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maestro_sdk.testing.faults import (
    Cut,
    Headers,
    Reply,
    Seen,
    Send,
    SendJson,
    Sse,
    Stall,
    Step,
    Wait,
    WaitFor,
    encode_sse,
)

SETTLE = 0.05
"""Seconds between the last piece and a fault after it."""
PIECES = ("Hello", " from", " the", " other", " side.")
"""The pieces of the answer that scripts give unless they are told another one."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call in an answer; `arguments` as an object, or as text that is sent as it is."""

    call_id: str
    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict[str, Any])

    @property
    def text(self) -> str:
        """The arguments as JSON text."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Counts of an answer, inclusive as in the contract; a wire splits them in its own way."""

    input: int = 12
    output: int = 5
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answers: reasoning, then text, then calls. `stop` is the wire's own word, None the fitting one."""

    pieces: Sequence[str] = PIECES
    calls: Sequence[ToolCall] = ()
    thoughts: Sequence[str] = ()
    signature: str = ""
    interleaved: bool = False
    """Whether the fragments of several calls alternate."""
    fragment: int = 7
    """Characters of arguments per fragment; 0 sends each call whole."""
    stop: str | None = None
    tokens: Tokens | None = Tokens()
    """None when the provider reports no usage."""


PLAIN = Answer()
"""The answer of scripts that are not told another one."""


class Wire(ABC):
    """One provider's wire. Subclasses say how things look, this class when they happen."""

    path: str

    def streams(self, seen: Seen) -> bool:
        """Whether a request asks for a stream; wires that say it elsewhere than in the body override this."""
        return bool(seen.json().get("stream"))

    @abstractmethod
    def opening(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        """The events before any content."""

    @abstractmethod
    def content(self, answer: Answer, seen: Seen) -> Sequence[Sequence[Step]]:
        """The events of the content, one group per piece; the piece is the last of its group."""

    @abstractmethod
    def closing(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        """The events after the content, the terminal one included."""

    @abstractmethod
    def document(self, answer: Answer, seen: Seen) -> Any:
        """The unary answer."""

    @abstractmethod
    def refusal(self, status: int, kind: str, message: str) -> Any:
        """The body of a refused call; `kind` is the wire's own code, empty the usual one of `status`."""

    @abstractmethod
    def broken_event(self) -> Step:
        """An event whose data is not JSON."""

    @abstractmethod
    def error_event(self, kind: str, message: str) -> Step:
        """An error inside a stream."""

    def answer(self, answer: Answer, pace: float = 0.0) -> Reply:
        """The whole answer; `pace` seconds pass before each piece after the first."""

        def reply(seen: Seen) -> Sequence[Step]:
            if not self.streams(seen):
                return (SendJson(self.document(answer, seen)),)
            first, *rest = self.content(answer, seen) or [()]
            waits = (Wait(pace),) if pace else ()
            paced = [step for group in rest for step in (*waits, *group)]
            return (*self.opening(answer, seen), *first, *paced, *self.closing(answer, seen))

        return reply

    def text(
        self,
        text: str | Sequence[str] = PIECES,
        *,
        stop: str | None = None,
        tokens: Tokens | None = Tokens(),
        pace: float = 0.0,
    ) -> Reply:
        """A text, in one piece or in several."""
        pieces = (text,) if isinstance(text, str) else text
        return self.answer(Answer(pieces=pieces, stop=stop, tokens=tokens), pace)

    def tools(self, *calls: ToolCall, text: str = "", interleaved: bool = False, fragment: int = 7) -> Reply:
        """One or several tool calls, after `text` where given."""
        pieces = (text,) if text else ()
        return self.answer(Answer(pieces=pieces, calls=calls, interleaved=interleaved, fragment=fragment))

    def error(
        self, status: int, kind: str = "", message: str = "no", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """A refused call."""
        return lambda _: (Headers(status, headers or {}), SendJson(self.refusal(status, kind, message)))

    def rate_limited(self, retry_after: float | str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        """A 429; `retry_after` in seconds, or as the header's text."""
        hints = {} if retry_after is None else {"retry-after": str(retry_after)}
        return self.error(429, message="slow down", headers={**hints, **(headers or {})})

    def cut_before_headers(self) -> Reply:
        """The socket closes before a byte of the answer."""
        return lambda _: (Cut(),)

    def cut_before_content(self) -> Reply:
        """The stream begins, and is cut before its first piece; a unary answer is cut after its head."""

        def reply(seen: Seen) -> Sequence[Step]:
            if not self.streams(seen):
                return (Headers(200, {"content-type": "application/json", "content-length": "500"}), Wait(0), Cut())
            answer = Answer()
            return (*self.opening(answer, seen), *self.content(answer, seen)[0][:-1], Cut())

        return reply

    def cut_after(self, pieces: int, answer: Answer = PLAIN) -> Reply:
        """The stream is cut after so many pieces."""
        return self._part(pieces, Cut(), answer)

    def stall_before_headers(self) -> Reply:
        """Nothing comes at all."""
        return lambda _: (Stall(),)

    def stall_after(self, pieces: int, answer: Answer = PLAIN) -> Reply:
        """Nothing more comes after so many pieces; with 0 pieces, the stream has begun all the same."""
        return self._part(pieces, Stall(), answer)

    def silent_end(self, pieces: int = len(PIECES)) -> Reply:
        """A clean end after so many pieces, without terminal event; a unary answer lacks its stop reason."""

        def reply(seen: Seen) -> Sequence[Step]:
            if not self.streams(seen):
                return (SendJson(self.document(Answer(stop=""), seen)),)
            return self._begin(pieces, seen)

        return reply

    def in_band_error(self, pieces: int = 0, kind: str = "", message: str = "it broke") -> Reply:
        """An error inside the stream after so many pieces; a unary request gets it with status 200."""

        def reply(seen: Seen) -> Sequence[Step]:
            if not self.streams(seen):
                return (SendJson(self.refusal(500, kind, message)),)
            return (*self._begin(pieces, seen), self.error_event(kind, message))

        return reply

    def malformed_json(self, pieces: int = 0) -> Reply:
        """After so many pieces one event is not JSON; all others, the terminal one included, are good."""

        def reply(seen: Seen) -> Sequence[Step]:
            if not self.streams(seen):
                return (Headers(200, {"content-type": "application/json"}), Send(b'{"id": "x", "mod'))
            answer = Answer()
            rest = [step for group in self.content(answer, seen)[pieces:] for step in group]
            return (*self._begin(pieces, seen), self.broken_event(), *rest, *self.closing(answer, seen))

        return reply

    def slow_first_token(self, seconds: float) -> Reply:
        """The stream begins at once, its first piece comes after so many seconds; a unary answer comes after them."""

        def reply(seen: Seen) -> Sequence[Step]:
            answer = Answer()
            if not self.streams(seen):
                return (Wait(seconds), SendJson(self.document(answer, seen)))
            pieces = [step for group in self.content(answer, seen) for step in group]
            return (*self.opening(answer, seen), Wait(seconds), *pieces, *self.closing(answer, seen))

        return reply

    def hold_after(self, pieces: int, until: asyncio.Event) -> Reply:
        """After so many pieces the answer waits for the test's event, then goes on to its good end."""

        def reply(seen: Seen) -> Sequence[Step]:
            answer = Answer()
            if not self.streams(seen):
                return (WaitFor(until), SendJson(self.document(answer, seen)))
            rest = [step for group in self.content(answer, seen)[pieces:] for step in group]
            return (*self._begin(pieces, seen), WaitFor(until), *rest, *self.closing(answer, seen))

        return reply

    def answer_after(self, gates: Sequence[asyncio.Event]) -> Reply:
        """A streamed answer, each piece of which waits for its event."""

        def reply(seen: Seen) -> Sequence[Step]:
            answer = Answer()
            groups = zip(gates, self.content(answer, seen), strict=True)
            content = [step for gate, group in groups for step in (WaitFor(gate), *group)]
            return (*self.opening(answer, seen), *content, *self.closing(answer, seen))

        return reply

    def _begin(self, pieces: int, seen: Seen, answer: Answer = PLAIN) -> Sequence[Step]:
        content = [step for group in self.content(answer, seen)[:pieces] for step in group]
        # A reader sees the pieces before what follows them: in one read with a cut or an error they might be dropped.
        return (*self.opening(answer, seen), *content, *((Wait(SETTLE),) if content else ()))

    def _part(self, pieces: int, last: Cut | Stall, answer: Answer) -> Reply:
        def reply(seen: Seen) -> Sequence[Step]:
            if not self.streams(seen):
                data = json.dumps(self.document(answer, seen)).encode()
                head = Headers(200, {"content-type": "application/json", "content-length": str(len(data))})
                return (head, Send(data[: len(data) // 2]), last)
            return (*self._begin(pieces, seen, answer), last)

        return reply


def chopped(reply: Reply, size: int) -> Reply:
    """The same answer, a stream in pieces of `size` bytes that come one by one; 0 sends all of it in one piece."""

    def chop(seen: Seen) -> Sequence[Step]:
        steps = reply(seen)
        head = next((step for step in steps if isinstance(step, Headers)), None)
        if any(isinstance(step, SendJson) for step in steps):
            return steps
        data = b"".join(_bytes(step) for step in steps)
        pieces = [data[start : start + size] for start in range(0, len(data), size)] if size else [data]
        first = head or Headers(200, {"content-type": "text/event-stream"})
        return [first, *(step for piece in pieces for step in (Send(piece), Wait(0)))]

    return chop


def _bytes(step: Step) -> bytes:
    match step:
        case Send(data):
            return data
        case Sse():
            return encode_sse(step)
        case _:
            return b""


def fragments(text: str, size: int) -> list[str]:
    """`text` in fragments of `size` characters; whole when `size` is 0."""
    return [text[start : start + size] for start in range(0, len(text), size)] if size and text else [text]


def alternate(columns: Sequence[Sequence[Sequence[Step]]], interleaved: bool) -> list[Sequence[Step]]:
    """The groups of all columns: one column after the other, or one group of each in turn."""
    if not interleaved:
        return [group for column in columns for group in column]
    longest = max((len(column) for column in columns), default=0)
    return [column[row] for row in range(longest) for column in columns if row < len(column)]
