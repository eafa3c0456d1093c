"""Keeps the budgets of a mesh: who falls under which, what was spent, what is told of it.

What no budget holds for costs a look into a table. The store counts; it is a cache of the ledger, from which it learns
what was spent in a period that it knows nothing of.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from maestro.event.v1.event_pb2 import BudgetExhausted, BudgetThreshold, Event
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_gateway.budgets.bill import KEPT, Bill, LedgerAway
from maestro_gateway.budgets.counters import (
    Asker,
    Counter,
    Period,
    counter_named,
    counters_of,
    may_hold,
    stands_for,
    tenant_of,
)
from maestro_gateway.budgets.line import Line
from maestro_gateway.budgets.state import action_of, share_spent, state_of
from maestro_gateway.ledger.tally import Tally
from maestro_sdk.errors import MaestroError, NoBackend
from maestro_sdk.mesh.attempts import TableSource
from maestro_sdk.mesh.embed import plan_embedding
from maestro_sdk.mesh.needs import needs_of, needs_of_embedding
from maestro_sdk.mesh.plan import Plan, plan
from maestro_sdk.service.budgets import BudgetConfig
from maestro_sdk.service.events import MESH, new_event
from maestro_sdk.service.settings import Config
from maestro_sdk.service.store import Store, StoreAway
from maestro_sdk.service.store.holds import Answer, Balance, Charge, Holds
from maestro_sdk.service.store.journal import HoldJournal
from maestro_sdk.service.store.memory_holds import MemoryHolds

log = logging.getLogger(__name__)

_MOST_KNOWN = 10_000
"""Callers whose budgets are kept at hand."""
_MOST_WAITING = 1000
"""Requests that may wait for room in one counter, at one gateway."""
_TICK = 0.2
_SWEEP = 0.5
_ORPHANS = 100
_SEEDING = 10.0
"""Seconds in which it has to be found out what was spent."""
_DELIVERY = 1.0
"""Seconds in which NATS takes the events of before; else it is not worth waiting for."""
_AGAIN = 1.0
"""Seconds for which nobody asks a ledger that did not answer."""
_GLANCE = 0.1
"""Seconds for which a request waits for a ledger that did not answer the last time."""
_BUSY_PAUSE = 0.05


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
    def degraded(self) -> str:
        """Why they don't get through; empty when they do."""
        ...

    def publish(self, event: Event) -> None:
        """Takes an event."""
        ...

    async def flush(self, timeout: float = 5.0) -> bool:
        """Waits until all got through."""
        ...


