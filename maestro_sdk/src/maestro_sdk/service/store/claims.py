"""What is asked of a store of counts, and what it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

UNDO = -1
"""In the place of an amount: the entry was never to be."""
PLACE_WAIT = 1.0
"""Seconds after which another try makes sense when all places are taken. Nobody knows when one comes free."""


class Kind(IntEnum):
    """What a claim counts."""

    PLACES = 0
    """What runs at once."""
    EACH = 1
    """Entries in a window, each of them one."""
    SUM = 2
    """The sum of the amounts of entries in a window; an amount may be corrected later."""


@dataclass(slots=True)
class Claim:
    """A wish of one entry: `amount` under `key`, where `limit` is the most. `window` in seconds, 0 for places.

    All keys of one call have the same part in braces, so that a store in several parts keeps them in one.
    """

    key: str
    kind: Kind
    limit: int
    window: float = 0.0
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of claims: all were taken, or none. `refused` is the index of the one that holds it up longest.

    `retry_after` in seconds: exactly then there is room, unless others come first; None when there never is.
    `left` and `reset` stand for each claim: what is left now, and the seconds until all of it is there again.
    """

    refused: int | None
    retry_after: float | None
    left: tuple[int, ...]
    reset: tuple[float, ...]


class StoreAway(Exception):
    """The store does not answer: nothing is known, and nothing was taken for sure."""


class Store(Protocol):
    """Takes claims atomically."""

    def take(self, entry: str, claims: Sequence[Claim]) -> Verdict | Awaitable[Verdict]:
        """Takes all claims for a new entry, or none. Raises `StoreAway`, at once or when awaited."""
        ...

    def finish(self, entry: str, claims: Sequence[Claim], amounts: Sequence[int]) -> None:
        """Gives the places of an entry back, and corrects its sums to `amounts`; `UNDO` takes the entry away.

        Returns at once and never fails; doing it twice does no harm.
        """
        ...
