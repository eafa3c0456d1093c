"""Keys in a real NATS: two gateways in step, changes at the same time, NATS away and back, a start without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from maestro_gateway.identity import Keys
from maestro_gateway.identity.record import KeyRecord, new_key_id
from maestro_gateway.identity.ring import KeyRing
from maestro_gateway.identity.secret import HINT, digest, new_secret
from maestro_sdk.errors import Conflict, NoBackend, NotFound, Unauthenticated
from maestro_sdk.testing.nats import NatsServer


@dataclass
class Gateway:
    """What a gateway knows of keys."""

    keys: Keys
    ring: KeyRing

    def knows(self, secret: str) -> bool:
        try:
            self.keys.principal_of(secret)
        except Unauthenticated:
            return False
        return True


@asynccontextmanager
async def following(url: str, snapshot: Path) -> AsyncGenerator[Gateway]:
    keys = Keys([])
    ring = KeyRing(url, snapshot, keys, note_uses=0.05)
    ring.load()
    running = asyncio.create_task(ring.run())
    await ring.settle(5)
    try:
        yield Gateway(keys, ring)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], bool], limit: float = 10.0) -> float:
    """The seconds until a condition holds."""
    begun = time.monotonic()
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.001)
    return time.monotonic() - begun


def fresh() -> tuple[KeyRecord, str]:
    secret = new_secret()
    return KeyRecord(new_key_id(), "acme", digest(secret).hex(), secret[:HINT], ("chat",), time.time()), secret


async def test_two_gateways_are_in_step(tmp_path: Path) -> None:
    nats = NatsServer(tmp_path / "nats")
    await nats.start()
    try:
        async with (
            following(nats.url, tmp_path / "a" / "keys.json") as a,
            following(nats.url, tmp_path / "b" / "keys.json") as b,
        ):
            record, secret = fresh()
            await a.ring.create(record)
            assert a.knows(secret)
            assert await until(lambda: b.knows(secret)) < 0.25
            with pytest.raises(Conflict):
                await b.ring.create(record)
            # Its use is told to all, and written once.
            await until(lambda: record.key_id in a.ring.used)
            # Changes at the same time from both sides: none is lost.
            await asyncio.gather(
                *(
                    gateway.ring.change(
                        record.key_id, lambda old, name=f"{number}": replace(old, personas=(*old.personas, name))
                    )
                    for number, gateway in enumerate([a, b])
                )
            )
            await until(lambda: sorted(a.ring.records[record.key_id].personas) == ["0", "1"])
            await until(lambda: a.ring.records == b.ring.records)
            await b.ring.change(record.key_id, lambda old: replace(old, revoked=time.time()))
            assert await until(lambda: not a.knows(secret)) < 0.25
            with pytest.raises(NotFound):
                await a.ring.change("key_none", lambda old: old)
    finally:
        await nats.kill()


async def test_nats_goes_and_comes_back(tmp_path: Path) -> None:
    nats, snapshot = NatsServer(tmp_path / "nats"), tmp_path / "a" / "keys.json"
    await nats.start()
    record, secret = fresh()
    async with following(nats.url, snapshot) as a, following(nats.url, tmp_path / "b.json") as b:
        await a.ring.create(record)
        await until(snapshot.exists)
        await until(lambda: record.key_id in snapshot.read_text() and b.knows(secret))
        assert (oct(snapshot.stat().st_mode & 0o777), secret in snapshot.read_text()) == ("0o600", False)
        await nats.kill()
        with pytest.raises(NoBackend, match="keys can't be changed now") as caught:
            await a.ring.change(record.key_id, lambda old: old)
        assert caught.value.retry_after == 1.0
        assert a.knows(secret)
        # One that starts now knows what stands in its file.
        async with following(nats.url, snapshot) as later:
            assert later.knows(secret)
            await nats.start()
            try:
                async with asyncio.timeout(15):
                    while True:
                        try:
                            await b.ring.change(record.key_id, lambda old: replace(old, revoked=time.time()))
                            break
                        except NoBackend:
                            await asyncio.sleep(0.02)
                await until(lambda: not a.knows(secret) and not later.knows(secret))
                await until(lambda: '"revoked":0' not in snapshot.read_text())
            finally:
                await nats.kill()


async def test_a_broken_file_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys.json"
    for text in ("", "[]", '{"version": 9, "keys": []}', '{"version": 1, "keys": [{"key_id": 1}]}'):
        file.write_text(text)
        KeyRing("nats://127.0.0.1:1", file, Keys([])).load()
    assert caplog.text.count("the keys of the last life can't be read") == 4
