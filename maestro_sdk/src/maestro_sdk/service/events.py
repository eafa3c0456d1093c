"""Lifecycle events: `new_event` makes one.

`event_publisher.py` brings it to the stream, `event_reader.py` follows the stream.
"""

from __future__ import annotations

import itertools
import os
import re
import time

from google.protobuf.message import Message

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.tracing import current_call

MESH = "_mesh"
"""The tenant of events that belong to the mesh as a whole."""

_TENANT = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FIELDS = {
    field.message_type.full_name: field.name
    for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields
    if field.message_type is not None
}

_counter = itertools.count(int.from_bytes(os.urandom(2), "big"))


def new_event(payload: Message, subject: str, *, tenant: str | None = None) -> Event:
    """An event of now with one of the contract's payloads; `subject` is "request/ID", "backend/ID"…

    Tenant and trace are those of the current call; without one the event belongs to the mesh.
    """
    field = _FIELDS[payload.DESCRIPTOR.full_name]
    call = current_call()
    if tenant is None:
        tenant = call.tenant if call is not None and call.tenant else MESH
    if not _TENANT.fullmatch(tenant):
        raise ValueError(f"{tenant!r} is not a tenant")
    now = time.time_ns()
    event = Event(
        id=_new_id(now),
        tenant=tenant,
        kind=field.replace("_", ".", 1),
        subject=subject,
        trace_id=call.trace_id if call is not None else "",
    )
    event.time.seconds, event.time.nanos = divmod(now, 1_000_000_000)
    getattr(event, field).CopyFrom(payload)
    return event


def new_event_id() -> str:
    """An id for an event that will be made."""
    return _new_id(time.time_ns())


def _new_id(now: int) -> str:
    """32 hexadecimal digits that sort by time: milliseconds, a counter, chance."""
    return f"{now // 1_000_000:012x}{next(_counter) & 0xFFFF:04x}{os.urandom(8).hex()}"
