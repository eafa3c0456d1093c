"""The breaker as a table of moments and outcomes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_sdk.mesh.breaker import Breaker, BreakerPolicy, State

POLICY = BreakerPolicy(
    consecutive_failures=3,
    minimum_calls=6,
    failure_ratio=0.5,
    window=10,
    open_time=5,
    quota_open_time=60,
    half_open_calls=1,
)
UPSTREAM = ErrorReason.ERROR_REASON_UPSTREAM_ERROR
FAIL, OK, CALLER, LIMITED, QUOTA, AUTH = "fail", "ok", "caller", "limited", "quota", "auth"
REASONS = {
    FAIL: (ErrorReason.ERROR_REASON_UPSTREAM_ERROR, True, None),
    CALLER: (ErrorReason.ERROR_REASON_INVALID_REQUEST, False, None),
    LIMITED: (ErrorReason.ERROR_REASON_RATE_LIMITED, False, 2.0),
    QUOTA: (ErrorReason.ERROR_REASON_PROVIDER_QUOTA, True, None),
    AUTH: (ErrorReason.ERROR_REASON_PROVIDER_AUTH, True, None),
}


def after(*outcomes: str, step: float = 0.1) -> tuple[Breaker, float]:
    breaker, now = Breaker(POLICY), 1000.0
    for outcome in outcomes:
        breaker.begin(now)
        if outcome == OK:
            breaker.succeed(now)
        else:
            reason, counts, wait = REASONS[outcome]
            breaker.fail(now, reason, counts=counts, retry_after=wait)
        now += step
    return breaker, now


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ((), State.CLOSED),
        ((FAIL, FAIL), State.CLOSED),
        ((FAIL, FAIL, FAIL), State.OPEN),
        ((FAIL, FAIL, OK, FAIL, FAIL), State.OPEN),  # 4 of 5 calls: below the minimum volume, until ...
        ((FAIL, OK, FAIL, OK), State.CLOSED),  # ... below minimum volume: half of four is no verdict
        ((FAIL, OK, FAIL, OK, FAIL, OK), State.CLOSED),  # the sixth call is a success: judged on failures only
        ((FAIL, OK, FAIL, OK, OK, FAIL), State.OPEN),
        ((CALLER,) * 20, State.CLOSED),
        ((LIMITED,), State.OPEN),
        ((QUOTA,), State.OPEN),
        ((AUTH,), State.OPEN),
    ],
)
def test_state_after(outcomes: tuple[str, ...], state: State) -> None:
    breaker, now = after(*outcomes)
    if outcomes == (FAIL, FAIL, OK, FAIL, FAIL):
        assert breaker.state(now) is State.CLOSED
        breaker.fail(now, *REASONS[FAIL][:1], counts=True)
    assert breaker.state(now) is state
    assert breaker.admits(now) is (state is State.CLOSED)


def test_half_open_lets_one_call_through_and_success_closes() -> None:
    breaker, now = after(FAIL, FAIL, FAIL)
    now += POLICY.open_time
    assert breaker.state(now) is State.HALF_OPEN
    assert breaker.admits(now)
    breaker.begin(now)
    assert not breaker.admits(now)
    breaker.succeed(now)
    assert breaker.state(now) is State.CLOSED


def test_half_open_failure_opens_again_at_once() -> None:
    breaker, now = after(FAIL, FAIL, FAIL)
    now += POLICY.open_time
    breaker.begin(now)
    breaker.fail(now, ErrorReason.ERROR_REASON_OVERLOADED, counts=True, retry_after=9.0)
    assert breaker.state(now + 8.9) is State.OPEN  # Retry-After bounds the open time from below
    assert breaker.state(now + 9.1) is State.HALF_OPEN


def test_an_abandoned_trial_call_frees_its_place() -> None:
    breaker, now = after(FAIL, FAIL, FAIL)
    now += POLICY.open_time
    breaker.begin(now)
    breaker.abandon()
    assert breaker.admits(now)


def test_a_rate_limit_holds_back_for_its_time_and_is_no_failure() -> None:
    breaker, now = after(LIMITED, step=0.0)
    assert breaker.state(now + 1.9) is State.OPEN
    assert breaker.reason == "RATE_LIMITED, retry after 2 s"
    assert (breaker.state(now + 2.0), breaker.reason) == (State.CLOSED, "")


def test_quota_opens_for_long() -> None:
    breaker, now = after(QUOTA, step=0.0)
    assert breaker.state(now + 59) is State.OPEN
    assert breaker.state(now + 60) is State.HALF_OPEN


def test_old_failures_leave_the_window() -> None:
    breaker, now = after(FAIL, OK, FAIL, OK, FAIL, OK)
    now += POLICY.window + 1
    breaker.fail(now, ErrorReason.ERROR_REASON_UPSTREAM_ERROR, counts=True)
    assert breaker.state(now) is State.CLOSED


def test_a_late_success_does_not_close_an_open_breaker() -> None:
    breaker, now = after(FAIL, FAIL, FAIL)
    breaker.succeed(now)
    assert breaker.state(now) is State.OPEN


def opened_at(moment: float, half_open_calls: int = 1) -> Breaker:
    breaker = Breaker(replace(POLICY, half_open_calls=half_open_calls))
    for _ in range(POLICY.consecutive_failures):
        breaker.fail(moment, UPSTREAM, counts=True, began=moment - 1)
    assert breaker.state(moment) is State.OPEN
    return breaker


@pytest.mark.parametrize("end", ["succeed", "fail", "abandon"])
@pytest.mark.parametrize("when", ["half open", "closed again"])
def test_what_began_before_the_opening_changes_nothing(end: str, when: str) -> None:
    breaker = opened_at(1000.0)
    now = 1000.0 + POLICY.open_time
    breaker.begin(now)
    if when == "closed again":
        breaker.succeed(now, now)
    before = breaker.state(now)
    for _ in range(20):
        match end:
            case "succeed":
                breaker.succeed(now + 1, began=999.0)
            case "fail":
                breaker.fail(now + 1, UPSTREAM, counts=True, began=999.0)
            case _:
                breaker.abandon(began=999.0)
    assert breaker.state(now + 1) is before
    # Nor does it free the place of the trial call that is under way.
    assert breaker.admits(now + 1) is (when == "closed again")


def test_a_trial_call_that_outlives_its_trial_keeps_its_place() -> None:
    breaker = opened_at(1000.0, half_open_calls=2)
    breaker.begin(1005.0)
    breaker.begin(1005.5)
    breaker.fail(1006.0, UPSTREAM, counts=True, began=1005.0)
    assert breaker.state(1006.0) is State.OPEN
    assert breaker.admits(1011.0)
    breaker.begin(1011.0)
    assert not breaker.admits(1011.0)
    breaker.succeed(1011.5, began=1005.5)
    assert breaker.state(1011.5) is State.HALF_OPEN
    assert breaker.admits(1011.5)


def test_a_clock_that_is_set_back_does_not_make_it_open_for_longer() -> None:
    breaker = opened_at(1000.0)
    assert breaker.state(400.0) is State.OPEN
    assert breaker.state(400.0 + POLICY.open_time - 0.1) is State.OPEN
    assert breaker.state(400.0 + POLICY.open_time) is State.HALF_OPEN


def test_what_others_found_is_held_and_the_longer_time_counts() -> None:
    breaker = Breaker(POLICY)
    breaker.hold(1000.0, 1010.0, "they said so")
    assert (breaker.state(1009.9), breaker.reason) == (State.OPEN, "they said so")
    breaker.hold(1001.0, 1005.0, "shorter")
    assert (breaker.until, breaker.reason) == (1010.0, "they said so")
    breaker.hold(1001.0, 1005.0, "shorter", exact=True)
    assert (breaker.until, breaker.reason) == (1005.0, "shorter")
    assert breaker.state(1005.0) is State.HALF_OPEN
    breaker.close()
    breaker.hold(1006.0, 1006.0, "half open there")
    assert breaker.state(1006.0) is State.HALF_OPEN


def test_other_limits_leave_open_what_is_open() -> None:
    breaker = opened_at(1000.0)
    breaker.tune(replace(POLICY, half_open_calls=2))
    assert breaker.state(1004.9) is State.OPEN
    breaker.begin(1005.0)
    assert breaker.admits(1005.0)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "succeed", "fail", "abandon", "limited", "wait", "hold", "close"]),
        st.integers(0, 7),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(MOVES, st.integers(1, 3))
def test_no_call_passes_while_it_is_open_and_never_too_many_while_half_open(
    moves: list[tuple[str, int]], most: int
) -> None:
    breaker = Breaker(replace(POLICY, half_open_calls=most, consecutive_failures=2))
    now = 1000.0
    calls: list[tuple[float, bool]] = []
    for move, number in moves:
        now += 0.001
        if move == "call":
            state = breaker.state(now)
            trials = sum(trial for _, trial in calls)
            assert breaker.admits(now) is (state is State.CLOSED or (state is State.HALF_OPEN and trials < most))
            if breaker.admits(now):
                breaker.begin(now)
                calls.append((now, state is State.HALF_OPEN))
        elif move == "wait":
            now += number
        elif move == "hold":
            breaker.hold(now, now + number, "they said so")
        elif move == "close":
            breaker.close()
        elif calls:
            began, _ = calls.pop(number % len(calls))
            match move:
                case "succeed":
                    breaker.succeed(now, began)
                case "fail":
                    breaker.fail(now, UPSTREAM, counts=True, began=began)
                case "limited":
                    limited = ErrorReason.ERROR_REASON_RATE_LIMITED
                    breaker.fail(now, limited, counts=False, retry_after=2.0, began=began)
                case _:
                    breaker.abandon(began)
        if breaker.state(now) is State.CLOSED:
            # It is well: what was a trial is a call like any other.
            calls = [(began, False) for began, _ in calls]
