"""The gate before attempts: who is refused is passed over, and what an attempt took goes back exactly once."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.usage_pb2 import Price
from maestro_sdk.errors import (
    InvalidRequest,
    MaestroError,
    Overloaded,
    RateLimited,
    TenantConcurrency,
    TenantRateLimited,
)
from maestro_sdk.mesh.handover import Begun
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.trail import Trail
from maestro_sdk.testing.scripted import Fault

from .dispatching import Mesh, ask, mesh, named, text, until
from .places import Place, Places, mesh_wide

ANSWERED, FAILED = AttemptFate.ATTEMPT_FATE_ANSWERED, AttemptFate.ATTEMPT_FATE_FAILED
BEFORE, CUT = Fault.ERROR_BEFORE_CONTENT, Fault.ERROR_AFTER_CONTENT
STALL, STUCK = Fault.STALL_BEFORE_CONTENT, Fault.STALL_AFTER_CONTENT
PRICE = Price(effective_date="2026-01-01", input="1.00", output="10.00")


async def say(m: Mesh, *, unary: bool, **more: Any) -> str:
    if unary:
        return (await m.complete(**more)).parts[0].text.text
    return text(await m.stream(**more))


def passed(m: Mesh) -> list[str]:
    assert m.trail.plan is not None
    return [found.backend_id for found in m.trail.plan.message().candidates if "passed over: no room" in found.reason]


@pytest.mark.parametrize("unary", [True, False])
async def test_who_has_no_room_is_passed_over_and_the_next_one_answers(unary: bool) -> None:
    gate = Places({"p1": 0})
    async with mesh(named(1), named(2), gate=gate) as m:
        assert await say(m, unary=unary) == "I am 2."
        assert not m.providers[0].requests
        assert [attempt.backend.provider for attempt in m.trail.attempts] == ["p2"]
        assert passed(m) == ["p1:p1/m"]
        # It says nothing of the backend: no failure is told, and no breaker learns of it.
        assert not m.failures
        assert [outcome.backend_id for outcome in m.source.outcomes] == ["p2:p2/m"]
        assert gate.settled == []


@pytest.mark.parametrize("unary", [True, False])
async def test_an_answer_gives_back_once_what_it_did_not_use(unary: bool) -> None:
    gate = Places({"p1": 1})
    async with mesh(named(1), gate=gate) as m:
        for _ in range(3):
            assert await say(m, unary=unary) == "I am 1."
        [used] = {used for _, used in gate.settled}
        assert (len(gate.settled), gate.idle()) == (3, True)
        assert m.trail.usage is not None
        assert used == m.trail.usage.input_tokens + m.trail.usage.output_tokens


@pytest.mark.parametrize("unary", [True, False])
@pytest.mark.parametrize(
    ("errors", "expected", "wait"),
    [
        ({"p1": mesh_wide(30.0), "p2": mesh_wide(7.0)}, RateLimited, 7.0),
        ({"p1": mesh_wide(None), "p2": mesh_wide(9.0)}, RateLimited, 9.0),
        ({"p1": TenantConcurrency("no room", retry_after=7.0), "p2": mesh_wide(9.0)}, TenantConcurrency, 7.0),
        ({"p1": TenantRateLimited("no room"), "p2": TenantRateLimited("no room")}, TenantRateLimited, None),
    ],
)
async def test_without_anybody_else_it_fails_with_the_limit_that_has_room_first(
    errors: dict[str, MaestroError], expected: type[MaestroError], wait: float | None, unary: bool
) -> None:
    left = list(errors.values())
    gate = Places(dict.fromkeys(errors, 0), refuse=lambda: left.pop(0))
    async with mesh(named(1), named(2), gate=gate) as m:
        begun = time.monotonic()
        with pytest.raises(expected) as caught:
            await say(m, unary=unary)
        assert time.monotonic() - begun < 5, "nobody waits for what takes long, nor for a limit of its own"
        assert caught.value.retry_after == wait
        assert caught.value.metadata["tried"] == "p1:p1/m: passed over: no room; p2:p2/m: passed over: no room"
        assert caught.value.metadata["attempts"] == "0"
        assert m.trail.attempts == []
        assert m.source.outcomes == []
        assert passed(m) == ["p1:p1/m", "p2:p2/m"]


@pytest.mark.parametrize("unary", [True, False])
async def test_room_that_comes_soon_is_waited_for_as_a_retry_after_is(unary: bool) -> None:
    gate = Places({"p1": 0}, refuse=lambda: mesh_wide(0.1))
    async with mesh(named(1), gate=gate, retry_share=0.0) as m:
        task = asyncio.create_task(say(m, unary=unary))
        await until(lambda: len(gate.asked) == 2)
        gate.limits["p1"] = 1
        assert await task == "I am 1."
        assert gate.idle()


async def test_room_that_may_come_at_any_moment_is_asked_for_again_and_again() -> None:
    gate = Places({"p1": 0}, refuse=lambda: mesh_wide(9.0), exact=False)
    async with mesh(named(1), gate=gate, retry_share=0.0, back_off=0.04, longest_back_off=30.0) as m:
        begun = time.monotonic()
        task = asyncio.create_task(m.complete())
        # The dice give half of 0.04, then twice as much each time: 0.02, 0.06, 0.14.
        await until(lambda: len(gate.asked) == 4)
        assert 0.14 <= time.monotonic() - begun < 9
        gate.limits["p1"] = 1
        await task
        assert (len(gate.asked), gate.idle()) == (5, True)


async def test_nobody_waits_longer_than_it_would_back_off() -> None:
    gate = Places({"p1": 0}, refuse=lambda: mesh_wide(0.05))
    async with mesh(named(1), gate=gate, longest_back_off=0.2) as m:
        begun = time.monotonic()
        with pytest.raises(RateLimited):
            await m.stream()
        assert time.monotonic() - begun < 5
        assert 1 <= len(gate.asked) <= 5


async def test_nobody_waits_beyond_the_deadline() -> None:
    gate = Places({"p1": 0}, refuse=lambda: mesh_wide(20.0))
    async with mesh(named(1), gate=gate, longest_back_off=60.0) as m:
        begun = time.monotonic()
        with pytest.raises(RateLimited):
            await m.stream(deadline=begun + 10)
        assert time.monotonic() - begun < 8


@pytest.mark.parametrize("unary", [True, False])
async def test_a_retry_does_not_stand_in_its_own_way(unary: bool) -> None:
    failing = named(1, fault=BEFORE)
    gate = Places({"p1": 1}, refuse=lambda: TenantConcurrency("no room"))
    async with mesh(failing, gate=gate, max_attempts=3) as m:
        task = asyncio.create_task(say(m, unary=unary))
        await until(lambda: len(m.failures) == 1)
        failing.fault = None
        assert await task == "I am 1."
        assert len(gate.settled) == len(m.trail.attempts)
        assert gate.settled[0][1] in (None, 1), "what failed before it answered used no more than the question"
        assert (gate.most["p1"], gate.idle()) == (1, True)


async def test_a_caller_at_fault_is_told_that_and_nothing_of_limits() -> None:
    gate = Places({"p2": 0})
    async with mesh(named(1, fault=BEFORE, error=InvalidRequest("no")), named(2), gate=gate) as m:
        with pytest.raises(InvalidRequest):
            await m.stream()
        assert gate.asked == []


async def test_a_failure_stays_the_error_when_the_next_has_no_room() -> None:
    gate = Places({"p2": 0}, refuse=lambda: TenantRateLimited("no room", retry_after=60.0))
    async with mesh(named(1, fault=BEFORE, error=Overloaded("busy", retryable=False)), named(2), gate=gate) as m:
        with pytest.raises(Overloaded) as caught:
            await m.stream()
        assert caught.value.metadata["tried"] == "p1:p1/m: OVERLOADED; p2:p2/m: passed over: no room"
        assert caught.value.metadata["attempts"] == "1"


@pytest.mark.parametrize("unary", [True, False])
@pytest.mark.parametrize("pause", [0.0, 0.01])
async def test_a_second_attempt_is_not_made_where_there_is_no_room(unary: bool, pause: float) -> None:
    gate = Places({"p1": 1, "p2": 0}, pause=pause)
    async with mesh(named(1, pace=0.1), named(2), gate=gate, hedge_after=0.03, max_extra=1.0) as m:
        assert await say(m, unary=unary) == "I am 1."
        assert gate.asked == ["p1", "p2"]
        assert not m.providers[1].requests
        assert len(m.trail.attempts) == 1
        assert gate.idle()
        gate.limits["p2"] = 1
        assert await say(m, unary=unary) in {"I am 1.", "I am 2."}
        assert len(m.trail.attempts) == 2, "what was not made did not use up what may be spent"


@pytest.mark.parametrize("unary", [True, False])
@pytest.mark.parametrize("pause", [0.0, 0.01])
async def test_both_of_a_race_give_back_what_they_took(unary: bool, pause: float) -> None:
    gate = Places({"p1": 1, "p2": 1}, pause=pause)
    slow = named(1, fault=STALL, price=PRICE)
    async with mesh(slow, named(2, price=PRICE), gate=gate, hedge_after=0.03, max_extra=1.0) as m:
        assert await say(m, unary=unary) == "I am 2."
        assert sorted(name for name, _ in gate.settled) == ["p1", "p2"]
        assert dict(gate.settled)["p1"] == 1, "the loser has read the question"
        assert gate.idle()
        assert m.idle()


@pytest.mark.parametrize("unary", [True, False])
async def test_who_wins_while_the_second_stands_at_the_gate_ends_that(unary: bool) -> None:
    gate = Places({"p2": 1}, opens=asyncio.Event())
    async with mesh(named(1, pace=0.06), named(2), gate=gate, hedge_after=0.03, max_extra=1.0) as m:
        assert await say(m, unary=unary) == "I am 1."
        await until(lambda: gate.left == ["p2"])
        assert (gate.asked, len(m.trail.attempts), gate.settled, gate.idle()) == (["p2"], 1, [], True)


@pytest.mark.parametrize("unary", [True, False])
async def test_when_the_first_fails_the_second_at_the_gate_goes_on(unary: bool) -> None:
    gate = Places({"p2": 1}, opens=asyncio.Event())
    failing = named(1, pace=0.06, fault=BEFORE)
    async with mesh(failing, named(2), gate=gate, hedge_after=0.03, max_extra=1.0) as m:
        task = asyncio.create_task(say(m, unary=unary))
        await until(lambda: bool(m.failures and gate.asked))
        gate.open_up()
        assert await task == "I am 2."
        assert [attempt.fate for attempt in m.trail.attempts] == [FAILED, ANSWERED]
        assert (gate.asked, gate.idle()) == (["p2"], True)


@pytest.mark.parametrize("unary", [True, False])
async def test_nobody_begins_after_a_wait_at_the_gate_when_the_request_is_over(unary: bool) -> None:
    gate = Places({"p2": 1}, opens=asyncio.Event())
    wrong = named(1, pace=0.06, fault=BEFORE, error=InvalidRequest("no"))
    async with mesh(wrong, named(2), gate=gate, hedge_after=0.03, max_extra=1.0) as m:
        task = asyncio.create_task(say(m, unary=unary))
        await until(lambda: bool(m.failures and gate.asked))
        gate.open_up()
        with pytest.raises(InvalidRequest):
            await task
        assert not m.providers[1].requests, "it would be paid for nothing"
        assert (gate.undone, gate.settled, gate.idle()) == (["p2"], [], True)


async def test_a_half_open_backend_gets_one_trial_however_many_stand_at_the_gate() -> None:
    gate = Places({"p1": 9}, opens=asyncio.Event())
    trial = named(1, pace=0.05)
    async with mesh(trial, named(2), gate=gate) as m:
        now = time.time()
        m.source.local.breaker("p1:p1/m").hold(now, now, "TIMEOUT")

        async def one() -> str:
            request = ask()
            return (await m.dispatcher.complete(request, needs_of(request), Trail())).parts[0].text.text

        tasks = [asyncio.create_task(one()) for _ in range(5)]
        await until(lambda: len(gate.asked) == 5)
        gate.open_up()
        assert sorted(await asyncio.gather(*tasks)) == ["I am 1.", *["I am 2."] * 4]
        assert len(trial.requests) == 1
        assert (gate.undone, len(gate.settled), gate.idle()) == (["p1"] * 4, 1, True)


async def test_one_place_is_enough_for_a_hedge_that_becomes_a_failover() -> None:
    # Both models are of one account: the second is refused while the first runs, and asked once that failed.
    places = Places({"p1": 1, "p2": 1})
    places.limits = {"p1": 1, "p2": 1}
    shared: Any = places
    found = places.find
    shared.find = lambda backend, needs: (place := found(backend, needs)) and _rename(place)
    failing = named(1, pace=0.06, fault=BEFORE)
    async with mesh(failing, named(2), gate=shared, hedge_after=0.02, max_extra=1.0) as m:
        assert text(await m.stream()) == "I am 2."
        assert places.asked == ["p1", "p1", "p1"]
        assert (places.most["p1"], places.idle()) == (1, True)


def _rename(place: Place) -> Place:
    place.name = "p1"
    return place


async def test_a_handover_gives_back_before_it_goes_on() -> None:
    gate = Places({"p1": 1, "p2": 0, "p3": 1})
    async with mesh(
        named(1, "One", "x", fault=CUT), named(2, "no"), named(3, " two"), gate=gate, resume=True, max_attempts=3
    ) as m:
        assert text(await m.stream()) == "One two"
        assert [name for name, _ in gate.settled] == ["p1", "p3"]
        assert passed(m) == ["p2:p2/m"]
        assert gate.idle()


async def test_an_answer_that_nobody_may_go_on_with_ends_with_what_broke_it() -> None:
    gate = Places({"p2": 0}, refuse=lambda: mesh_wide(0.01))
    async with mesh(named(1, "One", "x", fault=CUT), named(2), gate=gate, resume=True) as m:
        with pytest.raises(Overloaded) as caught:
            await m.stream()
        assert "none is left that may be asked" in caught.value.message
        assert "p2:p2/m: passed over: no room" in caught.value.metadata["tried"]


@pytest.mark.parametrize("fault", [STALL, STUCK])
async def test_a_caller_that_leaves_gives_its_place_back(fault: Fault) -> None:
    gate = Places({"p1": 1})
    async with mesh(named(1, "a", "b", fault=fault), gate=gate) as m:
        task = asyncio.create_task(m.stream(ask("x" * 400)))
        await until(lambda: bool(m.providers[0].requests))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.idle()
        [(name, used)] = gate.settled
        assert (name, used is not None and used >= 100) == ("p1", True), "what it used so far is estimated"


async def test_a_caller_that_stops_reading_gives_its_place_back() -> None:
    gate = Places({"p1": 1})
    async with mesh(named(1, "a", "b", pace=0.05), gate=gate) as m:
        request = ask()
        async with aclosing(m.dispatcher.stream(request, needs_of(request), Trail())) as batches:
            async for _ in batches:
                break
        assert (gate.idle(), len(gate.settled)) == (True, 1)


async def test_a_caller_that_leaves_while_it_stands_at_the_gate_takes_nothing() -> None:
    gate = Places({"p1": 1}, pause=0.3)
    async with mesh(named(1), gate=gate) as m:
        task = asyncio.create_task(m.complete())
        await until(lambda: bool(gate.asked))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (gate.idle(), m.trail.attempts, m.idle()) == (True, [], True)


async def test_an_answer_that_stands_is_taken_up_without_asking() -> None:
    gate = Places({"p1": 0})
    async with mesh(named(1), gate=gate) as m:
        standing = next(iter(m.source.table.backends.values()))
        assert text(await m.stream(begun=Begun(standing, shown=False))) == "I am 1."
        assert gate.asked == []


async def test_an_answer_that_stood_and_failed_is_asked_for_anew_as_any_other() -> None:
    gate = Places({"p1": 0, "p2": 1})
    async with mesh(named(1, fault=BEFORE), named(2), gate=gate, max_attempts=3) as m:
        standing = next(iter(m.source.table.backends.values()))
        assert text(await m.stream(begun=Begun(standing, shown=False))) == "I am 2."
        assert gate.asked == ["p2"]
        m.providers[1].fault = BEFORE
        with pytest.raises(MaestroError):
            await m.stream(begun=Begun(standing, shown=False))
        assert gate.asked[1:] == ["p2", "p1", "p2"]
        assert len(m.providers[0].requests) == 2


async def test_any_number_of_requests_keeps_to_the_places() -> None:
    gate = Places({"p1": 3}, refuse=lambda: mesh_wide(0.02), pause=0.001)
    async with mesh(named(1, pace=0.005), gate=gate, longest_back_off=5.0) as m:

        async def one() -> str:
            request = ask()
            return (await m.dispatcher.complete(request, needs_of(request), Trail())).parts[0].text.text

        assert await asyncio.gather(*(one() for _ in range(30))) == ["I am 1."] * 30
        assert (gate.most["p1"], len(gate.settled), gate.idle()) == (3, 30, True)
