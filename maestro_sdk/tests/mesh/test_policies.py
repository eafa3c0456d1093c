"""What a route says about attempts: their time, which errors fall over, retries and their pauses, slow readers."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from itertools import pairwise

import pytest

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.chat_pb2 import ChatEvent, Finish, FinishReason
from maestro.llm.v1.usage_pb2 import Headroom, Price, RateLimit, Usage
from maestro_sdk.errors import (
    Cancelled,
    ContentPolicy,
    InvalidRequest,
    MaestroError,
    Overloaded,
    RateLimited,
    Timeout,
    UpstreamError,
)
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.trail import Trail
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.tables import model

from .dispatching import Mesh, ask, kinds, mesh, named, text, until
from .raw_servicer import RawServicer

BEFORE = Fault.ERROR_BEFORE_CONTENT
STALL = Fault.STALL_BEFORE_CONTENT


async def say(m: Mesh, *, unary: bool) -> str:
    """The text of one answer."""
    return (await m.complete()).parts[0].text.text if unary else text(await m.stream())


@pytest.mark.parametrize("unary", [True, False])
async def test_an_attempt_has_its_own_time(unary: bool) -> None:
    async with mesh(named(1, fault=STALL), named(2), attempt_timeout=0.2, total_timeout=10.0) as m:
        begun = time.monotonic()
        assert await say(m, unary=unary) == "I am 2."
        assert 0.2 <= time.monotonic() - begun < 2.0
        assert isinstance(m.failures[0].error, Timeout)
        assert m.source.outcomes[0].counts_against_health
        # The provider read the question, whatever became of its answer.
        assert m.trail.attempts[0].usage is not None
        assert m.trail.attempts[0].usage.estimated


@pytest.mark.parametrize("unary", [True, False])
async def test_a_route_may_fall_over_where_the_error_does_not_ask_for_it(unary: bool) -> None:
    async with mesh(named(1, fault=BEFORE, error=ContentPolicy("no")), named(2), failover_on=["CONTENT_POLICY"]) as m:
        assert await say(m, unary=unary) == "I am 2."


@pytest.mark.parametrize("unary", [True, False])
async def test_a_fault_of_the_caller_never_falls_over(unary: bool) -> None:
    async with mesh(
        named(1, fault=BEFORE, error=InvalidRequest("bad")), named(2), failover_on=["INVALID_REQUEST"]
    ) as m:
        with pytest.raises(InvalidRequest):
            await say(m, unary=unary)
        assert not m.providers[1].requests


@pytest.mark.parametrize("unary", [True, False])
async def test_a_route_may_stay_where_the_error_would_fall_over(unary: bool) -> None:
    first = named(1, fault=BEFORE)
    async with mesh(first, named(2), failover_off=["OVERLOADED"], max_attempts=3, back_off=0.01) as m:
        with pytest.raises(Overloaded):
            await say(m, unary=unary)
        # The same backend may still be asked again.
        assert len(first.requests) == 3
        assert not m.providers[1].requests


async def test_retries_are_a_share_of_the_requests() -> None:
    failing = named(1, fault=BEFORE)
    async with mesh(
        failing, max_attempts=2, retry_share=0.1, back_off=0.001, breaker={"consecutive_failures": 1000}
    ) as m:
        for _ in range(40):
            with pytest.raises(Overloaded):
                await m.stream()
        # Ten in reserve, and one for each ten requests while that is used up.
        assert 40 + 10 <= len(failing.requests) <= 40 + 10 + 4
        assert m.idle()


async def test_pauses_double_up_to_the_longest() -> None:
    failing = named(1, fault=BEFORE)
    async with mesh(
        failing, max_attempts=5, back_off=0.2, longest_back_off=0.25, breaker={"consecutive_failures": 1000}
    ) as m:
        with pytest.raises(Overloaded):
            await m.stream()
        begun = [attempt.begun for attempt in m.trail.attempts]
        gaps = [later - earlier for earlier, later in pairwise(begun)]
        # The dice of the test says 0: half the pause. Unbounded it would be 1.5 s in all.
        assert all(gap >= least for gap, least in zip(gaps, (0.1, 0.2, 0.25, 0.25), strict=True))
        assert sum(gaps) < 1.3


async def test_a_retry_after_beyond_the_longest_pause_is_told() -> None:
    limited = named(1, fault=BEFORE, error=RateLimited("slow down", retry_after=0.3))
    async with mesh(limited, longest_back_off=0.2) as m:
        with pytest.raises(RateLimited) as caught:
            await m.stream()
        assert caught.value.retry_after == 0.3
        assert len(limited.requests) == 1


async def test_a_retry_goes_to_whoever_may_be_asked_first() -> None:
    later = named(1, fault=BEFORE, error=RateLimited("slow down", retry_after=1.0))
    sooner = named(2, fault=BEFORE, error=RateLimited("slow down", retry_after=0.1))
    async with mesh(later, sooner, max_attempts=3) as m:
        task = asyncio.create_task(m.stream())
        await until(lambda: len(m.failures) == 2)
        sooner.fault = None
        assert text(await task) == "I am 2."
        assert len(later.requests) == 1
        assert m.trail.attempts[2].begun - m.trail.attempts[1].ended >= 0.1


async def test_a_rate_limit_is_an_exhausted_headroom() -> None:
    limited = named(1, fault=BEFORE, error=RateLimited("slow down", retry_after=7.0))
    async with mesh(limited, named(2)) as m:
        await m.stream()
        noted, told = m.source.local.load.headrooms["p1:p1/m"]
        assert (noted.requests.remaining, noted.requests.reset.seconds) == (0, 7)
        assert abs(time.time() - told) < 5
        assert m.source.outcomes[0].headroom == noted
        assert not m.source.outcomes[0].counts_against_health


@pytest.mark.parametrize("unary", [True, False])
async def test_headroom_is_noted_and_taken_out(unary: bool) -> None:
    left = Headroom(requests=RateLimit(limit=100, remaining=42))
    started, piece, _ = answer("hi", model="p1/m")
    usage = Usage(input_tokens=1, output_tokens=1)
    end = ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_STOP, usage=usage, headroom=left))
    provider = ScriptedProvider([started, piece, end], models=[model("p1/m")])
    # A kit that folds headroom and one that does not are alike: what counts is that no caller sees it.
    async with mesh(provider) as m:
        if unary:
            assert not (await m.complete()).HasField("headroom")
        else:
            assert not (await m.stream())[-1].finish.HasField("headroom")
        assert m.source.local.load.headrooms["p1:p1/m"][0] == left
        assert m.source.outcomes[0].headroom == left


@pytest.mark.parametrize("unary", [True, False])
async def test_the_deadline_stands_above_the_time_of_an_attempt(unary: bool) -> None:
    async with mesh(named(1, fault=STALL), named(2, fault=STALL), attempt_timeout=0.2) as m:
        deadline = time.monotonic() + 0.3
        with pytest.raises(Timeout):
            await (m.complete(deadline=deadline) if unary else m.stream(deadline=deadline))
        assert [outcome.counts_against_health for outcome in m.source.outcomes] == [True, False]
        with pytest.raises(Timeout):
            await m.stream(deadline=time.monotonic() - 1.0)
        assert not m.source.outcomes[-1].counts_against_health
        assert m.idle()


async def test_no_pause_reaches_beyond_the_deadline() -> None:
    limited = named(1, fault=BEFORE, error=RateLimited("slow down", retry_after=1.0))
    async with mesh(limited) as m:
        begun = time.monotonic()
        with pytest.raises(RateLimited):
            await m.stream(deadline=begun + 0.5)
        assert time.monotonic() - begun < 0.4


async def test_a_slow_reader_is_not_taken_for_a_silent_backend() -> None:
    async with mesh(named(1, "a", "b", "c"), idle_timeout=0.1) as m:
        request, seen = ask(), list[ChatEvent]()
        async with aclosing(m.dispatcher.stream(request, needs_of(request), Trail())) as batches:
            async for batch in batches:
                seen += batch.events
                await asyncio.sleep(0.25)
        assert kinds(seen) == ["started", "text", "text", "text", "finish"]
        assert not m.failures


async def test_an_adapter_that_cancels_its_calls_is_passed_over() -> None:
    async def leave() -> None:
        raise Cancelled("going down")

    async with mesh(RawServicer(then=leave), named(2)) as m:
        assert text(await m.stream()) == "I am 2."
        assert isinstance(m.failures[0].error, UpstreamError)


@pytest.mark.parametrize(
    ("error", "charged"),
    [(Overloaded("busy"), False), (RateLimited("slow down", retry_after=9), False), (Timeout("late"), True)],
)
async def test_a_provider_charges_for_work_and_not_for_a_refusal(error: MaestroError, charged: bool) -> None:
    async def refuse() -> None:
        raise error

    price = Price(effective_date="2026-01-01", input="1", output="1")
    async with mesh(RawServicer(then=refuse), named(2, price=price)) as m:
        finish = (await m.stream())[-1].finish
        refused, answered = m.trail.attempts
        assert (refused.usage is not None) is charged
        assert refused.fate == AttemptFate.ATTEMPT_FATE_FAILED
        assert answered.fate == AttemptFate.ATTEMPT_FATE_ANSWERED
        assert answered.usage == finish.usage
        assert answered.cost == finish.cost
        # A price that is unknown makes the cost of the whole unknown, once it was to be paid.
        assert (m.trail.cost is None) is charged
