"""A second attempt beside a first one that is slow to begin: who begins first answers, the other one is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import grpc

from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.attempts import Attempts
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.strategy import estimate
from maestro_sdk.mesh.table import Backend
from maestro_sdk.mesh.trail import Attempt

_Leg = TypeVar("_Leg", bound="Leg")
_Piece = TypeVar("_Piece")

_MEMORY = 1000.0
"""Calls whose share of second attempts may be saved up."""


class HedgeBudget:
    """What second attempts of each route may still cost, by estimate: never more than a share of what it spent so far.

    Beyond that one call is granted at the beginning, so that a quiet route hedges at all. Calls whose price is unknown
    are counted instead, apart from those that have one.
    """

    __slots__ = ("_left", "_most")

    def __init__(self) -> None:
        self._left: dict[tuple[str, bool], float] = {}
        # The dearest call so far.
        self._most: dict[tuple[str, bool], float] = {}

    def earn(self, route: str, backend: Backend, needs: Needs, share: float) -> None:
        """A request begins at `backend`; `share` of what that costs may be spent on second attempts."""
        cost = estimate(backend, needs)
        key, cost = (route, cost is None), 1.0 if cost is None else cost
        most = self._most[key] = max(cost, self._most.get(key, 0.0))
        left = self._left.get(key)
        self._left[key] = min(most * (1.0 + _MEMORY * share), share * cost + (cost if left is None else left))

    def spend(self, route: str, backend: Backend, needs: Needs) -> bool:
        """Whether a second attempt at `backend` may be made; it counts as made."""
        cost = estimate(backend, needs)
        key, cost = (route, cost is None), 1.0 if cost is None else cost
        # Sums of shares are rounded: a ten-thousandth of a call is nobody's money.
        if self._left.get(key, 0.0) < cost * 0.9999:
            return False
        self._left[key] -= cost
        return True

    def return_spent(self, route: str, backend: Backend, needs: Needs) -> None:
        """A second attempt that was granted is not made."""
        cost = estimate(backend, needs)
        self._left[route, cost is None] += 1.0 if cost is None else cost


class Leg(Protocol):
    """An attempt under way."""

    @property
    def attempt(self) -> Attempt:
        """The attempt."""
        ...

    def cancel(self) -> None:
        """Ends the call."""
        ...

    def verdict(self, error: BaseException) -> MaestroError:
        """What ended the attempt. Raises `error` when it was the caller who left."""
        ...


class Race(Generic[_Leg, _Piece]):
    """A first attempt, and a second one from the moment when the first is late.

    The first one is read by the caller's own task; only a late one costs a task.
    """

    __slots__ = ("_attempts", "_first", "_follower", "_head", "_second", "_start", "_won")

    def __init__(
        self,
        attempts: Attempts,
        first: _Leg,
        start: Callable[[], Awaitable[_Leg | None]],
        head: Callable[[_Leg], Awaitable[_Piece]],
    ) -> None:
        """`start` begins the second attempt, where there can be one; `head` gives the piece that commits to a leg."""
        self._attempts, self._first, self._start, self._head = attempts, first, start, head
        self._second: _Leg | None = None
        self._follower: asyncio.Task[None] | None = None
        self._won: tuple[_Leg, _Piece] | None = None

    async def run(self, after: float) -> tuple[_Leg, _Piece] | None:
        """Who began first, with its first piece; None when all failed. The second one starts `after` seconds.

        How the others ended is noted in the attempts; but when the caller leaves, both calls are only cancelled.
        """
        timer = asyncio.get_running_loop().call_later(after, self._begin)
        try:
            await self._lead()
            return self._won
        finally:
            timer.cancel()
            if self._follower is not None and not self._follower.done():
                self._follower.cancel()
            for leg in (self._first, self._second):
                if leg is not None and (self._won is None or self._won[0] is not leg):
                    leg.cancel()

    async def _lead(self) -> None:
        first = self._first
        try:
            piece = await self._head(first)
        except ENDS as error:
            if self._won is None:
                self._fail(first, error)
                if self._follower is not None:
                    await self._follower
                return
            # Its call was cancelled in favour of the second one.
            _raise_if_left(error)
        else:
            if self._won is None:
                self._won = first, piece
                if self._second is not None and not self._second.attempt.ended:
                    self._attempts.outrun(self._second.attempt)
                return
            # Both began in the same turn of the loop, and the second one was faster by a hair.
        self._attempts.outrun(first.attempt)

    def _begin(self) -> None:
        self._follower = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        second = self._second = await self._start()
        if second is None:
            return
        try:
            piece = await self._head(second)
        except ENDS as error:
            _raise_if_left(error)
            if not second.attempt.ended:
                self._fail(second, error)
            return
        if self._won is None:
            self._won = second, piece
            if not self._first.attempt.ended:
                self._first.cancel()

    def _fail(self, leg: _Leg, error: BaseException) -> None:
        failure = leg.verdict(error)
        leg.cancel()
        self._attempts.fail(leg.attempt, failure)


def _raise_if_left(error: BaseException) -> None:
    """Raises the error of a task that was cancelled itself, and not only its call."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


ENDS = (grpc.aio.AioRpcError, MaestroError, asyncio.CancelledError)
"""What the end of a call looks like."""
