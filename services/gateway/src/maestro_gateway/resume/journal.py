"""The journal of resumable streams: what each of them sent so far, and who owns it.

It is one stream of JetStream with a subject per generation. A record is stored only behind the one that its writer
knows as the last one, so that a subject has one writer: whoever was overtaken learns it with its next record, and what
it wanted to say was never said. That is all there is to ownership.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import nats.errors
import nats.js.errors
from google.protobuf.message import DecodeError
from nats.js import api

from maestro.gateway.v1.journal_pb2 import StreamRecord
from maestro_gateway.resume.superseded import Superseded
from maestro_sdk.service.bus import Client, Link, heed_cancellation

log = logging.getLogger(__name__)

STREAM = "MAESTRO_FRAMES"
_SUBJECTS = "maestro.frames"
_OWNERS = "maestro.streams"
_PATIENCE = 2.0
"""Seconds that a record may take to be stored before its stream goes on without the journal."""
_ANSWER = 5.0
_DOUBT = 0.5
_REPLY = 1.0
"""Seconds that another gateway has to answer."""
_LOOK = 0.25
"""Seconds after which a reader looks for records, woken or not."""
_MOMENT = 0.003
_GET = f"$JS.API.DIRECT.GET.{STREAM}"
_MOST = 32
"""Records that are fetched at once."""
_WRONG_LAST = 10071
_ERRORS = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)


Fetch = Callable[[float], Awaitable[list["Entry"]]]


class JournalAway(Exception):
    """NATS can't be asked now, or can't take this."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record with its place in the journal."""

    sequence: int
    record: StreamRecord


def subject_of(tenant: str, stream: str) -> str:
    """The subject of a stream. Names of streams are their callers' own, and may hold what no subject may."""
    digest = hashlib.blake2b(stream.encode(), digest_size=16).hexdigest()
    return f"{_SUBJECTS}.{tenant}.{digest}"


