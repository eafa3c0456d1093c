"""What one process knows by itself about backends: calls under way, paces, headroom, breakers; a decision reads it."""

from __future__ import annotations

from collections.abc import Iterator

from maestro.llm.v1.usage_pb2 import Headroom
from maestro.router.v1.router_pb2 import Opening
from maestro_sdk.errors import MaestroError, ProviderAuth
from maestro_sdk.mesh.breaker import Breaker, BreakerPolicy, State
from maestro_sdk.mesh.pace import Pace
from maestro_sdk.mesh.strategy import Load
from maestro_sdk.mesh.table import Backend, Table


class LocalState:
    """Fed by the outcomes of this process, and by what the router's table tells of those of others."""

    def __init__(self) -> None:
        self.load = Load()
        self.router_seen = 0.0
        """Unix time of the last sign of a router; 0 for never."""
        self._breakers: dict[str, Breaker] = {}
        self._policy = BreakerPolicy()
        self._since: dict[str, float] = {}
        self._openings: list[Opening] = []

    def breaker(self, scope: str) -> Breaker:
        """The breaker of a backend or of an account."""
        breaker = self._breakers.get(scope)
        if breaker is None:
            breaker = self._breakers[scope] = Breaker(self._policy)
        return breaker

    def bars(self, backend: Backend, now: float) -> tuple[str, float] | None:
        """Why no call may pass to a backend, and until when in Unix time, 0 for unknown; None when one may."""
        for scope in (backend.id, backend.account):
            breaker = self._breakers.get(scope)
            if breaker is None or breaker.admits(now):
                continue
            if breaker.state(now) is State.OPEN:
                return f"breaker open here: {breaker.reason}", breaker.until
            return "breaker half open here, a trial call is under way", 0.0
        return None

    def begin(self, backend: Backend, now: float) -> None:
        """A call to a backend starts."""
        for breaker in self._of(backend):
            breaker.begin(now)

    def succeed(self, backend: Backend, now: float) -> None:
        """A call succeeded."""
        for breaker in self._of(backend):
            breaker.succeed(now)

    def abandon(self, backend: Backend) -> None:
        """A call ended without telling anything, since its caller left or another attempt was quicker."""
        for breaker in self._of(backend):
            breaker.abandon()

    def fail(self, backend: Backend, error: MaestroError, now: float) -> None:
        """A call failed."""
        for scope, counts in ((backend.id, error.counts_against_health), (backend.account, _concerns_account(error))):
            breaker = self.breaker(scope)
            was_open = breaker.state(now) is State.OPEN
            if scope == backend.id or counts:
                breaker.fail(now, error.reason_value, counts=counts, retry_after=error.retry_after)
            else:
                breaker.abandon()
            if not was_open and breaker.state(now) is State.OPEN:
                opening = Opening(scope=scope, reason=breaker.reason)
                opening.until.FromNanoseconds(int(breaker.until * 1e9))
                self._openings.append(opening)

    def openings(self) -> list[Opening]:
        """The breakers that opened here since the last call."""
        found, self._openings = self._openings, []
        return found

    def observe(self, backend_id: str, first: float, duration: float, tokens: int, now: float) -> None:
        """Takes the times of an answer, in seconds, for strategies that look at them."""
        pace = self.load.paces.get(backend_id)
        if pace is None:
            pace = self.load.paces[backend_id] = Pace()
        pace.observe(first, duration, tokens, now)

    def note_headroom(self, backend_id: str, headroom: Headroom, now: float) -> None:
        """Takes what the provider's rate limits leave to the account of a backend."""
        self.load.headrooms[backend_id] = (headroom, now)

    def adopt(self, table: Table, now: float) -> None:
        """Takes the limits of a new table and forgets backends that are gone."""
        if table.breaker != self._policy:
            self._policy = table.breaker
            self._breakers.clear()
        accounts = {backend.account for backend in table.backends.values()}
        for name in list(self._breakers):
            backend = table.backends.get(name)
            # An adapter that was started anew gets a new breaker: what the old one knows is of the past.
            anew = backend is not None and backend.since and backend.since != self._since.get(name, backend.since)
            if (backend is None and name not in accounts) or anew:
                del self._breakers[name]
        for backend in table.backends.values():
            if backend.since:
                self._since[backend.id] = backend.since
        for known in (self.load.paces, self.load.headrooms):
            for gone in [name for name in known if name not in table.backends]:
                del known[gone]

    def _of(self, backend: Backend) -> Iterator[Breaker]:
        yield self.breaker(backend.id)
        account = self._breakers.get(backend.account)
        if account is not None:
            yield account


def _concerns_account(error: MaestroError) -> bool:
    """Whether an error is one of all models of an account: the adapter is not there, or its key is refused outright."""
    if isinstance(error, ProviderAuth):
        return error.metadata.get("upstream_status") == "401"
    return error.counts_against_health and error.metadata.get("origin") == "transport"
