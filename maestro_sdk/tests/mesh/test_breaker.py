"""The breaker as a table of moments and outcomes."""

from __future__ import annotations

import pytest

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
    assert breaker.state(now + 2.0) is State.CLOSED
    assert "RATE_LIMITED" in breaker.reason


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
