"""Bedrock's Converse wire, both ways. Pure: no I/O, no clock, no environment.

- `to_wire(request, model)` makes the request's body (`request.py`),
- `Stream(outgoing).feed(raw)` and `to_events(body, outgoing)` make the contract's events (`answer.py`),
- `to_error(status, body, headers)` makes the contract's error (`failure.py`).
"""

from maestro_adapter_bedrock.answer import Stream, to_events
from maestro_adapter_bedrock.failure import to_error
from maestro_adapter_bedrock.request import Outgoing, to_wire

__all__ = ["Outgoing", "Stream", "to_error", "to_events", "to_wire"]
