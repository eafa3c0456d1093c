"""Events that the death of their publisher does not take, whenever it comes and whatever NATS does meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro.event.v1 import event_pb2
from maestro.event.v1.event_pb2 import Event
from maestro_sdk.service.bus import STREAM
from maestro_sdk.service.event_journal import EventJournal
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.events import new_event
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.servers import free_port

KILLS = int(os.environ.get("EVENT_KILLS", "3"))
SEED = int(os.environ.get("EVENT_SEED", "5"))
COMPLETED = "request.completed"
_nats: Any = nats


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[NatsServer]:
    running = NatsServer(tmp_path / "nats")
    await running.start()
    yield running
    await running.kill()


def completed(number: int) -> Event:
    payload = event_pb2.RequestCompleted(request_id=f"req_{number}")
    return new_event(payload, f"request/req_{number}", tenant="acme")


def started(number: int) -> Event:
    return new_event(event_pb2.RequestStarted(request_id=f"req_{number}"), f"request/req_{number}", tenant="acme")


async def stored(url: str) -> Counter[str]:
    """How often the stream holds each event of the tenant, by identifier."""
    client = await _nats.connect(url)
    try:
        js = client.jetstream()
        subject = f"maestro.events.acme.{COMPLETED}"
        info = await js.stream_info(STREAM, subjects_filter=subject)
        count = (info.state.subjects or {}).get(subject, 0)
        subscription = await js.subscribe(subject, stream=STREAM, ordered_consumer=True)
        return Counter([Event.FromString((await subscription.next_msg(5)).data).id for _ in range(count)])
    finally:
        await client.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_was_told_is_in_the_stream_whenever_its_publisher_is_killed(
    server: NatsServer, tmp_path: Path
) -> None:
    """The publisher says what it published; it is killed at random, also while NATS stands still or is away."""
    dice, told = random.Random(SEED), list[str]()
    # All of them are started at once, and each begins when it is told to: most of a start is that of Python.
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, str(Path(__file__).with_name("dying_publisher.py"))),
            *(server.url, str(tmp_path / "a.events"), str(int(turn < KILLS))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for turn in range(KILLS + 1)
    ]

    for turn in range(KILLS):
        child = children[turn]
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"\n")
        told.append((await child.stdout.readline()).decode().strip())
        match turn % 4:
            case 1:
                server.freeze()
            case 2:
                await server.kill()
            case _:
                pass
        reading = asyncio.create_task(child.stdout.read())
        await asyncio.sleep(dice.uniform(0.0, 0.3))
        child.kill()
        told += (await reading).decode().split()
        await child.wait()
        match turn % 4:
            case 1:
                server.thaw()
            case 2:
                await server.start()
            case _:
                pass
    said, _ = await children[KILLS].communicate(b"\n")
    assert b"dropped=0, queued=0, waiting=0, exposed=0" in said
    assert children[KILLS].returncode == 0
    found = await stored(server.url)
    assert not set(told) - set(found), f"{len(set(told) - set(found))} of {len(told)} are missing"
    assert set(found.values()) == {1}
    # One that was killed between its write and its word may be there too.
    assert len(found) - len(set(told)) <= KILLS
    assert not (tmp_path / "a.events").exists()
    assert not (tmp_path / "a-durable.events").exists()


async def test_only_what_is_durable_is_written_down_and_only_until_it_is_safe(
    server: NatsServer, tmp_path: Path
) -> None:
    path = tmp_path / "a-durable.events"
    async with EventPublisher(server.url, tmp_path / "a.events", durable=(COMPLETED,)) as publisher:
        empty = path.stat().st_size
        publisher.publish(started(1))
        assert path.stat().st_size == empty
        for number in range(100):
            publisher.publish(completed(number))
        assert path.stat().st_size > empty + 100 * len(completed(1).SerializeToString())
        assert await publisher.flush(20)
        await until(lambda: path.stat().st_size == empty)
    assert not path.exists()
    assert len(await stored(server.url)) == 100


async def test_nothing_is_dropped_while_nats_stands_still(server: NatsServer, tmp_path: Path) -> None:
    """The connection stays, and nothing is acknowledged: what the queue can't hold goes to the disk."""
    events = [completed(number) for number in range(1500)]
    async with EventPublisher(server.url, tmp_path / "a.events", queue=100) as publisher:
        await until(lambda: publisher.ready)
        server.freeze()
        for event in events[:50]:
            publisher.publish(event)
        await until(lambda: not publisher.counters.queued)
        for event in events[50:]:
            publisher.publish(event)
        assert publisher.counters.dropped == 0
        assert publisher.counters.waiting > 1300
        server.thaw()
        assert await publisher.flush(20)
        assert publisher.counters.dropped == 0
    found = await stored(server.url)
    assert list(found) == [event.id for event in events], "in their order"
    assert set(found.values()) == {1}


