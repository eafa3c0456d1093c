"""Lifecycle events and notices about their stream as WebSocket frames."""

from __future__ import annotations

from typing import Any

import orjson

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.json_codec.encoder import plain


def encode_event(event: Event) -> bytes:
    """An event: its envelope, and its payload under the name of what happened ("request_completed")."""
    data: dict[str, Any] = {"type": "event", **plain(event)}
    return orjson.dumps(data)


def encode_notice(kind: str, sequence: int, message: str) -> bytes:
    """Something about the subscription itself: `ready`, `gap`, `slow_consumer` or `draining`."""
    return orjson.dumps({"type": "notice", "kind": kind, "sequence": sequence, "message": message})
