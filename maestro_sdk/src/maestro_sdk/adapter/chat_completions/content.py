"""From the contract to the wire: messages and their parts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import ChatRequest, Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.message_pb2 import (
    AudioPart,
    DocumentPart,
    ImageDetail,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    Role,
    ToolCallPart,
    ToolResultPart,
)
from maestro_sdk.adapter.chat_completions.dialect import Dialect
from maestro_sdk.adapter.notes import foreign
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

_AUDIO_FORMATS = {
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
}
_DETAILS = {
    ImageDetail.IMAGE_DETAIL_AUTO: "auto",
    ImageDetail.IMAGE_DETAIL_LOW: "low",
    ImageDetail.IMAGE_DETAIL_HIGH: "high",
}


SYSTEM = -1
"""The place of the system text among the messages of a request."""


def messages(
    request: ChatRequest,
    dialect: Dialect,
    warnings: list[Warning],
    ends: dict[int, int] | None = None,
    names: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The wire's messages, system text first; `ends` gets the last message on the wire for each of the request.

    `names` has the wire's name of each tool, None where they are the contract's.
    One tool message of the contract may hold several results and becomes one wire message per result. Provider state,
    and reasoning unless the dialect takes it back, has no place on this wire and is left out; a turn that held nothing
    else is left out too.
    """
    wire: list[dict[str, Any]] = []
    if request.system:
        wire.append({"role": dialect.system_role, "content": request.system})
        if ends is not None:
            ends[SYSTEM] = 0
    for position, message in enumerate(request.messages):
        path = f"messages[{position}]"
        before = len(wire)
        match message.role:
            case Role.ROLE_USER:
                wire += _user(message, path, dialect, warnings)
            case Role.ROLE_ASSISTANT:
                wire += _assistant(message, path, dialect, warnings, names)
            case Role.ROLE_TOOL:
                wire += _tool(message, path)
            case _:
                raise InvalidRequest.at(f"{path}.role", "is not one of user, assistant, tool")
        if ends is not None and len(wire) > before:
            ends[position] = len(wire) - 1
    return wire


def _user(message: Message, path: str, dialect: Dialect, warnings: list[Warning]) -> list[dict[str, Any]]:
    content: list[Any] = []
    for position, part in enumerate(message.parts):
        here = f"{path}.parts[{position}]"
        match part.WhichOneof("kind"):
            case "text":
                content.append({"type": "text", "text": part.text.text})
            case "image":
                content.append(_image(part.image, f"{here}.image", dialect))
            case "audio":
                content.append(_audio(part.audio, f"{here}.audio", dialect))
            case "document":
                content.append(_document(part.document, f"{here}.document", dialect))
            case "opaque":
                content += _opaque(part, here, dialect, warnings)
            case "tool_call" | "reasoning" | "refusal" as kind:
                raise InvalidRequest.at(f"{here}.{kind}", "belongs into a message of role assistant")
            case "tool_result":
                raise InvalidRequest.at(f"{here}.tool_result", "belongs into a message of role tool")
            case kind:
                raise _unknown(here, kind)
    if not content:
        return []
    return [{"role": "user", "content": _shortest(content)}]


def _assistant(
    message: Message, path: str, dialect: Dialect, warnings: list[Warning], names: Mapping[str, str] | None
) -> list[dict[str, Any]]:
    content: list[Any] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for position, part in enumerate(message.parts):
        here = f"{path}.parts[{position}]"
        match part.WhichOneof("kind"):
            case "text":
                # An empty text only carries a state, which has no place here.
                if part.text.text or not part.HasField("provider_state"):
                    content.append({"type": "text", "text": part.text.text})
            case "tool_call":
                calls.append(_call(part.tool_call, names))
            case "reasoning":
                if dialect.reasoning_echo and part.reasoning.text and _is_own(part, dialect):
                    thoughts.append(part.reasoning.text)
            case "refusal":
                if dialect.refusals:
                    content.append({"type": "refusal", "refusal": part.refusal.text})
                else:
                    content.append({"type": "text", "text": part.refusal.text})
            case "opaque":
                content += _opaque(part, here, dialect, warnings)
            case "tool_result":
                raise InvalidRequest.at(f"{here}.tool_result", "belongs into a message of role tool")
            case "image" | "audio" | "document" as kind:
                raise UnsupportedParameter.at(f"{here}.{kind}", "an answer is sent back as text and tool calls only")
            case kind:
                raise _unknown(here, kind)
    if not content and not calls:
        return []
    wire: dict[str, Any] = {"role": "assistant"}
    if content:
        wire["content"] = _shortest(content)
    if thoughts:
        wire[dialect.reasoning_echo] = "".join(thoughts)
    if calls:
        wire["tool_calls"] = calls
    return [wire]


