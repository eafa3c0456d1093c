"""What jobs keep in JetStream: items that wait, the state of each job, results, and pieces of what is large.

| stream                | subjects                                       | holds                              |
|-----------------------|------------------------------------------------|------------------------------------|
| `MAESTRO_JOBS`        | `maestro.jobs.items.JOB.INDEX`                 | a queue: items without a result    |
| `KV_MAESTRO_JOBS`     | `$KV.MAESTRO_JOBS.TENANT.JOB`                  | a bucket: the state of each job    |
|                       | `$KV.MAESTRO_JOBS.TENANT`                      | the places of its jobs             |
|                       | `$KV.MAESTRO_JOBS.TENANT.JOB.INDEX`            | what earlier runs of an item were  |
|                       | `$KV.MAESTRO_JOBS.TENANT.JOB.cost`             | what a job with a bound has spent  |
| `MAESTRO_JOB_RESULTS` | `maestro.jobs.results.JOB.INDEX`               | one result of each item            |
| `MAESTRO_JOB_PARTS`   | `maestro.jobs.parts.JOB.in|out.INDEX.PACKET.N` | pieces of large items and results  |
|                       | `maestro.jobs.parts.JOB.aside.INDEX`           | items that wait to be tried again  |
|                       | `maestro.jobs.parts.JOB.economy.INDEX`         | items that are in a batch          |
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import nats.errors
import nats.js.errors
from nats.js import api

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.jobs.ledger import Ledger, secure
from maestro_sdk.errors import NoBackend
from maestro_sdk.service.bus import Client, Link

log = logging.getLogger(__name__)

ITEMS, RESULTS, PARTS, BUCKET = "MAESTRO_JOBS", "MAESTRO_JOB_RESULTS", "MAESTRO_JOB_PARTS", "MAESTRO_JOBS"
STATES = f"KV_{BUCKET}"
_NEWS = "maestro.jobs.news"
"""A subject of no stream: says that the state of a job is another."""
_PIECE = 512 * 1024
"""Bytes of a message; what is larger lies in pieces."""
_PIECES = "Maestro-Pieces"
_ANSWER = 5.0
_AT_ONCE = 256
_WRONG_SEQUENCE = 10071
_FAILURES = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)


class Superseded(Exception):
    """Somebody else was faster: what was to be written is based on what is no more."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream."""

    sequence: int
    subject: str
    data: bytes
    headers: Mapping[str, str]