class Budgets:
    """The budgets in force."""

    def __init__(
        self,
        config: Mapping[str, BudgetConfig],
        source: TableSource,
        spending: Spending,
        outlet: Outlet,
        key_ids: Callable[[str], set[str]],
        *,
        denies_without_store: bool = False,
    ) -> None:
        """`key_ids` gives the identifiers of keys by their name for people."""
        self._source = source
        self._spending = spending
        self._outlet = outlet
        self._key_ids = key_ids
        self.denies_without_store = denies_without_store
        self.holds: Holds = MemoryHolds(self.note_charge)
        """What counts: in this process, unless it was given a store."""
        self.spare = MemoryHolds(lambda charge: None)
        """Counts while the store is away."""
        self._prefix = os.urandom(6).hex()
        self._numbers = itertools.count()
        self._lines: dict[str, Line] = {}
        self._seeds: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._untold: deque[tuple[int, str]] = deque()
        # Whether the ledger did not answer the last time, and when it may be asked again.
        self._unknown = False
        self._unknown_until = 0.0
        self._warned: set[str] = set()
        self.adopt(config)

    def adopt(self, config: Mapping[str, BudgetConfig]) -> None:
        """Puts other budgets in force. What was counted so far counts on."""
        self.config: Mapping[str, BudgetConfig] = config
        self._known: dict[tuple[str, str, str], Mapping[str, BudgetConfig]] = {}
        self._personas = {name for each in config.values() for name in each.personas}

    def bill(
        self,
        request: ChatRequest | EmbedRequest,
        tenant: str,
        key_id: str,
        key_name: str,
        persona: str,
        call_key: str = "",
    ) -> Bill | None:
        """What a request has to reserve before it is admitted; None when no budget holds for it."""
        if not self.config:
            return None
        caller = (tenant, key_id, persona if persona in self._personas else "")
        candidates = self._known.get(caller)
        if candidates is None:
            candidates = self._look_up(Asker(tenant, key_id, key_name, persona))
        if not candidates:
            return None
        asker = Asker(tenant, key_id, key_name, persona, request.metadata)
        counters = list(counters_of(candidates, asker, time.time()))
        return Bill(self, counters, request, tenant, call_key) if counters else None

    def plan(self, request: ChatRequest | EmbedRequest, tenant: str) -> Plan:
        """The decision that a request would meet now. Raises what refuses it."""
        source = self._source
        if isinstance(request, EmbedRequest):
            return plan_embedding(needs_of_embedding(request, tenant), source, time.time(), random.random)
        return plan(needs_of(request, tenant), source.table, source.local, time.time(), random.random)

    def new_id(self) -> str:
        """A name for a hold."""
        return f"{self._prefix}{next(self._numbers):x}"

    def line(self, counter: str) -> Line:
        """Those who wait for room in a counter. Whoever asks for it `leave`s."""
        found = self._lines.get(counter)
        if found is None:
            found = self._lines[counter] = Line(_MOST_WAITING)
        return found

    def leave(self, counter: str, line: Line) -> None:
        """Somebody does not need the line any more."""
        if not line.waiting and self._lines.get(counter) is line:
            del self._lines[counter]

    def note_told(self, hold_id: str) -> None:
        """The event that ends the request of a hold is published: once it is safe, the store may forget it."""
        self._untold.append((self._outlet.accepted, hold_id))

    def note_charge(self, charge: Charge) -> None:
        """Takes what was spent of a counter, and tells of thresholds that it passed."""
        if (line := self._lines.get(charge.counter)) is not None:
            line.move()
        counter = counter_named(charge.counter, self.config)
        if counter is None:
            return
        config = self.config[counter.budget]
        before = share_spent(config, charge.usd_before, charge.tokens_before)
        after = share_spent(config, charge.usd, charge.tokens)
        for threshold in config.thresholds:
            if before < threshold <= after:
                state = state_of(config, counter, Balance(charge.counter, charge.usd, charge.tokens))
                self._tell(counter, BudgetThreshold(state=state, threshold=threshold), f"{threshold:g}")

    def tell_exhausted(self, counter: Counter, found: Answer) -> None:
        """Tells that a budget refuses for the first time in its period."""
        config = self.config.get(counter.budget)
        if config is None:
            return
        state = state_of(config, counter, found.balance)
        self._tell(counter, BudgetExhausted(state=state, action=action_of(config)), "exhausted")

    def warn_unpriced(self, model: str) -> None:
        """Says once that a model counts as free."""
        if model not in self._warned:
            self._warned.add(model)
            log.warning("%s has no price: budgets in money count it as free", model)

    async def seed(self, holds: Holds, config: BudgetConfig, counter: Counter, found: Answer) -> None:
        """Finds out what was spent of a counter that the store does not know. Raises `LedgerAway` and `StoreAway`.

        `config` is what the request began under: its budget may have another name by now.
        """
        if time.monotonic() < self._unknown_until:
            raise LedgerAway("the ledger does not answer")
        if found.busy:
            self.forget_safe()
            await asyncio.sleep(_BUSY_PAUSE)
            return
        place = (id(holds), counter.name)
        task = self._seeds.get(place)
        if task is None:
            task = self._seeds[place] = asyncio.create_task(self._seed(holds, config, counter, found.generation))
            task.add_done_callback(lambda done: self._seeded(place, done))
        if self._unknown and not (await asyncio.wait((task,), timeout=_GLANCE))[0]:
            # It is asked again beside the requests: only the first ones wait for it.
            raise LedgerAway("the ledger does not answer")
        await asyncio.shield(task)

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

    async def balances(self, budget: str, period: Period) -> Sequence[Balance]:
        """What the store knows of a budget. Raises `StoreAway`."""
        return await self.holds.balances(f"{budget}|{period.name}")

    async def tend(self, ready: Callable[[], bool]) -> None:
        """Tells of requests whose gateway died, and forgets what is safe, until cancelled."""
        swept = 0.0
        while True:
            await asyncio.sleep(_TICK)
            self.forget_safe()
            if (self.config or not swept) and ready() and time.monotonic() - swept > _SWEEP:
                swept = time.monotonic()
                try:
                    await self.find_orphans()
                except StoreAway as error:
                    log.debug("the store of budgets does not answer: %s", error)

    def forget_safe(self) -> None:
        """Lets the store forget those whose events can't be lost any more."""
        safe = self._outlet.secured
        done: list[str] = []
        while self._untold and self._untold[0][0] <= safe:
            done.append(self._untold.popleft()[1])
        if done:
            self.holds.forget(done)

    async def find_orphans(self) -> int:
        """Charges and tells of requests whose gateway died; gives their number. Raises `StoreAway`."""
        orphans = await self.holds.orphans(_ORPHANS)
        for orphan in orphans:
            if orphan.record:
                event = Event.FromString(orphan.record)
                log.warning("%s was under way at a gateway that died; it is told now", event.subject)
                self._outlet.publish(event)
            self.note_told(orphan.id)
        return len(orphans)

    async def close(self) -> None:
        """Ends what was begun."""
        if self._untold:
            await self._outlet.flush(1.0)
        self.forget_safe()
        for task in list(self._seeds.values()):
            task.cancel()
        await asyncio.gather(*self._seeds.values(), return_exceptions=True)

    def _look_up(self, asker: Asker) -> Mapping[str, BudgetConfig]:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        found = {name: config for name, config in self.config.items() if may_hold(config, asker)}
        persona = asker.persona if asker.persona in self._personas else ""
        self._known[asker.tenant, asker.key_id, persona] = found
        return found

    def _seeded(self, place: tuple[int, str], done: asyncio.Task[None]) -> None:
        self._seeds.pop(place, None)
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
            self._unknown_until = time.monotonic() + _AGAIN
            raise LedgerAway("the ledger does not answer") from None

    def _tell(self, counter: Counter, payload: BudgetThreshold | BudgetExhausted, what: str) -> None:
        tenant = tenant_of(self.config[counter.budget], counter) or MESH
        event = new_event(payload, f"budget/{counter.budget}", tenant=tenant)
        # Whoever tells it, it is the same one.
        event.id = hashlib.sha256(f"{counter.name}/{what}".encode()).hexdigest()[:32]
        self._outlet.publish(event)


