"""Keeps the budgets of a mesh: who falls under which, what was spent, what is told of it.

What no budget holds for costs a look into a table. The store counts; it is a cache of the ledger, from which it learns
what was spent in a period that it knows nothing of.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from google.protobuf.message import DecodeError

from maestro.event.v1.event_pb2 import BudgetExhausted, BudgetThreshold, Event
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_gateway.budgets.bill import Bill
from maestro_gateway.budgets.counters import (
    Asker,
    Counter,
    Period,
    counter_named,
    counters_of,
    counters_of_end,
    may_hold,
    tenant_of,
)
from maestro_gateway.budgets.doubts import Doubts
from maestro_gateway.budgets.line import Line
from maestro_gateway.budgets.seeds import Outlet, Seeds, Spending
from maestro_gateway.budgets.state import action_of, share_spent, state_of
from maestro_gateway.ledger.sieve import estimate_of
from maestro_gateway.ledger.tally import Tally
from maestro_gateway.notes import Notes
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
        doubts: Doubts | None = None,
        notes: Notes | None = None,
    ) -> None:
        """`key_ids` gives the identifiers of keys by their name for people.

        `notes` are those of requests under way; what is `lost` of them has to be told before anything is renewed.
        """
        self._source = source
        self._outlet = outlet
        self.seeds = Seeds(spending, outlet, key_ids, self.forget_safe)
        """Whom the store learns from."""
        self.doubts = doubts or Doubts()
        """Counters that the ledger has to tell anew."""
        self.notes = notes
        self.denies_without_store = denies_without_store
        self.holds: Holds = MemoryHolds(self.note_charge)
        """What counts: in this process, unless it was given a store."""
        self.spare = MemoryHolds(lambda charge: None)
        """Counts while the store is away."""
        self._lines: dict[str, Line] = {}
        # Of each hold whose end is told: the number of that event, and its counters.
        self._untold: deque[tuple[int, str, Sequence[str]]] = deque()
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

    @property
    def shared(self) -> bool:
        """Whether other gateways count in the same store."""
        return not isinstance(self.holds, MemoryHolds)

    def note_told(self, hold_id: str, counters: Sequence[str] = ()) -> None:
        """The event that ends the request of a hold is published: once it is safe, the store may forget it."""
        self._untold.append((self._outlet.accepted, hold_id, counters))

    def take_left(self, end: Event) -> None:
        """Settles what the life before held for a request of which nobody else knows the end yet."""
        if self.config:
            name, (usd, tokens) = estimate_of(end) or end.id, used_by(end)
            self.holds.close(name, usd, tokens, end.SerializeToString())
            self.note_told(name)

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

    async def balances(self, budget: str, period: Period) -> Sequence[Balance]:
        """What the store knows of a budget. Raises `StoreAway`."""
        return await self.holds.balances(f"{budget}|{period.name}")

    async def tend(self, ready: Callable[[], bool]) -> None:
        """Tells of requests whose gateway died, and forgets what is safe, until cancelled."""
        swept = 0.0
        while True:
            await asyncio.sleep(_TICK)
            try:
                self.forget_safe()
                if (self.config or not swept) and ready() and time.monotonic() - swept > _SWEEP:
                    swept = time.monotonic()
                    await self.find_orphans()
            except StoreAway as error:
                log.debug("the store of budgets does not answer: %s", error)
            except Exception:  # whatever it is: what others held would stay held
                log.exception("budgets can't be tended; it is tried again")

    def forget_safe(self) -> None:
        """Lets the store forget those whose events can't be lost any more."""
        safe = self._outlet.secured
        done: list[str] = []
        while self._untold and self._untold[0][0] <= safe:
            _, hold_id, counters = self._untold.popleft()
            done.append(hold_id)
            if counters and self._outlet.delayed:
                # Others may ask the ledger meanwhile, which does not know of it.
                self.doubts.add(counters)
        if done:
            self.holds.forget(done)

    async def find_orphans(self) -> int:
        """Charges and tells of requests whose gateway died; gives their number. Raises `StoreAway`."""
        orphans = await self.holds.orphans(_ORPHANS)
        for orphan in orphans:
            # What was used is told by the ledger, where the true end is there or still comes.
            self.doubts.add(orphan.charged)
            try:
                event = Event.FromString(orphan.record)
            except DecodeError:
                log.error("what %s held is charged, but who it was can't be read: %r", orphan.id, orphan.record[:200])
            else:
                if orphan.record:
                    log.warning("%s was under way at a gateway that died; it is told now", event.subject)
                    self._outlet.publish(event)
            self.note_told(orphan.id, orphan.charged)
        return len(orphans)

    def may_renew(self) -> bool:
        """Whether the ledger can have all that this gateway has to tell."""
        return self.holds.up and (self.notes is None or not self.notes.lost)

    async def renew(self, name: str) -> bool:
        """Has a counter told anew by the ledger; False when that has to wait. Raises `StoreAway`."""
        counter = counter_named(name, self.config)
        return counter is None or await self.seeds.renew(self.holds, self.config[counter.budget], counter)

    def doubt_end(self, event: Event) -> None:
        """Other budgets may be in force since its request began: what they count is not known."""
        self.doubts.add(counter.name for counter in counters_of_end(self.config, event))

    async def close(self) -> None:
        """Ends what was begun."""
        if self._untold:
            await self._outlet.flush(1.0)
        self.forget_safe()
        await self.seeds.close()

    def _look_up(self, asker: Asker) -> Mapping[str, BudgetConfig]:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        found = {name: config for name, config in self.config.items() if may_hold(config, asker)}
        persona = asker.persona if asker.persona in self._personas else ""
        self._known[asker.tenant, asker.key_id, persona] = found
        return found

    def _tell(self, counter: Counter, payload: BudgetThreshold | BudgetExhausted, what: str) -> None:
        tenant = tenant_of(self.config[counter.budget], counter) or MESH
        event = new_event(payload, f"budget/{counter.budget}", tenant=tenant)
        # Whoever tells it, it is the same one.
        event.id = hashlib.sha256(f"{counter.name}/{what}".encode()).hexdigest()[:32]
        self._outlet.publish(event)


