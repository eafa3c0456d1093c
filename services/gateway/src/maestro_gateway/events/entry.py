"""One event in the forms in which readers take it; each form is made once, for all of them."""

from __future__ import annotations

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.json_codec.event import encode_event


class Entry:
    """An event of the stream. Readers who don't see callers get it without `caller`."""

    __slots__ = ("_bare", "_json", "event", "sequence", "size")

    def __init__(self, sequence: int, event: Event) -> None:
        self.sequence = sequence
        self.event = event
        self.size = event.ByteSize()
        self._bare: Event | None = None
        self._json: list[bytes] = [b"", b""]

    def told(self, *, callers: bool) -> Event:
        """The event for a reader. It is shared: nobody changes it."""
        if callers:
            return self.event
        if self._bare is None:
            self._bare = without_caller(self.event)
        return self._bare

    def json(self, *, callers: bool) -> bytes:
        """The event for a reader as one JSON object in one line."""
        found = self._json[callers]
        if not found:
            found = self._json[callers] = encode_event(self.told(callers=callers))
        return found

    def server_sent(self, *, callers: bool) -> bytes:
        """The event for a reader as a server-sent event."""
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (
            self.sequence,
            self.event.kind.encode(),
            self.json(callers=callers),
        )


def without_caller(event: Event) -> Event:
    """The event without from where its request came; itself when it doesn't tell."""
    field = event.WhichOneof("payload")
    if field is None or "caller" not in getattr(event, field).DESCRIPTOR.fields_by_name:
        return event
    if not getattr(event, field).HasField("caller"):
        return event
    bare = Event()
    bare.CopyFrom(event)
    getattr(bare, field).ClearField("caller")
    return bare
