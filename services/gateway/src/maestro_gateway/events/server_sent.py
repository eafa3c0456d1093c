"""`GET /v1/events/stream` as server-sent events, for everything that speaks HTTP, browsers' `EventSource` included."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress

from aiohttp import ClientConnectionError, web

from maestro_gateway.events.feed import Follower, Gap
from maestro_gateway.events.socket import FAREWELL, PATIENCE
from maestro_gateway.json_codec.answer import PING
from maestro_gateway.json_codec.event import encode_notice

log = logging.getLogger(__name__)

_RETRY = b"retry: 1000\n\n"
"""Milliseconds after which a browser that lost the stream comes back."""
# Without `x-accel-buffering` a proxy such as nginx collects the events.
_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}
_GOODBYE = 1.0


class EventResponse:
    """One response that follows the events of a tenant. Each event's id is its sequence, by which a reader resumes."""

    def __init__(
        self,
        request: web.Request,
        follower: Follower,
        *,
        callers: bool,
        ping: float,
        request_id: str,
        patience: float = PATIENCE,
    ) -> None:
        """`callers`: the reader may know from where requests came. `ping` in seconds: the pause before a comment."""
        self.response = web.StreamResponse(headers={**_HEADERS, "x-request-id": request_id})
        self._request = request
        self._follower = follower
        self._callers = callers
        self._ping = ping
        self._patience = patience
        self._sent = follower.start
        self._last = ("", "")
        self._sending: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Sends until the reader leaves or is too slow, or the stream is ended from outside."""
        response = self.response
        try:
            await response.prepare(self._request)
            # It may have been ended before it began.
            if not self._last[0]:
                await self._run()
            kind, message = self._last
            if kind:
                async with asyncio.timeout(FAREWELL if kind == "slow_consumer" else _GOODBYE):
                    await response.write(self._notice(kind, self._sent, message, self._sent))
                    await response.write_eof()
        except TimeoutError:
            if (transport := self._request.transport) is not None:
                # It would wait for its reader, with all that was not taken, for as long as that keeps the connection.
                transport.abort()
        except ClientConnectionError:
            log.debug("the reader of an event stream left")
        finally:
            self._over.set()

    async def _run(self) -> None:
        self._sending = sending = asyncio.create_task(self._send())
        try:
            await asyncio.wait((sending,))
        finally:
            # Whoever reads has gone when this is a cancellation.
            sending.cancel()
            # It gives the error of a task that nobody asks for it, too: the reader may be found gone at the same time.
            await asyncio.gather(sending, return_exceptions=True)
        if not sending.cancelled():
            sending.result()

    async def finish(self, grace: float) -> None:
        """Says goodbye; the reader comes back by itself and goes on where it was."""
        await self._end("draining", "the gateway is shutting down; connect again with the last id")

    async def dismiss(self) -> None:
        """Ends it: the key is not in force any more."""
        await self._end("dismissed", "the key is not in force any more")

    async def _end(self, kind: str, message: str) -> None:
        self._last = (kind, message)
        if self._sending is not None:
            self._sending.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                await self._over.wait()

    async def _send(self) -> None:
        response, follower, callers = self.response, self._follower, self._callers
        ready = self._notice("ready", follower.newest, "every later event will be sent", follower.start)
        await response.write(_RETRY + ready)
        async with aclosing(follower.steps(self._ping)) as steps:
            async for step in steps:
                sent = self._sent
                if step is None:
                    data = PING
                elif isinstance(step, Gap):
                    lost, sent = "events up to this sequence are no longer kept", step.sequence
                    data = self._notice("gap", step.sequence, lost, sent)
                else:
                    data, sent = b"".join(e.server_sent(callers=callers) for e in step), step[-1].sequence
                # All of it lies in the buffer at once: a reader that wakes up gets it, and then the notice.
                self._sent = sent
                try:
                    async with asyncio.timeout(self._patience):
                        await response.write(data)
                except TimeoutError:
                    self._last = ("slow_consumer", "events were not taken in time; connect again with the last id")
                    return

    def _notice(self, kind: str, sequence: int, message: str, at: int) -> bytes:
        """`at` is where the reader stands: it comes back from there."""
        return b"id: %d\nevent: notice\ndata: %b\n\n" % (at, encode_notice(kind, sequence, message))
