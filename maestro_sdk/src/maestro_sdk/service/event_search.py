"""Finds events in the stream's past without an index: from a moment on, those of one tenant and of some kinds."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import nats.errors
from google.protobuf.message import DecodeError
from nats.js import api

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.errors import NoBackend
from maestro_sdk.service.bus import STREAM, Client
from maestro_sdk.service.event_reader import EventReader, filters

_log = logging.getLogger(__name__)
_BATCH = 1000
_PATIENCE = 1.0
"""Seconds to wait for a connection: when none stands, another one hardly comes in time."""
_INACTIVE = 10.0
"""Seconds after which NATS forgets a search whose end it was not told."""


@dataclass(slots=True)
class Search:
    """What to look for, and how far the search came.

    `since` is Unix time: what the stream took in before is not looked at. `holding` are bytes that a wanted event
    contains: only those events are decoded. `take` gets each of them, oldest first, and says whether that is enough.
    `most` bounds the events that are looked at.
    """

    tenant: str
    kinds: Sequence[str]
    since: float
    holding: bytes
    take: Callable[[Event], bool]
    most: int = 100_000
    seen: int = 0
    """Events that were looked at."""
    enough: bool = False
    """Whether `take` said so."""

    async def run(self, reader: EventReader, *, timeout: float, linger: float = 0.0) -> None:
        """Looks until it is enough, all is seen, or `most` is reached; waits `linger` seconds for what is on its way.

        Raises `NoBackend` when NATS can't be reached, or is not done within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                async with asyncio.timeout(_PATIENCE):
                    client, _ = await reader.connection()
                await self._look(client, linger)
        except TimeoutError:
            reason = reader.trouble or f"{self.seen} events took longer than {timeout:g} s"
            raise NoBackend(f"what was recorded can't be read now: {reason}") from None
        except (nats.errors.Error, OSError) as error:
            raise NoBackend(f"what was recorded can't be read now: {error!r}") from error

    async def _look(self, client: Client, linger: float) -> None:
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_TIME,
            opt_start_time=datetime.datetime.fromtimestamp(max(0.0, self.since), datetime.UTC),
            ack_policy=api.AckPolicy.NONE,
            filter_subjects=filters(self.tenant, self.kinds),
            inactive_threshold=_INACTIVE,
            mem_storage=True,
            num_replicas=1,
        )
        consumer = await client.jetstream().add_consumer(STREAM, config)
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        inbox = client.new_inbox()
        inflow = await client.subscribe(f"{inbox}.*", cb=arrived.put)
        pull = _Pull(client, f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer.name}", inbox, arrived)
        try:
            waiting = consumer.num_pending or 0
            while waiting and self._goes_on:
                waiting = await self._read(pull, {"no_wait": True})
            if linger and self._goes_on:
                await self._read(pull, {"expires": int(linger * 1e9)})
        finally:
            with suppress(nats.errors.Error, TimeoutError):
                async with asyncio.timeout(1):
                    await inflow.unsubscribe()
                    await client.jetstream().delete_consumer(STREAM, consumer.name)

    @property
    def _goes_on(self) -> bool:
        return not self.enough and self.seen < self.most

    async def _read(self, pull: _Pull, how: dict[str, Any]) -> int:
        """Looks at one batch; how many events wait behind it."""
        waiting = 0
        await pull.ask(how)
        for _ in range(_BATCH):
            message = await pull.next()
            if message is None:
                return 0
            self.seen += 1
            waiting = int(message.reply.split(".")[8 if message.reply.count(".") == 8 else 10])
            if self.holding in message.data:
                try:
                    event = Event.FromString(message.data)
                except DecodeError:
                    _log.warning("an event on %s can't be read and is passed over", message.subject)
                else:
                    self.enough = self.take(event)
            if not self._goes_on or (not waiting and "no_wait" in how):
                break
        return waiting


class _Pull:
    """Asks a consumer for messages. What ends an earlier question is told from what ends the present one."""

    def __init__(self, client: Client, subject: str, inbox: str, arrived: asyncio.Queue[Any]) -> None:
        self._client = client
        self._subject = subject
        self._inbox = inbox
        self._arrived = arrived
        self._number = 0

    async def ask(self, how: dict[str, Any]) -> None:
        self._number += 1
        body = json.dumps({"batch": _BATCH, **how}).encode()
        await self._client.publish(self._subject, body, reply=f"{self._inbox}.{self._number}")

    async def next(self) -> Any:
        """The next message; None when there is none any more."""
        while True:
            message = await self._arrived.get()
            if not message.headers or "Status" not in message.headers:
                return message
            if message.subject == f"{self._inbox}.{self._number}":
                return None
