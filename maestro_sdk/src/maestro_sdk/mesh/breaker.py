"""A circuit breaker as pure state: time comes in as an argument, so that tables of cases can test it.

Closed: calls pass; it opens after a number of failures in a row, or when the share of failures in the window is too
high and the window holds enough calls. Open: no call passes until a moment. Half open: a few trial calls pass; one
success closes it, one failure opens it again. Faults of the caller never reach it. Refused credentials and used-up
quota open it at once and for long; a rate limit with a Retry-After holds calls back for just that time and is no
failure. What began before it opened says nothing about the time after, and changes nothing.
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
    """One breaker. Times are seconds of any clock, the same for all calls.

    `began` is the `now` that the call's own `begin` was told. Without it a result counts as that of a trial call while
    one is under way, and as one from before the opening while none is.
    """

    __slots__ = ("_buckets", "_policy", "_row", "_state", "_trials", "_until", "opened", "reason", "waits")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._state = State.CLOSED
        self._until = 0.0
        self._row = 0
        # When the trial calls under way began. One that outlives the trial keeps its place until it ends.
        self._trials: list[float] = []
        # Bucket number -> [calls, failures]; old ones are dropped as time goes on.
        self._buckets: dict[int, list[int]] = {}
        self.opened = 0.0
        """When it opened last; 0 for never."""
        self.reason = ""
        """Why it is not closed, for a person."""
        self.waits = False
        """Whether it is open only because the provider asked to wait: afterwards it is closed, without trial calls."""

    def state(self, now: float) -> State:
        """The state at `now`: an open breaker becomes half open when its time is over."""
        if self._state is State.OPEN:
            if now < self.opened:
                # The clock was set back: what is left of the open time stays what it is.
                self._until -= self.opened - now
                self.opened = now
            if now >= self._until:
                self._state = State.CLOSED if self.waits else State.HALF_OPEN
                if self._state is State.CLOSED:
                    self.reason = ""
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
                return len(self._trials) < self._policy.half_open_calls

    def begin(self, now: float) -> None:
        """A call starts."""
        if self._state is not State.CLOSED and self.state(now) is State.HALF_OPEN:
            self._trials.append(now)

    def abandon(self, began: float | None = None) -> None:
        """A call ended without telling anything, since its caller left or was at fault."""
        if self._trials:
            self._end(began)

    def succeed(self, now: float, began: float | None = None) -> None:
        """A call succeeded."""
        if self._trials:
            began = self._end(began)
        state = self.state(now)
        if state is State.OPEN or self._late(began, state):
            return
        if state is State.HALF_OPEN:
            self.close()
        self._row = 0
        self._bucket(now)[0] += 1

    def fail(
        self,
        now: float,
        reason: ErrorReason.ValueType,
        *,
        counts: bool,
        retry_after: float | None = None,
        began: float | None = None,
    ) -> None:
        """A call failed for `reason`; `counts` tells whether it speaks against the backend's health."""
        if self._trials:
            began = self._end(began)
        state = self.state(now)
        if state is State.OPEN:
            return
        name = ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
        if reason == ErrorReason.ERROR_REASON_RATE_LIMITED:
            # What it says of the time to come holds also when the call began long ago.
            if retry_after:
                self._open(now, retry_after, f"{name}, retry after {retry_after:g} s", waits=state is State.CLOSED)
            return
        if not counts or self._late(began, state):
            return
        self._row += 1
        bucket = self._bucket(now)
        bucket[0] += 1
        bucket[1] += 1
        policy = self._policy
        time = max(policy.open_time, retry_after or 0.0)
        calls, failures = self._totals(now)
        if reason in _AT_ONCE:
            self._open(now, retry_after or policy.quota_open_time, name)
        elif state is State.HALF_OPEN:
            self._open(now, time, f"{name} while half open")
        elif self._row >= policy.consecutive_failures:
            self._open(now, time, f"{name}, {self._row} failures in a row")
        elif calls >= policy.minimum_calls and failures / calls >= policy.failure_ratio:
            self._open(now, time, f"{name}, {failures} of {calls} calls failed")

    def hold(
        self,
        now: float,
        until: float,
        reason: str,
        *,
        opened: float | None = None,
        waits: bool = False,
        exact: bool = False,
    ) -> None:
        """Somebody else found the backend in trouble: no call passes until `until`, then trial calls.

        An opening that lasts longer stays, unless `exact`. `until` in the past makes a closed breaker half open.
        """
        state = self.state(now)
        if until > now and (state is not State.OPEN or exact or until > self._until):
            since = now if opened is None else min(opened, now)
            self._open(since, until - since, reason, waits=waits)
            # The sum may differ in its last digit, and others compare.
            self._until = until
        elif until <= now and state is State.CLOSED:
            self._state, self._until, self.waits, self.reason = State.HALF_OPEN, until, False, reason

    def close(self) -> None:
        """It is well again, whoever found that out."""
        self._state = State.CLOSED
        self._row = 0
        self._trials.clear()
        self._buckets.clear()
        self.reason = ""

    def tune(self, policy: BreakerPolicy) -> None:
        """Takes other limits: it counts anew, and what is open stays open for its time."""
        self._policy = policy
        self._row = 0
        self._buckets.clear()

    def _open(self, now: float, time: float, reason: str, *, waits: bool = False) -> None:
        self._state, self.opened, self._until, self.reason = State.OPEN, now, now + time, reason
        self.waits = waits
        if not waits:
            self._row = 0

    def _late(self, began: float | None, state: State) -> bool:
        """Whether a call began before the last opening."""
        return state is State.HALF_OPEN if began is None else began < self.opened

    def _end(self, began: float | None) -> float | None:
        """Frees the place of a trial call; returns when the call began, None for unknown."""
        if began is None:
            return self._trials.pop(0) if self._state is State.HALF_OPEN else None
        if began in self._trials:
            self._trials.remove(began)
        return began

    def _bucket(self, now: float) -> list[int]:
        number = int(now * _BUCKETS / self._policy.window)
        bucket = self._buckets.get(number)
        if bucket is None:
            for old in [key for key in self._buckets if key <= number - _BUCKETS or key > number]:
                del self._buckets[old]
            bucket = self._buckets[number] = [0, 0]
        return bucket

    def _totals(self, now: float) -> tuple[int, int]:
        oldest = int(now * _BUCKETS / self._policy.window) - _BUCKETS
        live = [bucket for number, bucket in self._buckets.items() if number > oldest]
        return sum(calls for calls, _ in live), sum(failures for _, failures in live)
