"""What a process knows of backends by itself, and what the router's table adds to it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import (
    InvalidRequest,
    MaestroError,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    UpstreamError,
)
from maestro_sdk.mesh.breaker import State
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.table import Backend, Table, compile_table
from maestro_sdk.testing.tables import model

NOW = 1_700_000_000.0
ONE, TWO, OTHER = "a:p/one", "a:p/two", "b:p/one"
ACTIVE, OPEN, HALF_OPEN = pb.BACKEND_STATE_ACTIVE, pb.BACKEND_STATE_OPEN, pb.BACKEND_STATE_HALF_OPEN
Shown = tuple[int, float] | tuple[int, float, bool]


def table(since: float = 1.0, half_open_calls: int = 1, version: int = 1, **shown: Any) -> Table:
    """Two models at adapter a, one at b. `shown`: state, end, and whether it is that of the account, by name."""
    message = pb.RouteTable(version=version)
    message.breaker.consecutive_failures, message.breaker.minimum_calls = 2, 100
    message.breaker.failure_ratio, message.breaker.half_open_calls = 0.5, half_open_calls
    message.breaker.window.seconds, message.breaker.open_time.seconds = 30, 10
    message.breaker.quota_open_time.seconds = 300
    for key, name in (("one", ONE), ("two", TWO), ("other", OTHER)):
        adapter, described = name.split(":")
        state, until, wide = (*shown.get(key, (ACTIVE, 0.0)), False)[:3]
        backend = message.backends.add(id=name, adapter=adapter, model=model(described), state=state)
        backend.serving_since.FromNanoseconds(int(since * 1e9))
        backend.account_wide = wide
        if state != ACTIVE:
            backend.state_reason = "the router says so"
        if until:
            backend.state_until.FromNanoseconds(int(until * 1e9))
    return compile_table(message)


class Process:
    """A local state with the backends of its table."""

    def __init__(self, **shown: Any) -> None:
        self.local = LocalState()
        self.show(NOW, **shown)

    def show(self, now: float, *, anew: bool = False, **shown: Any) -> None:
        self.table = table(**shown)
        self.local.adopt(self.table, now, anew=anew)

    def backend(self, name: str = ONE) -> Backend:
        return self.table.backends[name]

    def fail(self, error: MaestroError, now: float = NOW, times: int = 1, name: str = ONE) -> None:
        for _ in range(times):
            self.local.begin(self.backend(name), now)
            self.local.fail(self.backend(name), error, now, now)

    def succeed(self, now: float, name: str = ONE) -> None:
        self.local.begin(self.backend(name), now)
        self.local.succeed(self.backend(name), now, now)

    def passes(self, now: float, name: str = ONE) -> bool:
        return self.local.bars(self.backend(name), now) is None


@pytest.mark.parametrize(
    ("error", "barred", "told"),
    [
        (UpstreamError("gone"), {ONE}, [ONE]),
        (Overloaded("busy"), {ONE}, [ONE]),
        (ProviderQuota("used up"), {ONE}, [ONE]),
        (RateLimited("slower", retry_after=5.0), {ONE}, [ONE]),
        (RateLimited("slower"), set[str](), list[str]()),
        (InvalidRequest("no"), set[str](), list[str]()),
        # Of the account as a whole: the key is refused outright, or the adapter can't be reached.
        (ProviderAuth("who?", metadata={"upstream_status": "401"}), {ONE, TWO}, [ONE, "a:p"]),
        (ProviderAuth("not this model", metadata={"upstream_status": "403"}), {ONE}, [ONE]),
        (UpstreamError("refused", metadata={"origin": "transport"}), {ONE, TWO}, [ONE, "a:p"]),
    ],
)
def test_whom_a_failure_concerns(error: MaestroError, barred: set[str], told: list[str]) -> None:
    process = Process()
    process.fail(error, times=2)
    assert {name for name in (ONE, TWO, OTHER) if not process.passes(NOW + 1, name)} == barred
    openings = process.local.openings()
    assert [opening.scope for opening in openings] == told
    assert all(opening.until.ToNanoseconds() / 1e9 > NOW for opening in openings)
    assert process.local.openings() == []


def test_an_answer_of_any_model_makes_the_account_well() -> None:
    process = Process()
    process.fail(ProviderAuth("who?", metadata={"upstream_status": "401"}))
    assert not process.passes(NOW + 299, TWO)
    assert process.passes(NOW + 300, TWO)
    process.local.begin(process.backend(TWO), NOW + 300)
    barred = process.local.bars(process.backend(ONE), NOW + 300)
    assert barred == ("breaker of the account a:p half open here, a trial call is under way", 0.0)
    process.local.succeed(process.backend(TWO), NOW + 301, NOW + 300)
    assert process.passes(NOW + 301, TWO)
    assert process.local.trouble("a:p", NOW + 301) is None


def test_what_the_table_shows_open_is_held_then_tried_then_closed() -> None:
    process = Process(one=(OPEN, NOW + 20), half_open_calls=2)
    assert process.local.bars(process.backend(), NOW) == ("breaker open here: the router says so", NOW + 20)
    assert process.passes(NOW, OTHER)
    # Nobody told that it is over: then each process tries, a few calls at a time.
    for _ in range(2):
        assert process.passes(NOW + 20)
        process.local.begin(process.backend(), NOW + 20)
    assert not process.passes(NOW + 20)
    process.show(NOW + 21)
    assert process.passes(NOW + 21)
    assert process.local.trouble(ONE, NOW + 21) is None
    assert process.local.openings() == []


def test_an_operator_who_ends_it_early_ends_it_here() -> None:
    process = Process(one=(OPEN, NOW + 300))
    process.show(NOW + 1)
    assert process.passes(NOW + 1)
    process.show(NOW + 2, one=(OPEN, NOW + 300))
    process.show(NOW + 3, one=(OPEN, NOW + 8))  # closed and opened again in between, for less
    assert process.passes(NOW + 8)


def test_an_opening_of_its_own_stays_until_a_table_knows_of_it() -> None:
    process = Process()
    process.fail(ProviderQuota("used up"))
    process.show(NOW + 1)
    assert not process.passes(NOW + 1)
    process.show(NOW + 2, one=(OPEN, NOW + 300))
    assert not process.passes(NOW + 2)
    process.show(NOW + 3)
    assert process.passes(NOW + 3)


def test_a_table_that_is_older_than_the_opening_does_not_end_it() -> None:
    process = Process(one=(OPEN, NOW + 5))
    assert process.passes(NOW + 5)
    process.fail(UpstreamError("still gone"), NOW + 5)
    older: list[dict[str, Any]] = [{"one": (OPEN, NOW + 5)}, {"one": (HALF_OPEN, 0.0)}, {}]
    for shown in older:
        process.show(NOW + 5.1, **shown)
        assert not process.passes(NOW + 14.9)


def test_a_table_without_backends_ends_no_opening() -> None:
    process = Process()
    process.fail(ProviderQuota("used up"))
    process.local.adopt(compile_table(pb.RouteTable(version=2, breaker=pb.BreakerPolicy(half_open_calls=1))), NOW + 1)
    process.show(NOW + 2)
    assert not process.passes(NOW + 2)


def test_another_router_that_does_not_know_of_it_ends_no_opening() -> None:
    wide = (OPEN, NOW + 20, True)
    process = Process(one=wide, two=wide, other=(OPEN, NOW + 5))
    process.show(NOW + 1, anew=True)
    process.show(NOW + 2)
    assert [process.passes(NOW + 2, name) for name in (ONE, TWO, OTHER)] == [False, False, False]
    openings = process.local.unknown(NOW + 2)
    told = [(each.scope, each.since.seconds, each.until.seconds, each.reason) for each in openings]
    assert told == [("a:p", NOW, NOW + 20, "the router says so"), (OTHER, NOW, NOW + 5, "the router says so")]
    # One of these may have been told to the new router by somebody else; for the other one nobody waits for ever.
    process.show(NOW + 3, other=(OPEN, NOW + 5))
    assert [each.scope for each in process.local.unknown(NOW + 3)] == ["a:p"]
    process.show(NOW + 4)
    assert [process.passes(NOW + 4, name) for name in (ONE, TWO, OTHER)] == [False, False, True]
    assert process.local.unknown(NOW + 20) == []
    assert process.passes(NOW + 20)
    process.local.begin(process.backend(), NOW + 20)
    assert not process.passes(NOW + 20, TWO), "it is tried, one call at a time"


@pytest.mark.parametrize(("version", "passes"), [(0, False), (8, False), (7, True), (3, True)])
def test_what_a_router_was_told_and_does_not_show_open_is_over(version: int, passes: bool) -> None:
    process = Process(one=(OPEN, NOW + 20))
    process.show(NOW + 1, anew=True, version=7)
    process.local.note_told(process.local.unknown(NOW + 1), version, NOW + 1)
    process.show(NOW + 1, version=7)
    assert process.passes(NOW + 1) is passes
    process.show(NOW + 2, version=8)
    assert process.passes(NOW + 2) is (version != 0)


def test_a_router_that_was_told_of_the_opening_before_knows_nothing_of_this_one() -> None:
    process = Process()
    process.fail(UpstreamError("gone"), times=2)
    first = process.local.openings()
    process.local.note_told(first, 2, NOW)
    process.fail(UpstreamError("still gone"), NOW + 10)
    process.show(NOW + 11, version=2)
    assert not process.passes(NOW + 11)
    # Nor does the late answer to what it was told then.
    process.local.note_told(first, 3, NOW + 11)
    process.show(NOW + 12, version=3)
    assert not process.passes(NOW + 12)
    process.local.note_told(process.local.openings(), 3, NOW + 12)
    process.show(NOW + 12, version=3)
    assert process.passes(NOW + 12)


def test_a_router_that_was_told_too_late_does_not_end_the_trial() -> None:
    process = Process(half_open_calls=1)
    process.fail(UpstreamError("gone"), times=2)
    process.local.note_told(process.local.openings(), 2, NOW + 10)
    process.show(NOW + 10, version=2)
    process.local.begin(process.backend(), NOW + 10)
    assert not process.passes(NOW + 10)


def test_another_routers_time_of_an_adapter_is_no_new_start_unless_it_is_later() -> None:
    process = Process()
    process.fail(ProviderQuota("used up"))
    process.show(NOW + 1, anew=True, since=NOW - 5)
    assert not process.passes(NOW + 1)
    process.show(NOW + 2, anew=True, since=NOW + 1.5)
    assert process.passes(NOW + 2)


def test_who_comes_while_it_is_half_open_tries_with_few_calls() -> None:
    process = Process(one=(HALF_OPEN, 0.0))
    assert process.passes(NOW)
    process.local.begin(process.backend(), NOW)
    assert not process.passes(NOW)
    process.local.abandon(process.backend(), NOW)
    assert process.passes(NOW)


def test_the_state_of_an_account_is_held_as_that_of_the_account() -> None:
    wide = (OPEN, NOW + 20, True)
    process = Process(one=wide, two=wide)
    assert not process.passes(NOW, ONE)
    process.local.begin(process.backend(), NOW + 20)
    # One trial call for all its models.
    assert not process.passes(NOW + 20, TWO)
    process.local.fail(process.backend(), InvalidRequest("no"), NOW + 20, NOW + 20)
    assert process.passes(NOW + 20, TWO)
    process.show(NOW + 21)
    assert process.local.trouble("a:p", NOW + 21) is None


def test_an_adapter_that_was_started_anew_begins_anew() -> None:
    process = Process()
    process.fail(ProviderAuth("who?", metadata={"upstream_status": "401"}))
    process.show(NOW + 1, since=1.0)
    assert not process.passes(NOW + 1)
    process.show(NOW + 2, since=2.0)
    assert process.passes(NOW + 2, ONE)
    assert process.passes(NOW + 2, TWO)


def test_other_limits_close_nothing() -> None:
    process = Process(one=(OPEN, NOW + 20))
    process.show(NOW + 1, one=(OPEN, NOW + 20), half_open_calls=3)
    assert not process.passes(NOW + 1)
    for _ in range(3):
        assert process.passes(NOW + 20)
        process.local.begin(process.backend(), NOW + 20)
    assert not process.passes(NOW + 20)


def test_looking_is_nearly_free_while_all_is_well() -> None:
    process = Process()
    process.fail(UpstreamError("once"))
    process.succeed(NOW + 1)
    backend, bars = process.backend(), process.local.bars
    took: list[float] = []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(1000):
            bars(backend, NOW)
        took.append(time.perf_counter() - begun)
    # In microseconds per look; the best of twenty, since others use the machine.
    assert min(took) * 1000 < 1.0
    assert process.local.breaker(ONE).state(NOW) is State.CLOSED
