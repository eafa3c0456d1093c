"""The body of a chat completion into a `ChatRequest`. Pure; every error names the field as OpenAI's clients know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from maestro.llm.v1.chat_pb2 import ChatRequest, ReasoningEffort, Routing, Tool, ToolChoice, ToolChoiceMode
from maestro_gateway.json_codec.decoder import (
    Path,
    Reading,
    fill_struct,
    mistyped,
    name_unknown,
    note_others,
    read_bool,
    read_choice,
    read_int,
    read_number,
    read_object,
    read_text,
    wrong,
)
from maestro_gateway.json_codec.document import parse_object
from maestro_gateway.json_codec.parts import compiler
from maestro_gateway.openai.turns import read_turns
from maestro_sdk.service.interceptors import validate

_INT32 = 2**31 - 1
_EFFORTS: Mapping[str, ReasoningEffort.ValueType] = {
    "none": ReasoningEffort.REASONING_EFFORT_OFF,
    "minimal": ReasoningEffort.REASONING_EFFORT_MINIMAL,
    "low": ReasoningEffort.REASONING_EFFORT_LOW,
    "medium": ReasoningEffort.REASONING_EFFORT_MEDIUM,
    "high": ReasoningEffort.REASONING_EFFORT_HIGH,
    "xhigh": ReasoningEffort.REASONING_EFFORT_MAX,
    "max": ReasoningEffort.REASONING_EFFORT_MAX,
}
_CHOICES: Mapping[str, ToolChoiceMode.ValueType] = {
    "auto": ToolChoiceMode.TOOL_CHOICE_MODE_AUTO,
    "none": ToolChoiceMode.TOOL_CHOICE_MODE_NONE,
    "required": ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
}
OWN = ("openai", "azure")
"""Providers that understand what only OpenAI's wire has."""
_PASSED = (
    "frequency_penalty",
    "logit_bias",
    "moderation",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
    "web_search_options",
)
"""Parameters without a counterpart in the contract: they reach OpenAI as they are, and no other provider."""


_TYPED = {
    kind: frozenset({"type", kind}) for kind in ("function", "allowed_tools", "text", "json_object", "json_schema")
}
"""Fields of the objects that tell their kind, by kind."""
_NAMED = frozenset({"name"})
_SCHEMA = frozenset({"name", "description", "schema", "strict"})


@dataclass(slots=True)
class Asked:
    """A decoded body. `passed` are parameters that only OpenAI obeys, `unknown` fields that nobody knows."""

    request: ChatRequest
    stream: bool = False
    include_usage: bool = False
    passed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class _Body:
    """What one body says, field by field."""

    def __init__(self) -> None:
        self.request = ChatRequest()
        self.system: list[str] = []
        self.passed: dict[str, Any] = {}
        self.stream = self.include_usage = False
        self.reading = Reading()


_Read = Callable[[_Body, Any, Path], None]


def decode_completion(raw: bytes) -> Asked:
    """What a body asks. Raises `InvalidRequest` that names a wrong field by its path in the body."""
    return read_completion(parse_object(raw))


def read_completion(document: dict[str, Any]) -> Asked:
    """What a JSON object asks. Raises as `decode_completion`."""
    body = _Body()
    if "messages" not in document:
        raise wrong((None, "messages"), "is required")
    for name, value in document.items():
        read = _FIELDS.get(name)
        if read is not None:
            if value is not None:
                read(body, value, (None, name))
        elif name in _PASSED:
            if value is not None:
                body.passed[name] = value
        else:
            body.reading.unknown.append((None, name))
    request = body.request
    if body.system:
        request.system = "\n\n".join(body.system)
    if body.passed:
        for provider in OWN:
            fill_struct(request.provider_options[provider], body.passed, None, body.reading)
    if document.get("max_tokens") is not None and document.get("max_completion_tokens") is not None:
        raise wrong((None, "max_tokens"), "is the old name of max_completion_tokens; give one of them")
    if not request.messages:
        raise wrong((None, "messages"), "must hold more than what the system says")
    if document.get("top_logprobs") and document.get("logprobs") is not True:
        raise wrong((None, "top_logprobs"), "needs logprobs: true")
    # Paths of the contract are near enough to the body's to find the place.
    validate(request)
    return Asked(request, body.stream, body.include_usage, tuple(body.passed), name_unknown(body.reading))


