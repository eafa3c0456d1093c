"""The vocabulary of callers: the contract's messages, short ways to write them, and short ways to read answers.

    request = chat_request([user("Where is it?", image(Path("photo.png")))], tools=[tool("find", "Finds …", schema)])
    print(text_of(answer), tool_calls_of(answer))

The protobuf messages are the model; everything here makes or reads them, nothing stands beside them.
"""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, cast
from urllib.parse import unquote_to_bytes

from maestro.llm.v1.chat_pb2 import (
    Cache,
    CachePoint,
    CacheTtl,
    ChatEvent,
    ChatRequest,
    ChatResponse,
    CountTokensResponse,
    FinishReason,
    JsonSchemaFormat,
    Logprobs,
    Reasoning,
    ReasoningEffort,
    ResponseFormat,
    Routing,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.message_pb2 import (
    AudioPart,
    DocumentPart,
    ImageDetail,
    ImagePart,
    Message,
    Part,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from maestro.llm.v1.model_pb2 import Feature, Model, Support
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.conversation import Conversation, RequestFields, chat_request
from maestro_sdk.errors import OutputInvalid

__all__ = [
    "AudioPart",
    "Cache",
    "CachePoint",
    "CacheTtl",
    "ChatEvent",
    "ChatRequest",
    "ChatResponse",
    "Conversation",
    "Cost",
    "CountTokensResponse",
    "DocumentPart",
    "Feature",
    "FinishReason",
    "ImagePart",
    "Logprobs",
    "Message",
    "Model",
    "Part",
    "Reasoning",
    "ReasoningEffort",
    "RequestFields",
    "ResponseFormat",
    "Role",
    "Routing",
    "Support",
    "TextPart",
    "Tool",
    "ToolCall",
    "ToolCallPart",
    "ToolChoice",
    "ToolChoiceMode",
    "ToolResultPart",
    "Usage",
    "arguments_of",
    "assistant",
    "audio",
    "chat_request",
    "document",
    "finish_of",
    "image",
    "json_of",
    "json_schema",
    "only_tool",
    "reasoning_of",
    "text",
    "text_of",
    "tool",
    "tool_calls_of",
    "tool_result",
    "tool_results",
    "user",
]

Source: TypeAlias = bytes | str | Path
"""A picture, sound or document: its bytes, an https, http, gs or data address, or a file on this machine."""

JsonSchema: TypeAlias = Mapping[str, Any] | str
"""A JSON Schema as a mapping, or as text, which is sent as it is."""

MediaT = TypeVar("MediaT", ImagePart, AudioPart, DocumentPart)


class ToolCall(NamedTuple):
    """A call that the model made, its arguments parsed."""

    call_id: str
    name: str
    arguments: dict[str, Any]


def user(*content: str | Part) -> Message:
    """A turn of the user."""
    return Message(role=Role.ROLE_USER, parts=_parts(content))


def assistant(*content: str | Part | ChatResponse) -> Message:
    """A turn of the model. An answer is given back whole, with the state of its provider; without it reasoning models
    lose their thread.
    """
    parts: list[str | Part] = []
    for piece in content:
        if isinstance(piece, ChatResponse):
            parts.extend(piece.parts)
        else:
            parts.append(piece)
    return Message(role=Role.ROLE_ASSISTANT, parts=_parts(parts))


def tool_results(*results: Part) -> Message:
    """The turn that answers the model's calls: one `tool_result` per call, in any order."""
    return Message(role=Role.ROLE_TOOL, parts=_parts(results))


def tool_result(call: str | ToolCall | ToolCallPart, content: Any = None, *, is_error: bool = False) -> Part:
    """The result of a call, which is given by itself or by its id. `content`: text, a part, a list of parts, None for
    nothing, or any value that JSON knows. Raises `TypeError` or `ValueError` for a value that JSON does not know.
    """
    call_id = call if isinstance(call, str) else call.call_id
    return Part(tool_result=ToolResultPart(call_id=call_id, parts=_result_parts(content), is_error=is_error))


def text(content: str) -> Part:
    """A part of text."""
    return Part(text=TextPart(text=content))


def image(source: Source, *, mime_type: str = "", detail: Literal["auto", "low", "high"] | None = None) -> Part:
    """A picture. The MIME type is told from the content or the file's name where it is not given."""
    part = Part(image=_load(ImagePart(), source, mime_type))
    if detail is not None:
        part.image.detail = ImageDetail.Value(f"IMAGE_DETAIL_{detail.upper()}")
    return part


def audio(source: Source, *, mime_type: str = "") -> Part:
    """A sound recording; `mime_type` as in `image`."""
    return Part(audio=_load(AudioPart(), source, mime_type))


def document(source: Source, *, mime_type: str = "", title: str = "") -> Part:
    """A document such as a PDF; `mime_type` as in `image`, the title is shown to the model."""
    part = Part(document=_load(DocumentPart(), source, mime_type))
    part.document.title = title
    return part


def tool(name: str, description: str = "", schema: JsonSchema | None = None, *, strict: bool | None = None) -> Tool:
    """A tool that the model may call; `schema` describes its arguments, None means that it has none."""
    return Tool(name=name, description=description, input_schema=_schema_text(schema), strict=strict)


def only_tool(name: str) -> ToolChoice:
    """The rule that the model has to call this tool."""
    return ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NAMED, names=[name])


def json_schema(
    schema: JsonSchema,
    *,
    name: str = "",
    description: str = "",
    strict: bool | None = None,
    max_repairs: int | None = None,
) -> ResponseFormat:
    """The form of an answer that is JSON and meets a schema; `json_of` reads it."""
    form = JsonSchemaFormat(
        name=name, schema=_schema_text(schema), description=description, strict=strict, max_repairs=max_repairs
    )
    return ResponseFormat(json_schema=form)


def text_of(answer: ChatResponse | Message) -> str:
    """The text of an answer or a turn; empty when it has none."""
    return "".join(part.text.text for part in answer.parts if part.HasField("text"))


def reasoning_of(answer: ChatResponse | Message) -> str:
    """The reasoning, as far as the provider shows it."""
    return "".join(part.reasoning.text for part in answer.parts if part.HasField("reasoning"))


def tool_calls_of(answer: ChatResponse | Message) -> list[ToolCall]:
    """The calls of an answer or a turn. Raises `OutputInvalid` when the arguments of one are no JSON object."""
    calls = [part.tool_call for part in answer.parts if part.HasField("tool_call")]
    return [ToolCall(call.call_id, call.name, arguments_of(call)) for call in calls]


def arguments_of(call: ToolCallPart) -> dict[str, Any]:
    """The arguments of a call. Raises `OutputInvalid` when they are no JSON object."""
    try:
        arguments: Any = json.loads(call.arguments_json or "{}")
    except ValueError as error:
        raise OutputInvalid(f"the arguments of {call.name} are no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise OutputInvalid(f"the arguments of {call.name} are no JSON object")
    return cast("dict[str, Any]", arguments)


def json_of(answer: ChatResponse | Message) -> Any:
    """The value of an answer that is JSON. Raises `OutputInvalid` when its text is none."""
    try:
        return json.loads(text_of(answer))
    except ValueError as error:
        raise OutputInvalid(f"the answer is no JSON: {error}") from error


def finish_of(answer: ChatResponse) -> str:
    """Why the model stopped, as REST names it: "stop", "length", "tool_calls", …"""
    return FinishReason.Name(answer.finish_reason).removeprefix("FINISH_REASON_").lower()


def _parts(content: Iterable[str | Part]) -> list[Part]:
    parts = [text(piece) if isinstance(piece, str) else piece for piece in content]
    if not parts:
        raise ValueError("a turn needs content")
    return parts


def _result_parts(content: Any) -> list[Part]:
    match content:
        case None:
            return []
        case str():
            return [text(content)]
        case Part():
            return [content]
        case list() | tuple() if content and all(isinstance(piece, Part) for piece in cast("list[Any]", content)):
            return list(cast("list[Part]", content))
        case _:
            return [text(json.dumps(content, ensure_ascii=False, allow_nan=False))]


def _schema_text(schema: JsonSchema | None) -> str:
    if schema is None or isinstance(schema, str):
        return schema or ""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _load(part: MediaT, source: Source, mime_type: str) -> MediaT:
    if isinstance(source, str) and not source.startswith("data:"):
        if not source.startswith(("https://", "http://", "gs://")):
            raise ValueError(f"{source[:80]!r} is no address; give a file as a Path")
        part.url, part.mime_type = source, mime_type
        return part
    name = ""
    match source:
        case str():
            data, told = _data_of(source)
            mime_type = mime_type or told
        case Path():
            data, name = source.read_bytes(), source.name
        case _:
            data = source
    mime_type = mime_type or _mime_of(data) or mimetypes.guess_type(name)[0] or ""
    if not mime_type:
        raise ValueError("the MIME type can't be told from the content; give `mime_type`")
    part.data, part.mime_type = data, mime_type
    return part


def _data_of(address: str) -> tuple[bytes, str]:
    """Content and MIME type of a data address."""
    head, comma, body = address.removeprefix("data:").partition(",")
    if not comma:
        raise ValueError("the data address has no comma")
    content = unquote_to_bytes(body)
    if head.endswith(";base64"):
        return base64.b64decode(content, validate=True), head.removesuffix(";base64").partition(";")[0]
    return content, head.partition(";")[0]


def _mime_of(data: bytes) -> str:
    """The MIME type by the first bytes; empty when they tell nothing."""
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(data[8:12], "")
    return next((mime for start, mime in _SIGNATURES if data.startswith(start)), "")


_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
)
