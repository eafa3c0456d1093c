"""Tells the store what was spent of a counter that it does not know, or knows wrongly: the ledger does."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Protocol

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.budgets.bill import KEPT, LedgerAway
from maestro_gateway.budgets.counters import Counter, stands_for, tenant_of
from maestro_gateway.ledger.tally import Tally
from maestro_sdk.errors import MaestroError, NoBackend
from maestro_sdk.service.budgets import BudgetConfig
from maestro_sdk.service.store.holds import Answer, Hold, Holds, Outcome, Share

log = logging.getLogger(__name__)

_SEEDING = 10.0
"""Seconds in which it has to be found out what was spent."""
_DELIVERY = 1.0
"""Seconds in which NATS takes the events of before; else it is not worth waiting for."""
_AGAIN = 1.0
"""Seconds for which nobody asks a ledger that did not answer."""
_GLANCE = 0.1
"""Seconds for which a request waits for a ledger that did not answer the last time."""
_BUSY_PAUSE = 0.05
_QUIET = 15.0
"""Seconds in which there should be a moment without ends of requests that are not safe yet."""


class Spending(Protocol):
    """Whom to ask what was spent: the ledger."""

    async def tally(self, tenant: str, since: int, until: int | None = None) -> Tally:
        """Sums of a tenant's requests that ended since then, in nanoseconds of Unix time. Raises `NoBackend`."""
        ...

    async def tenants(self) -> list[str]:
        """All tenants. Raises `NoBackend`."""
        ...


class Outlet(Protocol):
    """Where events go: an `EventPublisher`."""

    @property
    def accepted(self) -> int:
        """Events so far."""
        ...

    @property
    def secured(self) -> int:
        """How many of them, from the first, can't be lost any more."""
        ...

    @property
    def delayed(self) -> bool:
        """Whether events wait on the disk: nobody else knows of them."""
        ...

    @property
    def degraded(self) -> str:
        """Why they don't get through; empty when they do."""
        ...

    def publish(self, event: Event) -> None:
        """Takes an event."""
        ...

    async def flush(self, timeout: float = 5.0) -> bool:
        """Waits until all got through."""
        ...


class Seeds:
    """What was spent by the word of the ledger, for counters of any store."""

    def __init__(
        self,
        spending: Spending,
        outlet: Outlet,
        key_ids: Callable[[str], set[str]],
        forget_safe: Callable[[], None],
    ) -> None:
        """`key_ids` gives the identifiers of keys by their name for people."""
        self._spending = spending
        self._outlet = outlet
        self._key_ids = key_ids
        self._forget_safe = forget_safe
        self._tasks: dict[tuple[int, str], asyncio.Task[None]] = {}
        # Counters that wait for being told anew, since when.
        self._waiting: dict[str, float] = {}
        # Whether the ledger did not answer the last time, and when it may be asked again.
        self._unknown = False
        self.unknown_until = 0.0
        """Until when nobody asks it, on the monotonic clock."""

    async def seed(self, holds: Holds, config: BudgetConfig, counter: Counter, found: Answer) -> None:
        """Finds out what was spent of a counter that the store does not know. Raises `LedgerAway` and `StoreAway`.

        `config` is what the request began under: its budget may have another name by now.
        """
        if time.monotonic() < self.unknown_until:
            raise LedgerAway("the ledger does not answer")
        if found.busy:
            self._forget_safe()
            await asyncio.sleep(_BUSY_PAUSE)
            return
        place = (id(holds), counter.name)
        task = self._tasks.get(place)
        if task is None:
            task = self._tasks[place] = asyncio.create_task(self._seed(holds, config, counter, found.generation))
            task.add_done_callback(lambda done: self._seeded(place, done))
        if self._unknown and not (await asyncio.wait((task,), timeout=_GLANCE))[0]:
            # It is asked again beside the requests: only the first ones wait for it.
            raise LedgerAway("the ledger does not answer")
        await asyncio.shield(task)

    async def renew(self, holds: Holds, config: BudgetConfig, counter: Counter) -> bool:
        """Puts the word of the ledger in the place of what the store knows. Raises `LedgerAway` and `StoreAway`.

        Requests wait for it for a moment, no longer than one reading of the ledger takes: so while ends of requests are
        not safe yet, perhaps those of a gateway that died, it waits for them itself, for some seconds; False then.
        """
        try:
            # What this gateway still has to tell is not in the ledger. The reading itself is done twice: the first one
            # tells that it can be done, and the second one is quick.
            if self._outlet.degraded or not await self._outlet.flush(_DELIVERY):
                raise LedgerAway("events wait to be delivered")
            await self.spent(config, counter)
        except MaestroError as error:
            raise LedgerAway(str(error)) from None
        since = self._waiting.setdefault(counter.name, time.monotonic())
        known = await holds.unseed(counter.name, force=time.monotonic() - since > _QUIET)
        if known is None:
            return False
        self._waiting.pop(counter.name, None)
        if not known:
            # Whoever asks for it next learns it from the ledger anyway.
            return True
        ends = int((counter.period.end + KEPT) * 1000)
        wish = Hold(f"renewal-{os.urandom(8).hex()}", (Share(counter.name, 0, 0, -1, -1, ends),), b"")
        try:
            async with asyncio.timeout(_SEEDING):
                while (found := await _reserve(holds, wish)).outcome is Outcome.UNSEEDED:
                    await self.seed(holds, config, counter, found)
        except TimeoutError:
            raise LedgerAway("what was spent is not known yet") from None
        finally:
            holds.undo(wish)
        return True

    async def spent(self, config: BudgetConfig, counter: Counter) -> tuple[int, int]:
        """Nano-dollars and tokens that the ledger has for a counter. Raises `NoBackend`."""
        own = tenant_of(config, counter)
        tenants = [own] if own is not None else list(config.tenants) or await self._spending.tenants()
        key_ids = frozenset(config.keys).union(*(self._key_ids(name) for name in config.keys))
        usd = tokens = 0
        for tenant in tenants:
            tally = await self._spending.tally(tenant, int(counter.period.start) * 10**9)
            for row, sums in tally.rows.items():
                if stands_for(config, counter, key_ids, row.key, row.persona, dict(row.labels)):
                    usd += sums.nano_usd
                    tokens += sums.tokens
        return usd, tokens

    async def close(self) -> None:
        """Ends what was begun."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _seeded(self, place: tuple[int, str], done: asyncio.Task[None]) -> None:
        self._tasks.pop(place, None)
        self._unknown = not done.cancelled() and done.exception() is not None

    async def _seed(self, holds: Holds, config: BudgetConfig, counter: Counter, generation: int) -> None:
        try:
            async with asyncio.timeout(_SEEDING):
                # What this gateway still has to tell is not in the ledger.
                if self._outlet.degraded or not await self._outlet.flush(_DELIVERY):
                    raise NoBackend("events wait to be delivered")
                usd, tokens = await self.spent(config, counter)
                ends = int((counter.period.end + KEPT) * 1000)
                await holds.seed(counter.name, generation, usd, tokens, ends)
        except (MaestroError, TimeoutError) as error:
            log.warning("what was spent of the budget %s is not known: %s", counter.budget, error)
            self.unknown_until = time.monotonic() + _AGAIN
            raise LedgerAway("the ledger does not answer") from None


async def _reserve(holds: Holds, wish: Hold) -> Answer:
    found = holds.reserve(wish)
    return found if isinstance(found, Answer) else await found
