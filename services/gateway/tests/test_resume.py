"""Resumable streams of several gateways over a real NATS: who owns them, who reads them, and that each is told once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_gateway.resume.orphans import Orphans
from maestro_sdk.errors import Cancelled, Conflict, MaestroError, NotFound, Overloaded, StreamBroken
from maestro_sdk.testing.scripted import Fault, answer

from .posts import Stage, SteppedProvider, read, staged, text_of, until

PIECES = [f"piece {number} " for number in range(30)]
WHOLE = "".join(PIECES)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path, SteppedProvider(answer(*PIECES))) as found:
        yield found


async def test_a_reader_comes_back_at_any_gateway(stage: Stage):
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(6)
    heard = await read(await one.begin(), 6)
    stage.provider.permit(1000)
    rest = await read(two.resume(len(heard)))
    assert text_of([*heard, *rest]) == WHOLE
    assert [event.WhichOneof("kind") for event in (heard[0], rest[-1])] == ["started", "finish"]
    assert heard[0].started.stream == "req-1"
    assert text_of(await read(one.resume())) == text_of(await read(two.resume())) == WHOLE
    assert len(stage.provider.requests) == 1
    assert (one.ends(), two.ends()) == (["request.completed"], [])


async def test_another_gateway_goes_on_where_one_died(stage: Stage):
    one, two, three = [await stage.gateway() for _ in range(3)]
    stage.provider.permit(10)
    heard = await read(await one.begin(), 10)
    await one.die()
    stage.provider.permit(1000)
    # Two readers at once, at different gateways: one of them takes it over.
    rest, whole = await asyncio.gather(read(two.resume(len(heard))), read(three.resume()))
    assert text_of([*heard, *rest]) == text_of(whole) == WHOLE
    assert len(stage.provider.requests) == 1
    await until(lambda: len(two.ends() + three.ends()) == 1)
    assert (one.ends(), two.ends() + three.ends()) == ([], ["request.completed"])


async def test_an_owner_that_slept_comes_back_and_says_nothing(stage: Stage):
    """Its journal moved on without it: it writes, shows and accounts for nothing any more."""
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(6)
    heard = await read(await one.begin(), 6)
    known = two.resume(len(heard))
    # The others take it for gone, while it is only slow.
    sleeper = one.streams.running.copy()
    one.streams.running.clear()
    stage.provider.permit(1)
    reading = asyncio.create_task(read(known))
    await until(lambda: bool(two.streams.running))
    one.streams.running.update(sleeper)
    stage.provider.permit(1000)
    assert text_of([*heard, *await reading]) == WHOLE
    await until(lambda: all(generation.tail.over for generation in sleeper.values()))
    assert all(generation.tail.moved for generation in sleeper.values())
    assert (one.ends(), two.ends()) == ([], ["request.completed"])
    assert len(stage.provider.requests) == 1


async def test_nobody_reads_so_it_is_cancelled_down_to_the_provider(stage: Stage):
    one, two = await stage.gateway(window=1.0), await stage.gateway()
    stage.provider.permit(4)
    heard = await read(await one.begin(), 4)
    async with asyncio.timeout(5):
        await stage.provider.abandoned.wait()
    await until(lambda: one.ends() == ["request.failed"])
    with pytest.raises(Cancelled):
        await read(two.resume(len(heard)))
    assert len(stage.standing) == 0


async def test_a_reader_elsewhere_counts_as_a_reader(stage: Stage):
    one, two = await stage.gateway(window=1.0), await stage.gateway(window=1.0)
    stage.provider.permit(4)
    heard = await read(await one.begin(), 4)
    reading = asyncio.create_task(read(two.resume(len(heard))))
    await asyncio.sleep(2.0)
    assert not stage.provider.abandoned.is_set()
    stage.provider.permit(1000)
    assert text_of([*heard, *await reading]) == WHOLE


@pytest.mark.parametrize("where", ["owner", "elsewhere", "after its death"])
async def test_a_cancelled_stream_ends_at_once(stage: Stage, where: str):
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(4)
    heard = await read(await one.begin(), 4)
    if where == "after its death":
        await one.die()
    async with asyncio.timeout(5):
        await (one if where == "owner" else two).streams.cancel("acme", "req-1")
        await stage.provider.abandoned.wait()
    with pytest.raises(Cancelled):
        await read(two.resume(len(heard)))
    await until(lambda: len(one.ends() + two.ends()) == 1)
    assert one.ends() + two.ends() == ["request.failed"]
    await two.streams.cancel("acme", "req-1")


async def test_nobody_comes_back_after_a_death_and_it_is_accounted_all_the_same(stage: Stage):
    one, two = await stage.gateway(), await stage.gateway(window=1.0)
    looks = Orphans(two.streams)
    stage.provider.permit(6)
    await read(await one.begin(), 6)
    await looks.look()
    await looks.look()
    assert not two.streams.running
    await one.die()
    await looks.look()
    assert not two.streams.running
    await looks.look()
    assert len(two.streams.running) == 1
    stage.provider.permit(1000)
    await until(lambda: two.ends() == ["request.completed"])
    await looks.look()
    assert (one.ends(), two.ends(), len(stage.provider.requests)) == ([], ["request.completed"], 1)
    assert two.events[-1].request_completed.usage.output_tokens == len(PIECES)


async def test_the_adapter_died_too_so_it_ends_with_an_error(stage: Stage):
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(4)
    heard = await read(await one.begin(), 4)
    await one.die()
    await stage.standing.drain(0.0)
    stage.provider.permit(1000)
    for _ in range(2):
        with pytest.raises(StreamBroken) as broken:
            await read(two.resume(len(heard)))
        assert broken.value.metadata["stream"] == "over"
    assert two.ends() == ["request.failed"]
    assert len(stage.provider.requests) == 1


async def test_the_same_request_again_takes_up_its_stream_and_another_one_is_refused(stage: Stage):
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(1000)
    assert text_of(await read(await one.begin())) == WHOLE
    assert text_of(await read(await two.begin())) == WHOLE
    assert text_of(await read(await one.begin())) == WHOLE
    for post in (one, two):
        with pytest.raises(Conflict):
            await post.begin("something else")
    assert len(stage.provider.requests) == 1


async def test_a_stream_of_another_tenant_is_not_there(stage: Stage):
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(4)
    await read(await one.begin(), 4)
    for post in (one, two):
        with pytest.raises(NotFound):
            await read(post.resume(tenant="globex"))
        with pytest.raises(NotFound):
            await post.streams.cancel("globex", "req-1")
    assert not stage.provider.abandoned.is_set()


async def test_an_error_is_told_as_often_as_it_is_asked_for(stage: Stage):
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.fault = Fault.ERROR_BEFORE_CONTENT
    stage.provider.permit(10_000)
    errors: list[MaestroError] = []
    for reading in (await one.begin(), one.resume(), two.resume()):
        with pytest.raises(Overloaded) as failed:
            await read(reading)
        errors.append(failed.value)
    assert [error.metadata["stream"] for error in errors] == ["over"] * 3
    assert (one.ends(), two.ends()) == (["request.failed"], [])


async def test_without_nats_a_stream_ends_with_its_connection_and_says_so(stage: Stage):
    one = await stage.gateway()
    await stage.nats.kill()
    await until(lambda: not one.streams.journal.up)
    stage.provider.permit(1000)
    events = await read(await one.begin())
    assert text_of(events) == WHOLE
    assert [event.warning.code for event in events if event.HasField("warning")] == ["resumable_unavailable"]
    assert events[0].started.stream == ""
    assert one.ends() == ["request.completed"]


async def test_nats_goes_while_a_stream_runs_and_its_reader_gets_all_of_it(stage: Stage):
    one = await stage.gateway()
    stage.provider.permit(6)
    reading = await one.begin()
    heard: list[ChatEvent] = []
    async with asyncio.timeout(15), aclosing(reading.pieces()) as pieces:
        async for piece in pieces:
            heard += piece.events
            if len(heard) == 6:
                await stage.nats.kill()
                stage.provider.permit(1000)
    assert text_of(heard) == WHOLE
    assert [event.warning.code for event in heard if event.HasField("warning")] == ["resumable_unavailable"]
    assert one.ends() == ["request.completed"]


async def test_a_gateway_that_drains_lets_another_one_go_on(stage: Stage):
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(6)
    heard = await read(await one.begin(), 6)
    await one.streams.drain(0.05)
    assert not one.streams.running
    stage.provider.permit(1000)
    assert text_of([*heard, *await read(two.resume(len(heard)))]) == WHOLE
    assert (one.ends(), two.ends()) == ([], ["request.completed"])
    assert len(stage.provider.requests) == 1


async def test_a_slow_reader_holds_nothing_up_and_misses_nothing(tmp_path: Path):
    pieces = [f"{number:06d}" + "x" * 2000 for number in range(600)]
    async with staged(tmp_path, SteppedProvider(answer(*pieces))) as stage:
        one = await stage.gateway()
        stage.provider.permit(10_000)
        reading = await one.begin()
        heard: list[ChatEvent] = []
        async with asyncio.timeout(20), aclosing(reading.pieces()) as found:
            async for piece in found:
                heard += piece.events
                if len(heard) < 20:
                    # By then everything was written, and what memory holds of it is bounded.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(2):
                            while one.ends() == []:
                                await asyncio.sleep(0.01)
        assert text_of(heard) == "".join(pieces)
