"""What stands before every attempt where somebody counts what backends may be asked: limits of providers.

The dispatcher knows nothing of limits. It asks the gate, passes over whoever is refused, and says at the end of each
attempt what it used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import MaestroError, RateLimited
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.table import Backend


@dataclass(frozen=True, slots=True)
class Refusal:
    """There is no room: `error` is that of a request that has nobody else to ask.

    It is `exact` when there is room after its `retry_after` and not before. Else some may come at any moment.
    """

    error: MaestroError
    exact: bool = True


class Admission(Protocol):
    """What one attempt has to take before it begins, and gives back at its end."""

    async def take(self) -> Refusal | None:
        """Takes all of it, or nothing: then it tells why. Cancelled meanwhile, it has taken nothing."""
        ...

    def settle(self, usage: Usage | None) -> None:
        """The attempt is over and used `usage`, None for nothing. A second time does nothing."""
        ...


class Gate(Protocol):
    """Tells what an attempt has to take."""

    def find(self, backend: Backend, needs: Needs) -> Admission | None:
        """What an attempt at `backend` has to take; None where nothing is counted, which costs a look into a table."""
        ...


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A backend that was not asked, since the gate refused it."""

    backend: Backend
    error: MaestroError
    again: float | None
    """When to ask the gate again, of the monotonic clock; None where the request does not wait for that.

    It waits for room at a provider as it would wait for that provider's own Retry-After. What the caller alone may use
    is told at once.
    """
    times: int
    """How often the gate refused it."""


def pass_over(backend: Backend, refusal: Refusal, before: PassedOver | None, now: float, back_off: float) -> PassedOver:
    """A backend that the gate refused at `now` of the monotonic clock, and perhaps `before`.

    Where room may come at any moment it is asked for again after `back_off` seconds, and twice as long each time.
    """
    error, times = refusal.error, before.times + 1 if before is not None else 1
    pause = error.retry_after if isinstance(error, RateLimited) else None
    if pause is not None and not refusal.exact:
        pause = min(pause, back_off * 2 ** (times - 1))
    return PassedOver(backend, error, None if pause is None else now + pause, times)


def soonest(passed: list[PassedOver]) -> MaestroError:
    """The error that helps most when only the gate stood in the way: that of the backend with room first."""
    return min(
        (found.error for found in passed),
        key=lambda error: float("inf") if error.retry_after is None else error.retry_after,
    )