class Journal:
    """Is connected while its block runs."""

    def __init__(self, url: str, owner: str, keep: float, room: int, answer: Callable[[bytes], Awaitable[bytes]]):
        """`owner` names this gateway in this life; `answer` answers the questions of others to it.

        `keep` in seconds, `room` in bytes.
        """
        self._owner = owner
        self._keep = keep
        self._room = room
        self._answer = answer
        self._known = asyncio.Event()
        self._link = Link(url, "frames", self._known.set)
        self._task: asyncio.Task[None] | None = None
        self._heard: Client | None = None

    @property
    def up(self) -> bool:
        """Whether streams can be written and read."""
        return self._link.up

    async def settle(self) -> bool:
        """Waits for the first word about the connection, which who has just started lacks; whether it stands."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER):
                await self._known.wait()
        return self._link.up

    @property
    def largest(self) -> int:
        """Bytes that a record may have."""
        client = self._link.client
        return (client.max_payload if client is not None else 2**20) - 4096

    async def append(self, subject: str, record: StreamRecord, last: int) -> int:
        """Stores a record behind the one with the sequence `last`, 0 for none; gives its own.

        Raises `Superseded` when another record came before, and `JournalAway`.
        """
        data = record.SerializeToString()
        headers = {"Nats-Expected-Last-Subject-Sequence": str(last)}
        end = time.monotonic() + _PATIENCE
        while True:
            heed_cancellation()
            try:
                ack = await self._js().publish(subject, data, timeout=_DOUBT, stream=STREAM, headers=headers)
            except nats.js.errors.APIError as error:
                if error.err_code != _WRONG_LAST:
                    raise JournalAway(f"NATS refuses a record: {error}") from None
                # Unless it was this very record, whose acknowledgement was lost.
                newest = await self.newest(subject)
                if newest is None or newest.record != record:
                    raise Superseded from None
                return newest.sequence
            except _ERRORS as error:
                if time.monotonic() >= end:
                    raise JournalAway(f"NATS does not store a record: {error}") from None
                await asyncio.sleep(0.05)
            else:
                return ack.seq

    async def newest(self, subject: str) -> Entry | None:
        """The last record of a stream; None when there is none. Raises `JournalAway`."""
        try:
            message = await self._js().get_last_msg(STREAM, subject)
        except nats.js.errors.NotFoundError:
            return None
        except _ERRORS as error:
            raise JournalAway(f"NATS does not answer: {error}") from None
        return _entry(message.seq or 0, message.data or b"")

    async def subjects(self) -> set[str]:
        """The subjects of all streams that are kept. Raises `JournalAway`."""
        try:
            info = await self._js().stream_info(STREAM, subjects_filter=f"{_SUBJECTS}.>")
        except _ERRORS as error:
            raise JournalAway(f"NATS does not answer: {error}") from None
        found: dict[str, int] = info.state.subjects or {}
        return set(found)

    @asynccontextmanager
    async def read(self, subject: str) -> AsyncGenerator[Fetch]:
        """Gives a function that fetches the next records, from the first one on.

        It waits at most the given seconds, and gives none when none came. Both raise `JournalAway`.
        """
        client = self._link.client
        if not self._link.up or client is None:
            raise JournalAway("NATS is away")
        inbox = client.new_inbox()
        woken = asyncio.Event()

        async def wake(message: Any) -> None:
            # Not the record itself: it may still be refused.
            woken.set()

        try:
            replies = await client.subscribe(inbox)
            news = await client.subscribe(subject, cb=wake)
        except _ERRORS as error:
            raise JournalAway(f"NATS does not answer: {error}") from None
        first = 1

        async def fetch(wait: float) -> list[Entry]:
            nonlocal first
            end = time.monotonic() + wait
            while True:
                heed_cancellation()
                woken.clear()
                if not self._link.up:
                    raise JournalAway("NATS is away")
                question = {"seq": first, "next_by_subj": subject, "batch": _MOST}
                try:
                    await client.publish(_GET, json.dumps(question).encode(), reply=inbox)
                    found = await _collect(replies)
                except _ERRORS as error:
                    raise JournalAway(f"NATS does not answer: {error}") from None
                left = end - time.monotonic()
                if found or left <= 0:
                    first = found[-1].sequence + 1 if found else first
                    return found
                # What wakes comes a moment before it is stored.
                pause = _MOMENT if woken.is_set() else min(left, _LOOK)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await woken.wait()
                if woken.is_set():
                    await asyncio.sleep(_MOMENT)

        try:
            yield fetch
        finally:
            for subscription in (replies, news):
                try:
                    await subscription.unsubscribe()
                except _ERRORS as error:
                    log.debug("a reader of the journal was not signed off: %s", error)

    async def ask(self, owner: str, question: bytes) -> bytes | None:
        """What the gateway `owner` answers; None when it is gone. Raises `JournalAway` when it stays silent."""
        client = self._link.client
        if not self._link.up or client is None:
            raise JournalAway("NATS is away")
        try:
            reply = await client.request(f"{_OWNERS}.{owner}", question, timeout=_REPLY)
        except nats.errors.NoRespondersError:
            return None
        except _ERRORS as error:
            raise JournalAway(f"the gateway that owns the stream does not answer: {error}") from None
        return reply.data

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._link.keep(self._prepare), name="follow the journal of streams")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _js(self) -> Any:
        client = self._link.client
        if not self._link.up or client is None:
            raise nats.errors.ConnectionClosedError
        return client.jetstream(timeout=_PATIENCE)

    async def _prepare(self, client: Client) -> None:
        async with asyncio.timeout(_ANSWER):
            await _ensure(client.jetstream(), self._keep, self._room)

        async def reply(message: Any) -> None:
            await message.respond(await self._answer(message.data))

        # A client that connects again subscribes again by itself.
        if self._heard is not client:
            await client.subscribe(f"{_OWNERS}.{self._owner}", cb=reply)
            self._heard = client
        # Whoever asks before NATS knows of it would take this gateway for gone.
        await client.flush(_ANSWER)


async def _collect(replies: Any) -> list[Entry]:
    """The records that answer one question. Raises what the client of NATS raises."""
    found: list[Entry] = []
    while True:
        message = await replies.next_msg(timeout=_ANSWER)
        headers: dict[str, str] = message.headers or {}
        match headers.get("Status"):
            case None:
                found.append(_entry(int(headers["Nats-Sequence"]), message.data))
            case "204" | "404":
                return found
            case other:
                raise JournalAway(f"NATS refuses to read: {other} {headers.get('Description', '')}")


def _entry(sequence: int, data: bytes) -> Entry:
    try:
        return Entry(sequence, StreamRecord.FromString(data))
    except DecodeError:
        raise JournalAway("a record of the journal can't be read") from None


async def _ensure(js: Any, keep: float, room: int) -> None:
    try:
        found = (await js.stream_info(STREAM)).config
    except nats.js.errors.NotFoundError:
        wanted = api.StreamConfig(
            name=STREAM,
            subjects=[f"{_SUBJECTS}.>"],
            storage=api.StorageType.FILE,
            discard=api.DiscardPolicy.OLD,
            max_age=keep,
            max_bytes=room,
            allow_direct=True,
            # Records are known by their places: nobody has to remember identifiers.
            duplicate_window=1.0,
        )
        await js.add_stream(wanted)
        return
    if (found.max_age, found.max_bytes) != (keep, room):
        found.max_age, found.max_bytes = keep, room
        await js.update_stream(found)
