"""Finds streams whose gateway died and whose readers never came back: somebody has to account for them.

Every gateway looks now and then. Who finds one takes it over, as for a reader, so that it ends as any stream does that
nobody reads: with its answer, or cancelled after its time, and accounted as far as it came. Two that find the same one
do no harm: one of them writes the next record. Of a stream that is over the end is told again when its gateway is gone:
a reader that has the whole answer does not come back to find that out.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from maestro_gateway.resume.journal import JournalAway
from maestro_gateway.resume.reading import read_all
from maestro_gateway.resume.superseded import Superseded
from maestro_sdk.errors import MaestroError
from maestro_sdk.service.bus import heed_cancellation

if TYPE_CHECKING:
    from maestro_gateway.resume.streams import Streams

log = logging.getLogger(__name__)

_WHO = b"here"
"""A question that asks for no stream: whoever answers lives."""


class Orphans:
    """The looks of one gateway."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._over: set[str] = set()
        # Streams whose owner was gone at the last look, with that owner. Their readers are asked first.
        self._suspects: dict[str, str] = {}

    async def run(self, every: float) -> None:
        """Looks about every so many seconds, until cancelled."""
        while True:
            # Gateways that started together do not look together.
            await asyncio.sleep(every * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            heed_cancellation()
            try:
                await self.look()
            except JournalAway as error:
                self._suspects.clear()
                log.debug("orphaned streams were not looked for: %s", error)

    async def look(self) -> None:
        """Takes over what was without an owner the last time, too. Raises `JournalAway`."""
        streams, journal = self._streams, self._streams.journal
        present = await journal.subjects()
        self._over &= present
        owners: dict[str, bool] = {}
        found: dict[str, str] = {}
        for subject in present - self._over - streams.running.keys():
            newest = await journal.newest(subject)
            if newest is None:
                self._over.add(subject)
                continue
            owner = newest.record.owner
            if owner and owner not in owners:
                owners[owner] = await self._lives(owner)
            lives = owner != "" and owners[owner]
            if newest.record.HasField("end"):
                if not lives:
                    # It may have died with the news. Under the same id, so that nobody hears it twice.
                    streams.publish(newest.record.end.event)
                self._over.add(subject)
                continue
            if lives:
                continue
            if self._suspects.get(subject) == owner:
                await self._take(subject)
            else:
                found[subject] = owner
        self._suspects = found

    async def _lives(self, owner: str) -> bool:
        journal = self._streams.journal
        try:
            return await journal.ask(owner, _WHO) is not None
        except JournalAway:
            if not journal.up:
                raise
            # It is only slow, perhaps; and whatever it is, the streams of others must not wait for it.
            return True

    async def _take(self, subject: str) -> None:
        try:
            known = await read_all(self._streams.journal, subject)
            if known.end is None:
                await self._streams.adopt(subject, subject.split(".")[2], known)
        except Superseded:
            return
        except MaestroError as error:
            # Its beginning is no longer kept: nobody can tell any more what it was.
            log.warning("a stream without an owner can't be taken over: %s", error)
            self._over.add(subject)
