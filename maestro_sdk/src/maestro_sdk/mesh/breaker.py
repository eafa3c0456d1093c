"""A circuit breaker as pure state: time comes in as an argument, so that tables of cases can test it.

Closed: calls pass; it opens after a number of failures in a row, or when the share of failures in the window is too
high and the window holds enough calls. Open: no call passes until a moment. Half open: a few calls try; one success
closes it, one failure opens it again. Faults of the caller never reach it. Refused credentials and used-up quota open
it at once and for long; a rate limit with a Retry-After holds calls back for just that time and is no failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.router.v1.router_pb2 import BreakerPolicy as BreakerPolicyMessage

_AT_ONCE = frozenset({ErrorReason.ERROR_REASON_PROVIDER_AUTH, ErrorReason.ERROR_REASON_PROVIDER_QUOTA})
_BUCKETS = 10


class State(Enum):
    """State of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """Limits; times in seconds."""

    consecutive_failures: int = 5
    minimum_calls: int = 10
    failure_ratio: float = 0.5
    window: float = 30.0
    open_time: float = 10.0
    quota_open_time: float = 300.0
    half_open_calls: int = 1

    @classmethod
    def from_message(cls, message: BreakerPolicyMessage) -> BreakerPolicy:
        """The limits of a route table."""
        return cls(
            consecutive_failures=message.consecutive_failures,
            minimum_calls=message.minimum_calls,
            failure_ratio=message.failure_ratio,
            window=message.window.ToNanoseconds() / 1e9,
            open_time=message.open_time.ToNanoseconds() / 1e9,
            quota_open_time=message.quota_open_time.ToNanoseconds() / 1e9,
            half_open_calls=message.half_open_calls,
        )


class Breaker:
    """One breaker. Times are seconds of any steady clock, the same for all calls."""

    __slots__ = ("_buckets", "_policy", "_probes", "_row", "_state", "_until", "reason")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._state = State.CLOSED
        self._until = 0.0
        self._row = 0
        self._probes = 0
        # Bucket number -> [calls, failures]; old ones are dropped as time goes on.
        self._buckets: dict[int, list[int]] = {}
        self.reason = ""
        """Why it is open, for a person."""

    def state(self, now: float) -> State:
        """The state at `now`: an open breaker becomes half open when its time is over."""
        if self._state is State.OPEN and now >= self._until:
            return State.HALF_OPEN if self._row else State.CLOSED
        return self._state

    @property
    def until(self) -> float:
        """When the open state ends."""
        return self._until

    def admits(self, now: float) -> bool:
        """Whether a call may pass at `now`."""
        match self.state(now):
            case State.CLOSED:
                return True
            case State.OPEN:
                return False
            case State.HALF_OPEN:
                return self._probes < self._policy.half_open_calls

    def begin(self, now: float) -> None:
        """A call starts."""
        state = self.state(now)
        if state is State.HALF_OPEN:
            self._state = State.HALF_OPEN
            self._probes += 1
        elif state is State.CLOSED:
            self._state = State.CLOSED

    def abandon(self) -> None:
        """A call ended without telling anything, since its caller left or was at fault."""
        self._probes = max(0, self._probes - 1)

    def succeed(self, now: float) -> None:
        """A call succeeded."""
        state = self.state(now)
        if state is State.OPEN:
            # A call that began before it opened says nothing about now.
            return
        if state is State.HALF_OPEN:
            self._close()
        self._state = State.CLOSED
        self._row = 0
        self._probes = 0
        self._bucket(now)[0] += 1

    def fail(
        self, now: float, reason: ErrorReason.ValueType, *, counts: bool, retry_after: float | None = None
    ) -> None:
        """A call failed for `reason`; `counts` tells whether it speaks against the backend's health."""
        name = ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
        if reason == ErrorReason.ERROR_REASON_RATE_LIMITED:
            self.abandon()
            if retry_after and self.state(now) is not State.OPEN:
                self._open(now + retry_after, f"{name}, retry after {retry_after:g} s")
            return
        if not counts:
            self.abandon()
            return
        was_open = self._state is not State.CLOSED
        self._row += 1
        bucket = self._bucket(now)
        bucket[0] += 1
        bucket[1] += 1
        if reason in _AT_ONCE:
            self._open(now + (retry_after or self._policy.quota_open_time), name)
            return
        calls, failures = self._totals(now)
        policy = self._policy
        if was_open:
            self._open(now + max(policy.open_time, retry_after or 0.0), f"{name} while half open")
        elif self._row >= policy.consecutive_failures:
            self._open(now + max(policy.open_time, retry_after or 0.0), f"{name}, {self._row} failures in a row")
        elif calls >= policy.minimum_calls and failures / calls >= policy.failure_ratio:
            self._open(now + max(policy.open_time, retry_after or 0.0), f"{name}, {failures} of {calls} calls failed")

    def _open(self, until: float, reason: str) -> None:
        self._state, self._until, self.reason = State.OPEN, until, reason
        self._probes = 0

    def _close(self) -> None:
        self._buckets.clear()
        self.reason = ""

    def _bucket(self, now: float) -> list[int]:
        number = int(now * _BUCKETS / self._policy.window)
        bucket = self._buckets.get(number)
        if bucket is None:
            for old in [key for key in self._buckets if key <= number - _BUCKETS]:
                del self._buckets[old]
            bucket = self._buckets[number] = [0, 0]
        return bucket

    def _totals(self, now: float) -> tuple[int, int]:
        oldest = int(now * _BUCKETS / self._policy.window) - _BUCKETS
        live = [bucket for number, bucket in self._buckets.items() if number > oldest]
        return sum(calls for calls, _ in live), sum(failures for _, failures in live)
