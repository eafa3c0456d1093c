"""The audit while somebody takes its streams away, or leaves them no room."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from maestro_gateway.audit.chain import STREAM
from maestro_gateway.audit.sealer import BUCKET
from maestro_sdk.audit import prove

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
