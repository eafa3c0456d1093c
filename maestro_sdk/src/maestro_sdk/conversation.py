"""How callers spell a `ChatRequest`: a text or messages, and the contract's fields by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

from maestro.llm.v1.chat_pb2 import (
    Cache,
    ChatRequest,
    JsonFormat,
    Logprobs,
    Reasoning,
    ReasoningEffort,
    ResponseFormat,
    Routing,
    TextFormat,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart

Conversation: TypeAlias = str | Message | Iterable[Message] | ChatRequest
"""What is asked: one text of the user, messages, or a whole request."""


class RequestFields(TypedDict, total=False):
    """Fields of `ChatRequest`; what is missing or None stays unset, and is never sent to a provider."""

    model: str | None
    system: str | None
    tools: Sequence[Tool] | None
    tool_choice: ToolChoice | Literal["auto", "none", "required"] | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    response_format: ResponseFormat | Literal["text", "json"] | None
    reasoning: Reasoning | Literal["off", "minimal", "low", "medium", "high", "max"] | None
    logprobs: Logprobs | None
    cache: Cache | None
    routing: Routing | None
    strict: bool | None
    metadata: Mapping[str, str] | None
    provider_options: Mapping[str, Mapping[str, Any]] | None
    resumable: bool | None


_KNOWN = frozenset(RequestFields.__annotations__)


def chat_request(messages: Conversation, **fields: Unpack[RequestFields]) -> ChatRequest:
    """A new request. A `ChatRequest` given as `messages` is copied; each field given replaces its own. Raises
    `TypeError` for an unknown field and `ValueError` for a value that the contract does not have.
    """
    unknown = fields.keys() - _KNOWN
    if unknown:
        raise TypeError(f"a request has no field {', '.join(sorted(unknown))}; it has: {', '.join(sorted(_KNOWN))}")
    request = ChatRequest()
    match messages:
        case ChatRequest():
            request.CopyFrom(messages)
        case str():
            request.messages.add(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=messages))])
        case Message():
            request.messages.append(messages)
        case _:
            request.messages.extend(messages)
    for name, value in fields.items():
        if value is not None:
            _set_field(request, name, value)
    return request


def _set_field(request: ChatRequest, name: str, value: Any) -> None:
    match name:
        case "tools" | "stop":
            request.ClearField(name)
            getattr(request, name).extend([value] if isinstance(value, str) else value)
        case "metadata":
            request.ClearField(name)
            request.metadata.update(value)
        case "provider_options":
            request.ClearField(name)
            for provider, options in value.items():
                request.provider_options[provider].update(dict(options))
        case "tool_choice" if isinstance(value, str):
            mode = _named(ToolChoiceMode, "TOOL_CHOICE_MODE", name, value, without=("NAMED",))
            request.tool_choice.CopyFrom(ToolChoice(mode=mode))
        case "reasoning" if isinstance(value, str):
            effort = _named(ReasoningEffort, "REASONING_EFFORT", name, value)
            request.reasoning.CopyFrom(Reasoning(effort=effort))
        case "response_format" if isinstance(value, str):
            request.response_format.CopyFrom(_format(value))
        case "tool_choice" | "reasoning" | "response_format" | "logprobs" | "cache" | "routing":
            getattr(request, name).CopyFrom(value)
        case _:
            setattr(request, name, value)


def _format(word: str) -> ResponseFormat:
    match word:
        case "text":
            return ResponseFormat(text=TextFormat())
        case "json":
            return ResponseFormat(json=JsonFormat())
        case _:
            raise ValueError(f"response_format: {word!r} is none of text, json; a schema is given by json_schema(…)")


def _named(enum: Any, prefix: str, field: str, word: str, without: tuple[str, ...] = ()) -> Any:
    """The value of an enum by its own word in lower case."""
    words = {
        name.removeprefix(f"{prefix}_").lower(): number
        for name, number in enum.items()
        if number and not name.endswith(without or ("_UNSPECIFIED",))
    }
    if word not in words:
        raise ValueError(f"{field}: {word!r} is none of {', '.join(words)}")
    return words[word]
