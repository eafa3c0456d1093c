"""One terminal per stream: what an adapter may send in which order, and what becomes of it when it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatResponse, Finish, FinishReason, TextDelta, Tool
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import CapabilityUnavailable, MaestroError, Overloaded, StreamBroken, Unimplemented
from maestro_sdk.testing.scripted import ScriptedProvider, answer
from maestro_sdk.testing.tables import model

from .dispatching import ask, kinds, mesh, named, text, until
from .raw_servicer import RawServicer

STARTED, PIECE, FINISH = answer("piece", model="p1/m")
MORE = ChatEvent(text=TextDelta(text="more"))
UNREASONED = ChatEvent(finish=Finish(usage=Usage(input_tokens=1)))
USAGE = ChatEvent(usage=Usage(input_tokens=2))
STOP = FinishReason.FINISH_REASON_STOP


async def fail() -> None:
    raise Overloaded("after the end")


async def hang() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("messages", "then", "breach"),
    [
        ([[STARTED, PIECE], [FINISH, MORE]], None, "events after finish"),
        ([[STARTED, PIECE, FINISH, USAGE, MORE]], None, "events after finish"),
        ([[STARTED], [PIECE, FINISH, FINISH]], None, "two finishes"),
        ([[STARTED], [PIECE, FINISH, MORE, FINISH]], None, "two finishes"),
        ([[STARTED, PIECE], [FINISH], [MORE]], None, "events after finish"),
        ([[STARTED, PIECE], [FINISH], [], [MORE]], hang, "events after finish"),
        ([[STARTED, PIECE], [FINISH], [FINISH]], None, "two finishes"),
        ([[STARTED, PIECE], [FINISH]], fail, "error after finish"),
        ([[STARTED, PIECE], [FINISH]], hang, "no end after finish"),
    ],
)
async def test_what_follows_finish_is_a_breach_and_changes_nothing(
    messages: Sequence[Sequence[ChatEvent]], then: Callable[[], Any] | None, breach: str
) -> None:
    adapter = RawServicer(*messages, then=then)
    async with mesh(adapter, named(2)) as m:
        begun = time.monotonic()
        events = await m.stream()
        # The caller does not wait for the end of a call that hangs; it is given 0.3 s here.
        assert time.monotonic() - begun < 0.25
        assert kinds(events) == ["started", "text", "finish"]
        assert text(events) == "piece"
        await until(lambda: m.breaches() == [breach])
        if then is hang:
            await asyncio.wait_for(adapter.abandoned.wait(), 5)
        assert m.trail.attempts[0].breach == breach
        assert m.trail.attempts[0].error is None
        assert not any(outcome.counts_against_health for outcome in m.source.outcomes)
        assert not m.providers[1].requests
        assert m.idle()


async def test_a_plain_end_is_no_breach() -> None:
    async def late() -> None:
        await asyncio.sleep(0.05)

    async with mesh(RawServicer([STARTED, PIECE], [FINISH], [], then=late)) as m:
        assert kinds(await m.stream()) == ["started", "text", "finish"]
        await asyncio.gather(*m.dispatcher.endings)
        assert [(outcome.reason, outcome.breach) for outcome in m.source.outcomes] == [(0, "")]


@pytest.mark.parametrize(
    ("messages", "breach"),
    [
        ([[PIECE, FINISH]], "first event is not started"),
        ([[USAGE], [STARTED, PIECE, FINISH]], "first event is not started"),
        ([[FINISH]], "first event is not started"),
        ([[STARTED], [STARTED, PIECE, FINISH]], "started twice"),
        ([[STARTED, STARTED, PIECE, FINISH]], "started twice"),
        ([[STARTED], [ChatEvent(), PIECE, FINISH]], "an event without a kind"),
        ([[STARTED, UNREASONED]], "no finish reason"),
        ([[STARTED, USAGE]], "no finish"),
        ([[], []], "no finish"),
        ([], "no finish"),
    ],
)
async def test_a_breach_before_content_falls_over(messages: Sequence[Sequence[ChatEvent]], breach: str) -> None:
    async with mesh(RawServicer(*messages), named(2)) as m:
        events = await m.stream()
        assert kinds(events) == ["started", "text", "text", "finish"]
        assert text(events) == "I am 2."
        assert m.breaches() == [breach]
        assert m.source.outcomes[0].reason == ErrorReason.ERROR_REASON_STREAM_BROKEN
        assert m.source.outcomes[0].counts_against_health
        assert m.idle()


@pytest.mark.parametrize(
    ("messages", "breach"),
    [
        ([[STARTED, PIECE], [STARTED, MORE, FINISH]], "started twice"),
        ([[STARTED, PIECE], [ChatEvent()], [FINISH]], "an event without a kind"),
        ([[STARTED, PIECE], [UNREASONED]], "no finish reason"),
        ([[STARTED, PIECE]], "no finish"),
        ([[STARTED, PIECE], [], []], "no finish"),
    ],
)
async def test_a_breach_after_content_ends_the_stream_once(
    messages: Sequence[Sequence[ChatEvent]], breach: str
) -> None:
    async with mesh(RawServicer(*messages), named(2)) as m:
        seen: list[ChatEvent] = []
        with pytest.raises(StreamBroken) as caught:
            await m.watch(seen)
        assert kinds(seen) == ["started", "text"]
        assert caught.value.metadata["after_content"] == "true"
        assert caught.value.metadata["breach"] == breach
        assert not caught.value.retryable
        assert not caught.value.failover
        assert m.breaches() == [breach]
        assert not m.providers[1].requests
        assert m.idle()


async def test_an_empty_answer_is_an_answer() -> None:
    async with mesh(RawServicer([STARTED], [FINISH])) as m:
        assert kinds(await m.stream()) == ["started", "finish"]
        assert m.breaches() == []


async def test_a_whole_answer_without_a_reason_is_a_breach() -> None:
    async with mesh(RawServicer(answer=ChatResponse(response_id="r", provider="p1", model="m")), named(2)) as m:
        assert (await m.complete()).parts[0].text.text == "I am 2."
        assert m.breaches() == ["no finish reason"]
        assert [type(attempt.error) for attempt in m.failures] == [StreamBroken]


async def refuse_named() -> None:
    raise CapabilityUnavailable("no tools here", metadata={"missing": "TOOLS"})


async def refuse() -> None:
    raise CapabilityUnavailable("can't")


async def not_there() -> None:
    raise Unimplemented("no such method")


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("then", "tools", "breach"),
    [
        (refuse_named, True, "refuses TOOLS, which it declares"),
        (refuse, True, "refuses TOOLS, which it declares"),
        (not_there, True, "refuses TOOLS, which it declares"),
        (not_there, False, "refuses {plain}, which it declares"),
    ],
)
async def test_who_declares_a_feature_may_not_refuse_it(
    then: Callable[[], Any], tools: bool, breach: str, streamed: bool
) -> None:
    adapter = RawServicer(then=then, described=model("p1/m", "TOOLS"))
    able = ScriptedProvider(answer("able", model="p2/m"), models=[model("p2/m", "TOOLS")])
    async with mesh(adapter, able) as m:
        request = ask(tools=[Tool(name="t")] if tools else [])
        if streamed:
            assert text(await m.stream(request)) == "able"
        else:
            assert (await m.complete(request)).parts[0].text.text == "able"
        assert m.breaches() == [breach.format(plain="STREAMING" if streamed else "CHAT")]


async def test_a_refusal_of_what_was_never_declared_is_the_answer() -> None:
    error: MaestroError = CapabilityUnavailable("no eyes", metadata={"missing": "VISION"})

    async def blind() -> None:
        raise error

    async with mesh(RawServicer(then=blind), named(2)) as m:
        with pytest.raises(CapabilityUnavailable):
            await m.stream()
        assert m.breaches() == []
        assert not m.providers[1].requests