def used_by(event: Event) -> tuple[int, int]:
    """Nano-dollars and tokens of the end of a request."""
    once = Tally()
    once.count(event)
    return once.total()


@asynccontextmanager
async def budgeting(
    config: Config,
    source: TableSource,
    spending: Spending,
    outlet: Outlet,
    store: Store,
    key_ids: Callable[[str], set[str]],
    doubts: Doubts | None = None,
    notes: Notes | None = None,
    wills: AbstractAsyncContextManager[None] | None = None,
) -> AsyncGenerator[Budgets]:
    """The budgets of a gateway, which count in `store` where it is shared; meanwhile it leaves `wills`."""
    shared = bool(config.store.url)
    budgets = Budgets(
        config.budgets,
        source,
        spending,
        outlet,
        key_ids,
        denies_without_store=config.limits.on_store_failure == "deny",
        doubts=doubts,
        notes=notes,
    )
    async with AsyncExitStack() as stack:
        ready: Callable[[], bool] = _always
        if not shared:
            journal = HoldJournal(config.data / "gateway" / "holds.journal")
            budgets.holds = MemoryHolds(budgets.note_charge, journal)
            stack.callback(journal.close)
        else:
            ready = await stack.enter_async_context(_sharing(budgets, store, config.store.lease))
            if wills is not None:
                await stack.enter_async_context(wills)
        tasks = [
            asyncio.create_task(budgets.tend(ready), name="budgets"),
            asyncio.create_task(budgets.doubts.tend(budgets.may_renew, budgets.renew), name="doubts"),
        ]
        try:
            yield budgets
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
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
        holds.doubt_own()

    async with SharedHolds(store, lease, budgets.note_charge) as holds:
        holds.on_doubt = budgets.doubts.add
        store.on_reach.append(note_reach)
        budgets.holds = holds
        try:
            yield lambda: store.up and time.monotonic() - reached > lease
        finally:
            store.on_reach.remove(note_reach)


def _always() -> bool:
    return True
