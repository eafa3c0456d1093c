"""Follows the stream of events: in order, from any sequence, across losses of the connection and restarts of NATS."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Self

import nats.errors
from google.protobuf.message import DecodeError
from nats.js import api

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.errors import NoBackend
from maestro_sdk.service.bus import STREAM, Client, Link, ensure_stream, heed_cancellation
from maestro_sdk.service.event_kinds import belongs
from maestro_sdk.service.settings import Config
from maestro_sdk.service.stream_page import sequence_of

_log = logging.getLogger(__name__)
_BATCH = 256
_EXPIRES = 30.0
_HEARTBEAT = 5.0
"""Seconds between signs of life of a quiet stream; two missing ones mean that nothing would come any more."""
_INACTIVE = 60.0
"""Seconds after which NATS forgets a reader that asks for nothing."""
_RETRY = 0.5
_WORD = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class EventReader:
    """Reads events while its `async with` block runs; any number of subscriptions share its connection."""

    def __init__(self, url: str, *, name: str = "maestro", retention: float = 7 * 86400.0) -> None:
        self._link = Link(url, f"{name} reader", self._link_changed)
        self._retention = retention
        self._changes: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, config: Config, name: str) -> EventReader:
        """The reader of the service `name`."""
        return cls(config.nats.url, name=name, retention=config.events.retention)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._link.keep(self._prepare), name="event reader")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    @asynccontextmanager
    async def subscribe(
        self, tenant: str, *, kinds: Sequence[str] = (), job: str = "", after: int | None = None, timeout: float = 5.0
    ) -> AsyncGenerator[Subscription]:
        """Follows the events of one tenant that pass all filters.

        `kinds` are "request.completed" or whole families "request.*"; `job` is a job's id. `after` is the sequence of
        the last event that was handled, 0 for all that are kept, None for those from now on. Raises `NoBackend` when
        NATS doesn't answer in time.
        """
        subscription = Subscription(self, filters(tenant, kinds), job, after)
        try:
            async with asyncio.timeout(timeout):
                await subscription.begin()
        except TimeoutError:
            raise NoBackend(f"events can't be read now: {self._link.trouble or 'NATS does not answer'}") from None
        try:
            yield subscription
        finally:
            await subscription.end()

    async def connection(self) -> tuple[Client, int]:
        """The connection and its number, as soon as there is one."""
        with self.changes() as change:
            while not self._link.up or self._link.client is None:
                change.clear()
                await change.wait()
            return self._link.client, self._link.generation

    @property
    def trouble(self) -> str:
        """Why NATS is not reached now; empty when it is."""
        return self._link.trouble

    @property
    def retention(self) -> float:
        """Seconds for which events are kept."""
        return self._retention

    def changes(self) -> _Change:
        """An event that is set when the connection is lost or comes back; to be left like a file."""
        return _Change(self._changes)

    def is_current(self, generation: int) -> bool:
        """Whether a connection is still the one in use."""
        return self._link.up and self._link.generation == generation

    async def _prepare(self, client: Client) -> None:
        await ensure_stream(client, self._retention)

    def _link_changed(self) -> None:
        for change in self._changes:
            change.set()


class _Change:
    def __init__(self, all_changes: set[asyncio.Event]) -> None:
        self._all = all_changes
        self._event = asyncio.Event()

    def __enter__(self) -> asyncio.Event:
        self._all.add(self._event)
        return self._event

    def __exit__(self, *_: object) -> None:
        self._all.discard(self._event)


class Subscription:
    """Events of one tenant: iterate over it, or over `batches()` for all that came at once.

    `newest` is the stream's last sequence at the start. `lost` is the last sequence that was asked for and is no
    longer kept, or 0.
    """

    def __init__(self, reader: EventReader, subjects: Sequence[str], job: str, after: int | None) -> None:
        self._reader = reader
        self._subjects = list(subjects)
        self._job = job
        self._position = after
        self._consumer: tuple[Client, str, int] | None = None
        self.newest = 0
        self.lost = 0

    async def begin(self) -> None:
        """Waits for NATS and finds the place to start at."""
        while True:
            heed_cancellation()
            client, _ = await self._reader.connection()
            try:
                state = (await client.jetstream().stream_info(STREAM)).state
                break
            except (nats.errors.Error, TimeoutError):
                await asyncio.sleep(_RETRY)
        self.newest = state.last_seq
        if self._position is None:
            self._position = state.last_seq
        elif state.first_seq > self._position + 1:
            self.lost = state.first_seq - 1

    async def end(self) -> None:
        """Tells NATS that nobody reads any more."""
        if self._consumer is not None:
            client, name, generation = self._consumer
            self._consumer = None
            if self._reader.is_current(generation):
                with suppress(nats.errors.Error, TimeoutError):
                    async with asyncio.timeout(1):
                        await client.jetstream().delete_consumer(STREAM, name)

    async def __aiter__(self) -> AsyncGenerator[tuple[int, Event]]:
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for found in batch:
                    yield found

    async def batches(self) -> AsyncGenerator[list[tuple[int, Event]]]:
        """All events that were there at once, with their sequences, oldest first; goes on for ever.

        `event.sequence` is set too.
        """
        while True:
            heed_cancellation()
            client, generation = await self._reader.connection()
            try:
                async with aclosing(self._pull(client, generation)) as pulled:
                    async for messages in pulled:
                        batch = [found for message in messages if (found := self._accepted(message)) is not None]
                        if batch:
                            yield batch
            except (nats.errors.Error, TimeoutError, OSError) as error:
                _log.debug("event reader starts again after %s: %s", self._position, error)
                await asyncio.sleep(_RETRY)

    async def _pull(self, client: Client, generation: int) -> AsyncGenerator[list[Any]]:
        """Messages behind the position, until the connection or the consumer is lost."""
        if (await client.jetstream().stream_info(STREAM)).state.last_seq < (self._position or 0):
            _log.warning("the stream of events was made anew; reading begins at its start")
            self._position = 0
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=(self._position or 0) + 1,
            ack_policy=api.AckPolicy.NONE,
            filter_subjects=self._subjects,
            inactive_threshold=_INACTIVE,
            mem_storage=True,
            num_replicas=1,
        )
        name = (await client.jetstream().add_consumer(STREAM, config)).name
        self._consumer = (client, name, generation)
        messages: deque[Any] = deque()
        inbox = client.new_inbox()
        with self._reader.changes() as change:

            async def arrive(message: Any) -> None:
                messages.append(message)
                change.set()

            inflow = await client.subscribe(inbox, cb=arrive)
            try:
                wanted = 0
                while self._reader.is_current(generation):
                    if wanted <= 0:
                        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}", _REQUEST, reply=inbox)
                        wanted = _BATCH
                    change.clear()
                    if not messages:
                        async with asyncio.timeout(2 * _HEARTBEAT + 1):
                            await change.wait()
                    found = list(messages)
                    messages.clear()
                    data = [message for message in found if not _status(message)]
                    wanted -= len(data)
                    if data:
                        yield data
                    for status in filter(None, map(_status, found)):
                        if status == "408":  # the request expired; nothing is wrong
                            wanted = 0
                        elif status != "100":
                            raise nats.errors.Error(f"status {status}")
            finally:
                if self._reader.is_current(generation):
                    with suppress(nats.errors.Error):
                        await inflow.unsubscribe()

    def _accepted(self, message: Any) -> tuple[int, Event] | None:
        """The event of a message, unless it was seen before or a filter leaves it out."""
        sequence = sequence_of(message)
        if sequence <= (self._position or 0):
            return None
        self._position = sequence
        event = decoded(sequence, message.data)
        if event is None or (self._job and not belongs(event, self._job)):
            return None
        return sequence, event


_REQUEST = json.dumps(
    {"batch": _BATCH, "expires": int(_EXPIRES * 1e9), "idle_heartbeat": int(_HEARTBEAT * 1e9)}
).encode()


def filters(tenant: str, kinds: Sequence[str]) -> list[str]:
    """The NATS subjects of a tenant's events of these kinds.

    NATS refuses filters that overlap, so a family swallows its members. Raises `ValueError` for a tenant that would be
    more than one word of a subject, or any word.
    """
    if not _WORD.fullmatch(tenant):
        raise ValueError(f"{tenant!r} is not a tenant")
    families = {kind for kind in kinds if kind.endswith(".*")}
    single = {kind for kind in kinds if kind not in families and f"{kind.partition('.')[0]}.*" not in families}
    return [f"maestro.events.{tenant}.{kind}" for kind in sorted(families | single) or [">"]]


def decoded(sequence: int, data: bytes) -> Event | None:
    """The event with its sequence; None for bytes that are none, which are passed over."""
    try:
        event = Event.FromString(data)
    except DecodeError:
        _log.warning("the event with sequence %d can't be read and is passed over", sequence)
        return None
    event.sequence = sequence
    return event


def _status(message: Any) -> str:
    return message.headers.get("Status", "") if message.headers else ""
