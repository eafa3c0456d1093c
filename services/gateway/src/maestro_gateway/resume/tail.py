"""The latest events of a stream as its readers at this gateway take them, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from google.rpc.status_pb2 import Status

from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_sdk.errors import MaestroError, from_status, to_status

_ROOM = 256 * 1024
"""Bytes of events that are held for readers; a reader that is behind them reads the journal."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Events that came together; `before` is the number of those before them."""

    before: int
    events: Sequence[ChatEvent]
    size: int = 0

    @property
    def end(self) -> int:
        """The number of the last event."""
        return self.before + len(self.events)


class Elsewhere(Exception):
    """What a reader waits for is not here any more: the journal tells where it is."""


class Tail:
    """The latest pieces of one stream, and its end. Nobody waits for a reader, unless it is `held`."""

    def __init__(self, first: int = 0, room: int = _ROOM) -> None:
        """`first` is the number of events that came before, elsewhere."""
        self._room = room
        self._pieces: deque[Piece] = deque()
        self._size = 0
        self._places: dict[object, int] = {}
        self.first = first
        """The number of events before the oldest that is held."""
        self.end = first
        """The number of events so far."""
        self.held = False
        """Whether every reader has to get every event: there is no journal to read them from."""
        self.over = False
        self.error: Status | None = None
        """Why it ended, for each reader to raise; None when the answer is whole, or while it goes on."""
        self.moved = False
        """Whether it goes on at another gateway."""
        self.changed = asyncio.Event()

    @property
    def readers(self) -> int:
        """How many read."""
        return len(self._places)

    def add(self, events: Sequence[ChatEvent]) -> None:
        """Adds events. The oldest go when there is no room for them."""
        piece = Piece(self.end, events, sum(event.ByteSize() for event in events))
        self._pieces.append(piece)
        self._size += piece.size
        self.end = piece.end
        self._trim()
        self.tell()

    async def wait_for_readers(self) -> None:
        """Returns when there is room again, where nothing may be dropped that was not read."""
        while self.held and self._size > self._room and not self.over:
            await self.changed.wait()

    def close(self, error: MaestroError | None = None, *, moved: bool = False) -> None:
        """Nothing follows here; `moved` when it does elsewhere."""
        self.over, self.moved = True, moved
        self.error = to_status(error) if error is not None and not moved else None
        self.tell()

    def tell(self) -> None:
        """Wakes everybody who waits."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def read(self, after: int) -> AsyncGenerator[Piece]:
        """The pieces behind `after` events, to the end. Raises the error that ended it, and `Elsewhere`."""
        place = object()
        self._places[place] = after
        try:
            while True:
                if after < self.first:
                    raise Elsewhere
                if after < self.end:
                    piece = self._find(after)
                    after = self._places[place] = piece.end
                    yield piece
                    self._trim()
                    if self.held:
                        self.tell()
                elif self.moved:
                    raise Elsewhere
                elif self.over:
                    if self.error is not None:
                        raise from_status(self.error)
                    return
                else:
                    await self.changed.wait()
        finally:
            del self._places[place]
            self._trim()
            self.tell()

    def _find(self, after: int) -> Piece:
        """The piece that holds the event behind `after`, without what stands before that."""
        for piece in reversed(self._pieces):
            if piece.before <= after:
                return Piece(after, piece.events[after - piece.before :], piece.size)
        raise Elsewhere

    def _trim(self) -> None:
        while len(self._pieces) > 1 and self._size > self._room:
            oldest = self._pieces[0]
            if self.held and any(place < oldest.end for place in self._places.values()):
                return
            self._pieces.popleft()
            self._size -= oldest.size
            self.first = oldest.end
