"""Hedging: a second attempt when the first is late, the loser cancelled at once, and the extra spend bounded."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro.llm.v1.usage_pb2 import Price
from maestro_sdk.errors import InvalidRequest, Overloaded
from maestro_sdk.mesh.hedge import HedgeBudget
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.pace import ENOUGH, Late
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.testing.scripted import Fault
from maestro_sdk.testing.tables import backend, message, model

from .dispatching import Mesh, kinds, mesh, named, text, until

ANSWERED, FAILED = AttemptFate.ATTEMPT_FATE_ANSWERED, AttemptFate.ATTEMPT_FATE_FAILED
OUTRUN, ABANDONED = AttemptFate.ATTEMPT_FATE_OUTRUN, AttemptFate.ATTEMPT_FATE_ABANDONED
STALL = Fault.STALL_BEFORE_CONTENT
PRICE = Price(effective_date="2026-01-01", input="1.00", output="10.00")


async def say(m: Mesh, *, unary: bool) -> str:
    """The text of one answer."""
    if unary:
        return (await m.complete()).parts[0].text.text
    events = await m.stream()
    assert kinds(events)[0] == "started"
    assert kinds(events).count("started") == kinds(events).count("finish") == 1
    return text(events)


def fates(m: Mesh) -> list[Any]:
    return [attempt.fate for attempt in m.trail.attempts]


@pytest.mark.parametrize("unary", [True, False])
async def test_the_second_answers_when_the_first_is_late(unary: bool) -> None:
    slow = named(1, fault=STALL, price=PRICE)
    async with mesh(slow, named(2, price=PRICE), hedge_after=0.05, max_extra=0.1) as m:
        begun = time.monotonic()
        assert await say(m, unary=unary) == "I am 2."
        assert time.monotonic() - begun >= 0.05
        answered = time.monotonic()
        await asyncio.wait_for(slow.abandoned.wait(), 5)
        assert time.monotonic() - answered < 0.2
        assert fates(m) == [OUTRUN, ANSWERED]
        assert m.trail.backend is not None
        assert m.trail.backend.id == "p2:p2/m"
        # The loser read the question and wrote nothing; nobody is told that it failed.
        lost = m.trail.attempts[0]
        assert lost.usage is not None
        assert lost.usage.estimated
        assert (lost.usage.input_tokens, lost.usage.output_tokens) == (1, 0)
        assert lost.cost is not None
        assert (lost.cost.usd, lost.cost.estimated) == ("0.000001", True)
        assert m.trail.cost is not None
        assert m.trail.cost.usd == "0.000024"
        assert [(outcome.backend_id, outcome.reason) for outcome in m.source.outcomes] == [("p2:p2/m", 0)]
        assert m.idle()


@pytest.mark.parametrize("unary", [True, False])
async def test_nobody_else_is_asked_when_the_first_is_quick(unary: bool) -> None:
    async with mesh(named(1), named(2), hedge_after=0.3, max_extra=1.0) as m:
        assert await say(m, unary=unary) == "I am 1."
        await asyncio.sleep(0.35)
        assert not m.providers[1].requests
        assert fates(m) == [ANSWERED]


@pytest.mark.parametrize("unary", [True, False])
async def test_the_first_may_still_win(unary: bool) -> None:
    slow, slower = named(1, pace=0.07), named(2, fault=STALL)
    async with mesh(slow, slower, hedge_after=0.05, max_extra=1.0) as m:
        assert await say(m, unary=unary) == "I am 1."
        await asyncio.wait_for(slower.abandoned.wait(), 0.2)
        assert fates(m) == [ANSWERED, OUTRUN]
        assert m.trail.backend is not None
        assert m.trail.backend.id == "p1:p1/m"
        assert m.idle()


@pytest.mark.parametrize("unary", [True, False])
async def test_when_the_first_fails_the_second_goes_on(unary: bool) -> None:
    failing = named(1, pace=0.05, fault=Fault.ERROR_BEFORE_CONTENT)
    async with mesh(failing, named(2, pace=0.1), hedge_after=0.02, max_extra=1.0) as m:
        assert await say(m, unary=unary) == "I am 2."
        assert fates(m) == [FAILED, ANSWERED]
        assert len(m.providers[1].requests) == 1
        assert [attempt.backend.provider for attempt in m.failures] == ["p1"]
        assert m.idle()


@pytest.mark.parametrize("unary", [True, False])
async def test_when_the_second_fails_the_first_goes_on(unary: bool) -> None:
    failing = named(2, fault=Fault.ERROR_BEFORE_CONTENT)
    async with mesh(named(1, pace=0.07), failing, named(3), hedge_after=0.02, max_extra=1.0) as m:
        assert await say(m, unary=unary) == "I am 1."
        assert fates(m) == [ANSWERED, FAILED]
        assert not m.providers[2].requests
        assert m.idle()


@pytest.mark.parametrize("unary", [True, False])
async def test_when_both_fail_the_next_one_is_tried(unary: bool) -> None:
    fault = Fault.ERROR_BEFORE_CONTENT
    async with mesh(
        named(1, pace=0.05, fault=fault), named(2, pace=0.02, fault=fault), named(3), hedge_after=0.02, max_extra=1.0
    ) as m:
        assert await say(m, unary=unary) == "I am 3."
        assert fates(m) == [FAILED, FAILED, ANSWERED]
        assert m.idle()


async def test_when_all_fail_the_error_tells_of_all() -> None:
    fault = Fault.ERROR_BEFORE_CONTENT
    async with mesh(
        named(1, pace=0.05, fault=fault), named(2, fault=fault), hedge_after=0.02, max_extra=1.0, max_attempts=2
    ) as m:
        with pytest.raises(Overloaded) as caught:
            await m.stream()
        assert caught.value.metadata["tried"] == "p2:p2/m: OVERLOADED; p1:p1/m: OVERLOADED"


async def test_a_fault_of_the_caller_stands_once_the_other_has_failed_too() -> None:
    fault = Fault.ERROR_BEFORE_CONTENT
    second = named(2, fault=fault, error=InvalidRequest("bad"))
    async with mesh(named(1, pace=0.05, fault=fault), second, named(3), hedge_after=0.02, max_extra=1.0) as m:
        with pytest.raises(InvalidRequest):
            await m.stream()
        assert not m.providers[2].requests


@pytest.mark.parametrize("unary", [True, False])
async def test_a_caller_who_leaves_cancels_both(unary: bool) -> None:
    async with mesh(named(1, fault=STALL), named(2, fault=STALL), hedge_after=0.02, max_extra=1.0) as m:
        task = asyncio.create_task(say(m, unary=unary))
        await until(lambda: bool(m.providers[1].requests))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for provider in m.providers:
            await asyncio.wait_for(provider.abandoned.wait(), 5)
        assert fates(m) == [ABANDONED, ABANDONED]
        assert m.idle()


async def test_no_second_one_beyond_the_attempts_or_without_another_backend() -> None:
    for providers, limits in (
        ((named(1, fault=STALL), named(2)), {"max_attempts": 1}),
        ((named(1, fault=STALL),), {}),
    ):
        async with mesh(*providers, hedge_after=0.02, max_extra=1.0, **limits) as m:
            seen: list[ChatEvent] = []
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(m.watch(seen), 0.2)
            assert (seen, len(m.trail.attempts)) == ([], 1)
            assert m.idle()


async def test_a_backend_behind_a_breaker_is_no_second_one() -> None:
    async with mesh(named(1, fault=STALL), named(2), named(3), hedge_after=0.05, max_extra=1.0) as m:
        task = asyncio.create_task(m.stream())
        await until(lambda: bool(m.providers[0].requests))
        second = m.source.table.backends["p2:p2/m"]
        now = time.time()
        for _ in range(5):
            m.source.local.begin(second, now)
            m.source.local.fail(second, Overloaded("down"), now)
        assert text(await task) == "I am 3."
        assert not m.providers[1].requests


@pytest.mark.parametrize("unary", [True, False])
async def test_left_to_itself_it_learns_when_an_answer_is_late(unary: bool) -> None:
    async with mesh(named(1), named(2), max_extra=0.5) as m:
        for _ in range(ENOUGH):
            assert await say(m, unary=unary) == "I am 1."
        m.providers[0].fault = STALL
        begun = time.monotonic()
        assert await say(m, unary=unary) == "I am 2."
        assert time.monotonic() - begun < 2.0


async def test_before_there_are_enough_samples_nobody_is_late() -> None:
    async with mesh(named(1), named(2), max_extra=1.0) as m:
        for _ in range(ENOUGH - 1):
            await m.stream()
        m.providers[0].fault = STALL
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(m.stream(), 0.3)
        assert not m.providers[1].requests


async def test_the_tail_falls_and_the_extra_spend_stays_within_its_bound() -> None:
    quick, other = named(1), named(2)
    waits: list[float] = []
    async with mesh(quick, other, max_extra=0.1, idle_timeout=2.0) as m:
        for number in range(200):
            # One in twenty stalls, the first ones included.
            quick.fault = STALL if number % 20 == 7 and number > ENOUGH else None
            begun = time.monotonic()
            assert text(await m.stream()).startswith("I am")
            waits.append(time.monotonic() - begun)
        assert 9 <= len(other.requests) <= 1 + 200 * 0.1
        assert sorted(waits)[197] < 1.0
        assert m.idle()


def test_the_budget_grants_one_call_and_then_a_share() -> None:
    asked = compile_table(message([backend("p", model("p/m"))], {"default": [("p/m", 1)]})).backends["p:p/m"]
    budget, needs = HedgeBudget(), Needs(model="")
    hedged = 0
    for calls in range(1, 101):
        budget.earn("r", asked, needs, 0.1)
        while budget.spend("r", asked, needs):
            hedged += 1
        assert hedged <= 1 + 0.1 * calls + 1e-9
    assert hedged == 11
    assert not budget.spend("another", asked, needs)


def test_the_budget_counts_dollars_where_prices_are_known() -> None:
    cheap, dear = model("p/m"), model("q/m")
    cheap.price.CopyFrom(Price(effective_date="2026-01-01", input="1", output="1"))
    dear.price.CopyFrom(Price(effective_date="2026-01-01", input="10", output="10"))
    found = compile_table(message([backend("p", cheap), backend("q", dear)], {})).backends
    budget, needs = HedgeBudget(), Needs(model="", input_tokens=100)
    for _ in range(89):
        budget.earn("r", found["p:p/m"], needs, 0.1)
        assert not budget.spend("r", found["q:q/m"], needs)
    # One call was granted at first: nine more of its kind make the tenfold price.
    budget.earn("r", found["p:p/m"], needs, 0.1)
    assert budget.spend("r", found["q:q/m"], needs)
    assert not budget.spend("r", found["p:p/m"], needs)


def test_late_is_the_95th_percentile_between_two_and_ten_medians() -> None:
    late = Late()
    for number in range(19):
        late.add(float(number))
    assert late.after() is None
    late.add(19.0)
    assert late.after() == 20.0
    for number in range(64):
        late.add(float(number < 10) * 4.0 + 1.0)
    assert late.after() == 5.0
    # Stalls that are as frequent as one in twenty don't make themselves the rule.
    for number in range(64):
        late.add(10.0 if number % 16 == 0 else 0.1)
    assert late.after() == pytest.approx(1.0)
