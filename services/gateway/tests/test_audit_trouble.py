"""The audit while somebody takes its streams away, or leaves them no room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from maestro.usage.v1.usage_pb2 import AuditRecord
from maestro_gateway.audit.chain import STREAM, subject_of
from maestro_gateway.audit.sealer import BUCKET
from maestro_gateway.audit.wire import Wire
from maestro_sdk.audit import prove
from maestro_sdk.errors import NoBackend

from .sealing import a_book, a_sealer, completed, counts


@pytest.mark.parametrize("learned", [0, 5000])
async def test_a_stream_that_is_deleted_is_made_anew(
    tmp_path: Path, learned: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_book(tmp_path) as book, a_sealer(book, learned=learned) as one, a_sealer(book, learned=learned) as two:
        await book.write(*(completed(n) for n in range(5)))
        await book.sealed(5)
        await book.js.delete_stream(STREAM)
        await book.write(*(completed(n) for n in range(5, 8)))
        records = await book.sealed(3)
        await book.js.delete_stream(f"KV_{BUCKET}")
        await book.write(*(completed(n) for n in range(8, 10)))
        records = await book.sealed(5)
        assert sum(await counts(one, two, wanted=10)) == 10
    # What was taken away stays away; what is sealed from then on is a chain of its own.
    assert [record.request_id for record in records] == [f"req-{n}" for n in range(5, 10)]
    assert prove(records).broken is None
    assert not [told for told in caplog.records if told.exc_info]
    assert [told.message for told in caplog.records if told.levelno >= logging.ERROR and "audit" in told.message]


async def test_a_stream_of_an_earlier_version_takes_records_together(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book:
        async with a_sealer(book):
            await book.write(*(completed(n) for n in range(3)))
            await book.sealed(3)
        config = (await book.js.stream_info(STREAM)).config
        config.allow_atomic = None
        await book.js.update_stream(config)
        assert not (await book.js.stream_info(STREAM)).config.allow_atomic
        async with a_sealer(book):
            await book.write(*(completed(n) for n in range(3, 600)))
            records = await book.sealed(600)
    assert [record.request_id for record in records] == [f"req-{n}" for n in range(600)]
    assert prove(records).broken is None


async def test_records_whose_sealer_died_before_the_last_of_them_are_sealed_by_the_next_one(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, a_sealer(book) as sealer:
        await book.write(*(completed(n) for n in range(3)))
        records = await book.sealed(3)
        # As much as a sealer stores at the same time.
        for number in range(16):
            for place in range(1, 4):
                record = AuditRecord(record_id=f"half-{number}-{place}", tenant="acme", sequence=3 + place)
                headers = {"Nats-Batch-Id": f"dead-{number}", "Nats-Batch-Sequence": str(place)}
                if place == 1:
                    headers["Nats-Expected-Last-Subject-Sequence"] = "3"
                await book.client.publish(subject_of("acme"), record.SerializeToString(), headers=headers)
        await book.client.flush()
        await book.write(*(completed(n) for n in range(3, 300)))
        records = await book.sealed(300)
        assert await counts(sealer, wanted=300) == [300]
    assert [record.request_id for record in records] == [f"req-{n}" for n in range(300)]
    assert prove(records).broken is None


async def test_a_sealer_whose_records_are_refused_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with a_book(tmp_path) as book, a_sealer(book) as sealer:
        await book.write(completed(0), completed(0, "globex"))
        await book.sealed(1)
        await book.sealed(1, "globex")
        config = (await book.js.stream_info(STREAM)).config
        await book.js.update_stream(replace(config, max_msgs=2))
        await book.write(*(completed(n, tenant) for n in range(1, 40) for tenant in ("acme", "globex")))
        async with asyncio.timeout(10):
            while not any("can't be sealed now" in told.message for told in caplog.records):
                await asyncio.sleep(0.02)
        await book.js.update_stream(config)
        chains = [await book.sealed(40, tenant) for tenant in ("acme", "globex")]
        assert await counts(sealer, wanted=80) == [80]
    for records in chains:
        assert [record.request_id for record in records] == [f"req-{n}" for n in range(40)]
        assert prove(records).broken is None


async def test_a_server_that_is_too_old_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async with an_old_server() as url:
        wire = Wire(url)
        keeping = asyncio.create_task(wire.keep())
        try:
            with pytest.raises(NoBackend, match=r"the audit needs NATS 2\.12 or newer, and this is 2\.11\.4"):
                async with asyncio.timeout(10):
                    while True:
                        try:
                            await wire.client()
                        except NoBackend as error:
                            if "reached yet" not in error.message:
                                raise
        finally:
            keeping.cancel()
            await asyncio.wait((keeping,))
    told = [each.message for each in caplog.records if "NATS 2.12 or newer" in each.message]
    assert len(told) == 1, "once, however often it is tried"


@asynccontextmanager
async def an_old_server() -> AsyncGenerator[str]:
    """What a server of another version says of itself; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.11.4","max_payload":1048576,"headers":true}\r\n')
        with suppress(OSError):
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