class Streams:
    """The streams of jobs, while its block runs. Every method raises `NoBackend` while NATS does not answer."""

    def __init__(self, url: str, ledger: Ledger | None = None) -> None:
        """`ledger` publishes what requests cost."""
        self._ledger = ledger
        self._link = Link(url, "jobs", self._wake)
        self._listeners: set[asyncio.Event] = set()
        self._heard: Client | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def generation(self) -> int:
        """The number of the connection; 0 while there was none."""
        return self._link.generation if self._link.up else 0

    @property
    def up(self) -> bool:
        """Whether NATS is reached."""
        return self._link.up

    async def put(
        self,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        message_id: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Stores a message and gives its sequence. Raises `Superseded` unless `expect` is the last one of the subject.

        0 expects none. What has a `message_id` is stored once within two minutes.
        """
        sent = dict(headers or {})
        if expect is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect)
        if message_id:
            sent["Nats-Msg-Id"] = message_id
        answer = json.loads((await self._ask(subject, data, sent)).data)
        if (error := answer.get("error")) is None:
            return int(answer["seq"])
        if error.get("err_code") == _WRONG_SEQUENCE:
            raise Superseded
        raise NoBackend(f"NATS refuses to store: {error.get('description', 'no reason given')}", retry_after=1.0)

    async def secure(self) -> None:
        """Waits until what was published of requests so far outlives this process, before anything is built on it."""
        if self._ledger is not None:
            await secure(self._ledger)

    async def put_all(self, entries: Sequence[tuple[str, bytes, Mapping[str, str]]]) -> None:
        """Stores many messages; those whose subject has one already stay as they are."""

        async def put(subject: str, data: bytes, headers: Mapping[str, str]) -> None:
            with suppress(Superseded):
                await self.put(subject, data, expect=0, headers=headers)

        for start in range(0, len(entries), _AT_ONCE):
            await asyncio.gather(*(put(*entry) for entry in entries[start : start + _AT_ONCE]))

    async def get(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject."""
        message = await self._ask(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"")
        if (status := _status(message)) and status != "404":
            raise NoBackend(f"NATS does not give messages of {stream}: status {status}", retry_after=1.0)
        return None if status else _stored(message)

    async def read(
        self, stream: str, subject: str, after: int, *, most: int = 256, size: int = 4 * 2**20
    ) -> list[Stored]:
        """The messages of a subject behind a sequence: at most `most`, of about `size` bytes.

        A subject may have wildcards. Empty only when there are none.
        """
        client = self._client()
        request = {"seq": after + 1, "next_by_subj": subject, "batch": most, "max_bytes": size}
        found: list[Stored] = []
        inbox = client.new_inbox()
        try:
            inflow = await client.subscribe(inbox)
            try:
                await client.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
                while True:
                    message = await inflow.next_msg(timeout=_ANSWER)
                    if status := _status(message):
                        if status not in {"204", "404"}:
                            raise NoBackend(f"NATS does not give messages of {stream}: status {status}")
                        return found
                    found.append(_stored(message))
            finally:
                await inflow.unsubscribe()
        except _FAILURES as error:
            raise _away(error) from None

    async def tell(self, event: Event) -> None:
        """Publishes an event at once, or not at all.

        Those of jobs must not lie on a disk while another gateway tells of the same job: they would come out of order.
        """
        subject = f"maestro.events.{event.tenant}.{event.kind}"
        await self.put(subject, event.SerializeToString(), message_id=event.id)

    async def purge(self, stream: str, subject: str) -> None:
        """Deletes all messages of a subject, which may have wildcards."""
        request = json.dumps({"filter": subject}).encode()
        await self._ask(f"$JS.API.STREAM.PURGE.{stream}", request)

    async def pack(self, job: str, name: str, data: bytes) -> tuple[bytes, dict[str, str]]:
        """What a message holds of `data`, with its headers: all, or where its pieces lie."""
        if len(data) <= _PIECE:
            return data, {}
        # Pieces of two that pack under one name never mix.
        packet, count = os.urandom(6).hex(), -(-len(data) // _PIECE)
        for number in range(count):
            piece = data[number * _PIECE : (number + 1) * _PIECE]
            await self.put(f"maestro.jobs.parts.{job}.{name}.{packet}.{number}", piece)
        return b"", {_PIECES: f"{packet}.{count}"}

    async def unpack(self, job: str, name: str, data: bytes, headers: Mapping[str, str]) -> bytes:
        """What was packed. Raises `LookupError` when pieces are missing."""
        if _PIECES not in headers:
            return data
        packet, _, count = headers[_PIECES].partition(".")
        pieces: list[bytes] = []
        for number in range(int(count)):
            found = await self.get(PARTS, f"maestro.jobs.parts.{job}.{name}.{packet}.{number}")
            if found is None:
                raise LookupError(f"piece {number} of {name} of job {job} is missing")
            pieces.append(found.data)
        return b"".join(pieces)

    async def make_queue(self, job: str, lease: float, most: int) -> None:
        """Makes the consumer of the items of a job, which hands out at most `most` at a time."""
        config = api.ConsumerConfig(
            durable_name=job,
            filter_subject=f"maestro.jobs.items.{job}.*",
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=lease,
            max_ack_pending=most,
            max_deliver=-1,
        )
        try:
            await self._client().jetstream(timeout=_ANSWER).add_consumer(ITEMS, config)
        except _FAILURES as error:
            raise _away(error) from None

    async def drop_queue(self, job: str) -> None:
        """Ends the consumer of a job, and deletes the items that wait."""
        await self.purge(ITEMS, f"maestro.jobs.items.{job}.*")
        await self._ask(f"$JS.API.CONSUMER.DELETE.{ITEMS}.{job}", b"")

    async def under_way(self, job: str) -> tuple[int, int]:
        """How many items of a job are handed out, and how many wait."""
        answer = json.loads((await self._ask(f"$JS.API.CONSUMER.INFO.{ITEMS}.{job}", b"")).data)
        return int(answer.get("num_ack_pending", 0)), int(answer.get("num_pending", 0))

    async def pull(self, job: str, most: int, patience: float) -> AsyncGenerator[Any]:
        """Items of a job as they are handed out, each to be acknowledged; ends after `patience` seconds.

        Raises `LookupError` when nobody made its queue.
        """
        client = self._client()
        request = {"batch": most, "expires": int(patience * 1e9)}
        inbox = client.new_inbox()
        try:
            inflow = await client.subscribe(inbox)
            try:
                await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{ITEMS}.{job}", json.dumps(request).encode(), inbox)
                for _ in range(most):
                    message = await inflow.next_msg(timeout=patience + _ANSWER)
                    if status := _status(message):
                        if status == "503":
                            raise LookupError(f"job {job} has no queue")
                        return
                    yield message
            finally:
                await inflow.unsubscribe()
        except _FAILURES as error:
            raise _away(error) from None

    async def acknowledge(self, message: Any) -> None:
        """Takes an item out of its queue. Not sure to arrive: then it is handed out again."""
        await self._reply(message, b"+ACK")

    async def hold(self, message: Any) -> None:
        """Says that an item is still under way here."""
        await self._reply(message, b"+WPI")

    async def give_back(self, message: Any, delay: float = 0.0) -> None:
        """Gives an item back to its queue, to be handed out after `delay` seconds."""
        await self._reply(message, b"-NAK " + json.dumps({"delay": int(delay * 1e9)}).encode() if delay else b"-NAK")

    def tell_news(self) -> None:
        """Wakes every gateway: the state of a job is another. May be lost; whoever waits looks by itself, too."""
        if (client := self._link.client) is not None and self._link.up:
            task = asyncio.ensure_future(client.publish(_NEWS, b""))
            task.add_done_callback(_forget_failure)

    @asynccontextmanager
    async def listen(self, subject: str = "") -> AsyncGenerator[asyncio.Event]:
        """An event that is set at news of any job, or with a `subject` at each of its messages."""
        event = asyncio.Event()
        if not subject:
            self._listeners.add(event)
            try:
                yield event
            finally:
                self._listeners.discard(event)
            return
        inflow = await self._subscribe(subject, event.set)
        try:
            yield event
        finally:
            if self._link.up:
                with suppress(*_FAILURES):
                    await inflow.unsubscribe()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._link.keep(self._prepare), name="jobs")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _subscribe(self, subject: str, call: Callable[[], None]) -> Any:
        async def arrive(_: Any) -> None:
            call()

        try:
            return await self._client().subscribe(subject, cb=arrive)
        except _FAILURES as error:
            raise _away(error) from None

    async def _reply(self, message: Any, word: bytes) -> None:
        with suppress(NoBackend, *_FAILURES):
            await self._client().publish(message.reply, word)

    async def _ask(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> Any:
        try:
            return await self._client().request(subject, data, timeout=_ANSWER, headers=headers or None)
        except _FAILURES as error:
            raise _away(error) from None

    def _client(self) -> Client:
        client = self._link.client
        # What is published while the connection is away would be sent when it is back, when nobody expects it any more.
        if not self._link.up or client is None or not client.is_connected:
            raise NoBackend(f"jobs can't be reached now: {self._link.trouble or 'NATS is away'}", retry_after=1.0)
        return client

    def _wake(self) -> None:
        for event in self._listeners:
            event.set()

    async def _prepare(self, client: Client) -> None:
        js = client.jetstream(timeout=_ANSWER)
        for wanted in _STREAMS:
            try:
                await js.stream_info(wanted.name)
            except nats.js.errors.NotFoundError:
                await js.add_stream(wanted)
        if self._heard is not client:
            self._heard = client

            async def arrive(_: Any) -> None:
                self._wake()

            await client.subscribe(_NEWS, cb=arrive)


_STREAMS = (
    api.StreamConfig(
        name=ITEMS,
        subjects=["maestro.jobs.items.>"],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.WORK_QUEUE,
        allow_direct=True,
    ),
    api.StreamConfig(
        name=STATES,
        subjects=[f"$KV.{BUCKET}.>"],
        storage=api.StorageType.FILE,
        max_msgs_per_subject=1,
        allow_direct=True,
        allow_rollup_hdrs=True,
        deny_delete=True,
    ),
    api.StreamConfig(
        name=RESULTS, subjects=["maestro.jobs.results.>"], storage=api.StorageType.FILE, allow_direct=True
    ),
    api.StreamConfig(
        name=PARTS,
        subjects=["maestro.jobs.parts.>"],
        storage=api.StorageType.FILE,
        max_msgs_per_subject=1,
        allow_direct=True,
    ),
)


def _status(message: Any) -> str:
    """What the server says in the place of a message; empty for a message."""
    return message.headers.get("Status", "") if message.headers else ""


def _stored(message: Any) -> Stored:
    headers = cast("Mapping[str, str]", message.headers)
    return Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data, headers)


def _away(error: BaseException) -> NoBackend:
    return NoBackend(f"jobs can't be reached now: NATS does not answer ({type(error).__name__})", retry_after=1.0)


def _forget_failure(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
