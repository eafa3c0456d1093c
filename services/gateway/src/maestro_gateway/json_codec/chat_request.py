"""The body of a chat request, in the shape that people write by hand, into a `ChatRequest`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    JsonSchemaFormat,
    Logprobs,
    Tool,
    ToolChoice,
    ToolChoiceMode,
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.message_pb2 import Role
from maestro_gateway.json_codec.body_path import SYSTEM_ROLES, hint, with_paths_of
from maestro_gateway.json_codec.decoder import (
    Fill,
    Path,
    Put,
    Reading,
    enum_reader,
    mistyped,
    read_bool,
    read_text,
    render,
    wrong,
)
from maestro_gateway.json_codec.document import parse_object
from maestro_gateway.json_codec.parts import compiler, put_content, put_parts
from maestro_sdk.errors import InvalidRequest, Violation
from maestro_sdk.service.interceptors import validate

_MOST_WARNINGS = 32


@dataclass(frozen=True, slots=True)
class ChatBody:
    """A decoded body. `warnings` tell of fields that nobody knows; they belong into the answer."""

    request: ChatRequest
    stream: bool = False
    warnings: list[Warning] = field(default_factory=list[Warning])


def decode_chat(raw: bytes) -> ChatBody:
    """The chat request that a body holds, validated.

    Raises `InvalidRequest` that names every wrong field by its path in the body.
    """
    return read_chat(parse_object(raw))


def read_chat(document: dict[str, Any], *, refuse_unknown: bool = False) -> ChatBody:
    """The chat request that a JSON object holds, validated. Raises as `decode_chat`.

    `refuse_unknown` refuses fields that nobody knows, where nobody would read a warning.
    """
    reading, request = Reading(), ChatRequest()
    _fill_chat(request, document, None, reading)
    if reading.hoisted:
        request.system = "\n\n".join([request.system, *reading.hoisted] if request.system else reading.hoisted)
    warnings = [_unknown_field(path) for path in reading.unknown[:_MOST_WARNINGS]] if reading.unknown else []
    if warnings and refuse_unknown:
        violations = [Violation(found.field, _not_a_field(found.field)) for found in warnings]
        raise InvalidRequest(
            "; ".join(f"{found.field}: {found.message}" for found in violations), violations=violations
        )
    if warnings and request.strict:
        violations = [Violation(warning.field, "no such field") for warning in warnings]
        names = ", ".join(warning.field for warning in warnings)
        raise InvalidRequest(f"unknown fields under `strict`: {names}", violations=violations)
    try:
        validate(request)
    except InvalidRequest as error:
        raise with_paths_of(document, error) from None
    return ChatBody(request, reading.stream, warnings)


def _unknown_field(path: Path) -> Warning:
    text = render(path)
    message = f"{text} is not a field of a chat request and was ignored{hint(text.rpartition('.')[2])}"
    return Warning(code="unknown_field", message=message, field=text)


def _not_a_field(path: str) -> str:
    return f"is not a field of a chat request{hint(path.rpartition('.')[2])}"


def _put_all_messages(request: Any, value: Any, path: Path, reading: Reading) -> None:
    here = (path, "messages")
    if type(value) is not list:
        raise mistyped(here, "a list", value)
    messages = request.messages
    for index, item in enumerate(cast("list[Any]", value)):
        at = (here, index)
        if type(item) is not dict:
            raise mistyped(at, "an object with role and content", item)
        fields = cast("dict[str, Any]", item)
        if fields.get("role") in SYSTEM_ROLES:
            _hoist(fields, at, reading)
        else:
            _fill_message(messages.add(), fields, at, reading)


def _fill_message(message: Any, fields: dict[str, Any], path: Path, reading: Reading) -> None:
    for key, item in fields.items():
        put = _message_fields.get(key)
        if put is None:
            reading.unknown.append((path, key))
        elif item is not None:
            put(message, item, path, reading)
    if not message.role:
        raise wrong((path, "role"), "is required: user, assistant, tool or system")


def _hoist(fields: dict[str, Any], path: Path, reading: Reading) -> None:
    """Notes the text of a system message: the contract has it above the conversation."""
    for key in fields:
        if key not in ("role", "content", "parts"):
            reading.unknown.append((path, key))
    name = "content" if fields.get("content") is not None else "parts"
    reading.hoisted.append(_plain_text(fields.get(name), (path, name)))


def _plain_text(value: Any, path: Path) -> str:
    if type(value) is str:
        return value
    if type(value) is not list:
        raise mistyped(path, "a string or a list of text parts", value)
    texts: list[str] = []
    for index, item in enumerate(cast("list[Any]", value)):
        here = (path, index)
        fields = cast("dict[str, Any]", item) if type(item) is dict else {}
        if fields.get("type") != "text":
            raise wrong(here, "system text can only hold parts of type text")
        texts.append(read_text(fields.get("text"), (here, "text")))
    return "\n\n".join(texts)


def _put_system(request: Any, value: Any, path: Path, reading: Reading) -> None:
    request.system = _plain_text(value, (path, "system"))


def _put_stop(request: Any, value: Any, path: Path, reading: Reading) -> None:
    here = (path, "stop")
    if type(value) is str:
        request.stop.append(value)
    elif type(value) is list:
        request.stop.extend([read_text(item, (here, index)) for index, item in enumerate(cast("list[Any]", value))])
    else:
        raise mistyped(here, "a string or a list of strings", value)


def _put_stream(request: Any, value: Any, path: Path, reading: Reading) -> None:
    reading.stream = read_bool(value, (path, "stream"))


def _put_schema(name: str, target: str) -> Put:
    def put(message: Any, value: Any, path: Path, reading: Reading) -> None:
        """A schema travels as JSON text: nothing else keeps the order of its keys and the digits of its numbers."""
        if type(value) is not dict:
            raise mistyped((path, name), "a JSON Schema as an object", value)
        setattr(message, target, orjson.dumps(value).decode())

    return put


def _put_tool_choice(request: Any, value: Any, path: Path, reading: Reading) -> None:
    here, choice = (path, "tool_choice"), request.tool_choice
    if type(value) is str:
        if value not in _CHOICE_WORDS:
            raise wrong(here, f'must be one of {", ".join(_CHOICE_WORDS)}, or an object such as {{"name": "TOOL"}}')
        choice.mode = _CHOICE_WORDS[value]
        return
    if type(value) is not dict:
        raise mistyped(here, "a word or an object", value)
    _fill_tool_choice(choice, value, here, reading)
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED and len(choice.names) != 1:
        raise wrong((here, "names"), "must hold exactly one name under mode named")


def _put_choice_name(choice: Any, value: Any, path: Path, reading: Reading) -> None:
    if choice.names:
        raise wrong((path, "name"), "give either name or names")
    choice.names.append(read_text(value, (path, "name")))
    choice.mode = ToolChoiceMode.TOOL_CHOICE_MODE_NAMED


def _put_format(request: Any, value: Any, path: Path, reading: Reading) -> None:
    here, form = (path, "response_format"), request.response_format
    if type(value) is str:
        value = {"type": value}
    if type(value) is not dict:
        raise mistyped(here, "an object with a `type`", value)
    fields = cast("dict[str, Any]", value)
    match fields.get("type"):
        case "text":
            form.text.SetInParent()
        case "json":
            form.json.SetInParent()
        case "json_schema":
            form.json_schema.SetInParent()
        case _:
            raise wrong((here, "type"), "must be one of text, json, json_schema")
    for key, item in fields.items():
        if key == "type":
            continue
        put = _schema_fields.get(key) if form.HasField("json_schema") else None
        if put is None:
            reading.unknown.append((here, key))
        elif item is not None:
            put(form.json_schema, item, here, reading)
    if form.HasField("json_schema") and not form.json_schema.schema:
        raise wrong((here, "schema"), "is required under type json_schema")


def _put_logprobs(request: Any, value: Any, path: Path, reading: Reading) -> None:
    if value is True:
        request.logprobs.SetInParent()
    elif type(value) is dict:
        request.logprobs.SetInParent()
        _fill_logprobs(request.logprobs, value, (path, "logprobs"), reading)
    elif value is not False:
        raise mistyped((path, "logprobs"), "true, false or an object", value)


_CHOICE_WORDS = {
    "auto": ToolChoiceMode.TOOL_CHOICE_MODE_AUTO,
    "none": ToolChoiceMode.TOOL_CHOICE_MODE_NONE,
    "required": ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
}
_read_role = enum_reader(Role.DESCRIPTOR)


def _put_role(message: Any, value: Any, path: Path, reading: Reading) -> None:
    message.role = _read_role(value, (path, "role"))


compiler.fill(Tool.DESCRIPTOR, {"input_schema": _put_schema("input_schema", "input_schema")})
_fill_tool_choice = compiler.fill(ToolChoice.DESCRIPTOR, {"name": _put_choice_name})
_fill_logprobs = compiler.fill(Logprobs.DESCRIPTOR)
_schema_fields = compiler.puts(JsonSchemaFormat.DESCRIPTOR, {"schema": _put_schema("schema", "schema")})
_message_fields: dict[str, Put] = {"role": _put_role, "content": put_content, "parts": put_parts}
_fill_chat: Fill = compiler.fill(
    ChatRequest.DESCRIPTOR,
    {
        "messages": _put_all_messages,
        "system": _put_system,
        "tool_choice": _put_tool_choice,
        "response_format": _put_format,
        "logprobs": _put_logprobs,
        "stop": _put_stop,
        "stream": _put_stream,
    },
)
