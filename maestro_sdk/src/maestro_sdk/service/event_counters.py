"""Numbers that tell what became of events."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventCounters:
    """What became of the events.

    Since the start: `accepted` by `publish` or left by a life that was killed, `delivered` to the stream, `spooled` to
    the disk, `dropped` for lack of space, `exposed` to a death of the process although durable, since the disk did not
    take them. Now: `queued` in memory, `waiting` on the disk.
    """

    accepted: int
    delivered: int
    spooled: int
    dropped: int
    queued: int
    waiting: int
    exposed: int = 0
