"""What one request may cost, from its reservation to what it did cost."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from maestro.event.v1.event_pb2 import AttemptFate, AttemptUsage, Event
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.llm.v1.usage_pb2 import Cost
from maestro_gateway.budgets.counters import Counter, is_shared
from maestro_gateway.budgets.quote import Quote, quotes_of, size_of, unpriced
from maestro_gateway.endings import mark_estimate
from maestro_gateway.ledger.tally import nano_of
from maestro_sdk.errors import BudgetExhausted, MaestroError, NoBackend
from maestro_sdk.mesh.trail import Trail
from maestro_sdk.prices import format_usd
from maestro_sdk.service.store import StoreAway
from maestro_sdk.service.store.holds import Answer, Hold, Holds, Outcome, Share

if TYPE_CHECKING:
    from maestro_gateway.budgets.keeper import Budgets

log = logging.getLogger(__name__)

_AWAY_WAIT = 1.0
_LEARNING = 10.0
"""Seconds in which it has to be found out what was spent before."""
KEPT = 2 * 86400.0
"""Seconds for which a counter is kept after its period."""
_ABANDONED = AttemptFate.ATTEMPT_FATE_ABANDONED

CHEAPER = ("x-maestro-budget", "degraded")
"""Tells it to the caller."""

_current: ContextVar[Bill | None] = ContextVar("maestro_bill", default=None)


def sent_cheaper() -> bool:
    """Whether the request being served in this context was sent to a cheaper route for lack of budget."""
    bill = _current.get()
    return bill is not None and bill.degraded


def hold_id(tenant: str, key: str) -> str:
    """The name of what is held for a request with the `key` of a standing call."""
    return hashlib.sha256(f"{tenant}/{key}".encode()).hexdigest()


class LedgerAway(StoreAway):
    """Nobody can tell now what was spent before."""


class Bill:
    """The holds of a request: `reserve` admits it, `settle` charges what it used, `told` says that its end is told."""

    __slots__ = (
        *("_budgets", "_config", "_counters", "_forced", "_hold", "_holds", "_id", "_keyed", "_orphan", "_request"),
        *("_tenant", "degraded", "event_id", "settled"),
    )

    def __init__(
        self,
        budgets: Budgets,
        counters: Sequence[Counter],
        request: ChatRequest | EmbedRequest,
        tenant: str,
        key: str,
    ) -> None:
        """A request with the `key` of a standing call is made again should its gateway die: only then it is charged."""
        self._budgets = budgets
        self._config = budgets.config
        self._counters = counters
        self._request = request
        self._tenant = tenant
        self._keyed = bool(key)
        # Whoever takes up a standing call takes over what is held for it, and does not pay it twice.
        self._id = hold_id(tenant, key) if key else ""
        self._forced: set[str] = set()
        self._hold: Hold | None = None
        self._holds: Holds | None = budgets.holds
        self._orphan = b""
        self.event_id: str = ""
        """That of the event which ends the request, whoever publishes it; empty when any will do."""
        self.settled = False
        """Whether it was charged what it used."""
        self.degraded = False
        """Whether the request was sent to a cheaper route."""
        _current.set(self)

    async def reserve(self, describe: Callable[[Sequence[AttemptUsage]], Event]) -> None:
        """Holds what the request may cost, or rewrites it for a cheaper route. Raises `BudgetExhausted`, `NoBackend`.

        `describe` gives the event that ends the request should this gateway die, with what it may have used.
        """
        budgets = self._budgets
        while True:
            quotes = self._quote()
            if not self._keyed:
                event = describe(_attempts(quotes))
                # A hold has the name of the event that ends it, so that whoever has that one can settle it.
                self.event_id = self.event_id or event.id
                self._id = self.event_id
                mark_estimate(event, self.event_id)
                self._orphan = event.SerializeToString()
            usd, tokens = sum(quote.nano_usd or 0 for quote in quotes), sum(quote.tokens for quote in quotes)
            refusal = await self._take(usd, tokens)
            if refusal is None:
                if self.event_id and budgets.notes is not None and (budgets.shared or self._holds is None):
                    # Whoever holds for it without a shared store writes it down itself.
                    budgets.notes.put(self.event_id, self._orphan)
                return
            config = self._config[self._counters[refusal.index].budget]
            if config.action == "reject" or isinstance(self._request, EmbedRequest):
                # Vectors of another model would be of no use beside those that the caller has.
                raise self._refused(refusal, usd, tokens)
            self._forced.add(self._counters[refusal.index].budget)
            if not self.degraded:
                self.degraded = True
                self._request.model = config.degrade_to

    async def hold_on(self) -> None:
        """Holds what the request may cost whatever is left: it is under way, and who held it is gone.

        Raises `NoBackend`, and `BudgetExhausted` for a model without a price.
        """
        self._forced = {counter.budget for counter in self._counters}
        quotes = self._quote()
        await self._take(sum(quote.nano_usd or 0 for quote in quotes), sum(quote.tokens for quote in quotes))

    def settle(self, trail: Trail, event: Event) -> None:
        """Charges what all attempts used; `event` ends the request. Doing it twice does no harm."""
        if self.event_id:
            event.id = self.event_id
        if self.settled:
            return
        self.settled = True
        if self._hold is None:
            # It was admitted at a gateway that is gone.
            self._id = self._id or event.id
            self._hold = Hold(self._id, self._shares(0, 0), b"")
        usd = sum(nano_of(attempt.cost) for attempt in trail.attempts if attempt.cost is not None)
        used = [attempt.usage for attempt in trail.attempts if attempt.usage is not None]
        tokens = sum(usage.input_tokens + usage.output_tokens for usage in used)
        record, shared = event.SerializeToString(), self._budgets.holds
        if not shared.up or self._holds is not shared:
            # Should this gateway die before the store has it, then the ledger is the only one that knows.
            self._budgets.doubts.add(self._names)
        if self._holds is not shared:
            # The store was away, or nobody knew what was spent: it is charged without a hold, as soon as it is there.
            if self._holds is not None:
                self._holds.settle(self._hold, usd, tokens, b"")
                self._holds.forget([self._hold.id])
            self._hold = Hold(self._id, self._hold.shares, record)
        shared.settle(self._hold, usd, tokens, record)

    def forsake(self) -> None:
        """Charges nothing: another gateway accounts for the request, and takes over what is held for it."""
        if self._hold is not None and not self.settled:
            self.settled = True
            if self._holds is not None:
                self._holds.leave(self._hold)

    def told(self, event: Event) -> None:
        """The event that ends the request is published."""
        budgets = self._budgets
        if budgets.config is not self._config:
            budgets.doubt_end(event)
        if self._hold is not None:
            budgets.note_told(self._hold.id, self._names if budgets.shared else ())

    @property
    def _names(self) -> list[str]:
        return [counter.name for counter in self._counters]

    def _quote(self) -> Sequence[Quote]:
        budgets, request = self._budgets, self._request
        try:
            plan = budgets.plan(request, self._tenant)
        except MaestroError:
            # The dispatcher says it, in the way in which it always does.
            return ()
        strict = [
            counter.budget
            for counter in self._counters
            if (config := self._config[counter.budget]).usd is not None and config.unpriced == "reject"
        ]
        for model in unpriced(plan):
            if strict:
                raise BudgetExhausted(
                    f"{model} has no price, and the budget {strict[0]!r} counts money: name another model",
                    metadata={"budget": strict[0], "unpriced": model},
                )
            budgets.warn_unpriced(model)
        longest = max(self._config[counter.budget].longest_answer for counter in self._counters)
        return quotes_of(plan, size_of(request), longest)

    async def _take(self, usd: int, tokens: int) -> Answer | None:
        """Holds so much of every budget; None when it is done, else what stands in the way."""
        budgets = self._budgets
        wish = self._hold = Hold(self._id, self._shares(usd, tokens), self._orphan)
        first = self._counters[0]
        wait = min(self._config[counter.budget].wait for counter in self._counters)
        line = budgets.line(first.name)
        try:
            # Who comes later does not go before those that wait already.
            found = await self._ask(wish) if not line.waiting else None
            if found is not None and found.outcome is not Outcome.HELD:
                return None if found.outcome is Outcome.TAKEN else found
            latest = found
            if line.full:
                return latest if latest is not None else await self._ask_once(wish)
            try:
                async with asyncio.timeout(wait), line.turn():
                    while (latest := await self._ask(wish)).outcome is Outcome.HELD:
                        await line.wait()
            except TimeoutError:
                return latest if latest is not None else await self._ask_once(wish)
            return None if latest.outcome is Outcome.TAKEN else latest
        except StoreAway as away:
            return await self._go_without(wish, away)
        finally:
            budgets.leave(first.name, line)

    async def _ask_once(self, wish: Hold) -> Answer | None:
        found = await self._ask(wish)
        return None if found.outcome is Outcome.TAKEN else found

    async def _ask(self, wish: Hold) -> Answer:
        """What the store says; a counter that it does not know is told first. Raises `StoreAway`."""
        holds, end = self._holds or self._budgets.holds, time.monotonic() + _LEARNING
        while True:
            try:
                found = holds.reserve(wish)
                if not isinstance(found, Answer):
                    found = await found
            except asyncio.CancelledError:
                # Perhaps it was taken: nobody else would give it back.
                holds.undo(wish)
                raise
            if found.outcome is not Outcome.UNSEEDED:
                if found.first:
                    self._budgets.tell_exhausted(self._counters[found.index], found)
                return found
            if time.monotonic() > end:
                raise LedgerAway("what was spent is not known yet")
            counter = self._counters[found.index]
            await self._budgets.seeds.seed(holds, self._config[counter.budget], counter, found)

    async def _go_without(self, wish: Hold, away: StoreAway) -> Answer | None:
        """The store does not answer, or nobody can tell what was spent."""
        budgets = self._budgets
        if budgets.denies_without_store:
            raise NoBackend(
                "budgets can't be checked now: what was spent is not known", retry_after=_AWAY_WAIT
            ) from None
        self._hold = Hold(self._id, wish.shares, b"")
        self._holds = None
        if isinstance(away, LedgerAway):
            return None
        self._holds = budgets.spare
        try:
            return await self._ask_once(self._hold)
        except LedgerAway:
            self._holds = None
            return None

    def _shares(self, usd: int, tokens: int) -> tuple[Share, ...]:
        def share(counter: Counter) -> Share:
            config = self._config[counter.budget]
            free = counter.budget in self._forced
            limit_usd, limit_tokens = config.nano_usd, config.tokens
            return Share(
                counter.name,
                usd,
                tokens,
                -1 if limit_usd is None or free else limit_usd,
                -1 if limit_tokens is None or free else limit_tokens,
                int((counter.period.end + KEPT) * 1000),
            )

        return tuple(share(counter) for counter in self._counters)

    def _refused(self, found: Answer, usd: int, tokens: int) -> BudgetExhausted:
        counter, balance = self._counters[found.index], found.balance
        config = self._config[counter.budget]
        facts = {"budget": counter.budget, "period": counter.period.name}
        limit_usd, limit_tokens = config.nano_usd, config.tokens
        held = found.outcome is Outcome.HELD
        spent_usd = balance.usd + (balance.held_usd if held else 0)
        spent_tokens = balance.tokens + (balance.held_tokens if held else 0)
        if limit_usd is not None and spent_usd + usd > limit_usd:
            facts["measure"] = "usd"
            left = f"{format_usd(max(0, limit_usd - spent_usd))} of {format_usd(limit_usd)} US dollars"
            wish = f"{format_usd(usd)} US dollars"
            never = usd > limit_usd
        else:
            facts["measure"] = "tokens"
            left = f"{max(0, (limit_tokens or 0) - spent_tokens)} of {limit_tokens} tokens"
            wish, never = f"{tokens} tokens", limit_tokens is not None and tokens > limit_tokens
        has = f"the budget {counter.budget!r} has {left} left"
        if is_shared(config):
            # What is left of it tells what others spent.
            has = f"the budget {counter.budget!r}, which several share, has less left"
        what = f"this request may use {wish}, and {has} for {counter.period.name}"
        if held:
            return BudgetExhausted(
                f"{what} beside what requests under way hold", retry_after=_AWAY_WAIT, metadata=facts
            )
        advice = "; make it shorter, or set a smaller max_tokens"
        after = None if never else max(0.0, counter.period.end - time.time())
        return BudgetExhausted(f"{what}{advice}", retry_after=after, metadata=facts)


def _attempts(quotes: Sequence[Quote]) -> list[AttemptUsage]:
    """What a request may have used by the time its gateway is gone, at most."""
    found: list[AttemptUsage] = []
    for number, quote in enumerate(quotes, 1):
        model = quote.backend.message.model
        used = AttemptUsage(
            attempt=number,
            adapter=quote.backend.adapter,
            provider=quote.backend.provider,
            model=model.name,
            fate=_ABANDONED,
            usage=quote.usage,
        )
        if quote.nano_usd is not None:
            used.cost.CopyFrom(Cost(usd=format_usd(quote.nano_usd), price_date=quote.price_date, estimated=True))
        found.append(used)
    return found
