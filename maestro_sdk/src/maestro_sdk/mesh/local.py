"""What one process knows by itself about backends: calls under way, paces, headroom, breakers; a decision reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from maestro.llm.v1.usage_pb2 import Headroom
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import MaestroError, ProviderAuth
from maestro_sdk.mesh.breaker import Breaker, BreakerPolicy, State
from maestro_sdk.mesh.pace import Pace
from maestro_sdk.mesh.strategy import Load
from maestro_sdk.mesh.table import Backend, Table

_SAME = 1e-3
"""Seconds by which a moment may differ that went through the table."""


class LocalState:
    """Fed by the outcomes of this process, and by what the router's table tells of those of others.

    Every backend has a breaker, and every account, which all models of an adapter and provider share. A breaker that
    the table shows open is held open here, too, and closed when the table shows the backend active again. One of which
    the router does not know stays as it is: it opened here just now, or the router is another one than before.
    """

    def __init__(self) -> None:
        self.load = Load()
        self.router_seen = 0.0
        """Unix time of the last sign of a router; 0 for never."""
        self._breakers: dict[str, Breaker] = {}
        # Those of them that may not be closed: while there are none, looking costs nothing.
        self._troubled: dict[str, Breaker] = {}
        # Those of them that the router knows of: the table tells when they are over.
        self._confirmed: set[str] = set()
        # Those of them that it was told of, and the version of its table from which on it knows.
        self._told: dict[str, int] = {}
        self._policy = BreakerPolicy()
        self._since: dict[str, float] = {}
        self._openings: list[pb.Opening] = []

    def breaker(self, scope: str) -> Breaker:
        """The breaker of a backend or of an account."""
        breaker = self._breakers.get(scope)
        if breaker is None:
            breaker = self._breakers[scope] = Breaker(self._policy)
            # Whoever takes it may open it.
            self._troubled[scope] = breaker
        return breaker

    def trouble(self, scope: str, now: float) -> Breaker | None:
        """The breaker of a backend or of an account when it is not closed."""
        breaker = self._troubled.get(scope)
        return breaker if breaker is not None and breaker.state(now) is not State.CLOSED else None

    def bars(self, backend: Backend, now: float) -> tuple[str, float] | None:
        """Why no call may pass to a backend, and until when in Unix time, 0 for unknown; None when one may."""
        troubled = self._troubled
        if not troubled or (backend.id not in troubled and backend.account not in troubled):
            return None
        for scope in (backend.id, backend.account):
            breaker = troubled.get(scope)
            if breaker is None or breaker.admits(now):
                continue
            whose = "breaker" if scope == backend.id else f"breaker of the account {scope}"
            if breaker.state(now) is State.OPEN:
                return f"{whose} open here: {breaker.reason}", breaker.until
            return f"{whose} half open here, a trial call is under way", 0.0
        return None

    def begin(self, backend: Backend, now: float) -> None:
        """A call to a backend starts."""
        if self._troubled:
            for _, breaker in self._of(backend):
                breaker.begin(now)

    def succeed(self, backend: Backend, now: float, began: float | None = None) -> None:
        """A call succeeded; `began` is the `now` that its `begin` was told."""
        for scope, breaker in self._of(backend):
            breaker.succeed(now, began)
            self._note(scope, breaker, now)

    def abandon(self, backend: Backend, began: float | None = None) -> None:
        """A call ended without telling anything, since its caller left or another attempt was quicker."""
        if self._troubled:
            for _, breaker in self._of(backend):
                breaker.abandon(began)

    def fail(self, backend: Backend, error: MaestroError, now: float, began: float | None = None) -> None:
        """A call failed."""
        concerned = _concerns_account(error)
        for scope, counts in ((backend.id, error.counts_against_health), (backend.account, concerned)):
            breaker = self._breakers.get(scope)
            if breaker is None and not counts and (scope != backend.id or not error.retry_after):
                continue
            if breaker is None:
                breaker = self._breakers[scope] = Breaker(self._policy)
            was_open = breaker.state(now) is State.OPEN
            if scope == backend.id or counts:
                breaker.fail(now, error.reason_value, counts=counts, retry_after=error.retry_after, began=began)
            else:
                breaker.abandon(began)
            self._note(scope, breaker, now)
            if not was_open and breaker.state(now) is State.OPEN:
                self._confirmed.discard(scope)
                self._told.pop(scope, None)
                self._openings.append(_opening(scope, breaker))

    def openings(self) -> list[pb.Opening]:
        """The breakers that opened here since the last call."""
        found, self._openings = self._openings, []
        return found

    def unknown(self, now: float) -> list[pb.Opening]:
        """The breakers that are open here, and of which no table of the present router has told."""
        found: list[pb.Opening] = []
        for scope, breaker in self._troubled.items():
            if scope not in self._confirmed and breaker.state(now) is State.OPEN:
                opening = _opening(scope, breaker)
                opening.since.FromNanoseconds(round(breaker.opened * 1e9))
                found.append(opening)
        return found

    def note_told(self, openings: Iterable[pb.Opening], version: int, now: float) -> None:
        """The router took `openings`: its tables from `version` on tell when they are over. 0: it does not say."""
        for opening in openings if version else ():
            breaker = self._troubled.get(opening.scope)
            if breaker is None or breaker.state(now) is not State.OPEN:
                # It came too late for the router to learn anything: a trial call tells how it goes on.
                continue
            if abs(breaker.until - opening.until.ToNanoseconds() / 1e9) < _SAME:
                self._told[opening.scope] = version

    def observe(self, backend_id: str, first: float, duration: float, tokens: int, now: float) -> None:
        """Takes the times of an answer, in seconds, for strategies that look at them."""
        pace = self.load.paces.get(backend_id)
        if pace is None:
            pace = self.load.paces[backend_id] = Pace()
        pace.observe(first, duration, tokens, now)

    def note_headroom(self, backend_id: str, headroom: Headroom, now: float) -> None:
        """Takes what the provider's rate limits leave to the account of a backend."""
        self.load.headrooms[backend_id] = (headroom, now)

    def adopt(self, table: Table, now: float, *, anew: bool = False) -> None:
        """Takes the limits of a new table and what it shows of breakers; forgets backends that are gone.

        The first table of a router that was not followed until now comes `anew`: what it does not show open it may not
        have heard of, and that ends nothing.
        """
        if anew:
            self._confirmed.clear()
            self._told.clear()
        if table.breaker != self._policy:
            self._policy = table.breaker
            for breaker in self._breakers.values():
                breaker.tune(table.breaker)
        self._forget(table, now, anew)
        for scope in [scope for scope, version in self._told.items() if version <= table.version]:
            del self._told[scope]
            if scope in self._troubled:
                self._confirmed.add(scope)
        active: set[str] = set()
        for backend in table.backends.values():
            if backend.state == pb.BACKEND_STATE_ACTIVE:
                active.add(backend.id)
                active.add(backend.account)
            elif backend.state in (pb.BACKEND_STATE_OPEN, pb.BACKEND_STATE_HALF_OPEN):
                self._hold(backend, now)
        for scope in self._confirmed & active:
            self._breakers[scope].close()
            self._confirmed.discard(scope)
        for scope, breaker in list(self._troubled.items()):
            self._note(scope, breaker, now)

    def _hold(self, backend: Backend, now: float) -> None:
        """Does as the table shows. An older table that does not know of the last opening yet changes nothing."""
        scope = backend.account if backend.message.account_wide else backend.id
        breaker = self._breakers.get(scope)
        if breaker is None:
            breaker = self._breakers[scope] = Breaker(self._policy)
        state = breaker.state(now)
        known = scope in self._confirmed or state is State.CLOSED
        if backend.state == pb.BACKEND_STATE_OPEN:
            breaker.hold(now, backend.until, backend.state_reason, exact=known)
            known = known or backend.until >= breaker.until - _SAME
        else:
            breaker.hold(now, now, backend.state_reason)
        if known:
            self._confirmed.add(scope)
        self._note(scope, breaker, now)

    def _forget(self, table: Table, now: float, anew: bool) -> None:
        accounts = {backend.account: backend for backend in table.backends.values()}
        for scope in list(self._breakers):
            backend = table.backends.get(scope) or accounts.get(scope)
            if backend is None:
                # A router that has just begun knows no adapter yet: what is open stays until its time is over.
                gone = self.trouble(scope, now) is None
            else:
                # An adapter that was started anew gets new breakers: what the old ones know is of the past.
                gone = bool(backend.since) and backend.since != self._since.get(backend.adapter, backend.since)
                # Of an adapter that does not say when it came up, each router knows only since when it sees it serve.
                gone = gone and not (anew and backend.since < self._breakers[scope].opened)
            if gone:
                del self._breakers[scope]
                self._troubled.pop(scope, None)
                self._confirmed.discard(scope)
                self._told.pop(scope, None)
        for backend in table.backends.values():
            if backend.since:
                self._since[backend.adapter] = backend.since
        for known in (self.load.paces, self.load.headrooms):
            for name in [name for name in known if name not in table.backends]:
                del known[name]

    def _note(self, scope: str, breaker: Breaker, now: float) -> None:
        if breaker.state(now) is State.CLOSED:
            if self._troubled.pop(scope, None) is not None:
                self._confirmed.discard(scope)
                self._told.pop(scope, None)
        else:
            self._troubled[scope] = breaker

    def _of(self, backend: Backend) -> Iterator[tuple[str, Breaker]]:
        for scope in (backend.id, backend.account):
            breaker = self._breakers.get(scope)
            if breaker is None and scope == backend.id:
                breaker = self._breakers[scope] = Breaker(self._policy)
            if breaker is not None:
                yield scope, breaker


def _opening(scope: str, breaker: Breaker) -> pb.Opening:
    opening = pb.Opening(scope=scope, reason=breaker.reason, waits=breaker.waits)
    opening.until.FromNanoseconds(round(breaker.until * 1e9))
    return opening


def _concerns_account(error: MaestroError) -> bool:
    """Whether an error is one of all models of an account: the adapter is not there, or its key is refused outright."""
    if isinstance(error, ProviderAuth):
        return error.metadata.get("upstream_status") == "401"
    return error.counts_against_health and error.metadata.get("origin") == "transport"
