"""Holds in the process itself: microseconds, and gone with the process, but for what its journal has."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from maestro_sdk.service.store.holds import TAKEN, Answer, Balance, Charge, Hold, Orphan, Outcome, Share
from maestro_sdk.service.store.journal import HoldJournal

_TIDY = 1024
_MOST = 100_000
"""Counters: labels make them, and these are a caller's own words."""


class _Counter:
    __slots__ = (
        "ends",
        "generation",
        "held_tokens",
        "held_usd",
        "known",
        "refused",
        "seeded",
        "tokens",
        "untold",
        "usd",
    )

    def __init__(self) -> None:
        self.usd = self.tokens = self.held_usd = self.held_tokens = 0
        self.generation = self.untold = self.ends = 0
        self.seeded = self.known = self.refused = False


class MemoryHolds:
    """Holds of one process. Its orphans are those that the life before left in the `journal`."""

    def __init__(
        self,
        on_charge: Callable[[Charge], None],
        journal: HoldJournal | None = None,
        clock: Callable[[], float] = time.time,
        most: int = _MOST,
    ) -> None:
        """Counts are gone with the process, and have to be seeded: from where the orphans are told before.

        Above `most` counters those are forgotten that are not in use.
        """
        self.on_charge = on_charge
        self.on_doubt: Callable[[Sequence[str]], None] = lambda names: None
        self.up = True
        self._clock = clock
        self._most = most
        self._journal = journal
        self._orphans = journal.open() if journal is not None else {}
        self._counters: dict[str, _Counter] = {}
        # Those that are open, with their shares, and those that are settled and not forgotten.
        self._open: dict[str, Hold] = {}
        self._settled: dict[str, Hold] = {}
        self._tidied = _TIDY

    def reserve(self, hold: Hold) -> Answer:
        """Takes all shares of a new hold, or none."""
        if hold.id in self._open or hold.id in self._settled:
            return TAKEN
        if len(self._counters) > self._tidied:
            self._tidy()
        refusal: Answer | None = None
        for index, share in enumerate(hold.shares):
            counter = self._counter(share)
            if not counter.seeded:
                return Answer(
                    Outcome.UNSEEDED,
                    index,
                    Balance(share.counter),
                    generation=counter.generation,
                    busy=counter.untold > 0 or bool(self._orphans),
                )
            if _over(share, counter.usd, counter.tokens):
                if refusal is None or refusal.outcome is not Outcome.SPENT:
                    refusal = Answer(Outcome.SPENT, index, _balance(share.counter, counter))
            elif refusal is None and _over(share, counter.usd + counter.held_usd, counter.tokens + counter.held_tokens):
                refusal = Answer(Outcome.HELD, index, _balance(share.counter, counter))
        if refusal is not None:
            return self._refuse(hold.shares[refusal.index], refusal)
        for share in hold.shares:
            counter = self._counter(share)
            counter.held_usd += share.usd
            counter.held_tokens += share.tokens
        self._open[hold.id] = hold
        if self._journal is not None:
            self._journal.put(hold.id, hold.record)
        return TAKEN

    def settle(self, hold: Hold, usd: int, tokens: int, record: bytes) -> None:
        """Ends a hold with what was used."""
        if hold.id in self._settled:
            return
        self._release(hold)
        self._settled[hold.id] = hold
        if self._journal is not None:
            self._journal.put(hold.id, record)
        for share in hold.shares:
            counter = self._counter(share)
            counter.untold += 1
            if not counter.seeded:
                counter.generation += 1
                continue
            before = (counter.usd, counter.tokens)
            counter.usd += usd
            counter.tokens += tokens
            self.on_charge(Charge(share.counter, *before, counter.usd, counter.tokens))

    def close(self, name: str, usd: int, tokens: int, record: bytes) -> None:
        """Nobody holds anything here before its process began."""

    def undo(self, hold: Hold) -> None:
        """Ends a hold that was never to be."""
        self._release(hold)
        if self._journal is not None:
            self._journal.end((hold.id,))

    def leave(self, hold: Hold) -> None:
        """Lets go of a hold: nobody else has it here."""
        self.undo(hold)

    def forget(self, ids: Sequence[str]) -> None:
        """The records of these settled holds are safe elsewhere."""
        if self._journal is not None:
            self._journal.end(ids)
        for name in ids:
            self._orphans.pop(name, None)
            if (hold := self._settled.pop(name, None)) is not None:
                for share in hold.shares:
                    self._counter(share).untold -= 1

    async def seed(self, counter: str, generation: int, usd: int, tokens: int, ends: int) -> bool:
        """Tells what was spent."""
        found = self._counters.setdefault(counter, _Counter())
        if found.seeded:
            return True
        if found.generation != generation:
            return False
        found.usd, found.tokens, found.seeded, found.known, found.ends = usd, tokens, True, True, ends
        return True

    async def unseed(self, counter: str, *, force: bool = True) -> bool | None:
        """Forgets what was spent."""
        found = self._counters.get(counter)
        if found is None:
            return False
        if found.untold and not force:
            return None
        was_known, found.seeded = found.seeded, False
        found.generation += 1
        return was_known

    async def orphans(self, most: int) -> Sequence[Orphan]:
        """What the life before left to be told. Nothing is charged: no counter is known before that."""
        found = [Orphan(name, record) for name, record in self._orphans.items()][:most]
        # At the end of the line, for when they are not forgotten.
        for orphan in found:
            self._orphans[orphan.id] = self._orphans.pop(orphan.id)
        return found

    async def balances(self, group: str) -> Sequence[Balance]:
        """The counters under "budget|period"."""
        start = f"{group}|"
        return [
            _balance(name, counter)
            for name, counter in self._counters.items()
            if counter.known and (name.startswith(start) or name == group)
        ]

    def _release(self, hold: Hold) -> None:
        if (known := self._open.pop(hold.id, None)) is not None:
            for share in known.shares:
                counter = self._counter(share)
                counter.held_usd -= share.usd
                counter.held_tokens -= share.tokens

    def _counter(self, share: Share) -> _Counter:
        counter = self._counters.get(share.counter)
        if counter is None:
            counter = self._counters[share.counter] = _Counter()
        counter.ends = share.ends
        return counter

    def _refuse(self, share: Share, refusal: Answer) -> Answer:
        counter = self._counters[share.counter]
        if refusal.outcome is Outcome.HELD or counter.refused or _over(share, 0, 0):
            return refusal
        counter.refused = True
        return Answer(refusal.outcome, refusal.index, refusal.balance, first=True)

    def _tidy(self) -> None:
        """Forgets periods that are over; of too many counters the oldest half, which can be seeded again."""
        now = self._clock() * 1000
        idle = [
            (name, counter)
            for name, counter in self._counters.items()
            if not counter.untold and not counter.held_usd and not counter.held_tokens
        ]
        excess = len(self._counters) - self._most // 2 if len(self._counters) > self._most else 0
        for name, counter in idle:
            # One that was charged before it was seeded stays: its generation counts.
            if counter.ends < now or (excess > 0 and (counter.seeded or not counter.generation)):
                del self._counters[name]
                excess -= 1
        self._tidied = max(_TIDY, min(self._most, 2 * len(self._counters)), len(self._counters) * 5 // 4)


def _over(share: Share, usd: int, tokens: int) -> bool:
    """Whether a share has no room beside `usd` and `tokens`."""
    return 0 <= share.limit_usd < usd + share.usd or 0 <= share.limit_tokens < tokens + share.tokens


def _balance(name: str, counter: _Counter) -> Balance:
    return Balance(name, counter.usd, counter.tokens, counter.held_usd, counter.held_tokens)
