"""The lifecycle events of a mesh, read from its stream from the first one on."""

from __future__ import annotations

from typing import Any, cast

import nats
import nats.errors

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.service.bus import STREAM

_QUIET = 1.0
"""Seconds without another event after which all are read: those that waited for NATS follow in their own time."""


async def read_events(address: str, quiet: float = _QUIET) -> list[Event]:
    """All events that the NATS server at `address` holds, in order, each once."""
    client = await cast("Any", nats).connect(f"nats://{address}", connect_timeout=5)
    try:
        subscription = await client.jetstream().subscribe("maestro.events.>", stream=STREAM, ordered_consumer=True)
        found: dict[str, Event] = {}
        while True:
            try:
                message = await subscription.next_msg(timeout=quiet)
            except nats.errors.TimeoutError:
                return list(found.values())
            event = Event.FromString(message.data)
            found.setdefault(event.id, event)
    finally:
        await client.close()
