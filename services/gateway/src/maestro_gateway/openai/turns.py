"""The messages of a chat completion into turns. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Message, Role
from maestro_gateway.json_codec.decoder import Path, Reading, mistyped, read_object, read_text, wrong
from maestro_gateway.openai.content import fill_content, fill_refusable, plain_text


def read_turns(request: ChatRequest, system: list[str], value: Any, path: Path, reading: Reading) -> None:
    """The turns of a conversation; what the system says is put into `system`."""
    if type(value) is not list:
        raise mistyped(path, "a list of messages", value)
    if not value:
        raise wrong(path, "must hold at least one message")
    # Calls of the last turn that have no result so far.
    open_calls: set[str] = set()
    for index, item in enumerate(cast("list[Any]", value)):
        here = (path, index)
        if type(item) is not dict:
            raise mistyped(here, "an object with role and content", item)
        fields = cast("dict[str, Any]", item)
        match fields.get("role"):
            case "system" | "developer":
                system.append(plain_text(fields.get("content"), (here, "content")))
            case "user":
                message = request.messages.add(role=Role.ROLE_USER)
                fill_content(message, fields.get("content"), (here, "content"), reading)
                if not message.parts:
                    raise wrong((here, "content"), "must hold at least one part")
                open_calls.clear()
            case "assistant":
                message = request.messages.add(role=Role.ROLE_ASSISTANT)
                _assistant(message, fields, here)
                open_calls = {part.tool_call.call_id for part in message.parts if part.HasField("tool_call")}
            case "tool":
                _tool_result(request, open_calls, fields, here, reading)
            case "function":
                raise wrong((here, "role"), "function is of an API that is gone; use role tool and tool_calls")
            case _:
                raise wrong((here, "role"), "must be one of system, developer, user, assistant, tool")


def _assistant(message: Message, fields: Mapping[str, Any], path: Path) -> None:
    if fields.get("function_call") is not None:
        raise wrong((path, "function_call"), "is of an API that is gone; use tool_calls")
    if fields.get("audio") is not None:
        raise wrong((path, "audio"), "refers to an answer in sound, which is kept nowhere; send its text")
    fill_refusable(message, fields.get("content"), (path, "content"))
    refusal = fields.get("refusal")
    if refusal is not None:
        message.parts.add().refusal.text = read_text(refusal, (path, "refusal"))
    calls: Any = fields.get("tool_calls") or []
    if type(calls) is not list:
        raise mistyped((path, "tool_calls"), "a list", calls)
    ids: set[str] = set()
    for index, item in enumerate(cast("list[Any]", calls)):
        here = ((path, "tool_calls"), index)
        if type(item) is not dict:
            raise mistyped(here, "an object", item)
        call = cast("dict[str, Any]", item)
        if call.get("type", "function") != "function":
            raise wrong((here, "type"), "must be function; other kinds of tools are not served here")
        function = read_object(call.get("function"), (here, "function"))
        part = message.parts.add().tool_call
        part.call_id = read_text(call.get("id"), (here, "id"))
        if part.call_id in ids:
            raise wrong((here, "id"), "stands twice in this turn")
        ids.add(part.call_id)
        part.name = read_text(function.get("name"), ((here, "function"), "name"))
        part.arguments_json = _arguments(function.get("arguments"), ((here, "function"), "arguments"))
    if not message.parts:
        raise wrong((path, "content"), "is required unless there are tool_calls")


def _arguments(value: Any, path: Path) -> str:
    text = read_text(value, path)
    if text.strip():
        try:
            holds_object = type(orjson.loads(text)) is dict
        except orjson.JSONDecodeError:
            holds_object = False
        if not holds_object:
            raise wrong(path, "does not hold a JSON object")
    return text


def _tool_result(
    request: ChatRequest, open_calls: set[str], fields: Mapping[str, Any], path: Path, reading: Reading
) -> None:
    call_id = read_text(fields.get("tool_call_id"), (path, "tool_call_id"))
    if call_id not in open_calls:
        raise wrong(
            (path, "tool_call_id"), "answers no call of the assistant's turn before it, or one for the second time"
        )
    open_calls.discard(call_id)
    # Results that stand together answer the calls of one turn: other wires want them in one message.
    messages = request.messages
    message = messages[-1] if messages[-1].role == Role.ROLE_TOOL else messages.add(role=Role.ROLE_TOOL)
    result = message.parts.add().tool_result
    result.call_id = call_id
    fill_content(result, fields.get("content"), (path, "content"), reading)
