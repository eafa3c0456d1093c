"""Resumable streams where things go wrong twice, and where callers ask for what is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import nats
import pytest

from maestro.gateway.v1.journal_pb2 import StreamRecord
from maestro_gateway.resume.journal import STREAM, subject_of
from maestro_gateway.resume.orphans import Orphans
from maestro_sdk.errors import InvalidRequest, NotFound
from maestro_sdk.testing.scripted import answer

from .posts import Stage, SteppedProvider, read, staged, text_of, until

PIECES = [f"piece {number} " for number in range(30)]
WHOLE = "".join(PIECES)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path, SteppedProvider(answer(*PIECES))) as found:
        yield found


async def test_an_end_that_died_with_its_gateway_is_told_though_no_reader_comes(stage: Stage):
    """Its reader has the whole answer, and no reason to come back; what it cost must not be lost."""
    one, two, three = [await stage.gateway() for _ in range(3)]
    stage.provider.permit(1000)
    assert text_of(await read(await one.begin())) == WHOLE
    await Orphans(three.streams).look()
    assert three.events == [], "whoever lives tells it"
    await one.die()
    looks = Orphans(two.streams)
    for _ in range(2):
        await looks.look()
    assert [event.id for event in two.events] == [one.events[-1].id], "the same event, and once"
    assert not two.streams.running


async def test_a_gateway_that_is_silent_does_not_keep_others_from_those_that_died(stage: Stage):
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(6)
    await read(await one.begin(), 6)
    await one.die()
    journal = two.streams.journal
    silent = await cast("Any", nats).connect(stage.nats.url)
    await silent.subscribe("maestro.streams.silent")
    await silent.flush()
    for number in range(5):
        await journal.append(subject_of("acme", f"other-{number}"), StreamRecord(owner="silent"), 0)
    looks = Orphans(two.streams)
    for _ in range(2):
        await looks.look()
    assert list(two.streams.running) == [subject_of("acme", "req-1")]
    await silent.close()


async def test_a_number_behind_the_end_is_refused_by_every_gateway(stage: Stage):
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(5)
    await read(await one.begin(), 5)
    beyond = [asyncio.create_task(read(post.resume(2**31 - 1))) for post in (one, two)]
    stage.provider.permit(1000)
    for refused in beyond:
        with pytest.raises(InvalidRequest):
            await refused
    await until(lambda: one.ends() == ["request.completed"])


async def test_a_stream_whose_gateway_died_before_its_first_word_is_asked_for_once(stage: Stage):
    """Nobody heard anything of it, and yet its answer stands at the adapter."""
    one, two = await stage.gateway(), await stage.gateway()
    await one.begin()
    await until(lambda: len(stage.provider.requests) == 1)
    await one.die()
    reading = asyncio.create_task(read(two.resume()))
    await until(lambda: bool(two.streams.running))
    stage.provider.permit(1000)
    assert text_of(await reading) == WHOLE
    assert len(stage.provider.requests) == 1


async def test_tool_calls_are_taken_over_whole(stage: Stage):
    """Arguments that were cut by the death of a gateway are not said twice, and none is missing."""
    calls = [("call-1", "weather", '{"city":"Bern"}'), ("call-2", "weather", '{"city":"Genf"}')]
    stage.provider.events = answer("I look. ", calls=calls)
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(3)
    heard = await read(await one.begin(), 3)
    assert heard[-1].tool_call.call_id == "call-1"
    await one.die()
    stage.provider.permit(1000)
    whole = [*heard, *await read(two.resume(len(heard)))]
    told = [event.tool_call for event in whole if event.HasField("tool_call")]
    assert [(call.call_id, call.name, call.arguments_json) for call in told] == calls
    assert len(stage.provider.requests) == 1


async def test_a_journal_without_room_loses_the_oldest_and_says_so(stage: Stage):
    """Its readers get all that is in memory; who comes later learns that the beginning is gone, and gets no half."""
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(1000)
    assert text_of(await read(await one.begin())) == WHOLE
    client = await cast("Any", nats).connect(stage.nats.url)
    found = await client.jetstream().stream_info(STREAM)
    found.config.max_msgs_per_subject = 2
    found.config.max_bytes = 64 * 1024
    await client.jetstream().update_stream(found.config)
    await client.close()
    with pytest.raises(NotFound) as gone:
        await read(two.resume())
    assert "no longer kept" in gone.value.message
    stage.provider.permit(1000)
    assert text_of(await read(await one.begin(stream="req-2"))) == WHOLE, "new streams go on as ever"


async def test_a_gateway_that_has_just_started_asks_nobody_a_second_time(stage: Stage):
    """Its caller was cut off when another gateway died, and sends the request again, before NATS is connected here."""
    stage.provider.permit(4)
    one = await stage.gateway()
    heard = await read(await one.begin(), 4)
    two = await stage.gateway(settled=False)
    stage.provider.permit(1000)
    whole = await read(await two.begin())
    assert whole[: len(heard)] == heard
    assert whole[0].started.stream
    assert len(stage.provider.requests) == 1
    assert one.ends() == ["request.completed"]
    assert two.ends() == []


async def test_a_gateway_that_never_reaches_nats_answers_all_the_same(stage: Stage):
    await stage.nats.kill()
    two = await stage.gateway(settled=False)
    stage.provider.permit(1000)
    whole = await read(await two.begin())
    assert not whole[0].started.stream
    assert [event.warning.code for event in whole if event.HasField("warning")] == ["resumable_unavailable"]
    assert two.ends() == ["request.completed"]