async def test_who_waits_for_delivery_does_not_wait_for_what_comes_later(server: NatsServer, tmp_path: Path) -> None:
    """Under steady load there is always something on its way."""
    async with EventPublisher(server.url, tmp_path / "a.events") as publisher:
        await until(lambda: publisher.ready)

        async def load() -> None:
            while True:
                publisher.publish(started(0))
                await asyncio.sleep(0)

        loading = asyncio.create_task(load())
        publisher.publish(event := completed(1))
        assert await publisher.flush(2)
        assert event.id in await stored(server.url)
        loading.cancel()
        await asyncio.wait((loading,))


@contextmanager
def full_disk(size: int) -> Generator[None]:
    """No file of this process grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_counted_and_nobody_else_hears_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    async with EventPublisher(url, tmp_path / "a.events", durable=(COMPLETED,)) as publisher:
        with full_disk(1000):
            for number in range(100):
                publisher.publish(completed(number))
            counters = publisher.counters
            assert (counters.queued, counters.dropped) == (100, 0)
            assert 80 < counters.exposed < 100
            await until(lambda: "events can't be kept" in caplog.text)
            # They stay in memory as long as there is room.
            assert publisher.counters.dropped == 0
        await until(lambda: publisher.counters.waiting == 100)
    assert caplog.text.count("a death of this process takes events") == 1


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.one_of(st.binary(max_size=60), st.integers(0, 5), st.none()), max_size=60),
    torn=st.integers(0, 12),
)
def test_the_next_life_finds_what_was_not_released(
    tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | int | None], torn: int
) -> None:
    """Records are put, some are released, the process dies (None) and leaves a torn end."""
    path = tmp_path_factory.mktemp("journal") / "a.events"
    journal, number, held = EventJournal(path, 100_000), 0, list[tuple[int, bytes]]()
    assert journal.open() == []
    for step in steps:
        match step:
            case bytes():
                number += 1
                journal.put(number, step)
                held.append((number, step))
            case int():
                safe = held[min(step, len(held)) - 1][0] if held and step else 0
                journal.release(safe)
                held = [each for each in held if each[0] > safe]
            case None:
                left = path.read_bytes()
                journal.close()
                path.write_bytes(left + b"\x07\0\0\0\xff\xff\xff\xffabcdef"[:torn])
                journal = EventJournal(path, 100_000)
                assert journal.open() == [record for _, record in held]
                held = list(enumerate((record for _, record in held), 1))
                number = len(held)
    assert journal.missed == 0
    journal.close()
    assert path.exists() == bool(held)


def left_in(path: Path) -> list[bytes]:
    """What a life left to the next one."""
    journal = EventJournal(path)
    left = journal.open()
    journal.close()
    return left


def test_the_file_stays_small_though_it_is_never_empty(tmp_path: Path) -> None:
    journal = EventJournal(tmp_path / "a.events", limit=8 * 2**20)
    journal.open()
    record = b"x" * 1000
    for number in range(20_000):
        journal.put(number, record)
        journal.release(number - 300)
        assert number % 100 or (tmp_path / "a.events").stat().st_size < 3 * 2**20
    assert journal.missed == 0
    journal.close()
    assert left_in(tmp_path / "a.events") == [record] * 300


def test_a_journal_that_is_full_counts_what_it_lacks(tmp_path: Path) -> None:
    journal = EventJournal(tmp_path / "a.events", limit=1000)
    journal.open()
    for number in range(1, 21):
        journal.put(number, b"x" * 100)
    assert journal.missed == 11
    journal.release(20)
    journal.put(21, b"more")
    assert journal.missed == 11
    journal.close()
    assert left_in(tmp_path / "a.events") == [b"more"]
