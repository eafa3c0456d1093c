"""Counts in the process itself: microseconds, and gone with the process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from maestro_sdk.service.store.claims import PLACE_WAIT, UNDO, Claim, Kind, Verdict

_TIDY = 1024


class _Entry:
    __slots__ = ("amount", "time")

    def __init__(self, moment: float, amount: int) -> None:
        self.time = moment
        self.amount = amount


class _Window:
    """Entries of the last `seconds`, oldest first, and their sum."""

    __slots__ = ("by_name", "entries", "seconds", "total")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.entries: deque[tuple[str, _Entry]] = deque()
        self.by_name: dict[str, _Entry] = {}
        self.total = 0

    def forget(self, now: float) -> None:
        entries, oldest = self.entries, now - self.seconds
        while entries and entries[0][1].time <= oldest:
            name, entry = entries.popleft()
            self.total -= entry.amount
            self.by_name.pop(name, None)

    def wait(self, excess: int, now: float) -> float:
        """Seconds until `excess` of the sum is over."""
        for _, entry in self.entries:
            excess -= entry.amount
            if excess <= 0:
                return entry.time + self.seconds - now
        return self.seconds

    def add(self, name: str, amount: int, now: float) -> None:
        entry = self.by_name[name] = _Entry(now, amount)
        self.entries.append((name, entry))
        self.total += amount

    def correct(self, name: str, amount: int) -> None:
        entry = self.by_name.get(name)
        if entry is not None:
            self.total += amount - entry.amount
            entry.amount = amount


class MemoryStore:
    """A store of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._places: dict[str, set[str]] = {}
        self._tidied = _TIDY

    def take(self, entry: str, claims: Sequence[Claim]) -> Verdict:
        """Takes all claims, or none."""
        now = self._clock()
        refused: int | None = None
        longest = 0.0
        never = False
        for index, claim in enumerate(claims):
            wait = self._wait(claim, now)
            if wait is None:
                if not never:
                    never, refused = True, index
            elif wait > longest and not never:
                longest, refused = wait, index
        if refused is None:
            for claim in claims:
                if claim.kind is Kind.PLACES:
                    self._places.setdefault(claim.key, set()).add(entry)
                else:
                    self._window(claim).add(entry, claim.amount, now)
        left: list[int] = []
        reset: list[float] = []
        for claim in claims:
            if claim.kind is Kind.PLACES:
                left.append(max(0, claim.limit - len(self._places.get(claim.key, ()))))
                reset.append(0.0)
            else:
                window = self._windows[claim.key]
                left.append(max(0, claim.limit - window.total))
                reset.append(window.entries[-1][1].time + window.seconds - now if window.entries else 0.0)
        if len(self._windows) > self._tidied:
            self._tidy(now)
        return Verdict(refused, None if never else longest, tuple(left), tuple(reset))

    def finish(self, entry: str, claims: Sequence[Claim], amounts: Sequence[int]) -> None:
        """Gives places back and corrects sums."""
        for claim, amount in zip(claims, amounts, strict=True):
            if claim.kind is Kind.PLACES:
                places = self._places.get(claim.key)
                if places is not None:
                    places.discard(entry)
                    if not places:
                        del self._places[claim.key]
            elif (window := self._windows.get(claim.key)) is not None and (claim.kind is Kind.SUM or amount == UNDO):
                # An amount of nothing weighs nothing, so what never was may stay until its window is over.
                window.correct(entry, max(0, amount))

    def _window(self, claim: Claim) -> _Window:
        window = self._windows.get(claim.key)
        if window is None:
            window = self._windows[claim.key] = _Window(claim.window)
        window.seconds = claim.window
        return window

    def _wait(self, claim: Claim, now: float) -> float | None:
        """Seconds until there is room: 0 now, None never."""
        if claim.kind is Kind.PLACES:
            return PLACE_WAIT if len(self._places.get(claim.key, ())) >= claim.limit else 0.0
        window = self._window(claim)
        window.forget(now)
        if claim.amount > claim.limit:
            return None
        excess = window.total + claim.amount - claim.limit
        return window.wait(excess, now) if excess > 0 else 0.0

    def _tidy(self, now: float) -> None:
        """Forgets windows in which nothing is left; callers that came once must not stay for ever."""
        for key, window in list(self._windows.items()):
            window.forget(now)
            if not window.entries:
                del self._windows[key]
        self._tidied = max(_TIDY, 2 * len(self._windows))