def _model(body: _Body, value: Any, path: Path) -> None:
    body.request.model = read_text(value, path)


def _messages(body: _Body, value: Any, path: Path) -> None:
    read_turns(body.request, body.system, value, path, body.reading)


def _tools(body: _Body, value: Any, path: Path) -> None:
    if type(value) is not list:
        raise mistyped(path, "a list", value)
    names: set[str] = set()
    for index, item in enumerate(cast("list[Any]", value)):
        here = (path, index)
        fields = read_object(item, here)
        if fields.get("type") != "function":
            raise wrong((here, "type"), "must be function; other kinds of tools are not served here")
        inside = (here, "function")
        function = read_object(fields.get("function"), inside)
        note_others(fields, _TYPED["function"], here, body.reading)
        tool: Tool = body.request.tools.add()
        for name, entry in function.items():
            match name:
                case "name":
                    tool.name = read_text(entry, (inside, name))
                case "description" if entry is not None:
                    tool.description = read_text(entry, (inside, name))
                case "parameters" if entry is not None:
                    if type(entry) is not dict:
                        raise mistyped((inside, name), "a JSON Schema as an object", entry)
                    tool.input_schema = orjson.dumps(entry).decode()
                case "strict" if entry is not None:
                    tool.strict = read_bool(entry, (inside, name))
                case "description" | "parameters" | "strict":
                    pass
                case _:
                    body.reading.unknown.append((inside, name))
        if not tool.name:
            raise wrong((inside, "name"), "is required")
        if tool.name in names:
            raise wrong((inside, "name"), "stands twice among the tools")
        names.add(tool.name)


def _tool_choice(body: _Body, value: Any, path: Path) -> None:
    choice: ToolChoice = body.request.tool_choice
    if type(value) is str:
        if value not in _CHOICES:
            raise wrong(path, f"must be one of {', '.join(_CHOICES)}, or an object that names a function")
        choice.mode = _CHOICES[value]
        return
    fields = read_object(value, path)
    kind = fields.get("type")
    match kind:
        case "function":
            function = read_object(fields.get("function"), (path, "function"))
            note_others(function, _NAMED, (path, "function"), body.reading)
            choice.mode = ToolChoiceMode.TOOL_CHOICE_MODE_NAMED
            choice.names.append(read_text(function.get("name"), ((path, "function"), "name")))
        case "allowed_tools":
            here = (path, "allowed_tools")
            allowed = read_object(fields.get("allowed_tools"), here)
            note_others(allowed, frozenset({"mode", "tools"}), here, body.reading)
            mode = allowed.get("mode")
            if mode not in ("auto", "required"):
                raise wrong((here, "mode"), "must be one of auto, required")
            choice.mode = _CHOICES[mode]
            tools: Any = allowed.get("tools")
            if type(tools) is not list:
                raise mistyped((here, "tools"), "a list", tools)
            for index, item in enumerate(cast("list[Any]", tools)):
                at = ((here, "tools"), index)
                function = read_object(read_object(item, at).get("function"), (at, "function"))
                choice.names.append(read_text(function.get("name"), ((at, "function"), "name")))
        case _:
            raise wrong((path, "type"), "must be one of function, allowed_tools")
    note_others(fields, _TYPED[kind], path, body.reading)


def _parallel(body: _Body, value: Any, path: Path) -> None:
    body.request.tool_choice.parallel = read_bool(value, path)


