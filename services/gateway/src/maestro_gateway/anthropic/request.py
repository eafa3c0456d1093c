"""The body of a message request into a `ChatRequest`. Pure; errors name fields as Anthropic's clients know them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from maestro.llm.v1.chat_pb2 import CacheTtl, ChatRequest, ReasoningEffort, Routing, ToolChoiceMode
from maestro.llm.v1.message_pb2 import Role
from maestro_gateway.anthropic.content import fill_assistant, fill_user, read_blocks
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
from maestro_sdk.errors import InvalidRequest, Violation
from maestro_sdk.service.interceptors import validate

OWN = "anthropic"
"""The provider that understands what only this wire has."""
_INT32 = 2**31 - 1
_EFFORTS: Mapping[str, ReasoningEffort.ValueType] = {
    "low": ReasoningEffort.REASONING_EFFORT_LOW,
    "medium": ReasoningEffort.REASONING_EFFORT_MEDIUM,
    "high": ReasoningEffort.REASONING_EFFORT_HIGH,
    "xhigh": ReasoningEffort.REASONING_EFFORT_MAX,
    "max": ReasoningEffort.REASONING_EFFORT_MAX,
}
_CHOICES: Mapping[str, ToolChoiceMode.ValueType] = {
    "auto": ToolChoiceMode.TOOL_CHOICE_MODE_AUTO,
    "any": ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
    "none": ToolChoiceMode.TOOL_CHOICE_MODE_NONE,
    "tool": ToolChoiceMode.TOOL_CHOICE_MODE_NAMED,
}
_BETA = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MOST_BETAS = 32
_TTLS: Mapping[str, CacheTtl.ValueType] = {"5m": CacheTtl.CACHE_TTL_5M, "1h": CacheTtl.CACHE_TTL_1H}
_PASSED = (
    "container",
    "context_management",
    "diagnostics",
    "inference_geo",
    "mcp_servers",
    "service_tier",
    "speed",
    "top_k",
)
"""Parameters without a counterpart in the contract: they reach Anthropic as they are, and no other provider."""


_MESSAGE = frozenset({"role", "content"})
_TEXT = frozenset({"type", "text", "cache_control"})
_CHOICE = frozenset({"type", "name", "disable_parallel_tool_use"})
_THINKING = frozenset({"type", "budget_tokens", "display"})


@dataclass(slots=True)
class Asked:
    """A decoded body. `passed` are parameters that only Anthropic obeys, `unknown` fields that nobody knows."""

    request: ChatRequest
    stream: bool = False
    passed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class _Body:
    """What one body says, field by field."""

    def __init__(self) -> None:
        self.request = ChatRequest()
        self.system: list[str] = []
        self.passed: dict[str, Any] = {}
        self.stream = False
        self.reading = Reading()


_Read = Callable[[_Body, Any, Path], None]


def decode_message(raw: bytes, *, counted: bool = False, betas: str = "") -> Asked:
    """What a body asks; a body that is only `counted` needs no `max_tokens`. `betas` is the header `anthropic-beta`.

    Raises `InvalidRequest` that names a wrong field by its path in the body.
    """
    document = parse_object(raw)
    for name in ("model", "messages", *(() if counted else ("max_tokens",))):
        if document.get(name) is None:
            raise wrong((None, name), "is required")
    body = _Body()
    if betas:
        # Only Anthropic knows what they mean, and only it gets them.
        body.passed["betas"] = _betas(betas)
    # Points of the cache are told in the order of the prompt, whatever the order of the fields.
    for name in sorted(document, key=lambda name: _ORDER.get(name, 0)):
        value = document[name]
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
    if not request.messages:
        raise wrong((None, "messages"), "must hold more than what the system says")
    if body.system:
        request.system = "\n\n".join(body.system)
    if body.passed:
        fill_struct(request.provider_options[OWN], body.passed, None, body.reading)
    validate(request)
    passed = tuple(name for name in body.passed if name in _PASSED)
    return Asked(request, body.stream, passed, name_unknown(body.reading))


def _betas(header: str) -> list[str]:
    names = list(dict.fromkeys(name for part in header.split(",") if (name := part.strip())))
    if len(names) > _MOST_BETAS or not all(_BETA.fullmatch(name) for name in names):
        raise wrong((None, "anthropic-beta"), f"must be names of betas with commas between, {_MOST_BETAS} at most")
    return names


def _messages(body: _Body, value: Any, path: Path) -> None:
    if type(value) is not list:
        raise mistyped(path, "a list of messages", value)
    if not value:
        raise wrong(path, "must hold at least one message")
    messages = body.request.messages
    # Calls of the last turn, for the results that follow.
    calls: set[str] = set()
    for index, item in enumerate(cast("list[Any]", value)):
        here = (path, index)
        fields = read_object(item, here)
        content = (here, "content")
        match fields.get("role"):
            case "user":
                cached = fill_user(body.request, fields.get("content"), content, calls, body.reading)
                calls = set()
            case "assistant":
                message = messages.add(role=Role.ROLE_ASSISTANT)
                cached = fill_assistant(message, fields.get("content"), content, body.reading)
                calls = {part.tool_call.call_id for part in message.parts if part.HasField("tool_call")}
            case "system":
                note_others(fields, _MESSAGE, here, body.reading)
                _say(body, fields.get("content"), content, body.system)
                continue
            case _:
                raise wrong((here, "role"), "must be one of user, assistant")
        note_others(fields, _MESSAGE, here, body.reading)
        if not messages[-1].parts:
            raise wrong(content, "must hold at least one block")
        if cached:
            body.request.cache.points.add(message=len(messages) - 1)
            _note_ttl(body, fields.get("content"), content)


def _system(body: _Body, value: Any, path: Path) -> None:
    told: list[str] = []
    _say(body, value, path, told)
    # Before what stands among the messages.
    body.system[:0] = told


def _say(body: _Body, value: Any, path: Path, told: list[str]) -> None:
    """Adds to what the system says."""
    cached = False
    for block, here in read_blocks(value, path):
        if block.get("type") != "text":
            raise wrong((here, "type"), "must be text")
        told.append(read_text(block.get("text"), (here, "text")))
        note_others(block, _TEXT, here, body.reading)
        cached |= block.get("cache_control") is not None
    if cached:
        points = body.request.cache.points
        if not any(point.system for point in points):
            points.add(system=True)
        _note_ttl(body, value, path)


def _tools(body: _Body, value: Any, path: Path) -> None:
    if type(value) is not list:
        raise mistyped(path, "a list", value)
    cached = False
    names: set[str] = set()
    for index, item in enumerate(cast("list[Any]", value)):
        here = (path, index)
        fields = read_object(item, here)
        if fields.get("type") not in (None, "custom"):
            raise wrong((here, "type"), "must be custom: tools that a provider runs itself are not served here")
        tool = body.request.tools.add()
        for name, entry in fields.items():
            at = (here, name)
            match name:
                case "name":
                    tool.name = read_text(entry, at)
                case "description" if entry is not None:
                    tool.description = read_text(entry, at)
                case "input_schema":
                    tool.input_schema = orjson.dumps(read_object(entry, at)).decode()
                case "strict" if entry is not None:
                    tool.strict = read_bool(entry, at)
                case "cache_control":
                    cached |= entry is not None
                case "type" | "description" | "strict":
                    pass
                case _:
                    body.reading.unknown.append(at)
        if not tool.name:
            raise wrong((here, "name"), "is required")
        if tool.name in names:
            raise wrong((here, "name"), "stands twice among the tools")
        names.add(tool.name)
    if cached:
        body.request.cache.points.add(tools=True)
        _note_ttl(body, value, path)


def _note_ttl(body: _Body, value: Any, path: Path) -> None:
    """The longest time to keep that a list of marked things asks for: the contract has one for the whole prompt."""
    for index, item in enumerate(cast("list[Any]", value) if type(value) is list else ()):
        fields = cast("dict[str, Any]", item)
        mark = fields.get("cache_control")
        if mark is not None:
            _cache(body, mark, ((path, index), "cache_control"))
        if fields.get("type") == "tool_result":
            _note_ttl(body, fields.get("content"), ((path, index), "content"))


def _cache(body: _Body, value: Any, path: Path) -> None:
    fields = read_object(value, path)
    if fields.get("type") != "ephemeral":
        raise wrong((path, "type"), "must be ephemeral")
    note_others(fields, frozenset({"type", "ttl"}), path, body.reading)
    body.request.cache.SetInParent()
    ttl = fields.get("ttl")
    if ttl is not None:
        body.request.cache.ttl = max(body.request.cache.ttl, read_choice(ttl, (path, "ttl"), _TTLS))


def _tool_choice(body: _Body, value: Any, path: Path) -> None:
    fields, choice = read_object(value, path), body.request.tool_choice
    choice.mode = read_choice(fields.get("type"), (path, "type"), _CHOICES)
    note_others(fields, _CHOICE, path, body.reading)
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED:
        choice.names.append(read_text(fields.get("name"), (path, "name")))
    if fields.get("disable_parallel_tool_use") is not None:
        here = (path, "disable_parallel_tool_use")
        choice.parallel = not read_bool(fields["disable_parallel_tool_use"], here)


def _thinking(body: _Body, value: Any, path: Path) -> None:
    fields, reasoning = read_object(value, path), body.request.reasoning
    match fields.get("type"):
        case "enabled":
            reasoning.budget_tokens = read_int(fields.get("budget_tokens"), (path, "budget_tokens"), 1, _INT32)
        case "adaptive":
            reasoning.SetInParent()
        case "disabled":
            reasoning.effort = ReasoningEffort.REASONING_EFFORT_OFF
        case "between_tools":
            body.passed["thinking"] = {"type": "between_tools"}
        case _:
            raise wrong((path, "type"), "must be one of enabled, adaptive, disabled, between_tools")
    note_others(fields, _THINKING, path, body.reading)
    if fields.get("display") is not None:
        body.passed.setdefault("thinking", {})["display"] = read_text(fields["display"], (path, "display"))


def _output_config(body: _Body, value: Any, path: Path) -> None:
    for name, entry in read_object(value, path).items():
        here = (path, name)
        match name:
            case "effort" if entry is not None:
                body.request.reasoning.effort = read_choice(entry, here, _EFFORTS)
            case "format" if entry is not None:
                form = read_object(entry, here)
                note_others(form, frozenset({"type", "schema"}), here, body.reading)
                if form.get("type") != "json_schema":
                    raise wrong((here, "type"), "must be json_schema")
                schema = body.request.response_format.json_schema
                schema.schema = orjson.dumps(read_object(form.get("schema"), (here, "schema"))).decode()
            case "effort" | "format":
                pass
            case _:
                body.reading.unknown.append(here)


def _metadata(body: _Body, value: Any, path: Path) -> None:
    for name, entry in read_object(value, path).items():
        if name == "user_id":
            if entry is not None:
                body.request.metadata["user_id"] = read_text(entry, (path, name))
        else:
            body.reading.unknown.append((path, name))


def _stop(body: _Body, value: Any, path: Path) -> None:
    if type(value) is not list:
        raise mistyped(path, "a list of strings", value)
    body.request.stop.extend(read_text(item, (path, n)) for n, item in enumerate(cast("list[Any]", value)))


def _thread(body: _Body, value: Any, path: Path) -> None:
    # To answer what stands behind a thread without its history would be an answer to something else. By the code and
    # the field, Anthropic's own tool loops learn to send their whole history.
    message = "conversations are not kept here: send all their messages, without a thread"
    told = [Violation("thread", message)]
    raise InvalidRequest(f"thread: {message}", violations=told, metadata={"error_code": "thread_unsupported_request"})


def _routing(body: _Body, value: Any, path: Path) -> None:
    body.request.routing.SetInParent()
    _fill_routing(body.request.routing, value, path, body.reading)


def _model(body: _Body, value: Any, path: Path) -> None:
    body.request.model = read_text(value, path)


def _max_tokens(body: _Body, value: Any, path: Path) -> None:
    body.request.max_tokens = read_int(value, path, 1, _INT32)


def _temperature(body: _Body, value: Any, path: Path) -> None:
    body.request.temperature = read_number(value, path)


def _top_p(body: _Body, value: Any, path: Path) -> None:
    body.request.top_p = read_number(value, path)


def _stream(body: _Body, value: Any, path: Path) -> None:
    body.stream = read_bool(value, path)


_fill_routing = compiler.fill(Routing.DESCRIPTOR)
_ORDER = {"tools": 1, "system": 2, "messages": 3}
_FIELDS: Mapping[str, _Read] = {
    "model": _model,
    "messages": _messages,
    "system": _system,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "max_tokens": _max_tokens,
    "temperature": _temperature,
    "top_p": _top_p,
    "stop_sequences": _stop,
    "stream": _stream,
    "thinking": _thinking,
    "output_config": _output_config,
    "cache_control": _cache,
    "metadata": _metadata,
    "thread": _thread,
    # The mesh's own field, which Anthropic's clients send as `extra_body`.
    "routing": _routing,
}
