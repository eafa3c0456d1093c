"""Handover: an answer that broke after content goes on at another backend; nothing is lost, repeated or left unpaid."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.chat_pb2 import ChatEvent, Finish, FinishReason
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import ContentPolicy, InvalidRequest, MaestroError, Overloaded, StreamBroken, Timeout
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.tables import model

from .dispatching import Mesh, kinds, mesh, named, text, until
from .raw_servicer import RawServicer

ANSWERED, FAILED = AttemptFate.ATTEMPT_FATE_ANSWERED, AttemptFate.ATTEMPT_FATE_FAILED
HANDED_OVER = AttemptFate.ATTEMPT_FATE_HANDED_OVER
PRICE = Price(effective_date="2026-01-01", input="1.00", output="10.00")
CUT = Fault.ERROR_AFTER_CONTENT


def fates(m: Mesh) -> list[Any]:
    return [attempt.fate for attempt in m.trail.attempts]


@pytest.mark.parametrize(
    ("fault", "why"), [(CUT, "OVERLOADED"), (Fault.NO_FINISH, "STREAM_BROKEN"), (Fault.STALL_AFTER_CONTENT, "TIMEOUT")]
)
async def test_another_backend_goes_on(fault: Fault, why: str) -> None:
    first = named(1, "One, ", "two", fault=fault, price=PRICE)
    async with mesh(first, named(2, ", three", ".", price=PRICE), resume=True, idle_timeout=0.3) as m:
        events = await m.stream()
        assert kinds(events)[0] == "started"
        assert kinds(events).count("started") == kinds(events).count("finish") == kinds(events).count("switched") == 1
        shown = "One, " if fault is not Fault.NO_FINISH else "One, two"
        assert text(events) == f"{shown}, three."
        switched = next(event.switched for event in events if event.HasField("switched"))
        assert (switched.from_model, switched.to_model, switched.why) == ("p1/m", "p2/m", why)
        assert fates(m) == [HANDED_OVER, ANSWERED]
        assert m.providers[1].requests[0].model == "p2/m"
        broken, last = m.trail.attempts
        assert broken.usage is not None
        assert broken.usage.estimated
        assert last.usage is not None
        finish = events[-1].finish
        assert finish.usage.input_tokens == broken.usage.input_tokens + last.usage.input_tokens
        assert finish.usage.output_tokens == broken.usage.output_tokens + last.usage.output_tokens
        assert broken.cost is not None
        assert last.cost is not None
        assert float(finish.cost.usd) == pytest.approx(float(broken.cost.usd) + float(last.cost.usd))
        assert m.trail.usage == finish.usage
        assert m.trail.cost == finish.cost
        assert fold(events).switches[0] == switched
        assert m.idle()


async def test_what_the_broken_attempt_told_is_not_estimated_away() -> None:
    started, piece, _ = answer("One", model="p1/m")
    told = ChatEvent(usage=Usage(input_tokens=50, output_tokens=1))
    async with mesh(RawServicer([started, told], [piece]), named(2), resume=True) as m:
        await m.stream()
        used = m.trail.attempts[0].usage
        assert used is not None
        assert (used.input_tokens, used.output_tokens, used.estimated) == (50, 1, True)
        assert m.trail.usage is not None
        assert m.trail.usage.input_tokens == 53


async def test_an_unknown_price_leaves_the_cost_of_the_whole_unknown() -> None:
    async with mesh(named(1, "One", "x", fault=CUT), named(2, price=PRICE), resume=True) as m:
        finish = (await m.stream())[-1].finish
        assert not finish.HasField("cost")
        assert m.trail.cost is None
        assert m.trail.attempts[1].cost is not None


@pytest.mark.parametrize("k", [1, 2, 3, 7, 20, 59, 60])
async def test_it_may_break_anywhere(k: int) -> None:
    pieces = [f"word{number} " for number in range(60)]
    started, *events = answer(*pieces, model="p1/m")
    rest = ScriptedProvider(answer(*pieces[k:], "end", model="p2/m"), models=[model("p2/m")])

    async def cut() -> None:
        raise Overloaded("cut")

    async with mesh(RawServicer([started], *([event] for event in events[:k]), then=cut), rest, resume=True) as m:
        assert text(await m.stream()) == "".join(pieces) + "end"
        assert fates(m) == [HANDED_OVER, ANSWERED]


async def test_several_handovers_in_a_row() -> None:
    providers = named(1, "a", "x", fault=CUT), named(2, "b", "x", fault=CUT), named(3, "c")
    async with mesh(*providers, resume=True) as m:
        events = await m.stream()
        assert text(events) == "abc"
        moves = [(e.switched.from_model, e.switched.to_model) for e in events if e.HasField("switched")]
        assert moves == [("p1/m", "p2/m"), ("p2/m", "p3/m")]
        assert fates(m) == [HANDED_OVER, HANDED_OVER, ANSWERED]
        parts = [attempt.usage for attempt in m.trail.attempts if attempt.usage is not None]
        assert events[-1].finish.usage.output_tokens == sum(part.output_tokens for part in parts)


async def test_an_heir_that_gives_nothing_is_passed_over() -> None:
    providers = named(1, "a", "x", fault=CUT), named(2, fault=Fault.ERROR_BEFORE_CONTENT), named(3, "c")
    async with mesh(*providers, resume=True) as m:
        events = await m.stream()
        assert text(events) == "ac"
        moves = [(e.switched.from_model, e.switched.to_model) for e in events if e.HasField("switched")]
        assert moves == [("p1/m", "p3/m")]
        assert fates(m) == [HANDED_OVER, FAILED, ANSWERED]
        # What gave nothing is no part of the answer.
        first, _, last = [attempt.usage for attempt in m.trail.attempts]
        assert first is not None
        assert last is not None
        assert events[-1].finish.usage.input_tokens == first.input_tokens + last.input_tokens


async def fail(m: Mesh, error: type[MaestroError], request: Any = None) -> tuple[MaestroError, list[ChatEvent]]:
    """The error of a stream and what was shown before it."""
    seen: list[ChatEvent] = []
    with pytest.raises(error) as caught:
        await m.watch(seen, request)
    assert caught.value.metadata["after_content"] == "true"
    assert not caught.value.retryable
    assert not caught.value.failover
    assert "finish" not in kinds(seen)
    assert m.idle()
    return caught.value, seen


async def test_never_inside_a_tool_call() -> None:
    events = answer("Let me see.", calls=[("c1", "look", "{}")], model="p1/m")
    broken = RawServicer(*([event] for event in events[:-1]))
    async with mesh(broken, named(2), resume=True) as m:
        error, seen = await fail(m, StreamBroken)
        assert "tool call" in error.message
        assert kinds(seen) == ["started", "text", "tool_call"]
        assert fates(m) == [FAILED]
        assert not m.providers[1].requests


async def test_when_nobody_is_left_it_ends_with_the_error() -> None:
    async with mesh(named(1, "a", "b", fault=CUT), resume=True) as m:
        error, seen = await fail(m, Overloaded)
        assert "none is left" in error.message
        assert text(seen) == "a"
    failing = named(2, fault=Fault.ERROR_BEFORE_CONTENT)
    async with mesh(named(1, "a", "b", fault=CUT), failing, resume=True) as m:
        error, seen = await fail(m, Overloaded)
        assert error.metadata["attempts"] == "2"
        assert fates(m) == [FAILED, FAILED]


async def test_an_heir_that_refuses_the_continuation_speaks_for_nobody() -> None:
    refusing = named(2, fault=Fault.ERROR_BEFORE_CONTENT, error=InvalidRequest("no answer may be begun for me"))
    async with mesh(named(1, "a", "x", fault=CUT), refusing, named(3, "c"), resume=True) as m:
        assert text(await m.stream()) == "ac"
    async with mesh(named(1, "a", "x", fault=CUT), refusing, resume=True) as m:
        error, _ = await fail(m, Overloaded)
        assert error.metadata["tried"] == "p1:p1/m: OVERLOADED; p2:p2/m: INVALID_REQUEST"


async def test_a_route_that_does_not_fall_over_does_not_hand_over() -> None:
    async with mesh(named(1, "a", "x", fault=CUT), named(2), resume=True, failover_off=["OVERLOADED"]) as m:
        await fail(m, Overloaded)
        assert not m.providers[1].requests


async def test_an_error_that_follows_the_caller_is_not_handed_over() -> None:
    first = named(1, "a", "b", fault=CUT, error=ContentPolicy("no"))
    async with mesh(first, named(2), resume=True) as m:
        await fail(m, ContentPolicy)
        assert not m.providers[1].requests


async def test_the_deadline_ends_an_answer_that_was_handed_over() -> None:
    heir = named(2, "b", "c", fault=Fault.STALL_AFTER_CONTENT)
    async with mesh(named(1, "a", "x", fault=CUT), heir, named(3), resume=True, total_timeout=0.4) as m:
        _, seen = await fail(m, Timeout)
        assert text(seen) == "ab"
        assert not m.providers[2].requests


async def test_a_caller_who_leaves_in_the_middle_of_a_handover_cancels_it() -> None:
    heir = named(2, fault=Fault.STALL_BEFORE_CONTENT)
    async with mesh(named(1, "a", "x", fault=CUT), heir, resume=True) as m:
        task = asyncio.create_task(m.stream())
        await until(lambda: bool(heir.requests))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(heir.abandoned.wait(), 5)
        assert fates(m) == [FAILED, AttemptFate.ATTEMPT_FATE_ABANDONED]
        assert m.idle()


async def test_an_heir_may_break_the_contract_after_its_finish() -> None:
    started, piece, _ = answer("b", model="p2/m")
    finish = ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_STOP, usage=Usage(output_tokens=1)))
    heir = RawServicer([started, piece, finish, finish], described=model("p2/m"))
    async with mesh(named(1, "a", "x", fault=CUT), heir, resume=True) as m:
        events = await m.stream()
        assert kinds(events) == ["started", "text", "switched", "text", "finish"]
        assert m.breaches() == ["two finishes"]


async def test_a_hedged_winner_may_be_handed_over() -> None:
    slow, winner = named(1, fault=Fault.STALL_BEFORE_CONTENT), named(2, "a", "x", fault=CUT)
    async with mesh(slow, winner, named(3, "c"), resume=True, hedge_after=0.02, max_extra=1.0) as m:
        assert text(await m.stream()) == "ac"
        assert fates(m) == [AttemptFate.ATTEMPT_FATE_OUTRUN, HANDED_OVER, ANSWERED]
        assert m.idle()