def _response_format(body: _Body, value: Any, path: Path) -> None:
    fields, form = read_object(value, path), body.request.response_format
    kind = fields.get("type")
    match kind:
        case "text":
            form.text.SetInParent()
        case "json_object":
            form.json.SetInParent()
        case "json_schema":
            inside = (path, "json_schema")
            asked, schema = read_object(fields.get("json_schema"), inside), form.json_schema
            note_others(asked, _SCHEMA, inside, body.reading)
            if type(asked.get("schema")) is not dict:
                raise mistyped((inside, "schema"), "a JSON Schema as an object", asked.get("schema"))
            schema.schema = orjson.dumps(asked["schema"]).decode()
            schema.name = read_text(asked.get("name"), (inside, "name"))
            if asked.get("description") is not None:
                schema.description = read_text(asked["description"], (inside, "description"))
            if asked.get("strict") is not None:
                schema.strict = read_bool(asked["strict"], (inside, "strict"))
        case _:
            raise wrong((path, "type"), "must be one of text, json_object, json_schema")
    note_others(fields, _TYPED[kind], path, body.reading)


def _stop(body: _Body, value: Any, path: Path) -> None:
    if type(value) is str:
        body.request.stop.append(value)
    elif type(value) is list:
        body.request.stop.extend(read_text(item, (path, n)) for n, item in enumerate(cast("list[Any]", value)))
    else:
        raise mistyped(path, "a string or a list of strings", value)


def _stream_options(body: _Body, value: Any, path: Path) -> None:
    for name, item in read_object(value, path).items():
        match name:
            case "include_usage" if item is not None:
                body.include_usage = read_bool(item, (path, name))
            case "include_usage" | "include_obfuscation":
                pass  # Nothing is padded here.
            case _:
                body.reading.unknown.append((path, name))


def _effort(body: _Body, value: Any, path: Path) -> None:
    body.request.reasoning.effort = read_choice(value, path, _EFFORTS)


def _one(body: _Body, value: Any, path: Path) -> None:
    if read_int(value, path, 1, _INT32) != 1:
        raise wrong(path, "must be 1: one answer per request; send the request several times")


def _logprobs(body: _Body, value: Any, path: Path) -> None:
    if read_bool(value, path):
        body.request.logprobs.SetInParent()


def _top_logprobs(body: _Body, value: Any, path: Path) -> None:
    top = read_int(value, path, 0, 20)
    if top:
        body.request.logprobs.top = top


def _modalities(body: _Body, value: Any, path: Path) -> None:
    if value != ["text"]:
        raise wrong(path, 'must be ["text"]: answers are text here')


def _metadata(body: _Body, value: Any, path: Path) -> None:
    for name, item in read_object(value, path).items():
        body.request.metadata[name] = read_text(item, (path, name))


def _routing(body: _Body, value: Any, path: Path) -> None:
    body.request.routing.SetInParent()
    _fill_routing(body.request.routing, value, path, body.reading)


def _gone(why: str) -> _Read:
    def refuse(body: _Body, value: Any, path: Path) -> None:
        raise wrong(path, why)

    return refuse


def _number(name: str) -> _Read:
    def read(body: _Body, value: Any, path: Path) -> None:
        setattr(body.request, name, read_number(value, path))

    return read


def _whole(name: str, least: int) -> _Read:
    def read(body: _Body, value: Any, path: Path) -> None:
        setattr(body.request, name, read_int(value, path, least, _INT32))

    return read


def _flag(name: str) -> _Read:
    def read(body: _Body, value: Any, path: Path) -> None:
        setattr(body, name, read_bool(value, path))

    return read


_fill_routing = compiler.fill(Routing.DESCRIPTOR)
_FIELDS: Mapping[str, _Read] = {
    "model": _model,
    "messages": _messages,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _parallel,
    "response_format": _response_format,
    "temperature": _number("temperature"),
    "top_p": _number("top_p"),
    "max_tokens": _whole("max_tokens", 1),
    "max_completion_tokens": _whole("max_tokens", 1),
    "seed": _whole("seed", -_INT32),
    "stop": _stop,
    "stream": _flag("stream"),
    "stream_options": _stream_options,
    "reasoning_effort": _effort,
    "n": _one,
    "logprobs": _logprobs,
    "top_logprobs": _top_logprobs,
    "modalities": _modalities,
    "metadata": _metadata,
    # The mesh's own field, which OpenAI's clients send as `extra_body`.
    "routing": _routing,
    "functions": _gone("is of an API that is gone; use tools"),
    "function_call": _gone("is of an API that is gone; use tool_choice"),
    "audio": _gone("answers in sound are not served here"),
}
