"""Whom a request asks again when nobody new is left: one that failed, or one that the gate refused."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from maestro_sdk.errors import MaestroError, RateLimited
from maestro_sdk.mesh.gate import Refusal
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.table import Backend, Policy
from maestro_sdk.mesh.trail import Attempt

# Clocks of timers are rounded: without it a call comes back just before a breaker lets it pass.
_GRACE = 0.002


@dataclass(frozen=True, slots=True)
class Chance:
    """A backend that is worth asking in `pause` seconds."""

    pause: float
    backend: Backend


@dataclass(frozen=True, slots=True)
class _Refused:
    """`again` is when to ask the gate again, of the monotonic clock; None where the request does not wait for that.

    It waits for room at a provider as it would wait for that provider's own Retry-After. What the caller alone may use
    is told at once. `times` is how often the gate refused it.
    """

    backend: Backend
    error: MaestroError
    again: float | None
    times: int


class PassedOver:
    """The backends that were not asked, since the gate refused them.

    A request waits for them, all in all, no longer than the longest time that it would back off.
    """

    __slots__ = ("_refused", "_until")

    def __init__(self, longest: float) -> None:
        self._refused: dict[str, _Refused] = {}
        self._until = time.monotonic() + longest + _GRACE

    def __contains__(self, backend: Backend) -> bool:
        return backend.id in self._refused

    def add(self, backend: Backend, refusal: Refusal, back_off: float) -> None:
        """The gate refused a backend.

        Where room may come at any moment it is asked for again after `back_off` seconds, and twice as long each time.
        """
        error, before = refusal.error, self._refused.get(backend.id)
        times = before.times + 1 if before is not None else 1
        pause = error.retry_after if isinstance(error, RateLimited) else None
        if pause is not None and not refusal.exact:
            pause = min(pause, back_off * 2 ** (times - 1))
        again = None if pause is None else time.monotonic() + pause
        self._refused[backend.id] = _Refused(backend, error, again, times)

    def drop(self, backend: Backend) -> None:
        """It is asked now."""
        self._refused.pop(backend.id, None)

    def first(self, only: Backend | None) -> Chance | None:
        """The first one that is worth waiting for; with `only` no other one."""
        now, found = time.monotonic(), None
        for each in self._refused.values():
            if each.again is None or each.again > self._until or only not in (None, each.backend):
                continue
            pause = max(0.0, each.again - now) + _GRACE
            if found is None or pause < found.pause:
                found = Chance(pause, each.backend)
        return found

    def error(self) -> MaestroError | None:
        """The error that helps most when only the gate stood in the way: that of the backend with room first."""
        return min(
            (each.error for each in self._refused.values()),
            key=lambda error: float("inf") if error.retry_after is None else error.retry_after,
            default=None,
        )


def first_retry(failed: Iterable[Attempt], local: LocalState, policy: Policy, back_off: float) -> Chance | None:
    """Who of those that failed may be asked again first, after `back_off` seconds at least; None when nobody soon."""
    found: Chance | None = None
    for attempt in failed:
        error, backend = attempt.error, attempt.backend
        if error is None or not error.retryable:
            continue
        pause = max(back_off, attempt.ended + (error.retry_after or 0.0) - time.monotonic())
        if barred := local.bars(backend, time.time()):
            if not barred[1]:
                continue
            pause = max(pause, barred[1] - time.time() + _GRACE)
        # The one that failed longest ago first, where several may be asked equally soon.
        if pause <= policy.longest_back_off + _GRACE and (found is None or pause < found.pause):
            found = Chance(pause, backend)
    return found
