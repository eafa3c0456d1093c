"""What a process has to tell a router: how attempts ended, and which of its breakers opened."""

from __future__ import annotations

from collections import deque

from maestro.router.v1.router_pb2 import Opening, Outcome, ReportRequest
from maestro_sdk.mesh.local import LocalState

_MOST_OUTCOMES = 10_000
_FRESH = 5.0
"""Seconds for which an outcome is worth telling: after an outage older ones would only mislead."""


class Reports:
    """Collects until a router has taken it. Times are Unix times in seconds."""

    def __init__(self, reporter: str, local: LocalState) -> None:
        self._reporter = reporter
        self._local = local
        self._outcomes: deque[tuple[float, Outcome]] = deque(maxlen=_MOST_OUTCOMES)
        self._sent: list[tuple[float, Outcome]] = []
        # Breakers that are open here, by what they guard, of which the present router does not know yet.
        self._untold: dict[str, Opening] = {}

    def add(self, outcome: Outcome, now: float) -> None:
        """Queues an outcome."""
        self._outcomes.append((now, outcome))

    def take(self, now: float) -> ReportRequest | None:
        """What there is to tell, oldest first; None when there is nothing. `settle` or `give_back` has to follow."""
        for opening in self._local.openings():
            self._untold[opening.scope] = opening
        if not self._outcomes and not self._untold:
            return None
        self._sent = [found for found in self._outcomes if now - found[0] < _FRESH]
        self._outcomes.clear()
        return ReportRequest(
            reporter=self._reporter,
            outcomes=[outcome for _, outcome in self._sent],
            openings=[self._untold[scope] for scope in sorted(self._untold)],
        )

    def settle(self, version: int, now: float) -> bool:
        """The router has taken what `take` gave, and its tables from `version` on know of it; 0 when it does not say.

        True when it learned of breakers.
        """
        self._sent = []
        told, self._untold = self._untold, {}
        self._local.note_told(told.values(), version, now)
        return bool(told)

    def give_back(self) -> None:
        """The router is gone: what is still of use waits for the next one. Of outcomes these are the failures."""
        self._outcomes.extendleft(found for found in reversed(self._sent) if found[1].counts_against_health)
        self._sent = []

    def introduce(self, now: float) -> None:
        """Another router listens: it has to hear of each breaker that is open here, whoever opened it.

        The last one may have died before it told anybody, and so may the process that found it out.
        """
        self._local.openings()
        self._untold = {opening.scope: opening for opening in self._local.unknown(now)}
