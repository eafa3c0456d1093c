"""Where files lie in NATS: a stream of their pieces, and a bucket of entries that tell about them.

A piece has a subject of its own, `maestro.files.TENANT.PLACE.NUMBER`, so it is read by one request, in any order and no
faster than its reader wants it, and written anew without harm. The client's own object store does neither: it reads
through a subscription that runs ahead of its reader, and its uploads come from blocking files.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
import orjson
from nats.js import api

from maestro_gateway.files.quota import Quota
from maestro_sdk.errors import Conflict, NoBackend, Overloaded
from maestro_sdk.service.bus import Client, Link, heed_cancellation

log = logging.getLogger(__name__)

STREAM = "MAESTRO_FILES"
BUCKET = "MAESTRO_FILE_FACTS"
_FACTS = f"KV_{BUCKET}"
_PIECES = "maestro.files"
_PIECE = 512 * 2**10
_HEADROOM = 4096
"""Bytes of a message beside its piece."""
_ANSWER = 2.0
_PATIENCE = 10.0
"""Seconds for which what NATS does not answer is asked again: as long as it takes to start it anew."""
_RETRY = 0.1
_CHANGES = 200
_NO_STREAM = 10059
_WRONG_SEQUENCE = 10071
_FULL = frozenset((10023, 10047, 10077))
"""JetStream's codes for "no room is left"."""
_AWAY = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)

Answer = TypeVar("Answer")


