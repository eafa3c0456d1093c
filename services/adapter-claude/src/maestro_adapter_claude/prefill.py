"""A conversation that ends with an assistant message: an answer that was begun, which older models go on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_claude.conversation import find_places
from maestro_adapter_claude.models import ClaudeModel
from maestro_sdk.errors import UnsupportedParameter


def begins_answer(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the wire's messages end with text of the assistant. A turn that the provider paused ends otherwise."""
    last = messages[-1]
    if last["role"] != "assistant":
        return False
    block = cast("list[Any]", last["content"])[-1]
    return isinstance(block, dict) and cast("dict[str, Any]", block)["type"] == "text"


def refuse_prefill(request: ChatRequest, model: ClaudeModel, messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises `UnsupportedParameter` for a begun answer that the provider would refuse, with the path of its message."""
    if not begins_answer(messages):
        return
    path = f"messages[{find_places(request, model.model.name)[-1][-1][0]}]"
    if model.refuses_prefill:
        why = f"{model.model.name} goes on with no answer that was begun; let the conversation end with a user's turn"
        raise UnsupportedParameter.at(path, why)
    text: str = messages[-1]["content"][-1]["text"]
    if text != text.rstrip():
        why = "ends with white space, which Claude refuses in an answer that was begun; send it without"
        raise UnsupportedParameter.at(path, why)
