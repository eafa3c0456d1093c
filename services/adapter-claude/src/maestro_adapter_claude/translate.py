"""Anthropic's Messages wire, both ways. Pure: no I/O, no clock, no environment.

- `to_wire(request, model, default_max_tokens)` makes the request's body (`request.py`),
- `Stream(outgoing).feed(raw)` and `to_events(body, outgoing)` make the contract's events (`answer.py`),
- `to_count(outgoing)` makes the body that asks for its tokens, `read_count(body)` reads the answer (`counting.py`),
- `to_error(status, body, headers)` makes the contract's error (`failure.py`).
"""

from maestro_adapter_claude.answer import Stream, to_events
from maestro_adapter_claude.counting import read_count, to_count
from maestro_adapter_claude.failure import to_error
from maestro_adapter_claude.request import Outgoing, to_wire

__all__ = ["Outgoing", "Stream", "read_count", "to_count", "to_error", "to_events", "to_wire"]
