"""How the caller of a stream that is not in the journal learns that."""

from __future__ import annotations

from maestro.llm.v1.chat_pb2 import ChatEvent, Warning  # noqa: A004 - the contract's name

_CODE = "resumable_unavailable"


def warning_of(why: str) -> ChatEvent:
    """The event that tells that a stream ends with its connection after all."""
    message = f"this stream ends with its connection: {why}"
    return ChatEvent(warning=Warning(code=_CODE, message=message, field="resumable"))
