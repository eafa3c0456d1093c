"""`GET /v1/events/stream` as a WebSocket: one JSON frame per event, and notices."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from aiohttp import ClientConnectionError, WSMsgType, web

from maestro_gateway.events.feed import Follower, Gap
from maestro_gateway.json_codec.event import encode_notice

log = logging.getLogger(__name__)

PATIENCE = 20.0
"""Seconds that a reader may take nothing before it is dropped."""
FAREWELL = 10.0
"""Seconds that one that was dropped has to read why; then what it did not take is forgotten."""


class EventSocket:
    """One socket that follows the events of a tenant."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        follower: Follower,
        *,
        callers: bool,
        patience: float = PATIENCE,
        transport: asyncio.Transport | None = None,
    ) -> None:
        """`callers`: the reader may know from where requests came. `transport` is cut when the farewell is not read."""
        self._socket = socket
        self._follower = follower
        self._callers = callers
        self._patience = patience
        self._transport = transport
        self._sent = follower.start

    async def run(self) -> None:
        """Sends until the peer leaves or is too slow."""
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._send())
            try:
                async for message in self._socket:
                    if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                        break
            finally:
                sending.cancel()

    async def finish(self, grace: float) -> None:
        """Says goodbye with the sequence to go on after."""
        await self._close(1001, "draining", "the gateway is shutting down; connect again with ?after=")

    async def dismiss(self) -> None:
        """Closes: the key is not in force any more."""
        with suppress(TimeoutError, ClientConnectionError):
            async with asyncio.timeout(1.0):
                await self._socket.close(code=1008, message=b"the key is not in force any more")

    async def _send(self) -> None:
        follower, callers = self._follower, self._callers
        try:
            await self._put(encode_notice("ready", follower.newest, "every later event will be sent"))
            async for step in follower.steps():
                async with asyncio.timeout(self._patience):
                    if isinstance(step, Gap):
                        await self._put(
                            encode_notice("gap", step.sequence, "events up to this sequence are no longer kept")
                        )
                        continue
                    for entry in step or ():
                        await self._put(entry.json(callers=callers))
                        self._sent = entry.sequence
        except TimeoutError:
            if self._transport is not None:
                asyncio.get_running_loop().call_later(FAREWELL, self._transport.abort)
            await self._close(1013, "slow_consumer", "events were not taken in time; connect again with ?after=")
        except ClientConnectionError:
            log.debug("the reader of an event stream left")

    async def _put(self, frame: bytes) -> None:
        await self._socket.send_frame(frame, WSMsgType.TEXT)

    async def _close(self, code: int, kind: str, message: str) -> None:
        """Leaves a notice and closes; a reader that takes nothing finds both when it reads again."""
        at = self._sent
        try:
            async with asyncio.timeout(1.0):
                await self._put(encode_notice(kind, at, f"{message}{at}"))
                await self._socket.close(code=code, message=f"{kind}; go on with ?after={at}".encode())
        except (TimeoutError, ClientConnectionError):
            log.debug("an event stream was closed without a goodbye")
