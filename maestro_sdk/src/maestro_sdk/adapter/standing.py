"""Calls that outlive their callers: when one dies, the next call with its key takes up the same answer.

The provider's answer to a call with a key runs in a task of its own, and its messages are kept from the first one on.
Whoever calls reads from there. Without a reader the task goes on for `linger` seconds; so long a whole answer is kept,
too. One that failed is forgotten at once, so that the next call begins anew. A call has one reader: the next one takes
its place, and the former is told so.

Memory is bounded. What is kept of one call has room for `each` bytes, all of them together for `room`. Without room an
answer whose reader keeps up goes on as an ordinary call does: what was read is dropped, the reader sets the provider's
pace, and when it leaves the call ends. Without a reader the provider pauses until one comes or the time is over.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from maestro_sdk.errors import Cancelled, Conflict
from maestro_sdk.tracing import current_call

log = logging.getLogger(__name__)

LINGER = 30.0
TAKEN = "taken"
"""The fact `standing` of the `Conflict` that a reader gets whose place was taken."""
LONGEST_KEY = 256
_MOST = 1024
_ROOM = 64 * 2**20
_EACH = 8 * 2**20
_AHEAD = 64 * 1024
"""Bytes that a provider may be ahead of its reader once its answer is not kept any more."""
_OVERHEAD = 64
"""Bytes that a kept message takes beside its own, about."""

Put = Callable[[Any], Awaitable[None]]
"""Takes one message of an answer; waits while there is no room for it."""
_Name = tuple[str, str, str]


class _Reader:
    """The place of one reader: the number of messages that it has read."""

    __slots__ = ("position",)

    def __init__(self) -> None:
        self.position = 0


@dataclass(eq=False, slots=True)
class _Standing:
    """One call. `dropped` counts the messages that are not kept any more; once it is not 0 nobody can take it up."""

    name: _Name
    digest: bytes
    messages: deque[bytes] = field(default_factory=deque[bytes])
    dropped: int = 0
    size: int = 0
    kept_whole: bool = True
    over: bool = False
    forgotten: bool = False
    error: Exception | None = None
    reader: _Reader | None = None
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def end(self) -> int:
        """The number of messages that came."""
        return self.dropped + len(self.messages)

    def take_error(self) -> Exception:
        """What ended it, to be raised: once, since what failed has no other reader."""
        error, self.error = self.error, None
        return error or Cancelled("the call was released")

    def tell(self) -> None:
        """Wakes everybody who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


