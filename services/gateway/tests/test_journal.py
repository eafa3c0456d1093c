"""The journal of resumable streams on a real NATS: records in order, one writer, and what happens without NATS."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from maestro.gateway.v1.journal_pb2 import StreamBegun, StreamEnd, StreamRecord
from maestro.llm.v1.chat_pb2 import ChatEvent, TextDelta
from maestro_gateway.resume.journal import Entry, Journal, JournalAway, subject_of
from maestro_gateway.resume.known import Known
from maestro_gateway.resume.reading import read_all
from maestro_gateway.resume.superseded import Superseded
from maestro_sdk.errors import NotFound
from maestro_sdk.testing.nats import NatsServer

SUBJECT = subject_of("acme", "req-1")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A real NATS server."""
    running = NatsServer(tmp_path)
    await running.start()
    yield running
    await running.kill()


async def answer(question: bytes) -> bytes:
    return b"heard " + question


def journal(server: NatsServer, owner: str = "one") -> Journal:
    return Journal(server.url, owner, 60.0, 2**20, answer)


def text(before: int, *pieces: str, owner: str = "one") -> StreamRecord:
    events = [ChatEvent(text=TextDelta(text=piece)) for piece in pieces]
    return StreamRecord(owner=owner, before=before, events=events)


async def test_records_come_in_order_and_as_soon_as_they_are_there(server: NatsServer):
    async with journal(server) as one, journal(server, "two") as two:
        assert (await one.settle(), await two.settle()) == (True, True)
        last = await one.append(SUBJECT, StreamRecord(owner="one", begun=StreamBegun(request_id="req-1")), 0)
        for number in range(100):
            last = await one.append(SUBJECT, text(number, f"{number}"), last)
        known = await read_all(two, SUBJECT)
        assert (known.count, known.sequence, known.owner) == (100, last, "one")
        async with two.read(SUBJECT) as fetch:
            heard = 0
            while heard < 101:
                heard += len(await fetch(2.0))
            assert await fetch(0.05) == []
            waiting = asyncio.ensure_future(fetch(5.0))
            last = await one.append(SUBJECT, text(100, "late"), last)
            async with asyncio.timeout(1):
                assert [entry.sequence for entry in await waiting] == [last]


async def test_who_was_overtaken_writes_nothing_any_more(server: NatsServer):
    async with journal(server) as one, journal(server, "two") as two:
        assert (await one.settle(), await two.settle()) == (True, True)
        last = await one.append(SUBJECT, StreamRecord(owner="one", begun=StreamBegun(request_id="req-1")), 0)
        taken = await two.append(SUBJECT, StreamRecord(owner="two"), last)
        with pytest.raises(Superseded):
            await one.append(SUBJECT, text(0, "too late"), last)
        with pytest.raises(Superseded):
            await one.append(SUBJECT, StreamRecord(owner="three"), last)
        assert (await read_all(one, SUBJECT)).sequence == taken
        newest = await one.newest(SUBJECT)
        assert newest is not None
        assert newest.record.owner == "two"


async def test_streams_of_tenants_and_names_that_no_subject_may_have_never_meet(server: NatsServer):
    names = [("acme", "a.b"), ("acme", "a.*"), ("acme", ">"), ("globex", "a.b")]
    async with journal(server) as one:
        await one.settle()
        for tenant, name in names:
            record = StreamRecord(owner="one", begun=StreamBegun(request_id=f"{tenant} {name}"))
            await one.append(subject_of(tenant, name), record, 0)
        for tenant, name in names:
            known = await read_all(one, subject_of(tenant, name))
            assert known.begun is not None
            assert known.begun.request_id == f"{tenant} {name}"
        assert await one.newest(subject_of("globex", ">")) is None


async def test_a_gateway_that_is_there_answers_and_one_that_is_gone_is_known(server: NatsServer):
    async with journal(server) as one:
        await one.settle()
        async with journal(server, "two") as two:
            await two.settle()
            assert await one.ask("two", b"touch x") == b"heard touch x"
        async with asyncio.timeout(5):
            # A question on its way when it went is lost; the next one is answered by NATS itself.
            while True:
                with suppress(JournalAway):
                    assert await one.ask("two", b"touch x") is None
                    break


async def test_without_nats_it_says_so_in_time(server: NatsServer):
    async with journal(server) as one:
        await one.settle()
        last = await one.append(SUBJECT, StreamRecord(owner="one", begun=StreamBegun(request_id="req-1")), 0)
        await server.kill()
        async with asyncio.timeout(5):
            with pytest.raises(JournalAway):
                await one.append(SUBJECT, text(0, "lost"), last)
            with pytest.raises(JournalAway):
                await one.newest(SUBJECT)
        await server.start()
        async with asyncio.timeout(10):
            while not one.up:
                await asyncio.sleep(0.01)
        # What was said to be lost may have been under way: it stands in its place then, and nowhere else.
        known = await read_all(one, SUBJECT)
        assert known.count in (0, 1)
        assert await one.append(SUBJECT, text(known.count, "kept"), known.sequence) > known.sequence
        assert (await read_all(one, SUBJECT)).count == known.count + 1


async def test_a_beginning_that_is_gone_is_told_and_nothing_is_made_up():
    known = Known()
    with pytest.raises(NotFound, match="no longer kept"):
        known.feed(Entry(7, text(3, "piece")))
    known = Known()
    known.feed(Entry(1, StreamRecord(owner="one", begun=StreamBegun(request_id="req-1"))))
    with pytest.raises(NotFound, match="no longer kept"):
        known.feed(Entry(9, text(3, "piece")))
    known.feed(Entry(2, StreamRecord(owner="one", before=0, end=StreamEnd())))
    assert known.end is not None