class Depot:
    """Is connected while its block runs. While NATS is away everything waits a while, then raises `NoBackend`."""

    def __init__(self, url: str, *, patience: float = _PATIENCE) -> None:
        self._link = Link(url, "files", lambda: None)
        self._patience = patience

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None]:
        """Keeps the connection up while the block runs."""
        keeping = asyncio.create_task(self._link.keep(_prepare), name="keep the files' connection")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait((keeping,))

    @property
    def piece(self) -> int:
        """Bytes of one piece of a new file."""
        client = self._link.client
        return min(_PIECE, client.max_payload - _HEADROOM) if client is not None and client.max_payload else _PIECE

    async def put_piece(self, tenant: str, place: str, number: int, data: bytes) -> None:
        """Stores a piece. Raises `Overloaded` when NATS has no room left."""
        subject = f"{_PIECES}.{tenant}.{place}.{number}"
        await self._ask(lambda js: js.publish(subject, data, timeout=_ANSWER))

    async def piece_of(self, tenant: str, place: str, number: int) -> bytes:
        """A piece. Raises `LookupError` when there is none."""
        subject = f"{_PIECES}.{tenant}.{place}.{number}"
        try:
            found = await self._ask(lambda js: js.get_last_msg(STREAM, subject, direct=True))
        except LookupError:
            # The replica that answered may not have it yet; the leader knows.
            found = await self._ask(lambda js: js.get_last_msg(STREAM, subject))
        return bytes(found.data or b"")

    async def clear(self, tenant: str, place: str) -> None:
        """Drops all pieces of a place."""
        await self._ask(lambda js: js.purge_stream(STREAM, subject=f"{_PIECES}.{tenant}.{place}.>"))

    async def entry(self, key: str) -> tuple[bytes, int]:
        """What stands under a key, and its revision; empty with 0 when nothing does."""
        try:
            found = await self._ask(lambda js: js.get_last_msg(_FACTS, f"$KV.{BUCKET}.{key}"))
        except LookupError:
            return b"", 0
        return bytes(found.data or b""), int(found.seq or 0)

    async def put_entry(self, key: str, data: bytes, revision: int) -> bool:
        """Writes an entry if it still has that revision, 0 when there is none; whether it had."""
        headers = {api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        subject = f"$KV.{BUCKET}.{key}"
        try:
            await self._ask(lambda js: js.publish(subject, data, timeout=_ANSWER, headers=headers))
        except _Stale:
            # A first try whose answer was lost may have been the one that changed it.
            return (await self.entry(key))[0] == data
        return True

    async def drop_entry(self, key: str) -> None:
        """Takes an entry away, name and all."""
        await self._ask(lambda js: js.purge_stream(_FACTS, subject=f"$KV.{BUCKET}.{key}"))

    async def names(self, pattern: str) -> list[str]:
        """The keys of all entries that a pattern of NATS matches, such as `file.acme.*`, in no order."""
        return await self._subjects(_FACTS, f"$KV.{BUCKET}.", pattern)

    async def places(self, tenant: str) -> list[str]:
        """All places at which a tenant has pieces."""
        return [name.partition(".")[0] for name in await self._subjects(STREAM, f"{_PIECES}.{tenant}.", "*.0")]

    async def _subjects(self, stream: str, start: str, pattern: str) -> list[str]:
        found: dict[str, Any] = {}
        while True:
            asked = orjson.dumps({"subjects_filter": start + pattern, "offset": len(found)})
            answer = await self._ask(lambda js, data=asked: _request(js, f"$JS.API.STREAM.INFO.{stream}", data))
            page: dict[str, Any] = answer["state"].get("subjects") or {}
            found |= page
            # NATS tells a hundred thousand at a time.
            if not page or len(found) >= answer.get("total", 0):
                return [name[len(start) :] for name in found]

    async def change_quota(self, tenant: str, make: Callable[[Quota], Quota]) -> None:
        """Replaces what a tenant uses by what `make` gives for it. Raises `Conflict` when too many do at a time."""
        for _ in range(_CHANGES):
            heed_cancellation()
            data, revision = await self.entry(f"quota.{tenant}")
            new = make(Quota.decode(data) if data else Quota()).encode()
            if new == data or await self.put_entry(f"quota.{tenant}", new, revision):
                return
        raise Conflict("too many uploads and deletions of this tenant at a time; try again", retryable=True)

    async def _ask(self, ask: Callable[[Any], Awaitable[Answer]]) -> Answer:
        end = time.monotonic() + self._patience
        why: Exception
        while True:
            heed_cancellation()
            client = self._link.client
            try:
                if client is None or not self._link.up:
                    raise nats.errors.ConnectionClosedError
                return await ask(client.jetstream(timeout=_ANSWER))
            except nats.js.errors.NotFoundError as error:
                if error.err_code != _NO_STREAM:
                    raise LookupError from None
                why = await _restore(client, error)
            except (nats.js.errors.NoStreamResponseError, nats.errors.NoRespondersError) as error:
                why = await _restore(client, error)
            except nats.js.errors.APIError as error:
                if error.err_code == _WRONG_SEQUENCE:
                    raise _Stale from None
                if error.err_code in _FULL:
                    log.error("NATS has no room for files: %s", error.description)
                    raise Overloaded("there is no room for files now", retry_after=60.0) from None
                why = error
            except _AWAY as error:
                why = error
            if time.monotonic() > end:
                log.warning("files: NATS does not answer: %r", why)
                raise NoBackend("files can't be reached now: NATS does not answer", retry_after=1.0) from None
            await asyncio.sleep(_RETRY)


async def _request(js: Any, subject: str, data: bytes) -> Any:
    answer = orjson.loads((await js._nc.request(subject, data, timeout=_ANSWER)).data)
    if "error" in answer:
        raise nats.js.errors.APIError.from_error(answer["error"])
    return answer


async def _restore(client: Client | None, error: Exception) -> Exception:
    """Makes the streams where somebody took them away; gives the error that showed it."""
    if client is not None:
        with suppress(*_AWAY):
            await _prepare(client)
    return error


class _Stale(Exception):
    """An entry has another revision than was expected."""


async def _prepare(client: Client) -> None:
    js = client.jetstream(timeout=5.0)
    common: dict[str, Any] = {"storage": api.StorageType.FILE, "discard": api.DiscardPolicy.NEW, "allow_direct": True}
    for name, subjects in ((STREAM, f"{_PIECES}.>"), (_FACTS, f"$KV.{BUCKET}.>")):
        try:
            await js.stream_info(name)
        except nats.js.errors.NotFoundError:
            await js.add_stream(
                api.StreamConfig(
                    name=name, subjects=[subjects], max_msgs_per_subject=1, allow_rollup_hdrs=True, **common
                )
            )
