"""The messages of a chat completion into turns. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson

from maestro.llm.v1.chat_pb2 import CacheTtl, ChatRequest
from maestro.llm.v1.message_pb2 import Message, Role
from maestro_gateway.json_codec.decoder import (
    Path,
    Reading,
    mistyped,
    note_others,
    read_choice,
    read_object,
    read_text,
    wrong,
)
from maestro_gateway.openai.content import Marks, fill_content, fill_refusable, plain_text

_SAID = frozenset({"role", "content"})
_RESULT = frozenset({"role", "content", "tool_call_id"})
# The last ones are of answers, which clients send back as they came: `reasoning_content` has its own way back (`Keep`).
_ANSWER = frozenset(
    {"role", "content", "refusal", "tool_calls", "function_call", "audio", "reasoning_content", "annotations", "parsed"}
)
_CALL = frozenset({"id", "type", "function", "index"})
_FUNCTION = frozenset({"name", "arguments", "parsed_arguments"})
_MOST_POINTS = 16
_MODES = {"explicit": True}
_TTLS = {"30m": CacheTtl.CACHE_TTL_1H, "12h": CacheTtl.CACHE_TTL_1H}
"""The contract's next longer time; the longest that it has."""


def read_turns(request: ChatRequest, system: list[str], value: Any, path: Path, reading: Reading) -> None:
    """The turns of a conversation; what the system says is put into `system`."""
    if type(value) is not list:
        raise mistyped(path, "a list of messages", value)
    if not value:
        raise wrong(path, "must hold at least one message")
    # Calls of the last turn that have no result so far.
    open_calls: set[str] = set()
    marks: Marks = []
    for index, item in enumerate(cast("list[Any]", value)):
        here = (path, index)
        if type(item) is not dict:
            raise mistyped(here, "an object with role and content", item)
        fields = cast("dict[str, Any]", item)
        match fields.get("role"):
            case "system" | "developer":
                note_others(fields, _SAID, here, reading)
                system.append(plain_text(fields.get("content"), (here, "content"), reading, marks))
            case "user":
                note_others(fields, _SAID, here, reading)
                message = request.messages.add(role=Role.ROLE_USER)
                fill_content(message, fields.get("content"), (here, "content"), reading, marks)
                if not message.parts:
                    raise wrong((here, "content"), "must hold at least one part")
                open_calls.clear()
            case "assistant":
                message = request.messages.add(role=Role.ROLE_ASSISTANT)
                _assistant(message, fields, here, reading, marks)
                open_calls = {part.tool_call.call_id for part in message.parts if part.HasField("tool_call")}
            case "tool":
                _tool_result(request, open_calls, fields, here, reading, marks)
            case "function":
                raise wrong((here, "role"), "function is of an API that is gone; use role tool and tool_calls")
            case _:
                raise wrong((here, "role"), "must be one of system, developer, user, assistant, tool")
        if marks:
            _keep_up_to_here(request, marks, of_system=fields["role"] in ("system", "developer"), reading=reading)
            marks.clear()


def _keep_up_to_here(request: ChatRequest, marks: Marks, *, of_system: bool, reading: Reading) -> None:
    """A point of the prompt cache behind the last message: the contract has none within one."""
    for value, path in marks:
        fields = read_object(value, path)
        note_others(fields, frozenset({"mode", "ttl"}), path, reading)
        read_choice(fields.get("mode"), (path, "mode"), _MODES)
        if fields.get("ttl") is not None:
            request.cache.ttl = read_choice(fields["ttl"], (path, "ttl"), _TTLS)
            if fields["ttl"] == "12h":
                reading.unknown.append((path, "ttl"))
    points = request.cache.points
    if of_system:
        if not any(point.system for point in points):
            points.add(system=True)
        return
    last = len(request.messages) - 1
    if not points or points[-1].message != last or points[-1].system:
        points.add(message=last)
    # A long conversation may carry the marks of all its turns: the latest ones count.
    del points[:-_MOST_POINTS]


def _assistant(message: Message, fields: Mapping[str, Any], path: Path, reading: Reading, marks: Marks) -> None:
    note_others(fields, _ANSWER, path, reading)
    if fields.get("function_call") is not None:
        raise wrong((path, "function_call"), "is of an API that is gone; use tool_calls")
    if fields.get("audio") is not None:
        raise wrong((path, "audio"), "refers to an answer in sound, which is kept nowhere; send its text")
    fill_refusable(message, fields.get("content"), (path, "content"), reading, marks)
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
        note_others(call, _CALL, here, reading)
        note_others(function, _FUNCTION, (here, "function"), reading)
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
    request: ChatRequest, open_calls: set[str], fields: Mapping[str, Any], path: Path, reading: Reading, marks: Marks
) -> None:
    note_others(fields, _RESULT, path, reading)
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
    fill_content(result, fields.get("content"), (path, "content"), reading, marks)
