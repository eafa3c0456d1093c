"""The connection to NATS and the stream of lifecycle events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

import nats.aio.client
import nats.errors
import nats.js.errors
from nats.js import api

from maestro_sdk.service.buses import login_at
from maestro_sdk.service.event_kinds import DUPLICATE_WINDOW

__all__ = ["STREAM", "Client", "Link", "ensure_stream", "heed_cancellation", "refusal"]

Client: TypeAlias = Any
"""`nats.aio.client.Client`, whose own annotations are only partly there."""

STREAM = "MAESTRO_EVENTS"
NO_STREAM = "there is no stream of events"
"""Why nothing is stored when nobody answers for the subject."""
SUBJECTS = "maestro.events.>"

_log = logging.getLogger(__name__)
_RETRY = 0.25
"""Seconds between two tries to reach NATS."""


def heed_cancellation() -> None:
    """Raises `CancelledError` in a task that was cancelled and went on all the same.

    Python 3.11's `wait_for`, by which the client of NATS waits for answers, loses a cancellation that comes together
    with the answer. Whoever asks in a loop calls this in each turn, or its owner waits for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class _Connection(nats.aio.client.Client):
    """The client of NATS, which by itself leaves a socket open on which a server did not greet as it should.

    It also tries again for ever when it was closed at the moment of a refusal.
    """

    async def _connect_to_server(self, s: Any) -> None:
        heed_cancellation()
        self.hang_up()
        await super()._connect_to_server(s)

    def hang_up(self) -> None:
        """Closes the socket of the last try."""
        if self._transport is not None:
            self._transport.close()


class Link:
    """A connection that is kept up for as long as `keep` runs.

    `changed` is called after every loss and return, and when `trouble` is another.
    """

    def __init__(self, url: str, name: str, changed: Callable[[], None]) -> None:
        self._url = url
        self._name = name
        self._changed = changed
        self._event = asyncio.Event()
        self.client: Client | None = None
        self.up: bool = False
        """Whether the connection stands and `prepare` went well on it."""
        self.trouble = "NATS was not reached yet"
        """Why it is not up."""
        self.generation = 0
        """Number of the connection: what was asked on an earlier one gets no answer any more."""

    async def keep(self, prepare: Callable[[Client], Awaitable[None]]) -> None:
        """Connects, calls `await prepare(client)` on every new connection, and goes on until cancelled."""
        try:
            while True:
                try:
                    self.client = client = await self._connect()
                except (nats.errors.Error, OSError, ValueError) as error:
                    self._set(up=False, trouble=f"NATS can't be reached: {error}")
                    await asyncio.sleep(_RETRY)
                    continue
                while not client.is_closed:
                    heed_cancellation()
                    self._event.clear()
                    if client.is_connected and not self.up:
                        await self._prepare(client, prepare)
                    elif not client.is_connected and self.up:
                        self._set(up=False, trouble="the connection to NATS is lost")
                    elif client.is_connected or not self.up:
                        await self._event.wait()
                self._set(up=False, trouble="NATS closed the connection")
                await asyncio.sleep(_RETRY)
        finally:
            await self._close()

    async def _connect(self) -> Client:
        async def on_change() -> None:
            self._event.set()

        async def on_loss() -> None:
            if self.up:
                self._set(up=False, trouble="the connection to NATS is lost")
            self._event.set()

        async def on_error(error: Exception) -> None:
            # Without this callback every failed try prints a traceback.
            if not self.up and self.trouble != (trouble := f"NATS can't be reached: {error}"):
                self.trouble = trouble
                self._changed()
            _log.debug("nats: %s", error)

        client = _Connection()
        connect = cast("Any", client).connect
        connecting: asyncio.Task[None] = asyncio.create_task(
            connect(
                self._url,
                **login_at(self._url),
                name=self._name,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RETRY,
                connect_timeout=2,
                error_cb=on_error,
                disconnected_cb=on_loss,
                reconnected_cb=on_change,
                closed_cb=on_change,
            )
        )
        try:
            await asyncio.wait((connecting,))
        except asyncio.CancelledError:
            # The client tries for ever, and loses a cancellation that comes together with a refusal.
            while not connecting.done():
                connecting.cancel()
                await asyncio.wait((connecting,), timeout=_RETRY)
            if connecting.cancelled() or connecting.exception() is not None:
                client.hang_up()
            else:
                self.client = client
            raise
        connecting.result()
        return client

    async def _prepare(self, client: Client, prepare: Callable[[Client], Awaitable[None]]) -> None:
        try:
            await prepare(client)
        except Exception as error:  # noqa: BLE001 - whatever it is: it is told as `trouble` and tried again
            if self.trouble != (trouble := f"NATS refuses: {error!r}"):
                # Once for each reason: nobody may be there to ask for it.
                _log.warning("%s: %s", self._name, trouble)
                self.trouble = trouble
                self._changed()
            await asyncio.sleep(_RETRY)
        else:
            self.generation += 1
            self._set(up=True, trouble="")

    def _set(self, *, up: bool, trouble: str) -> None:
        if up != self.up:
            _log.log(
                logging.INFO if up else logging.WARNING, "%s: %s", self._name, "NATS is connected" if up else trouble
            )
        self.up, self.trouble = up, trouble
        self._changed()

    async def _close(self) -> None:
        self.up = False
        if self.client is not None:
            # Not `drain`: it waits for ever when the server is gone.
            try:
                async with asyncio.timeout(2):
                    await self.client.close()
            except (nats.errors.Error, TimeoutError, OSError) as error:
                _log.debug("nats: %s", error)


async def ensure_stream(client: Client, retention: float) -> None:
    """Makes the stream of events or brings it up to date; whoever comes first does it. `retention` in seconds."""
    js = client.jetstream()
    wanted = api.StreamConfig(
        name=STREAM,
        subjects=[SUBJECTS],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD,
        max_age=retention,
        duplicate_window=DUPLICATE_WINDOW,
    )
    try:
        found = (await js.stream_info(STREAM)).config
    except nats.js.errors.NotFoundError:
        await js.add_stream(wanted)
        return
    if (found.subjects, found.max_age, found.duplicate_window) != (wanted.subjects, retention, DUPLICATE_WINDOW):
        found.subjects, found.max_age, found.duplicate_window = wanted.subjects, retention, DUPLICATE_WINDOW
        await js.update_stream(found)


def refusal(data: bytes, headers: Any) -> str:
    """Why JetStream did not store a message, from its acknowledgement; empty when it did."""
    if headers and headers.get("Status") == "503":
        return NO_STREAM
    if b'"error"' not in data:
        return ""
    error: dict[str, Any] = json.loads(data).get("error") or {}
    return str(error.get("description") or "no reason given")
