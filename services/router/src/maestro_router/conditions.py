"""In which condition backends are, beside what their adapters say: breakers, quarantines, operators' wishes, headroom.

Pure: time comes in as an argument. What the other routers have to know is left in `told`, what happened in `changes`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import cast

from maestro.llm.v1.usage_pb2 import Headroom
from maestro.router.v1 import router_pb2 as pb
from maestro_router.marks import Kind, Mark, merge
from maestro_sdk.mesh.breaker import Breaker, BreakerPolicy, State
from maestro_sdk.service.settings import QuarantineConfig

_STEPS = (0.5, 0.2, 0.1, 0.05, 0.0)
"""Shares of a rate limit; a table tells when one of them is crossed."""
_MEMORY = 86400.0
"""Seconds for which it is remembered that something was cleared."""


@dataclass(frozen=True, slots=True)
class Change:
    """A breaker came into another state. `open_time`: seconds for which it was not closed, when it closes."""

    scope: str
    state: State
    why: str
    until: float
    open_time: float = 0.0


class Conditions:
    """Of all backends and accounts. `by` names this router in its marks."""

    def __init__(self, by: str, policy: BreakerPolicy, quarantine: QuarantineConfig) -> None:
        self._by = by
        self._policy = policy
        self._quarantine = quarantine
        # When the process of each adapter came up, by its own account; of those that don't say it is not known.
        self._started: dict[str, float] = {}
        self._breakers: dict[str, Breaker] = {}
        self._marks: dict[tuple[Kind, str], Mark] = {}
        # State and end of each breaker that was not closed when it was looked at last, and since when it was not.
        self._seen: dict[str, tuple[State, float]] = {}
        self._opened: dict[str, float] = {}
        self._breaches: dict[str, deque[float]] = {}
        self._headrooms: dict[str, tuple[Headroom, float]] = {}
        self._steps: dict[str, int] = {}
        self.crossed = False
        """Whether some headroom crossed a step, so that a new table should tell it; whoever makes one resets it."""
        self.told: list[Mark] = []
        """Marks that the other routers don't have; whoever takes them clears the list."""
        self.changes: list[Change | Mark] = []
        """What happened and was found out here, for events: breakers, and quarantines as their mark."""

    def configure(self, policy: BreakerPolicy, quarantine: QuarantineConfig) -> None:
        """Takes other limits: breakers count anew, and what is open stays open for its time."""
        self._quarantine = quarantine
        if policy != self._policy:
            self._policy = policy
            for breaker in self._breakers.values():
                breaker.tune(policy)

    def report(self, outcome: pb.Outcome, account: str, now: float) -> bool:
        """Takes the outcome of an attempt; whether the table has to change."""
        scope = outcome.backend_id
        began = now - outcome.duration.ToNanoseconds() / 1e9
        if outcome.HasField("headroom"):
            self._note_headroom(scope, outcome.headroom, now)
        breaker = self._breaker(scope)
        if outcome.reason:
            wait = outcome.retry_after.ToNanoseconds() / 1e9 if outcome.HasField("retry_after") else None
            breaker.fail(now, outcome.reason, counts=outcome.counts_against_health, retry_after=wait, began=began)
        else:
            breaker.succeed(now, began)
            if (shared := self._breakers.get(account)) is not None:
                shared.succeed(now, began)
        changed = self._settle(scope, now)
        if account in self._seen:
            changed |= self._settle(account, now)
        if outcome.breach:
            changed |= self._note_breach(scope, outcome.breach, now)
        return changed

    def open(self, opening: pb.Opening, now: float) -> bool:
        """Takes over the opening that a gateway told; whether the table has to change. What is over since is not."""
        scope, until = opening.scope, opening.until.ToNanoseconds() / 1e9
        if until <= now:
            return False
        since = None
        if opening.HasField("since"):
            since = opening.since.ToNanoseconds() / 1e9
            mark = self._marks.get((Kind.BREAKER, scope))
            if since <= max(mark.cleared if mark is not None else 0.0, self._started.get(_adapter(scope), 0.0)):
                return False
        self._breaker(scope).hold(now, until, opening.reason, opened=since, waits=opening.waits)
        return self._settle(scope, now)

    def look(self, now: float) -> None:
        """Notes what time changed: breakers that became half open."""
        for scope in list(self._seen):
            self._settle(scope, now)

    def wish(self, scope: str, account: str, state: pb.BackendState.ValueType, reason: str, now: float) -> None:
        """Takes an operator's wish; ACTIVE also closes the breakers and ends the quarantine."""
        if state != pb.BACKEND_STATE_ACTIVE:
            known = self._marks.get((Kind.WISH, scope))
            # Two wishes in one moment are still one after the other.
            since = max(now, math.nextafter(known.cleared, math.inf)) if known else now
            self._tell(Mark(Kind.WISH, scope, since=since, reason=reason, state=state, by=self._by))
            return
        self._tell(Mark(Kind.WISH, scope, cleared=now, by=self._by))
        self._tell(Mark(Kind.QUARANTINE, scope, cleared=now, by=self._by))
        self._breaches.pop(scope, None)
        for one in (scope, account):
            if (breaker := self._breakers.get(one)) is not None:
                breaker.close()
                self._settle(one, now, "an operator closed it")
            if one == scope or breaker is not None:
                self._tell(Mark(Kind.BREAKER, one, cleared=now, by=self._by))

    def adopt(self, mark: Mark, now: float) -> bool:
        """Takes what another router told; whether the table has to change. What is older than what is known is not."""
        known = self._marks.get((mark.kind, mark.scope))
        merged = merge(known, mark) if known is not None else mark
        if merged == known:
            return False
        self._marks[mark.kind, mark.scope] = merged
        if merged.kind is not Kind.BREAKER:
            return True
        if merged.holds(now) and self._is_past(merged):
            self._tell(replace(merged, cleared=now))
            return False
        # Its time is over, and nobody has told that it is well: who knows nothing else of it lets it be tried.
        unproven = mark.scope not in self._breakers and merged.since > merged.cleared and not merged.waits
        breaker = self._breaker(mark.scope)
        if merged.holds(now) or (unproven and not self._is_past(merged)):
            breaker.hold(now, merged.until, merged.reason, opened=merged.since, waits=merged.waits, exact=True)
        elif merged.cleared > breaker.opened:
            breaker.close()
        return self._settle(mark.scope, now, own=False)

    def marks(self, now: float) -> list[Mark]:
        """All marks that matter to a router that does not have them: in force, or cleared and maybe in force there."""
        return [
            mark
            for mark in self._marks.values()
            if mark.holds(now) or mark.cleared > (0.0 if mark.kind is Kind.WISH else now - _MEMORY)
        ]

    def known(self, mark: Mark) -> Mark | None:
        """What is known here of the thing that `mark` is about."""
        return self._marks.get((mark.kind, mark.scope))

    def renew(self, adapter: str, started: float, *, anew: bool, now: float) -> None:
        """An adapter serves; what was found of an earlier process of it is over.

        `started` is when it came up by its own account, 0 for unknown; `anew` whether it was away, as seen from here.
        """
        if started:
            self._started[adapter] = started
        for scope in [scope for scope in self._breakers if _adapter(scope) == adapter]:
            mark = self._marks.get((Kind.BREAKER, scope))
            # What it says itself is the same for all routers, and counts before what is seen from here.
            if not (self._is_past(mark) if mark is not None and mark.started and started else anew):
                continue
            self._breakers[scope].close()
            self._settle(scope, now, "the adapter was started anew")
            del self._breakers[scope]

    def forget(self, adapters: Collection[str]) -> None:
        """Drops what is known of adapters other than these; operators' wishes stay."""
        by_scope = (self._breakers, self._seen, self._opened, self._breaches, self._headrooms, self._steps)
        for known in (*by_scope, self._started):
            for scope in [scope for scope in known if _adapter(scope) not in adapters]:
                del known[scope]

    def ends(self, now: float) -> Iterable[float]:
        """When something changes by itself."""
        yield from (until for state, until in self._seen.values() if state is State.OPEN)
        yield from (mark.until for mark in self._marks.values() if mark.kind is Kind.QUARANTINE and mark.holds(now))

    def troubles(self) -> Iterable[tuple[str, State, str]]:
        """The breakers that are not closed: scope, state, reason."""
        return [(scope, state, self._breakers[scope].reason) for scope, (state, _) in self._seen.items()]

    def describe(self, backend: pb.Backend, account: str, serving_trouble: str | None, now: float) -> None:
        """Writes state and headroom into `backend`; `serving_trouble` tells why its adapter does not serve."""
        scope = backend.id
        backend.state = pb.BACKEND_STATE_ACTIVE
        if (noted := self._headrooms.get(scope)) is not None:
            backend.headroom.CopyFrom(noted[0])
            backend.headroom_time.FromNanoseconds(round(noted[1] * 1e9))
        wish = self._marks.get((Kind.WISH, scope))
        quarantine = self._marks.get((Kind.QUARANTINE, scope))
        if wish is not None and wish.holds(now):
            backend.state = cast("pb.BackendState.ValueType", wish.state)
            backend.state_reason = wish.reason
        elif serving_trouble is not None:
            backend.state, backend.state_reason = pb.BACKEND_STATE_DOWN, serving_trouble
        elif quarantine is not None and quarantine.holds(now):
            backend.state, backend.state_reason = pb.BACKEND_STATE_QUARANTINED, quarantine.reason
            backend.state_until.FromNanoseconds(round(quarantine.until * 1e9))
        elif self._seen:
            self._describe_breaker(backend, account)

    def _describe_breaker(self, backend: pb.Backend, account: str) -> None:
        own, shared = self._seen.get(backend.id), self._seen.get(account)
        if own is None and shared is None:
            return
        # What keeps calls away for longer is told.
        backend.account_wide = own is None or (shared is not None and _severity(shared) > _severity(own))
        scope = account if backend.account_wide else backend.id
        state, until = self._seen[scope]
        backend.state_reason = self._breakers[scope].reason
        if state is State.OPEN:
            backend.state = pb.BACKEND_STATE_OPEN
            backend.state_until.FromNanoseconds(round(until * 1e9))
        else:
            backend.state = pb.BACKEND_STATE_HALF_OPEN

    def _breaker(self, scope: str) -> Breaker:
        breaker = self._breakers.get(scope)
        if breaker is None:
            breaker = self._breakers[scope] = Breaker(self._policy)
        return breaker

    def _is_past(self, mark: Mark) -> bool:
        """Whether a mark is of an earlier process of its adapter."""
        return bool(mark.started) and mark.started < self._started.get(_adapter(mark.scope), 0.0)

    def _settle(self, scope: str, now: float, closed: str = "", *, own: bool = True) -> bool:
        """Notes the state of a breaker; whether it is another one than before. Tells what was found out here.

        `closed` is why it closed, where that was neither a trial call nor time.
        """
        breaker = self._breakers[scope]
        state, until = breaker.state(now), breaker.until
        seen = self._seen.get(scope)
        before = seen[0] if seen is not None else State.CLOSED
        if state is before and (state is not State.OPEN or seen == (state, until)):
            return False
        if state is State.CLOSED:
            del self._seen[scope]
        else:
            self._seen[scope] = (state, until)
            self._opened.setdefault(scope, now)
        opened = self._opened.pop(scope, now) if state is State.CLOSED else now
        mark = self._marks.get((Kind.BREAKER, scope))
        mine = own if state is not State.HALF_OPEN else mark is not None and mark.by == self._by
        if mine and state is not before:
            why = breaker.reason
            if state is State.CLOSED:
                why = closed or ("a trial call succeeded" if before is State.HALF_OPEN else "its time was over")
            self.changes.append(Change(scope, state, why, until, now - opened))
        if own and state is State.OPEN:
            fresh = Mark(
                Kind.BREAKER,
                scope,
                since=breaker.opened,
                until=until,
                reason=breaker.reason,
                waits=breaker.waits,
                started=self._started.get(_adapter(scope), 0.0),
                by=self._by,
            )
            self._tell(fresh)
        elif own and mark is not None and mark.since > mark.cleared and _ended_early(before, state, mark, now):
            self._tell(Mark(Kind.BREAKER, scope, cleared=now, by=self._by))
        return True

    def _tell(self, mark: Mark) -> None:
        known = self._marks.get((mark.kind, mark.scope))
        merged = merge(known, mark) if known is not None else mark
        if merged != known:
            self._marks[mark.kind, mark.scope] = merged
            self.told.append(merged)

    def _note_breach(self, scope: str, breach: str, now: float) -> bool:
        known = self._breaches.setdefault(scope, deque())
        known.append(now)
        while known[0] <= now - self._quarantine.window:
            known.popleft()
        standing = self._marks.get((Kind.QUARANTINE, scope))
        if len(known) < self._quarantine.breaches or (standing is not None and standing.holds(now)):
            return False
        mark = Mark(
            Kind.QUARANTINE,
            scope,
            since=now,
            until=now + self._quarantine.time,
            reason=breach,
            count=len(known),
            by=self._by,
        )
        known.clear()
        self._tell(mark)
        self.changes.append(mark)
        return True

    def _note_headroom(self, scope: str, headroom: Headroom, now: float) -> None:
        kept = Headroom()
        kept.CopyFrom(headroom)
        self._headrooms[scope] = (kept, now)
        step = _step(kept)
        if self._steps.get(scope, 0) != step:
            self._steps[scope] = step
            self.crossed = True


def _adapter(scope: str) -> str:
    return scope.partition(":")[0]


def _ended_early(before: State, state: State, mark: Mark, now: float) -> bool:
    """Whether a breaker closed by what was found out; that its time is over every router sees for itself."""
    return state is State.CLOSED and (before is State.HALF_OPEN or now < mark.until)


def _severity(seen: tuple[State, float]) -> tuple[bool, float]:
    return seen[0] is State.OPEN, seen[1]


def _step(headroom: Headroom) -> int:
    """How many of the steps the tightest limit has gone below."""
    share = 1.0
    for name in ("requests", "tokens"):
        if headroom.HasField(name):
            limit = getattr(headroom, name)
            share = min(share, limit.remaining / limit.limit if limit.limit else float(limit.remaining > 0))
    return sum(share <= step for step in _STEPS)
