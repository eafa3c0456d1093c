"""Ollama's own wire, `/api/chat` and `/api/embed`, both ways.

- `to_wire(request, facts, defaults)` makes the request's body (`request.py`),
- `Stream(outgoing).feed(raw)` and `to_events(body, outgoing)` make the contract's events (`answer.py`),
- `to_error(status, body, headers)` makes the contract's error (`failure.py`),
- `OllamaServer` makes the calls (`provider.py`).
"""

from maestro_adapter_local.ollama.answer import Stream, to_events
from maestro_adapter_local.ollama.failure import to_error
from maestro_adapter_local.ollama.provider import OllamaServer
from maestro_adapter_local.ollama.request import Defaults, Outgoing, to_wire

__all__ = ["Defaults", "OllamaServer", "Outgoing", "Stream", "to_error", "to_events", "to_wire"]
