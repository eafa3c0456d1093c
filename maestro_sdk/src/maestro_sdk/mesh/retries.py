"""How many retries the requests of a route may make, so that a failing provider is not asked many times more."""

from __future__ import annotations

_RESERVE = 10.0


class RetryBudget:
    """Retries that each route may still make: every request adds its share, a few may always be made at first."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left: dict[str, float] = {}

    def add(self, route: str, share: float) -> None:
        """A request came."""
        self._left[route] = min(_RESERVE, self._left.get(route, _RESERVE) + share)

    def take(self, route: str) -> bool:
        """Whether one retry may be made; it counts as made."""
        if self._left[route] < 1.0:
            return False
        self._left[route] -= 1.0
        return True
