"""The lifecycle events of a mesh, read from its stream from the first one on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import nats
import nats.errors

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.service.bus import STREAM

_QUIET = 1.0
"""Seconds without another event after which no more is expected."""
_PATIENCE = 20.0


async def read_events(
    address: str, quiet: float = _QUIET, whole: Callable[[Sequence[Event]], bool] = lambda _: True
) -> list[Event]:
    """All events that the NATS server at `address` holds, in order, each once.

    Events are published after what they tell of, and those that waited for NATS follow in their own time: `whole` says
    whether what a caller looks for is there. What is not there after 20 s does not come; that is for the caller to say.
    """
    end = time.monotonic() + _PATIENCE
    client = await cast("Any", nats).connect(f"nats://{address}", connect_timeout=5)
    try:
        stream = client.jetstream()
        subscription = await stream.subscribe("maestro.events.>", stream=STREAM, ordered_consumer=True)
        found: dict[str, Event] = {}
        read = 0
        while True:
            try:
                message = await subscription.next_msg(timeout=quiet)
            except nats.errors.TimeoutError:
                # A server that waits for a core is silent, too: only its own count tells that all is read.
                left = (await stream.stream_info(STREAM)).state.last_seq - read
                if time.monotonic() > end or (left <= 0 and whole(list(found.values()))):
                    return list(found.values())
                continue
            read = message.metadata.sequence.stream
            event = Event.FromString(message.data)
            found.setdefault(event.id, event)
    finally:
        await client.close()
