"""A conversation that ends with an assistant message: an answer that was begun, which some models go on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_bedrock.media import refuse
from maestro_adapter_bedrock.models import BedrockModel


def begun_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the assistant with which the wire's messages end; empty when they end otherwise."""
    last = messages[-1]
    if last["role"] != "assistant":
        return ""
    for block in reversed(cast("list[Any]", last["content"])):
        # Blocks of the provider's own kinds are text that nobody looks into.
        fields = cast("dict[str, Any]", block) if isinstance(block, dict) else {}
        if "cachePoint" not in fields:
            return str(fields.get("text", ""))
    return ""


def refuse_prefill(request: ChatRequest, model: BedrockModel, messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises `UnsupportedParameter` for a begun answer that Bedrock would refuse, with the path of its message."""
    text = begun_text(messages)
    if not text:
        return
    path = f"messages[{len(request.messages) - 1}]"
    match model.wire.prefill:
        case "refused":
            why = f"{model.name} goes on with no answer that was begun; let the conversation end with a user's turn"
            raise refuse(path, why)
        case "goes_on" if text != text.rstrip():
            raise refuse(
                path, "ends with white space, which Claude refuses in an answer that was begun; send it without"
            )
        case _:
            pass
