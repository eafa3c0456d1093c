"""A shelf in NATS on which the gateways of a mesh find what any of them kept.

It is a bucket of JetStream with an age and a size: what is old goes, and so does the oldest when it is full. While NATS
is away nothing is put there and nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import nats.errors
import nats.js.errors
from nats.js import api

from maestro_sdk.service.bus import Client, Link

log = logging.getLogger(__name__)

BUCKET = "MAESTRO_KEPT"
_ROOM = 256 * 2**20
_PATIENCE = 0.5
"""Seconds that an answer waits for NATS."""
_ANSWER = 5.0
_ERRORS = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)


class Shelf:
    """Is connected while its block runs."""

    def __init__(self, url: str, lasting: float, *, bucket: str = BUCKET, room: int = _ROOM) -> None:
        """`lasting` in seconds: how long things lie there; `room` in bytes: what lies longest goes first."""
        self._lasting = lasting
        self._bucket, self._room = bucket, room
        self._known = asyncio.Event()
        self.replaced: Callable[[str], None] | None = None
        """Called with the key of what another process put in the place of something; to be set before the block."""
        self._name = secrets.token_bytes(8)
        self._heard: Client | None = None
        self._link = Link(url, bucket.removeprefix("MAESTRO_").lower(), self._known.set)
        self._task: asyncio.Task[None] | None = None

    async def settle(self) -> bool:
        """Waits for the first word about the connection; whether it stands."""
        await self._known.wait()
        return self._link.up

    async def put(self, key: str, data: bytes) -> None:
        """Stores; returns after half a second at the latest, stored or not."""
        client = self._link.client
        if not self._link.up or client is None or len(data) >= client.max_payload:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await client.jetstream().publish(self._subject(key), data, timeout=_PATIENCE)
        except _ERRORS as error:
            log.debug("a kept answer is known to this gateway only: %r", error)

    async def offer(self, key: str, data: bytes) -> None:
        """Stores without waiting for word of it: it may be lost."""
        client = self._link.client
        if not self._link.up or client is None or len(data) >= client.max_payload:
            return
        try:
            await client.publish(self._subject(key), data)
        except _ERRORS as error:
            log.debug("a kept answer is known to this gateway only: %r", error)

    async def replace(self, key: str, data: bytes) -> None:
        """Stores as `put` does, and tells all others that what they remember of it is old."""
        try:
            await self.put(key, data)
        finally:
            # Also when the caller waits no longer for word of what was sent.
            client = self._link.client
            if self._link.up and client is not None:
                with suppress(*_ERRORS):
                    await client.publish(self._news, self._name + key.encode())

    async def take(self, key: str) -> bytes | None:
        """What is stored. Raises `LookupError` when NATS can't tell now."""
        found = await self.find(key)
        return found[0] if found is not None else None

    async def find(self, key: str) -> tuple[bytes, float] | None:
        """What is stored, and for how many seconds. Raises `LookupError` when NATS can't tell now."""
        client = self._link.client
        if not self._link.up or client is None:
            raise LookupError("NATS is away")
        try:
            message = await client.jetstream().get_last_msg(self._stream, self._subject(key), direct=True)
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.NoRespondersError, nats.js.errors.NoStreamResponseError) as error:
            # Somebody took the bucket away.
            with suppress(*_ERRORS):
                await self._prepare(client)
            raise LookupError(f"the bucket is gone: {error!r}") from None
        except _ERRORS as error:
            raise LookupError(f"NATS does not answer: {error!r}") from None
        if not message.data:
            return None
        stored = message.time
        return message.data, max(0.0, time.time() - stored.timestamp()) if stored is not None else 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._link.keep(self._prepare))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _prepare(self, client: Client) -> None:
        async with asyncio.timeout(_ANSWER):
            await _ensure(client.jetstream(), self._bucket, self._lasting, self._room)
            if self.replaced is not None and self._heard is not client:
                # Once for each client: it asks again by itself when it comes back.
                await client.subscribe(self._news, cb=self._hear)
                self._heard = client

    async def _hear(self, message: Any) -> None:
        if self.replaced is not None and not message.data.startswith(self._name):
            self.replaced(message.data[len(self._name) :].decode(errors="replace"))

    @property
    def _news(self) -> str:
        return f"maestro.replaced.{self._bucket}"

    @property
    def _stream(self) -> str:
        return f"KV_{self._bucket}"

    def _subject(self, key: str) -> str:
        return f"$KV.{self._bucket}.{key}"


async def _ensure(js: Any, bucket: str, lasting: float, room: int) -> None:
    """Makes the bucket, or brings it up to date. Not by the client's own function: a full one of those refuses."""
    try:
        found = (await js.stream_info(f"KV_{bucket}")).config
    except nats.js.errors.NotFoundError:
        wanted = api.StreamConfig(
            name=f"KV_{bucket}",
            subjects=[f"$KV.{bucket}.>"],
            storage=api.StorageType.FILE,
            discard=api.DiscardPolicy.OLD,
            max_msgs_per_subject=1,
            max_age=lasting,
            max_bytes=room,
            allow_direct=True,
            allow_rollup_hdrs=True,
            deny_delete=True,
        )
        await js.add_stream(wanted)
        return
    if found.max_age != lasting:
        found.max_age = lasting
        await js.update_stream(found)
