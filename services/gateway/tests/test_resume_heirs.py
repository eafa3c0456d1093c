"""A gateway dies, and the answer that it was reading can't be read again: on routes that say so an heir goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from maestro.event.v1.event_pb2 import AttemptFate
from maestro_gateway.resume.journal import subject_of
from maestro_gateway.resume.known import Known
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.adapter.standing import StandingCalls
from maestro_sdk.adapter.standing_servicer import StandingCallServicer
from maestro_sdk.errors import Overloaded, StreamBroken
from maestro_sdk.testing.scripted import Fault, answer
from maestro_sdk.testing.servers import serve

from .posts import Post, Stage, SteppedProvider, read, staged, text_of, until

PIECES = [f"piece {number} " for number in range(30)]
REST = [f"heir {number} " for number in range(5)]
FATE = AttemptFate


@dataclass
class Family:
    stage: Stage
    heir: SteppedProvider


@pytest.fixture
async def family(tmp_path: Path) -> AsyncIterator[Family]:
    heir, standing = (
        SteppedProvider(answer(*REST, model="other/model"), "other/model"),
        StandingCalls(),
    )
    async with (
        serve(ChatServicer(heir, standing=standing), StandingCallServicer(standing)) as address,
        staged(tmp_path, SteppedProvider(answer(*PIECES)), address) as stage,
    ):
        yield Family(stage, heir)
    await standing.close()


async def test_the_adapter_died_too_and_an_heir_goes_on(family: Family):
    stage = family.stage
    one, two = await stage.gateway(resume=True), await stage.gateway(resume=True)
    stage.provider.permit(6)
    heard = await read(await one.begin(), 6)
    await one.die()
    await stage.standing.close()
    # Its adapter is back, but has no better luck.
    stage.provider.trouble = Overloaded("no room")
    stage.provider.permit(1)
    family.heir.permit(1000)
    rest = await read(two.resume(len(heard)))
    assert [event.WhichOneof("kind") for event in rest if not event.HasField("text")] == ["switched", "finish"]
    assert text_of([*heard, *rest]) == text_of(heard) + "".join(REST)
    assert text_of(await read(two.resume())) == text_of([*heard, *rest])
    assert (len(stage.provider.requests), len(family.heir.requests)) == (2, 1)
    assert two.ends() == ["request.completed"]
    end = two.events[-1].request_completed
    assert [each.fate for each in end.attempt_usages] == [
        FATE.ATTEMPT_FATE_HANDED_OVER,
        FATE.ATTEMPT_FATE_FAILED,
        FATE.ATTEMPT_FATE_ANSWERED,
    ]
    assert end.usage.output_tokens == sum(each.usage.output_tokens for each in end.attempt_usages) > len(REST)


async def test_a_gateway_dies_after_its_answer_was_handed_over(family: Family):
    """The owner's heir gave a part: its attempts are told once, by whoever ends the stream."""
    stage = family.stage
    one, two = await stage.gateway(resume=True), await stage.gateway(resume=True)
    stage.provider.permit(4)
    family.heir.permit(3)
    await read(await one.begin(), 4)
    stage.provider.trouble = Overloaded("no room")
    stage.provider.permit(1)
    # Behind them `switched` and what the heir says.
    heard = await read(one.resume(), 6)
    await one.die()
    stage.provider.trouble = None
    stage.provider.permit(1000)
    family.heir.permit(1000)
    whole = await read(two.resume())
    assert text_of(whole).startswith(text_of(heard))
    assert [event.WhichOneof("kind") for event in whole].count("finish") == 1
    assert two.ends() == ["request.completed"]
    end = two.events[-1].request_completed
    assert [each.attempt for each in end.attempt_usages] == [1, 2, 3]
    assert end.attempt_usages[0].fate == end.attempt_usages[1].fate == FATE.ATTEMPT_FATE_HANDED_OVER
    assert end.usage.output_tokens == sum(each.usage.output_tokens for each in end.attempt_usages)


async def test_without_a_route_that_says_so_it_ends_with_an_error_and_is_accounted(family: Family):
    stage = family.stage
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.permit(6)
    heard = await read(await one.begin(), 6)
    await one.die()
    await stage.standing.close()
    with pytest.raises(StreamBroken) as broken:
        await read(two.resume(len(heard)))
    assert (broken.value.metadata["stream"], broken.value.metadata["after_content"]) == ("over", "true")
    assert family.heir.requests == []
    assert two.ends() == ["request.failed"]
    end = two.events[-1].request_failed
    assert [each.fate for each in end.attempt_usages] == [FATE.ATTEMPT_FATE_FAILED]
    assert end.usage.estimated
    assert end.usage.output_tokens > 0


async def test_nothing_was_said_and_what_is_taken_up_fails_so_the_next_one_answers(family: Family):
    stage = family.stage
    one, two = await stage.gateway(), await stage.gateway()
    await one.begin()
    await until(lambda: len(stage.provider.requests) == 1)
    await one.die()
    reading = asyncio.create_task(read(two.resume()))
    await until(lambda: bool(two.streams.running))
    stage.provider.trouble = Overloaded("no room")
    family.heir.permit(1000)
    stage.provider.permit(1000)
    assert text_of(await reading) == "".join(REST)
    assert len(family.heir.requests) == 1
    assert [each.fate for each in two.events[-1].request_completed.attempt_usages] == [
        FATE.ATTEMPT_FATE_FAILED,
        FATE.ATTEMPT_FATE_ANSWERED,
    ]


