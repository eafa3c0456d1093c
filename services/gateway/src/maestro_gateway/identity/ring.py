"""The keys that were made, in a bucket of NATS that every gateway follows, and in a file for when NATS is away.

The bucket is the truth: a change is made there, and holds everywhere as soon as the others hear of it, milliseconds
later. The file holds what this gateway heard last (digests, no secrets), so that one that starts without NATS knows its
keys; what was revoked meanwhile is good there until NATS is back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
import orjson
from nats.js import api

from maestro_gateway.identity.keys import Keys
from maestro_gateway.identity.principal import Principal
from maestro_gateway.identity.record import KEPT, KeyRecord
from maestro_sdk.errors import Conflict, NoBackend, NotFound
from maestro_sdk.service.bus import Client, Link, heed_cancellation

log = logging.getLogger(__name__)

BUCKET = "MAESTRO_KEYS"
_USED = "used."
"""Start of the entries that hold when a key was last used; all others are keys."""
_ANSWER = 5.0
_RETRY = 0.25
_LOOK = 0.5
"""Seconds between two looks at whether the connection is still the same."""
_REFRESH = 30.0
"""Seconds after which everything is read again, should a change have been missed."""
_ATTEMPTS = 5
_VERSION = 1
_FAILURES = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)


class KeyRing:
    """Keeps `keys` in step with the bucket while `run` runs. Times are Unix time."""

    def __init__(self, url: str, snapshot: Path, keys: Keys, *, note_uses: float = 60.0) -> None:
        """`note_uses` are the seconds within which the last use of a key is written once at most."""
        self._keys = keys
        self._snapshot = snapshot
        self._pause = note_uses
        self._link = Link(url, "keys", self._on_link)
        self._up = asyncio.Event()
        self._settled = asyncio.Event()
        self._unsaved = asyncio.Event()
        self.records: dict[str, KeyRecord] = {}
        self.used: dict[str, float] = {}
        self._revisions: dict[str, int] = {}
        self._reading: dict[str, tuple[int, KeyRecord]] | None = None
        """What a reading has found so far, while there is one."""

    def load(self) -> None:
        """Takes what the file of an earlier life holds."""
        try:
            found: Any = orjson.loads(self._snapshot.read_bytes())
            if found["version"] != _VERSION:
                raise ValueError(f"version {found['version']}")
            records = [KeyRecord.decode(orjson.dumps(entry)) for entry in found["keys"]]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the keys of the last life can't be read from %s: %s", self._snapshot, error)
            return
        self.records = {record.key_id: record for record in records}
        self._tell()

    async def settle(self, timeout: float) -> None:
        """Waits until the keys are read; at most `timeout` seconds, and not for a NATS that is away."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._settled.wait()

    async def run(self) -> None:
        """Follows the bucket until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.keep(self._prepare))
            group.create_task(self._follow())
            group.create_task(self._save())
            group.create_task(self._note_uses())

    async def create(self, record: KeyRecord) -> None:
        """Keeps a new key. Raises `Conflict` when there is one of its identifier, and `NoBackend` without NATS."""
        kv = await self._bucket()
        try:
            revision = await kv.create(record.key_id, record.encode())
        except nats.js.errors.KeyWrongLastSequenceError:
            raise Conflict(
                f"this request made the key {record.key_id} already; its secret was shown then and can't be shown "
                "again: rotate that key to get a new one"
            ) from None
        except _FAILURES as error:
            raise _away(error) from None
        self._adopt(record, revision)
        await self._forget_old(kv, record.tenant)

    async def change(self, key_id: str, make: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        """Replaces a key by what `make` gives for what it is now; the new one. Raises `NotFound` and `NoBackend`."""
        kv = await self._bucket()
        for _ in range(_ATTEMPTS):
            try:
                entry = await kv.get(key_id)
                old = KeyRecord.decode(entry.value or b"")
                new = make(old)
                revision = entry.revision if new == old else await kv.update(key_id, new.encode(), entry.revision)
            except nats.js.errors.KeyWrongLastSequenceError:
                continue  # somebody else was faster
            except (nats.js.errors.KeyNotFoundError, nats.js.errors.InvalidKeyError, ValueError):
                raise NotFound(f"there is no key {key_id!r}") from None
            except _FAILURES as error:
                raise _away(error) from None
            self._adopt(new, revision)
            return new
        raise Conflict(f"the key {key_id} is being changed by others; try again")

    def of_tenant(self, tenant: str | None) -> list[KeyRecord]:
        """The keys of a tenant, or of all, by identifier."""
        found = [record for record in self.records.values() if tenant is None or record.tenant == tenant]
        return sorted(found, key=lambda record: record.key_id)

    async def _bucket(self) -> Any:
        if not self._link.up or self._link.client is None:
            raise NoBackend(f"keys can't be changed now: {self._link.trouble}", retry_after=1.0)
        try:
            return await self._link.client.jetstream(timeout=_ANSWER).key_value(BUCKET)
        except _FAILURES as error:
            raise _away(error) from None

    def _on_link(self) -> None:
        if self._link.up:
            self._up.set()
        else:
            self._up.clear()
            # Whoever waits for the keys need not wait for a NATS that is away.
            self._settled.set()

    async def _prepare(self, client: Client) -> None:
        js = client.jetstream(timeout=_ANSWER)
        try:
            await js.stream_info(f"KV_{BUCKET}")
        except nats.js.errors.NotFoundError:
            await js.create_key_value(api.KeyValueConfig(bucket=BUCKET, history=1))

    async def _follow(self) -> None:
        while True:
            heed_cancellation()
            await self._up.wait()
            try:
                await self._watch()
            except _FAILURES as error:
                log.debug("the keys can't be followed: %s", error)
                await asyncio.sleep(_RETRY)

    async def _watch(self) -> None:
        """Reads everything, then follows the changes of this connection for a while."""
        generation, now = self._link.generation, asyncio.get_running_loop().time
        self._reading = {}
        watcher = await (await self._bucket()).watchall()
        try:
            while (entry := await watcher.updates(timeout=_ANSWER)) is not None:
                self._take(entry)
            found, self._reading = self._reading, None
            self.records = {key_id: record for key_id, (_, record) in found.items()}
            self._revisions = {key_id: revision for key_id, (revision, _) in found.items()}
            self._tell()
            self._settled.set()
            end = now() + _REFRESH
            while self._link.up and self._link.generation == generation and now() < end:
                heed_cancellation()
                with suppress(nats.errors.TimeoutError):
                    entry = await watcher.updates(timeout=_LOOK)
                    if entry is not None:
                        self._take(entry)
        finally:
            self._reading = None
            with suppress(*_FAILURES):
                await watcher.stop()

    def _take(self, entry: Any) -> None:
        key_id, gone = str(entry.key), entry.operation is not None
        if key_id.startswith(_USED):
            with suppress(ValueError):
                self.used[key_id.removeprefix(_USED)] = float(entry.value or b"0")
            return
        if gone:
            if self._reading is None and self.records.pop(key_id, None) is not None:
                self._tell()
            return
        try:
            record = KeyRecord.decode(entry.value or b"")
        except ValueError as error:
            log.warning("the entry %s of %s holds no key: %s", key_id, BUCKET, error)
            return
        if self._reading is not None:
            self._reading[key_id] = (entry.revision, record)
        else:
            self._adopt(record, entry.revision)

    def _adopt(self, record: KeyRecord, revision: int) -> None:
        if self._reading is not None and revision > self._reading.get(record.key_id, (0, record))[0]:
            self._reading[record.key_id] = (revision, record)
        if revision > self._revisions.get(record.key_id, 0):
            self._revisions[record.key_id] = revision
            self.records[record.key_id] = record
            self._tell()

    def _tell(self) -> None:
        now, found = time.time(), dict[bytes, Principal]()
        for record in self.records.values():
            found |= record.principals(now)
        self._keys.replace(found)
        self._unsaved.set()

    async def _save(self) -> None:
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            data = orjson.dumps(
                {"version": _VERSION, "keys": [orjson.loads(record.encode()) for record in self.records.values()]}
            )
            try:
                await asyncio.to_thread(_write, self._snapshot, data)
            except OSError as error:
                log.warning("the keys can't be written to %s: %s", self._snapshot, error.strerror)

    async def _note_uses(self) -> None:
        while True:
            heed_cancellation()
            await asyncio.sleep(self._pause)
            if not self._link.up:
                continue
            uses, self._keys.used = self._keys.used, {}
            try:
                kv = await self._bucket()
                for key_id, moment in uses.items():
                    # Of several gateways the latest one counts, or nearly: a minute is all that is promised.
                    if moment > self.used.get(key_id, 0.0):
                        await kv.put(_USED + key_id, b"%d" % moment)
            except (*_FAILURES, NoBackend) as error:
                log.debug("last uses of keys wait for NATS: %s", error)
                self._keys.used = uses | self._keys.used

    async def _forget_old(self, kv: Any, tenant: str) -> None:
        """Takes keys of a tenant away that ended long ago; whoever makes keys pays for it."""
        oldest = time.time() - KEPT
        with suppress(*_FAILURES):
            for record in self.of_tenant(tenant):
                if 0 < record.ended() < oldest:
                    await kv.purge(record.key_id)
                    await kv.purge(_USED + record.key_id)


def _away(error: Exception) -> NoBackend:
    return NoBackend(f"keys can't be changed now: NATS does not answer ({type(error).__name__})", retry_after=1.0)


def _write(path: Path, data: bytes) -> None:
    """Replaces a file that nobody but its owner can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    beside.replace(path)