def _tool(message: Message, path: str) -> list[dict[str, Any]]:
    wire: list[dict[str, Any]] = []
    for position, part in enumerate(message.parts):
        here = f"{path}.parts[{position}]"
        kind = part.WhichOneof("kind")
        if kind != "tool_result":
            raise InvalidRequest.at(f"{here}.{kind}", "a message of role tool holds tool results only")
        result = part.tool_result
        wire.append({"role": "tool", "tool_call_id": result.call_id, "content": _result(result, f"{here}.tool_result")})
    return wire


def _result(result: ToolResultPart, path: str) -> str:
    """The result as one text: the wire takes nothing else, and has no field for failure, so the text says it."""
    texts: list[str] = []
    for position, part in enumerate(result.parts):
        kind = part.WhichOneof("kind")
        if kind != "text":
            message = "a tool result is text on this wire; give what it shows in a message of role user"
            raise UnsupportedParameter.at(f"{path}.parts[{position}].{kind}", message)
        texts.append(part.text.text)
    text = "\n".join(texts)
    return f"Error: {text}" if result.is_error else text


def _call(call: ToolCallPart, names: Mapping[str, str] | None) -> dict[str, Any]:
    name = call.name
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": name if names is None else names[name], "arguments": call.arguments_json or "{}"},
    }


def _image(image: ImagePart, path: str, dialect: Dialect) -> dict[str, Any]:
    if not dialect.images:
        raise UnsupportedParameter.at(path, "this model sees no images; choose one with the feature VISION")
    match image.WhichOneof("source"):
        case "data":
            if not image.mime_type:
                raise InvalidRequest.at(f"{path}.mime_type", "is required with data, for example image/png")
            url = _data_url(image.mime_type, image.data)
        case "url":
            if not image.url.startswith(("https://", "http://", "data:")):
                raise UnsupportedParameter.at(f"{path}.url", "only https, http and data URLs can be loaded; send data")
            url = image.url
        case source:
            raise UnsupportedParameter.at(f"{path}.{source}", "images are sent as data or by URL")
    wire: dict[str, Any] = {"url": url}
    if image.detail in _DETAILS:
        wire["detail"] = _DETAILS[image.detail]
    return {"type": "image_url", "image_url": wire}


def _audio(audio: AudioPart, path: str, dialect: Dialect) -> dict[str, Any]:
    if not dialect.audio:
        raise UnsupportedParameter.at(path, "this model hears no sound; choose one with the feature AUDIO")
    source = audio.WhichOneof("source")
    if source != "data":
        raise UnsupportedParameter.at(f"{path}.{source}", "sound is sent as data")
    form = _AUDIO_FORMATS.get(audio.mime_type.lower())
    if form is None:
        raise UnsupportedParameter.at(f"{path}.mime_type", f"{audio.mime_type!r} is not audio/wav or audio/mpeg")
    return {"type": "input_audio", "input_audio": {"data": _base64(audio.data), "format": form}}


def _document(document: DocumentPart, path: str, dialect: Dialect) -> dict[str, Any]:
    if not dialect.documents:
        raise UnsupportedParameter.at(path, "this model reads no documents; choose one with the feature DOCUMENTS")
    match document.WhichOneof("source"):
        case "data":
            if not document.mime_type:
                raise InvalidRequest.at(f"{path}.mime_type", "is required with data, for example application/pdf")
            name = document.title or f"document.{document.mime_type.rpartition('/')[2]}"
            data = _data_url(document.mime_type, document.data)
            return {"type": "file", "file": {"filename": name, "file_data": data}}
        case "file_id":
            return {"type": "file", "file": {"file_id": document.file_id}}
        case source:
            raise UnsupportedParameter.at(f"{path}.{source}", "documents are sent as data or by file_id")


def _opaque(part: Part, path: str, dialect: Dialect, warnings: list[Warning]) -> list[Any]:
    opaque: OpaquePart = part.opaque
    if not part.HasField("origin"):
        raise InvalidRequest.at(f"{path}.origin", "is required with opaque content: it says who understands it")
    if not _is_own(part, dialect):
        warnings.append(foreign(f"{path}.opaque", part.origin, dialect.provider))
        return []
    try:
        orjson.loads(opaque.json)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest.at(f"{path}.opaque.json", f"is not JSON: {error}") from error
    return [orjson.Fragment(opaque.json)]  # byte-identical, as the contract promises


def _is_own(part: Part, dialect: Dialect) -> bool:
    return part.origin.provider == dialect.provider and part.origin.api in ("", dialect.api)


def _shortest(content: list[Any]) -> str | list[Any]:
    """One text as a string, which every server takes; anything else as a list."""
    if len(content) == 1 and isinstance(content[0], dict) and content[0].get("type") == "text":  # pyright: ignore[reportUnknownMemberType]
        return str(content[0]["text"])  # pyright: ignore[reportUnknownArgumentType]
    return content


def _data_url(mime_type: str, data: bytes) -> str:
    return f"data:{mime_type};base64,{_base64(data)}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unknown(path: str, kind: str | None) -> InvalidRequest:
    if kind is None:
        return InvalidRequest.at(path, "has no content")
    return UnsupportedParameter.at(f"{path}.{kind}", "the contract is newer than this adapter")
