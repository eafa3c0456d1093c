"""A lease in NATS, by which usually one gateway does what all of them could.

It only saves work: what is done under it stays right when two of them hold it for a moment. No two clocks are compared:
a lease is over when nobody renewed it for its time, as whoever wants it saw.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import nats.js.errors
import orjson
from nats.js import api

from maestro_sdk.service.bus import Client

_ANSWER = 5.0


class Lease:
    """One key of a bucket. Its holder keeps a note with it, which the next one finds."""

    def __init__(self, client: Client, bucket: str, key: str, name: str, lasting: float) -> None:
        """`lasting` in seconds; `name` is for people who look."""
        self._js = client.jetstream(timeout=_ANSWER)
        self._bucket = bucket
        self._key = key
        self._holder = f"{name}.{secrets.token_hex(4)}"
        self._lasting = lasting
        self._revision: int = 0
        self._changed = 0.0
        """When the entry was another for the last time, as seen here; when it was renewed, for its holder."""
        self._written = ""
        self.note = ""
        """Of the last holder, or ours."""
        self.held = False

    async def hold(self) -> bool:
        """Takes or renews it; whether it is held now. Raises errors of NATS."""
        now = asyncio.get_running_loop().time()
        if self.held:
            if self.note == self._written and now - self._changed < self._lasting / 3:
                return True
            return await self._write(self._holder)
        kv = await self._kv()
        try:
            entry = await kv.get(self._key)
        except nats.js.errors.KeyNotFoundError:
            self._revision: int = 0
            return await self._write(self._holder)
        if entry.revision != self._revision:
            self._revision, self._changed = entry.revision, now
            told = orjson.loads(entry.value or b"{}")
            self.note = str(told.get("note", ""))
            if told.get("holder"):
                return False
        elif now - self._changed < self._lasting:
            return False
        return await self._write(self._holder)

    async def release(self) -> None:
        """Gives it to whoever comes next."""
        if self.held:
            await self._write("")
            self.held = False

    async def _write(self, holder: str) -> bool:
        kv = await self._kv()
        data = orjson.dumps({"holder": holder, "note": self.note})
        try:
            if self._revision:
                self._revision = await kv.update(self._key, data, self._revision)
            else:
                self._revision = await kv.create(self._key, data)
        except nats.js.errors.KeyWrongLastSequenceError:
            self.held, self._changed = False, asyncio.get_running_loop().time()
            return False
        self.held, self._changed, self._written = True, asyncio.get_running_loop().time(), self.note
        return True

    async def _kv(self) -> Any:
        try:
            return await self._js.key_value(self._bucket)
        except nats.js.errors.BucketNotFoundError:
            return await self._js.create_key_value(api.KeyValueConfig(bucket=self._bucket, history=1))
