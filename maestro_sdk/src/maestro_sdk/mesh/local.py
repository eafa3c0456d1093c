"""What one process knows by itself about backends: calls under way, paces, breakers; a decision looks at it."""

from __future__ import annotations

from maestro_sdk.mesh.breaker import Breaker, BreakerPolicy
from maestro_sdk.mesh.pace import Pace
from maestro_sdk.mesh.strategy import Load
from maestro_sdk.mesh.table import Table


class LocalState:
    """What one process knows by itself: load, paces and breakers per backend, fed by its own outcomes."""

    def __init__(self) -> None:
        self.load = Load()
        self._breakers: dict[str, Breaker] = {}
        self._policy = BreakerPolicy()
        self._since: dict[str, float] = {}

    def breaker(self, backend_id: str) -> Breaker:
        """The breaker of a backend."""
        breaker = self._breakers.get(backend_id)
        if breaker is None:
            breaker = self._breakers[backend_id] = Breaker(self._policy)
        return breaker

    def observe(self, backend_id: str, first: float, duration: float, tokens: int, now: float) -> None:
        """Takes the times of an answer, in seconds, for strategies that look at them."""
        pace = self.load.paces.get(backend_id)
        if pace is None:
            pace = self.load.paces[backend_id] = Pace()
        pace.observe(first, duration, tokens, now)

    def adopt(self, table: Table) -> None:
        """Takes the limits of a new table and forgets backends that are gone."""
        if table.breaker != self._policy:
            self._policy = table.breaker
            self._breakers.clear()
        for name in list(self._breakers):
            backend = table.backends.get(name)
            # An adapter that was started anew gets a new breaker: what the old one knows is of the past.
            if backend is None or (backend.since and backend.since != self._since.get(name, backend.since)):
                del self._breakers[name]
        for backend in table.backends.values():
            if backend.since:
                self._since[backend.id] = backend.since
        for gone in [name for name in self.load.paces if name not in table.backends]:
            del self.load.paces[gone]
