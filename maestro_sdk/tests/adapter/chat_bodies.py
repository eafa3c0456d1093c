"""A request, and the body that the chat-completions wire has for it."""

from __future__ import annotations

from typing import Any

import orjson
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_sdk.adapter.chat_completions import Dialect, to_wire

LOCAL = Dialect(provider="local")


def request(*parts: dict[str, Any], role: str = "ROLE_USER", **fields: Any) -> ChatRequest:
    content = list(parts) or [{"text": {"text": "hi"}}]
    return ParseDict({"model": "local/m", "messages": [{"role": role, "parts": content}], **fields}, ChatRequest())


def body(asked: ChatRequest, dialect: Dialect = LOCAL, *, stream: bool = False) -> dict[str, Any]:
    wire = to_wire(asked, dialect, stream=stream)
    assert list(wire.warnings) == []
    return orjson.loads(wire.encode())