async def test_what_the_dead_gateway_tried_before_is_told_with_the_rest(family: Family):
    """The first backend failed before a word, the second one answers, and the gateway dies: both are in the account."""
    stage = family.stage
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.fault = Fault.NO_FINISH
    stage.provider.events = stage.provider.events[:1]
    stage.provider.permit(1000)
    family.heir.permit(4)
    heard = await read(await one.begin(), 3)
    assert "".join(REST).startswith(text_of(heard))
    await one.die()
    family.heir.permit(1000)
    assert text_of([*heard, *await read(two.resume(len(heard)))]) == "".join(REST)
    assert (len(stage.provider.requests), len(family.heir.requests)) == (1, 1)
    end = two.events[-1].request_completed
    assert [(each.attempt, each.fate) for each in end.attempt_usages] == [
        (1, FATE.ATTEMPT_FATE_FAILED),
        (2, FATE.ATTEMPT_FATE_ANSWERED),
    ]
    assert end.attempt_usages[0].usage.estimated


async def test_what_failed_before_any_word_is_charged_though_its_gateway_died_before_the_next_one_spoke(family: Family):
    """The first backend worked in vain, the second one was asked, and the gateway dies with nothing said."""
    stage = family.stage
    one, two = await stage.gateway(), await stage.gateway()
    stage.provider.fault = Fault.NO_FINISH
    stage.provider.events = stage.provider.events[:1]
    stage.provider.permit(1000)
    await one.begin()
    await until(lambda: len(family.heir.requests) == 1)
    await kept(two, 1)
    await one.die()
    family.heir.permit(1000)
    assert text_of(await read(two.resume())) == "".join(REST)
    assert (len(stage.provider.requests), len(family.heir.requests)) == (1, 1)
    end = two.events[-1].request_completed
    assert [(each.attempt, each.fate) for each in end.attempt_usages] == [
        (1, FATE.ATTEMPT_FATE_FAILED),
        (2, FATE.ATTEMPT_FATE_ANSWERED),
    ]
    assert end.attempt_usages[0].usage.estimated
    assert end.usage.input_tokens == sum(each.usage.input_tokens for each in end.attempt_usages)


async def test_what_broke_after_content_is_charged_once_though_its_gateway_died_before_the_heir_spoke(family: Family):
    stage = family.stage
    one, two = await stage.gateway(resume=True), await stage.gateway(resume=True)
    stage.provider.permit(4)
    heard = await read(await one.begin(), 4)
    stage.provider.trouble = Overloaded("no room")
    stage.provider.permit(1)
    await until(lambda: len(family.heir.requests) == 1)
    await one.die()
    stage.provider.permit(1)
    family.heir.permit(1000)
    rest = await read(two.resume(len(heard)))
    assert text_of([*heard, *rest]) == text_of(heard) + "".join(REST)
    end = two.events[-1].request_completed
    assert [each.fate for each in end.attempt_usages if each.HasField("usage")] == [
        FATE.ATTEMPT_FATE_HANDED_OVER,
        FATE.ATTEMPT_FATE_ANSWERED,
    ]
    assert [each.model for each in end.attempt_usages if each.fate == FATE.ATTEMPT_FATE_HANDED_OVER] == ["model"]


async def test_what_backends_cost_that_left_the_table_is_told_all_the_same(family: Family):
    """Who takes the stream over has never heard of the backends that its dead gateway asked."""
    stage = family.stage
    one, two = await stage.gateway(), await stage.gateway(knows=False)
    stage.provider.fault = Fault.NO_FINISH
    stage.provider.events = stage.provider.events[:1]
    stage.provider.permit(1000)
    family.heir.permit(4)
    heard = await read(await one.begin(), 3)
    await one.die()
    with pytest.raises(StreamBroken):
        await read(two.resume(len(heard)))
    end = two.events[-1].request_failed
    assert [(each.adapter, each.provider, each.model) for each in end.attempt_usages] == [
        ("adapter", "scripted", "model"),
        ("heir", "other", "model"),
    ]
    first, second = end.attempt_usages
    assert (first.usage.estimated, second.usage.estimated) == (True, True)
    assert second.usage.output_tokens > 0
    assert end.usage.output_tokens == first.usage.output_tokens + second.usage.output_tokens
    assert first.cost.usd, "what it cost was told, and stays"
    assert not second.HasField("cost"), "nobody knows its price any more"


async def kept(post: Post, failed: int) -> None:
    """Returns once the journal has so many failed attempts."""
    known = Known()
    async with asyncio.timeout(10), post.streams.journal.read(subject_of("acme", "req-1")) as fetch:
        while len(known.attempts) < failed:
            for entry in await fetch(1.0):
                known.feed(entry)
