"""A hop on the way to a server that hangs up on connections that are idle, as load balancers and NATs do."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self


class IdleHop:
    """Carries bytes both ways between a free loopback port and `target`, "host:port", as an async context manager.

    It cuts a connection once nothing went through it, either way, for `idle` seconds.
    """

    def __init__(self, target: str, idle: float) -> None:
        host, _, port = target.rpartition(":")
        self._host, self._port = host, int(port)
        self._idle = idle
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()
        self.cut = 0
        """Connections that were cut."""
        self.address = ""
        """Its own address, "host:port"."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._running.add(task)
        # Only the hop's end cancels this, and asyncio would log it as a fault.
        with suppress(OSError, asyncio.CancelledError):
            await self._carry(reader, writer)
        writer.transport.abort()
        self._running.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection(self._host, self._port)
        now = asyncio.get_running_loop().time
        last = now()

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal last
            while data := await source.read(65536):
                last = now()
                sink.write(data)
                await sink.drain()
            with suppress(OSError, RuntimeError):
                sink.write_eof()

        ways = [asyncio.create_task(copy(reader, other_writer)), asyncio.create_task(copy(other_reader, writer))]
        try:
            while not all(way.done() for way in ways):
                left = last + self._idle - now()
                if left <= 0:
                    self.cut += 1
                    break
                await asyncio.wait(ways, timeout=left, return_when=asyncio.FIRST_EXCEPTION)
                if any(way.done() and way.exception() is not None for way in ways):
                    break
        finally:
            for end in (writer, other_writer):
                end.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