class StandingCalls:
    """The calls of one adapter that have a key. Keys are the tenants' own."""

    def __init__(
        self, linger: float = LINGER, *, most: int = _MOST, room: int = _ROOM, each: int = _EACH, ahead: int = _AHEAD
    ) -> None:
        """`linger` in seconds, 0 for none: then every call ends with its caller. `most` is the number of calls.

        `room` and `each` are bytes that are kept of all and of one; `ahead` those of an answer that is not kept.
        """
        self._linger = linger
        self._most = most
        self._room = room
        self._each = each
        self._ahead = ahead
        self._calls: dict[_Name, _Standing] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = 0
        self._draining = False

    def takes(self, key: str) -> bool:
        """Whether a call with that key can stand here."""
        return bool(key) and self._linger > 0 and len(key) <= LONGEST_KEY

    async def follow(
        self, method: bytes, request: Message, model: str, answer: Callable[[Put], Awaitable[None]]
    ) -> AsyncGenerator[bytes]:
        """The serialized messages of the current call, which has a key: of the one that stands, or those of `answer`.

        `method` names the shape of the answer: a stream is not taken up as a whole answer. Raises what `answer` raises,
        and `Conflict` when the key stands for another request, when the answer is too long to be taken up, or when
        another reader takes the place.
        """
        name = _name(model)
        digest = hashlib.blake2b(method + request.SerializeToString(deterministic=True), digest_size=16).digest()
        standing = self._calls.get(name)
        if standing is None:
            standing = self._begin(name, digest, answer)
        elif standing.digest != digest:
            raise Conflict("another request stands under the key of this call; a key is good for one request")
        elif not standing.kept_whole:
            raise Conflict("the answer under the key of this call is too long to be taken up")
        reader = _Reader()
        standing.reader = reader
        standing.tell()
        self._hold(standing)
        try:
            async for message in _read(standing, reader):
                yield message
        finally:
            if standing.reader is reader:
                standing.reader = None
                self._leave(standing)

    def find(self, key: str, model: str) -> bool | None:
        """Whether the answer of a call of the current tenant is whole; None when none can be taken up.

        One that nobody reads is kept for another while.
        """
        standing = self._calls.get(_name(model, key))
        if standing is None or not standing.kept_whole:
            return None
        if standing.reader is None:
            self._leave(standing)
        return standing.over

    def release(self, key: str, model: str) -> None:
        """Ends a call of the current tenant and forgets it."""
        if (standing := self._calls.get(_name(model, key))) is not None:
            self._forget(standing)

    async def drain(self, grace: float) -> None:
        """Ends what nobody reads: no new call comes in that could take it up. Readers get their answers' ends."""
        del grace
        self._draining = True
        for standing in list(self._calls.values()):
            if standing.reader is None:
                self._forget(standing)

    async def close(self) -> None:
        """Ends everything."""
        self._draining = True
        for standing in list(self._calls.values()):
            self._forget(standing)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def held(self) -> int:
        """Bytes that are kept, with what keeping them takes."""
        return self._held

    def _begin(self, name: _Name, digest: bytes, answer: Callable[[Put], Awaitable[None]]) -> _Standing:
        standing = _Standing(name, digest)
        if len(self._calls) >= self._most and not self._make_room():
            # It ends with its caller, as calls without a key do.
            standing.kept_whole = False
        else:
            self._calls[name] = standing
        standing.task = asyncio.create_task(self._run(standing, answer), name=f"answer to {name[1]}")
        self._tasks.add(standing.task)
        standing.task.add_done_callback(self._tasks.discard)
        return standing

    async def _run(self, standing: _Standing, answer: Callable[[Put], Awaitable[None]]) -> None:
        async def put(message: Message) -> None:
            data = message.SerializeToString()
            size = len(data) + _OVERHEAD
            while not standing.forgotten and not self._admit(standing, size):
                await standing.changed.wait()
            if standing.forgotten:
                raise asyncio.CancelledError
            standing.messages.append(data)
            standing.size += size
            self._held += size
            standing.tell()

        try:
            await answer(put)
        except BaseException as error:
            known = isinstance(error, Exception)
            # Without the frames that it went through: they hold the call, which holds it.
            standing.error = error.with_traceback(None) if known else Cancelled("the call was released")
            self._forget(standing, ended=True)
            if standing.reader is None and known:
                log.info("an answer that nobody read failed: %s", type(error).__name__)
            if not known:
                raise
        finally:
            standing.over, standing.task = True, None
            standing.tell()

    def _admit(self, standing: _Standing, size: int) -> bool:
        """Whether there is room for another message; what was read goes where the answer can't be kept whole."""
        if standing.kept_whole:
            fits = standing.size + size <= self._each
            while fits and self._held + size > self._room:
                fits = self._make_room(standing)
            if fits:
                return True
            if standing.reader is None or standing.reader.position < standing.end:
                return False
            standing.kept_whole = False
        reader = standing.reader
        if reader is not None:
            while standing.dropped < reader.position:
                gone = len(standing.messages.popleft()) + _OVERHEAD
                standing.dropped += 1
                standing.size -= gone
                self._held -= gone
        return not standing.messages or standing.size + size <= self._ahead

    def _make_room(self, asking: _Standing | None = None) -> bool:
        """Forgets the whole answer that was left longest ago; False when there is none."""
        for standing in self._calls.values():
            if standing.over and standing.reader is None and standing is not asking:
                self._forget(standing)
                return True
        return False

    def _hold(self, standing: _Standing) -> None:
        if standing.timer is not None:
            standing.timer.cancel()
            standing.timer = None

    def _leave(self, standing: _Standing) -> None:
        """Nobody reads it: it has `linger` seconds."""
        self._hold(standing)
        if self._calls.get(standing.name) is not standing or self._draining or not standing.kept_whole:
            self._forget(standing)
            return
        # Those that were left last go last.
        self._calls[standing.name] = self._calls.pop(standing.name)
        loop = asyncio.get_running_loop()
        standing.timer = loop.call_later(self._linger, self._forget, standing)

    def _forget(self, standing: _Standing, *, ended: bool = False) -> None:
        """Ends a call; its messages stay for the reader that still has some to read."""
        self._hold(standing)
        if self._calls.get(standing.name) is standing:
            del self._calls[standing.name]
        if not ended and not standing.over and standing.task is not None:
            standing.task.cancel()
        standing.forgotten = True
        self._held -= standing.size
        standing.size = 0
        standing.kept_whole = False
        standing.tell()


async def _read(standing: _Standing, reader: _Reader) -> AsyncGenerator[bytes]:
    """The messages from the first one on, until the end of the answer."""
    while True:
        if standing.reader is not reader:
            raise Conflict("another call took up the answer", metadata={"standing": TAKEN})
        if reader.position < standing.end:
            message = standing.messages[reader.position - standing.dropped]
            reader.position += 1
            standing.tell()
            yield message
        elif standing.over:
            if standing.error is not None:
                raise standing.take_error()
            return
        else:
            await standing.changed.wait()


def _name(model: str, key: str = "") -> _Name:
    """What names a call of the current tenant; without a `key` that of the current call."""
    call = current_call()
    tenant = call.tenant if call is not None else ""
    return tenant, key or (call.key if call is not None else ""), model