@asynccontextmanager
async def budgeting(
    config: Config,
    source: TableSource,
    spending: Spending,
    outlet: Outlet,
    store: Store,
    key_ids: Callable[[str], set[str]],
) -> AsyncGenerator[Budgets]:
    """The budgets of a gateway, which count in `store` where it is shared."""
    budgets = Budgets(
        config.budgets,
        source,
        spending,
        outlet,
        key_ids,
        denies_without_store=config.limits.on_store_failure == "deny",
    )
    async with AsyncExitStack() as stack:
        ready: Callable[[], bool] = _always
        if not config.store.url:
            journal = HoldJournal(config.data / "gateway" / "holds.journal")
            budgets.holds = MemoryHolds(budgets.note_charge, journal)
            stack.callback(journal.close)
        else:
            ready = await stack.enter_async_context(_sharing(budgets, store, config.store.lease))
        tending = asyncio.create_task(budgets.tend(ready), name="budgets")
        try:
            yield budgets
        finally:
            tending.cancel()
            await asyncio.wait((tending,))
            await budgets.close()


@asynccontextmanager
async def _sharing(budgets: Budgets, store: Store, lease: float) -> AsyncGenerator[Callable[[], bool]]:
    """Lets budgets count in a store; gives what tells whether every gateway had the time to say that it lives."""
    # Imported here: whoever has no such store need not have its driver loaded.
    from maestro_sdk.service.store.shared import SharedStore
    from maestro_sdk.service.store.shared_holds import SharedHolds

    if not isinstance(store, SharedStore):
        raise TypeError(f"{type(store).__name__} is not shared")
    reached = time.monotonic()

    def note_reach() -> None:
        # What counted meanwhile here is known there from now on.
        nonlocal reached
        reached = time.monotonic()
        budgets.spare = MemoryHolds(lambda charge: None)

    store.on_reach.append(note_reach)
    try:
        async with SharedHolds(store, lease, budgets.note_charge) as holds:
            budgets.holds = holds
            yield lambda: store.up and time.monotonic() - reached > lease
    finally:
        store.on_reach.remove(note_reach)


def _always() -> bool:
    return True
