"""What the journal knows of a stream: enough to go on with it elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from maestro.event.v1.event_pb2 import AttemptUsage
from maestro.gateway.v1.journal_pb2 import StreamBegun, StreamEnd
from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_gateway.resume.journal import Entry
from maestro_sdk.errors import NotFound

_PLACES = ("attempt", "stream")
"""What of `started` depends on who tells it."""


class Known:
    """Grows with the records of one stream, which are fed in order."""

    def __init__(self, *, keep: bool = False) -> None:
        """With `keep` it holds the events themselves, too."""
        self._keep = keep
        self.begun: StreamBegun | None = None
        self.sequence = 0
        """Of the last record."""
        self.owner = ""
        self.backend_id = ""
        """Backend that gave the latest events."""
        self.route = ""
        self.switched = False
        """Whether several backends gave parts of the answer."""
        self.marks: list[bytes] = []
        """What each event is known by again."""
        self.end: StreamEnd | None = None
        self.attempts: list[AttemptUsage] = []
        """Those that failed."""
        self.events: list[ChatEvent] = []
        """All events, where they are kept."""
        self.since = 0
        """The number of events before the first one of the latest backend."""

    @property
    def count(self) -> int:
        """The number of events so far."""
        return len(self.marks)

    def feed(self, entry: Entry) -> None:
        """Takes the next record. Raises `NotFound` when one is missing: the oldest are not kept any more."""
        record = entry.record
        if record.HasField("begun"):
            self.begun = record.begun
        if self.begun is None or record.before != self.count:
            raise NotFound("the beginning of this stream is no longer kept")
        self.sequence, self.owner = entry.sequence, record.owner
        if record.backend_id:
            if self.backend_id and self.backend_id != record.backend_id:
                self.switched, self.since = True, self.count
            self.backend_id = record.backend_id
        self.attempts += record.attempts
        if self._keep:
            self.events += record.events
        self.route = record.route or self.route
        self.marks += marks_of(record.events)
        if record.HasField("end"):
            self.end = record.end


def marks_of(events: Iterable[ChatEvent]) -> list[bytes]:
    """What events are known by again, when the same answer is read a second time."""
    return [
        hashlib.blake2b(_bare(event).SerializeToString(deterministic=True), digest_size=8).digest() for event in events
    ]


def _bare(event: ChatEvent) -> ChatEvent:
    if event.WhichOneof("kind") != "started":
        return event
    bare = ChatEvent()
    bare.CopyFrom(event)
    for name in _PLACES:
        bare.started.ClearField(name)
    return bare
