"""Holds in a Redis-compatible store, the same for all gateways that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from maestro_sdk.service.store.claims import StoreAway
from maestro_sdk.service.store.hold_scripts import (
    BALANCES,
    CLOSE,
    EXTEND,
    FORGET,
    ORPHANS,
    PREFIX,
    RESERVE,
    SEED,
    SETTLE,
    UNDO,
    UNSEED,
)
from maestro_sdk.service.store.holds import TAKEN, Answer, Balance, Charge, Hold, Orphan, Outcome
from maestro_sdk.service.store.shared import SharedStore

_MICRO = 1_000_000
_GRACE = 1.0
_MOST = 256
"""Ids in one command."""
_PAGE = 500
"""Counters that the store tells in one step."""


class _Own:
    """A hold of this process, with what it was settled to."""

    __slots__ = ("hold", "settled")

    def __init__(self, hold: Hold) -> None:
        self.hold = hold
        self.settled: tuple[int, int, bytes] | None = None


class SharedHolds:
    """Holds of all gateways, between the start and the end of its block; the `store` is open for longer."""

    def __init__(
        self, store: SharedStore, lease: float, on_charge: Callable[[Charge], None], grace: float = _GRACE
    ) -> None:
        """A hold whose process died is charged `lease` seconds later.

        An empty store waits for `grace` seconds before anybody counts anew: every gateway enters again what it holds.
        """
        self._store = store
        self._lease = int(lease * _MICRO)
        # Also one that has nothing to ask finds out in time that the store is empty.
        self._pause = min(lease / 3, grace / 2)
        self._grace = int(grace * _MICRO)
        self.on_charge = on_charge
        self.on_doubt: Callable[[Sequence[str]], None] = lambda names: None
        self._asked: dict[str, object] = {}
        self._own: dict[str, _Own] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._store.on_reach.append(self._extend_all)
        self._task = asyncio.create_task(self._extend(), name="renew the holds")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.on_reach.remove(self._extend_all)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    @property
    def up(self) -> bool:
        """Whether the store answers."""
        return self._store.up

    def reserve(self, hold: Hold) -> Awaitable[Answer]:
        """Takes all shares of a new hold, or none. Whoever does not wait for the answer has to undo it."""

        # It may be asked for again before the first answer is there, which is none of the second question.
        question = object()

        def note(told: list[Any]) -> None:
            # At once, not when its caller gets a turn: a renewal that is told next must know it, or not know it.
            if self._asked.get(hold.id) is question:
                del self._asked[hold.id]
                if int(told[0]) == Outcome.TAKEN:
                    self._own[hold.id] = _Own(hold)

        answer = self._store.call(RESERVE, [PREFIX], self._entry(hold, again=False), note)
        self._asked[hold.id] = question
        return self._reserve(hold, answer)

    async def _reserve(self, hold: Hold, answer: Awaitable[Any]) -> Answer:
        try:
            return _answer(hold, await answer)
        except StoreAway:
            self.undo(hold)
            raise

    def settle(self, hold: Hold, usd: int, tokens: int, record: bytes) -> None:
        """Ends a hold with what was used."""
        known = hold.id in self._own
        own = self._own.setdefault(hold.id, _Own(hold))
        if own.settled is None:
            own.settled = (usd, tokens, record)
            self._settle(own.hold, usd, tokens, record, must=known)

    def close(self, name: str, usd: int, tokens: int, record: bytes) -> None:
        """Settles what a life before held under this name, if it still does."""
        self._store.send(CLOSE, [PREFIX], [name, self._lease, record, usd, tokens], self._tell, must=True)

    def undo(self, hold: Hold) -> None:
        """Ends a hold that was never to be."""
        self._asked.pop(hold.id, None)
        self._own.pop(hold.id, None)
        self._store.send(UNDO, [PREFIX], [hold.id], must=True)

    def leave(self, hold: Hold) -> None:
        """Lets go of a hold that another owner takes over."""
        self._asked.pop(hold.id, None)
        self._own.pop(hold.id, None)

    def forget(self, ids: Sequence[str]) -> None:
        """The records of these settled holds are safe elsewhere."""
        for start in range(0, len(ids), _MOST):
            some = ids[start : start + _MOST]
            for name in some:
                self._own.pop(name, None)
            self._store.send(FORGET, [PREFIX], list(some), must=True)

    async def seed(self, counter: str, generation: int, usd: int, tokens: int, ends: int) -> bool:
        """Tells what was spent."""
        return int(await self._store.call(SEED, [PREFIX], [counter, generation, usd, tokens, ends])) == 1

    async def unseed(self, counter: str, *, force: bool = True) -> bool | None:
        """Forgets what was spent."""
        done = int(await self._store.call(UNSEED, [PREFIX], [counter, int(force)]))
        return None if done < 0 else done == 1

    async def orphans(self, most: int) -> Sequence[Orphan]:
        """Charges holds whose owners died."""
        found, told = await self._store.call(ORPHANS, [PREFIX], [self._lease, most])
        self._tell(told)
        return [
            Orphan(found[at].decode(), found[at + 1], tuple(name.decode() for name in found[at + 2]))
            for at in range(0, len(found), 3)
        ]

    async def balances(self, group: str) -> Sequence[Balance]:
        """The counters under "budget|period"."""
        known: dict[str, Balance] = {}
        place = b"0"
        while True:
            place, found = await self._store.call(BALANCES, [PREFIX], [group, place, _PAGE])
            for at in range(0, len(found), 5):
                name = found[at].decode()
                known[name] = Balance(name, *(int(value) for value in found[at + 1 : at + 5]))
            if place == b"0":
                return list(known.values())

    def doubt_own(self) -> None:
        """Says that what this process holds or settles may be charged twice or not at all: the store was away."""
        self.on_doubt(list({share.counter for own in self._own.values() for share in own.hold.shares}))

    def _entry(self, hold: Hold, *, again: bool) -> list[str | int | bytes]:
        shares = hold.shares
        entry: list[str | int | bytes] = [
            int(again),
            hold.id,
            self._lease,
            hold.record,
            self._grace,
            len(shares),
        ]
        for share in shares:
            entry += (share.counter, share.usd, share.tokens, share.limit_usd, share.limit_tokens, share.ends)
        return entry

    def _settle(self, hold: Hold, usd: int, tokens: int, record: bytes, *, must: bool) -> None:
        entry: list[str | int | bytes] = [hold.id, self._lease, record, usd, tokens, len(hold.shares)]
        for share in hold.shares:
            entry += (share.counter, share.ends)

        def note(told: list[Any]) -> None:
            if not int(told[0]):
                # It was charged as a whole before, by somebody who took this process for dead.
                self.on_doubt([share.counter for share in hold.shares])
            self._tell(told[1])

        self._store.send(SETTLE, [PREFIX], entry, note, must=must)

    def _tell(self, charged: list[Any]) -> None:
        for at in range(0, len(charged), 5):
            usd, tokens, more_usd, more_tokens = (int(value) for value in charged[at + 1 : at + 5])
            self.on_charge(Charge(charged[at].decode(), usd, tokens, usd + more_usd, tokens + more_tokens))

    async def _extend(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            if self._store.up:
                self._extend_all()

    def _extend_all(self) -> None:
        """Says of all holds that their owner lives."""
        names = list(self._own)
        for start in range(0, len(names), _MOST):
            arguments: list[str | int | bytes] = [self._lease, *names[start : start + _MOST]]
            self._store.send(EXTEND, [PREFIX], arguments, self._enter_again, kept=False)

    def _enter_again(self, unknown: list[Any]) -> None:
        """The store lost what it knew."""
        for name in unknown:
            own = self._own.get(name.decode())
            if own is None:
                continue
            if own.settled is not None:
                self._settle(own.hold, *own.settled, must=True)
            else:
                self._store.send(RESERVE, [PREFIX], self._entry(own.hold, again=True))


def _answer(hold: Hold, told: list[Any]) -> Answer:
    outcome = Outcome(int(told[0]))
    if outcome is Outcome.TAKEN:
        return TAKEN
    index = int(told[1]) - 1
    counter = hold.shares[index].counter
    if outcome is Outcome.UNSEEDED:
        return Answer(outcome, index, Balance(counter), generation=int(told[2]), busy=told[3] == b"1")
    balance = Balance(counter, *(int(value) for value in told[2:6]))
    return Answer(outcome, index, balance, first=bool(int(told[6])))
