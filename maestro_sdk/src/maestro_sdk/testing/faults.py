"""An HTTP/1.1 server on loopback that answers by script, down to the byte, and sees when its client goes away.

    async with FaultServer() as server:
        server.on("POST", "/v1/messages", Sse("message_start", {...}), Wait(0.1), Cut())
        ...                                   # call server.url + "/v1/messages"
        seen = await server.request(0)        # method, path, headers, body, and when the client closed its socket

It exists for what emulators of providers can't do: a clean end without a terminal event, a cut inside an answer, an
error inside a stream, a stall, a slow first token.
"""

from __future__ import annotations

import asyncio
import fnmatch
import socket
import struct
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, cast

from maestro_sdk.testing.frames import (
    Cut,
    End,
    Framing,
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
    parse_request,
)

__all__ = [
    "Cut",
    "End",
    "FaultServer",
    "Headers",
    "Reply",
    "Seen",
    "Send",
    "SendJson",
    "Sse",
    "Stall",
    "Step",
    "Wait",
    "WaitFor",
    "encode_sse",
    "parse_request",
]

_LINGER_ZERO = struct.pack("ii", 1, 0)


class FaultServer:
    """A scripted server on a free loopback port, as an async context manager. What is not scripted gets a 404."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        """All requests in order of arrival."""
        self.url = ""
        self._scripts: dict[tuple[str, str], list[Reply]] = {}
        self._used: dict[tuple[str, str], int] = {}
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._arrived = asyncio.Condition()
        self._notes: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    def on(self, method: str, path: str, *steps: Step | Reply) -> None:
        """Scripts the next answer for `path` (exact, or with `*`): steps, or one reply function.

        Several scripts of a path are used in turn, and the last one repeats.
        """
        fixed = tuple(step for step in steps if not callable(step))
        replies: list[Reply] = [step for step in steps if callable(step)]
        if replies and len(steps) > 1:
            raise TypeError("a reply function stands alone")
        self._scripts.setdefault((method, path), []).append(replies[0] if replies else lambda _: fixed)

    def replace(self, method: str, path: str, *steps: Step | Reply) -> None:
        """Scripts the one answer for `path`; its earlier scripts are forgotten, and it stands before all others."""
        others = {key: replies for key, replies in self._scripts.items() if key != (method, path)}
        self._scripts.clear()
        self._used.pop((method, path), None)
        self.on(method, path, *steps)
        self._scripts.update(others)

    def reset(self) -> None:
        """Forgets scripts and requests; answers under way go on."""
        self._scripts.clear()
        self._used.clear()
        self.requests.clear()

    async def request(self, number: int = 0, timeout: float = 5.0) -> Seen:
        """The request with that number, counted from 0, as soon as it has arrived. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout), self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) > number)
        return self.requests[number]

    async def start(self) -> None:
        """Listens on a free port."""
        self._server = await asyncio.get_running_loop().create_server(self._connect, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Ends all answers and closes all sockets. Raises what a reply function raised."""
        if self._server is not None:
            self._server.close()
        tasks = [task for connection in list(self._connections) if (task := connection.abandon()) is not None]
        await asyncio.gather(*tasks, *self._notes, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _connect(self) -> _Connection:
        return _Connection(self._steps, self._connections, self._fail)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error

    def _steps(self, seen: Seen) -> Sequence[Step]:
        """Records a request and chooses its answer."""
        self.requests.append(seen)
        note = asyncio.get_running_loop().create_task(self._notify())
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)
        for key, replies in self._scripts.items():
            method, pattern = key
            if method == seen.method and (pattern == seen.path or fnmatch.fnmatchcase(seen.path, pattern)):
                turn = self._used.get(key, 0)
                self._used[key] = turn + 1
                return replies[min(turn, len(replies) - 1)](seen)
        message = f"nothing is scripted for {seen.method} {seen.path}"
        return Headers(404), SendJson({"error": {"type": "not_found_error", "message": message}})

    async def _notify(self) -> None:
        async with self._arrived:
            self._arrived.notify_all()


class _Connection(asyncio.Protocol):
    """One socket: parses requests, runs scripts one after the other, notices the peer's close at once."""

    def __init__(self, steps: Reply, connections: set[_Connection], fail: Callable[[BaseException], None]) -> None:
        self._steps = steps
        self._connections = connections
        self._fail = fail
        self._buffer = b""
        self._seen: list[Seen] = []
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._ours = False  # whether this side closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def eof_received(self) -> bool:
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._connections.discard(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def abandon(self) -> asyncio.Task[None] | None:
        """Closes from this side; returns the answer that was under way."""
        self._ours = True
        task = self._task
        if task is not None:
            task.cancel()
        if self._transport is not None:
            self._transport.abort()
        return task

    def _leave(self) -> None:
        if self._ours:
            return
        now = time.monotonic()
        for seen in self._seen:
            if seen.closed_at is None:
                seen.closed_at = now
                seen.closed.set()
        if self._task is not None:
            self._task.cancel()

    def _advance(self) -> None:
        """Starts the next answer when none is under way and a whole request is there."""
        if self._task is not None or self._ours:
            return
        parsed = parse_request(self._buffer)
        if parsed is None:
            return
        seen, length = parsed
        self._buffer = self._buffer[length:]
        self._seen.append(seen)
        self._task = asyncio.get_running_loop().create_task(self._answer(seen))
        self._task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._fail(error)
            self._close(reset=True)
        else:
            self._advance()

    async def _answer(self, seen: Seen) -> None:
        steps = self._steps(seen)
        answer = Framing()
        for number, step in enumerate(steps):
            match step:
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case WaitFor(event):
                    await event.wait()
                case Stall():
                    await seen.closed.wait()
                    return
                case Cut(reset):
                    self._close(reset)
                    return
                case End():
                    break
                case Headers() | Send() | SendJson() | Sse():
                    await self._write(seen, answer.encode(step, steps[number + 1 :]))
        await self._write(seen, answer.end())
        if seen.headers.get("connection", "").lower() == "close":
            self._close(reset=False)

    async def _write(self, seen: Seen, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
            await self._writable.wait()
            seen.sent += len(data)

    def _close(self, reset: bool) -> None:
        self._ours = True
        if self._transport is None:
            return
        if reset:
            plain: socket.socket = self._transport.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            self._transport.abort()
        else:
            self._transport.close()
