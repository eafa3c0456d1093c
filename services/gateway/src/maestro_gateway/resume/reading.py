"""A reader of a stream, wherever that runs.

Readers of a stream that runs here take its latest events from memory. Everybody else, and whoever is too far behind,
reads the journal. A reader elsewhere asks the owner now and then whether it lives, which also tells the owner that
somebody reads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from google.rpc.status_pb2 import Status

from maestro_gateway.limits import enter_ticket
from maestro_gateway.resume.journal import Entry, Journal, JournalAway, subject_of
from maestro_gateway.resume.known import Known
from maestro_gateway.resume.superseded import Superseded
from maestro_gateway.resume.tail import Elsewhere, Piece
from maestro_sdk.errors import InvalidRequest, NoBackend, NotFound, UpstreamError, from_status

if TYPE_CHECKING:
    from maestro_gateway.resume.generation import Generation
    from maestro_gateway.resume.streams import Streams

log = logging.getLogger(__name__)

TOUCH, CANCEL = b"touch ", b"cancel "
RUNNING, UNKNOWN, UNKEPT = b"running", b"unknown", b"unkept"
"""What an owner answers: it goes on with the stream, knows nothing of it, or has lost the journal of it."""
_LOOK = 0.5
"""Seconds without a record after which the owner is asked."""
_PROMISED = 2.0
"""Seconds to wait for records that are known to be there."""
_SILENCES = 3
"""Questions that an owner may leave unanswered before it is taken for gone."""


class Reading:
    """One reader's way through a stream."""

    def __init__(
        self, streams: Streams, tenant: str, stream: str, after: int = 0, generation: Generation | None = None
    ) -> None:
        """`generation` was begun for this reader. It reads what follows the first `after` events."""
        self._streams = streams
        self._tenant = tenant
        self._stream = stream
        self._subject = subject_of(tenant, stream)
        self._after = after
        self._generation = generation
        self._over = False
        self.route = ""
        """The route that was taken, known from the first piece on; empty when the model was named directly."""
        self.finished = False
        """Not told beforehand: pieces end when they do."""

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The pieces in order. Raises the error that ended the stream; `NotFound` for one that is not kept."""
        streams, generation = self._streams, self._generation
        while not self._over:
            generation = generation or streams.running.get(self._subject)
            if generation is not None and generation.tail.first <= self._after:
                async with aclosing(self._from_memory(generation)) as pieces:
                    async for piece in pieces:
                        yield piece
            if self._over:
                return
            generation = None
            try:
                async with aclosing(self._from_journal()) as pieces:
                    async for piece in pieces:
                        yield piece
            except JournalAway as error:
                # The words of NATS's client may name hosts; they are in the log.
                log.warning("%s: %s", self._stream, error)
                raise NoBackend("the journal of streams can't be read now", retry_after=1.0) from None

    async def _from_memory(self, generation: Generation) -> AsyncGenerator[Piece]:
        generation.attach()
        try:
            async with aclosing(generation.tail.read(self._after)) as pieces:
                async for piece in pieces:
                    self._tell_limits()
                    self.route = self.route or generation.route
                    self._after = piece.end
                    yield piece
            self._over = True
            self._check(generation.tail.end)
        except Elsewhere:
            if generation.unkept and not generation.tail.moved:
                raise UpstreamError("this stream is not kept, and its beginning is gone") from None
        finally:
            self._tell_limits()
            generation.detach()

    def _tell_limits(self) -> None:
        """Lets whoever began the stream tell its caller what is left of the limits, as for any other answer."""
        if self._generation is not None and self._generation.ticket is not None:
            enter_ticket(self._generation.ticket)

    async def _from_journal(self) -> AsyncGenerator[Piece]:
        """What the journal has, to the end of the stream, or until its owner is this gateway."""
        streams, known = self._streams, Known()
        touched, silences = 0.0, 0
        last = await self._newest()
        async with streams.journal.read(self._subject) as fetch:
            while True:
                entries = await fetch(_PROMISED if known.sequence < last else _LOOK)
                for entry in entries:
                    if (piece := self._take(known, entry)) is not None:
                        yield piece
                if known.end is not None:
                    break
                if known.sequence < last:
                    if not entries:
                        raise JournalAway("records that are there do not come")
                    continue
                generation = streams.running.get(self._subject)
                if generation is not None and known.owner == streams.owner:
                    if generation.tail.first <= self._after:
                        return
                    if generation.unkept:
                        raise UpstreamError("this gateway has lost the journal of the stream, and its reader was late")
                    continue
                now = time.monotonic()
                if entries and now - touched < streams.config.window / 3:
                    continue
                touched = now
                state = await self._ask(known.owner)
                silences = 0 if state else silences + 1
                if state == UNKEPT:
                    raise UpstreamError("the gateway of this stream has lost the journal; it can't be taken up")
                if state == RUNNING or (state == b"" and silences < _SILENCES):
                    continue
                # Whatever it wrote last is there by now.
                last = await self._newest()
                if known.sequence == last:
                    try:
                        await streams.adopt(self._subject, self._tenant, known)
                    except Superseded:
                        last = await self._newest()
                    else:
                        known.owner = streams.owner
        await self._conclude(known)

    async def _newest(self) -> int:
        """The sequence of the last record. Raises `NotFound` when there is none."""
        newest = await self._streams.journal.newest(self._subject)
        if newest is None:
            raise NotFound(f"there is no stream {self._stream[:128]!r}, or it is no longer kept")
        return newest.sequence

    def _take(self, known: Known, entry: Entry) -> Piece | None:
        """Notes a record; what of it the reader does not have."""
        known.feed(entry)
        record = entry.record
        self.route = self.route or record.route
        end = record.before + len(record.events)
        if end <= self._after:
            return None
        piece = Piece(self._after, record.events[self._after - record.before :])
        self._after = end
        return piece

    async def _ask(self, owner: str) -> bytes:
        """How the owner is about the stream; empty when it stays silent."""
        if not owner:
            return UNKNOWN
        try:
            answer = await self._streams.journal.ask(owner, TOUCH + self._subject.encode())
        except JournalAway:
            if not self._streams.journal.up:
                raise
            return b""
        return UNKNOWN if answer is None else answer

    async def _is_gone(self, owner: str) -> bool:
        try:
            return await self._streams.journal.ask(owner, TOUCH) is None
        except JournalAway:
            return False

    async def _conclude(self, known: Known) -> None:
        """The stream is over. Raises the error that ended it, and `InvalidRequest` for a number behind its end."""
        self._over = True
        end = known.end
        if end is None:
            return
        streams = self._streams
        if known.owner != streams.owner and await self._is_gone(known.owner):
            # Its writer may have died with the news. Under the same id, so that nobody hears it twice.
            streams.publish(end.event)
        if end.error:
            raise from_status(Status.FromString(end.error))
        self._check(known.count)

    def _check(self, count: int) -> None:
        if self._after > count:
            raise InvalidRequest.at("after", f"the stream ended with its event {count}")


async def read_all(journal: Journal, subject: str, *, keep: bool = False) -> Known:
    """All that the journal has of a stream now, with `keep` the events themselves, too. Raises `JournalAway`."""
    known, newest = Known(keep=keep), await journal.newest(subject)
    if newest is None:
        return known
    async with journal.read(subject) as fetch:
        while known.sequence < newest.sequence:
            entries = await fetch(_PROMISED)
            if not entries:
                raise JournalAway("records that are there do not come")
            for entry in entries:
                known.feed(entry)
    return known
