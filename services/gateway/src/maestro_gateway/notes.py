"""What is under way at a gateway, on its disk: should it be killed, its next life tells how that ended.

A note is the end of a request as it would have to be told if nothing more were heard of it: its usage is estimated. It
stands from the moment in which a backend is asked until the true end can't be lost any more. Writing one is one write
to a file and no sync: it survives the death of the process, not that of the machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from google.protobuf.message import DecodeError

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.endings import add_up
from maestro_gateway.ledger.sieve import estimate_of
from maestro_sdk.mesh.spend import cost_at
from maestro_sdk.mesh.table import Table
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.settings import Config
from maestro_sdk.service.store.journal import HoldJournal

log = logging.getLogger(__name__)

_PAUSE = 0.1


class Source(Protocol):
    """Who knows the backends: a `RouteWatcher`."""

    table: Table


class Notes:
    """The notes of one gateway."""

    def __init__(self, journal: HoldJournal) -> None:
        self._journal = journal
        # Those whose end is published, with the number of that event.
        self._told: deque[tuple[int, str]] = deque()
        self._accepted: Callable[[], int] = int
        self.lost: dict[str, Event] = {}
        """What the life before left under way, by the identifier of the end that it did not tell."""

    def begin(self, publisher: EventPublisher) -> None:
        """Reads what the life before left. Of its events the `publisher` must not have delivered any yet."""
        self._accepted = lambda: publisher.accepted
        publisher.on_secured = self.secure
        # Ends, and what a life before this one told in their place.
        left = {estimate_of(event) or event.id for event in publisher.left}
        for name, record in self._journal.open().items():
            if name in left:
                self.told(name)
                continue
            try:
                self.lost[name] = Event.FromString(record)
            except DecodeError:
                log.error("the note of the request that %s would end can't be read: %r", name, record[:200])
                self.drop(name)

    def close(self) -> None:
        """Ends; what is not told stays on the disk."""
        self._journal.close()

    def put(self, name: str, record: bytes) -> None:
        """Writes down what is told unless the event called `name` is published."""
        self._journal.put(name, record)

    def drop(self, name: str) -> None:
        """Somebody else tells it."""
        self._journal.end((name,))

    def told(self, name: str) -> None:
        """The true end is published."""
        self._told.append((self._accepted(), name))

    def secure(self, number: int) -> None:
        """So many of the published events, from the first, can't be lost any more."""
        done: list[str] = []
        while self._told and self._told[0][0] <= number:
            done.append(self._told.popleft()[1])
        if done:
            self._journal.end(done)

    async def tell_lost(self, source: Source, publish: Callable[[Event], None]) -> AsyncGenerator[Event]:
        """Tells what the life before left under way, once there is a table that has prices; gives it after that."""
        while self.lost and not source.table.version:  # noqa: ASYNC110 - the table has no event, and this is rare
            await asyncio.sleep(_PAUSE)
        for name, event in list(self.lost.items()):
            _price(event, source.table)
            log.warning("%s was under way when this gateway died; it is told now", event.subject)
            publish(event)
            self.told(name)
            yield event
            del self.lost[name]


@asynccontextmanager
async def noting(config: Config) -> AsyncGenerator[Notes]:
    """The notes of a gateway, for longer than its publisher is open."""
    notes = Notes(HoldJournal(config.data / "gateway" / "requests.journal"))
    try:
        yield notes
    finally:
        notes.close()


def _price(event: Event, table: Table) -> None:
    """Adds what attempts cost by today's prices, where that was not known."""
    failed = event.request_failed
    backends = {(each.adapter, each.message.model.name): each for each in table.backends.values()}
    for used in failed.attempt_usages:
        backend = backends.get((used.adapter, used.model))
        if not used.HasField("cost") and used.HasField("usage") and backend is not None:
            cost = cost_at(backend, used.usage)
            if cost is not None:
                cost.estimated = True
                used.cost.CopyFrom(cost)
    add_up(failed)
