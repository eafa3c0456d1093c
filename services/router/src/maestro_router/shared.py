"""Routers share what they find out by two buckets of NATS: each writes what it finds, and hears what the others write.

The buckets are the memory, too: a router that starts reads what is there. While NATS is away every router goes on with
what it knows itself; when it is back, both sides are merged, and nothing that still matters is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import nats.errors
import nats.js.errors
from nats.js import api

from maestro_router.board import Board
from maestro_router.marks import Kind, Mark, decode, encode
from maestro_sdk.service.bus import Client, Link, heed_cancellation
from maestro_sdk.service.settings import Config

log = logging.getLogger(__name__)

BREAKERS, WISHES = "MAESTRO_BREAKERS", "MAESTRO_WISHES"
"""Buckets: what ends by itself, and what stays until an operator changes it."""
_LEAST_AGE = 86400.0
_ANSWER = 5.0
_RETRY = 0.25
_MOST_MISREAD = 100
_misread: set[str] = set()
"""Subjects whose content was not understood and told of."""


class Shared:
    """Keeps a board in step with those of the other routers while `run` runs."""

    def __init__(self, config: Config, board: Board) -> None:
        self._board = board
        longest = max(config.router.breaker.quota_open_time, config.router.quarantine.time)
        self._ages = {BREAKERS: max(_LEAST_AGE, 2 * longest), WISHES: 0.0}
        self._link = Link(config.nats.url, "router state", self._changed)
        self._heard: Client | None = None
        self._waiting: dict[str, Mark] = {}
        """What has to be written, by key."""
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()

    async def settle(self, timeout: float) -> bool:
        """Waits until the state of the mesh is read; at most `timeout` seconds, and not for a NATS that is away."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._settled.wait()
        return self._link.up

    async def run(self) -> None:
        """Shares until cancelled."""
        self._board.share = self._share
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._link.keep(self._prepare))
                group.create_task(self._write())
        finally:
            self._board.share = None

    def _share(self, marks: Iterable[Mark]) -> None:
        for mark in marks:
            self._waiting[mark.key] = mark
        self._wake.set()

    def _changed(self) -> None:
        # The first word about the connection, good or bad: whoever waits for the state need not wait any longer.
        self._settled.set()
        self._wake.set()

    async def _write(self) -> None:
        while True:
            while self._waiting and self._link.up and self._link.client is not None:
                key, mark = next(iter(self._waiting.items()))
                try:
                    await self._link.client.jetstream().publish(_subject(mark), encode(mark), timeout=_ANSWER)
                except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
                    log.debug("a mark waits for NATS: %s", error)
                    await asyncio.sleep(_RETRY)
                    continue
                # It may have been replaced by a newer one in the meantime.
                if self._waiting.get(key) == mark:
                    del self._waiting[key]
                heed_cancellation()
            self._wake.clear()
            if not (self._waiting and self._link.up):
                await self._wake.wait()

    async def _prepare(self, client: Client) -> None:
        """Makes a new connection ready: the buckets exist, their changes are heard, what is in them is known."""
        async with asyncio.timeout(_ANSWER):
            js = client.jetstream()
            for bucket, age in self._ages.items():
                await _ensure(js, bucket, age)
            if self._heard is not client:
                # What is put into a bucket is an ordinary message: hearing it needs no consumer that could get lost.
                for bucket in self._ages:
                    await client.subscribe(f"$KV.{bucket}.>", cb=self._on_message)
                self._heard = client
            found: dict[str, Mark] = {}
            for bucket in self._ages:
                found |= await _read(js, bucket)
        self._board.adopt(found.values())
        self._share(mark for mark in self._board.marks() if found.get(mark.key) != mark)

    async def _on_message(self, message: Any) -> None:
        mark = _decoded(message.subject, message.data)
        if mark is None:
            return
        self._board.adopt((mark,))
        known = self._board.known(mark)
        if known is None or known == mark:
            # What waits to be written and is there already need not be.
            if self._waiting.get(mark.key) == mark:
                del self._waiting[mark.key]
        else:
            # It was older than what is known here, and has just replaced that in the bucket.
            self._share((known,))


def _subject(mark: Mark) -> str:
    return f"$KV.{WISHES if mark.kind is Kind.WISH else BREAKERS}.{mark.key}"


def _decoded(subject: str, data: bytes) -> Mark | None:
    if not data:
        return None
    try:
        return decode(data)
    except ValueError as error:
        # Once for each: who writes rubbish into a bucket does not fill the logs too.
        if len(_misread) < _MOST_MISREAD and subject not in _misread:
            _misread.add(subject)
            log.warning("%.200s holds nothing that this router understands: %.200s", subject, error)
        return None


async def _ensure(js: Any, bucket: str, age: float) -> None:
    """Makes a bucket, or lets an old one keep its entries for at least `age` seconds; 0 for ever."""
    try:
        found = (await js.stream_info(f"KV_{bucket}")).config
    except nats.js.errors.NotFoundError:
        await js.create_key_value(api.KeyValueConfig(bucket=bucket, history=1, ttl=age or None, replicas=1))
        return
    if age and found.max_age and found.max_age < age:
        found.max_age = age
        await js.update_stream(found)


async def _read(js: Any, bucket: str) -> dict[str, Mark]:
    found: dict[str, Mark] = {}
    watcher = await (await js.key_value(bucket)).watchall(ignore_deletes=True)
    try:
        # The first None tells that everything was read.
        while (entry := await watcher.updates(timeout=_ANSWER)) is not None:
            mark = _decoded(entry.key, entry.value or b"")
            if mark is not None:
                found[mark.key] = mark
    finally:
        await watcher.stop()
    return found
