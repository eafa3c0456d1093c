"""What routers tell each other of backends: one mark for each breaker, quarantine and wish of an operator. Pure.

Two marks of one thing merge to the same mark on every router, in whichever order they come.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, replace
from enum import Enum

import orjson
from pydantic import TypeAdapter

from maestro.router.v1 import router_pb2 as pb

_WISHES = (pb.BACKEND_STATE_UNSPECIFIED, pb.BACKEND_STATE_DRAINING, pb.BACKEND_STATE_DISABLED)


class Kind(Enum):
    """What a mark is about."""

    BREAKER = "breaker"
    QUARANTINE = "quarantine"
    WISH = "wish"
    """What an operator set."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing about a backend, or about an account; times are Unix times in seconds."""

    kind: Kind
    scope: str
    """The backend as "adapter:provider/model", or the account as "adapter:provider"."""
    since: float = 0.0
    """When it was set; 0 for never."""
    until: float = 0.0
    """When it ends by itself; 0 for not by itself."""
    cleared: float = 0.0
    """What was set until then is over."""
    reason: str = ""
    state: int = 0
    """Of a wish: the backend's state, as the contract numbers it."""
    waits: bool = False
    """Of a breaker: the provider only asked to wait, so that afterwards all calls pass again."""
    count: int = 0
    """Of a quarantine: breaches in the window."""
    started: float = 0.0
    """When the adapter's process came up of which this was found; 0 for unknown."""
    by: str = ""
    """The router that found it out."""

    @property
    def key(self) -> str:
        """Its name where the routers keep it, of letters that are allowed there."""
        return f"{self.kind.value}.{base64.urlsafe_b64encode(self.scope.encode()).decode().rstrip('=')}"

    def holds(self, now: float) -> bool:
        """Whether it is in force."""
        return self.since > self.cleared and (not self.until or now < self.until)


def merge(one: Mark, other: Mark) -> Mark:
    """What both together say. Of openings the longer one counts, of wishes the newer; what was cleared is over."""
    cleared = max(one.cleared, other.cleared)
    alive = [mark for mark in (one, other) if mark.since > cleared]
    winner = max(alive or (one, other), key=_weight)
    return replace(winner, cleared=cleared) if cleared != winner.cleared else winner


def _weight(mark: Mark) -> tuple[float, float, str]:
    first, second = (mark.since, mark.until) if mark.kind is Kind.WISH else (mark.until, mark.since)
    return first, second, mark.by


def encode(mark: Mark) -> bytes:
    """The mark as JSON."""
    return orjson.dumps(asdict(mark))


def decode(data: bytes) -> Mark:
    """The mark in `data`. Raises `ValueError` for anything else; what a newer router adds is left out."""
    mark = _READER.validate_json(data)
    if mark.state not in _WISHES:
        raise ValueError(f"{mark.state} is no state that an operator sets")
    return mark


_READER = TypeAdapter(Mark)
