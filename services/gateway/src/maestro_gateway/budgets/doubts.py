"""Counters of a store that may be wrong: something was charged twice, as an estimate, or not at all.

That is so after a death, an outage of the store, or a delay of events on a disk. The ledger tells each of them anew as
soon as it is whole again; until then it counts as it is. What is in doubt outlives the process, on its disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from maestro_gateway.budgets.counters import counters_of_end
from maestro_gateway.notes import Notes
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.settings import Config
from maestro_sdk.service.store import StoreAway
from maestro_sdk.service.store.journal import HoldJournal

log = logging.getLogger(__name__)

_RECORD = b"?"
_PAUSE = 0.2


class Doubts:
    """Names of counters. Without a `journal` a death of the process takes them."""

    def __init__(self, journal: HoldJournal | None = None) -> None:
        self._journal = journal
        # By name, with a number that is another one each time that it is doubted.
        self._names: dict[str, int] = dict.fromkeys(journal.open() if journal is not None else (), 0)
        self._number = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """All of them, those that were doubted first before the others."""
        return list(self._names)

    def add(self, names: Iterable[str]) -> None:
        """Doubts counters; on the disk when it returns."""
        self._number += 1
        for name in names:
            if name not in self._names and self._journal is not None:
                self._journal.put(name, _RECORD)
            self._names[name] = self._number

    async def settle(self, renew: Callable[[str], Awaitable[bool]]) -> None:
        """Has all that are in doubt now told anew by `renew`. Raises what that raises: the rest stays in doubt.

        One of which it says False stays in doubt, too.
        """
        for name, number in list(self._names.items()):
            if await renew(name) and self._names.get(name) == number:
                del self._names[name]
                if self._journal is not None:
                    self._journal.end((name,))

    async def tend(self, ready: Callable[[], bool], renew: Callable[[str], Awaitable[bool]]) -> None:
        """Settles doubts when it is `ready`, until cancelled."""
        while True:
            await asyncio.sleep(_PAUSE)
            if self._names and ready():
                try:
                    await self.settle(renew)
                except StoreAway as error:
                    log.debug("%d counters of budgets stay in doubt: %s", len(self), error)
                except Exception:
                    log.exception("counters of budgets can't be told anew")

    def close(self) -> None:
        """Ends; what is in doubt stays on the disk."""
        if self._journal is not None:
            self._journal.close()


@asynccontextmanager
async def doubting(config: Config, publisher: EventPublisher, notes: Notes) -> AsyncGenerator[Doubts]:
    """The doubts of a gateway. Entered before anything is delivered of what its life before left: that comes late."""
    # Nothing is awaited before this is done.
    notes.begin(publisher)
    doubts = Doubts(HoldJournal(config.data / "gateway" / "doubts.journal"))
    for event in (*publisher.left, *notes.lost.values()):
        doubts.add(counter.name for counter in counters_of_end(config.budgets, event))
    try:
        yield doubts
    finally:
        doubts.close()
