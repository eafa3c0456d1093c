"""The messages of a conversation as Ollama's: one text, images and calls each, without order among them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import ImagePart, Message, Origin, Part, Role, ToolCallPart, ToolResultPart
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_adapter_local.ollama.failure import PROVIDER
from maestro_sdk.adapter.models import supports
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

API = "ollama_chat"
"""`origin.api` of the parts that this wire makes."""

DropForeign = Callable[[str, Origin, str], None]
"""Is told the path of a part that is left out, who alone understands it, and who leaves it out."""


def to_messages(request: ChatRequest, system: str, model: Model, drop: DropForeign) -> list[dict[str, Any]]:
    """The wire's messages, `system` first. A tool message with several results becomes one message per result.

    Reasoning goes back only to who made it. A turn that holds nothing that can be sent is left out.
    """
    sees = supports(model, Feature.FEATURE_VISION)
    wire: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    names: dict[str, str] = {}
    for position, message in enumerate(request.messages):
        path = f"messages[{position}]"
        match message.role:
            case Role.ROLE_USER:
                wire += _user(message, path, sees, drop)
            case Role.ROLE_ASSISTANT:
                names.update((part.tool_call.call_id, part.tool_call.name) for part in message.parts)
                wire += _assistant(message, path, drop)
            case Role.ROLE_TOOL:
                wire += _tool(message, path, names)
            case _:
                raise InvalidRequest.at(f"{path}.role", "is not one of user, assistant, tool")
    return wire


def _user(message: Message, path: str, sees: bool, drop: DropForeign) -> list[dict[str, Any]]:
    texts: list[str] = []
    images: list[str] = []
    for position, part in enumerate(message.parts):
        here = f"{path}.parts[{position}]"
        match part.WhichOneof("kind"):
            case "text":
                texts.append(part.text.text)
            case "image":
                if not sees:
                    text = "this model sees no images; choose one with the feature VISION"
                    raise UnsupportedParameter.at(f"{here}.image", text)
                images.append(_image(part.image, f"{here}.image"))
            case "audio" | "document" as kind:
                raise UnsupportedParameter.at(f"{here}.{kind}", "Ollama takes text and images only")
            case "opaque":
                _opaque(part, here, drop)
            case "tool_call" | "reasoning" | "refusal" as kind:
                raise InvalidRequest.at(f"{here}.{kind}", "belongs into a message of role assistant")
            case "tool_result":
                raise InvalidRequest.at(f"{here}.tool_result", "belongs into a message of role tool")
            case kind:
                raise _unknown(here, kind)
    if not texts and not images:
        return []
    wire: dict[str, Any] = {"role": "user", "content": "\n".join(texts)}
    if images:
        wire["images"] = images
    return [wire]


def _assistant(message: Message, path: str, drop: DropForeign) -> list[dict[str, Any]]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for position, part in enumerate(message.parts):
        here = f"{path}.parts[{position}]"
        match part.WhichOneof("kind"):
            case "text":
                texts.append(part.text.text)
            case "tool_call":
                calls.append(_call(part.tool_call, f"{here}.tool_call"))
            case "reasoning":
                if _is_own(part):
                    thoughts.append(part.reasoning.text)
            case "refusal":
                texts.append(part.refusal.text)
            case "opaque":
                _opaque(part, here, drop)
            case "tool_result":
                raise InvalidRequest.at(f"{here}.tool_result", "belongs into a message of role tool")
            case "image" | "audio" | "document" as kind:
                raise UnsupportedParameter.at(f"{here}.{kind}", "an answer is sent back as text and tool calls only")
            case kind:
                raise _unknown(here, kind)
    text = "".join(texts)
    if not text and not calls:
        return []
    wire: dict[str, Any] = {"role": "assistant", "content": text}
    if thoughts:
        wire["thinking"] = "".join(thoughts)
    if calls:
        wire["tool_calls"] = calls
    return [wire]


def _tool(message: Message, path: str, names: dict[str, str]) -> list[dict[str, Any]]:
    wire: list[dict[str, Any]] = []
    for position, part in enumerate(message.parts):
        here = f"{path}.parts[{position}]"
        kind = part.WhichOneof("kind")
        if kind != "tool_result":
            raise InvalidRequest.at(f"{here}.{kind}", "a message of role tool holds tool results only")
        result = part.tool_result
        entry: dict[str, Any] = {"role": "tool", "content": _result(result, f"{here}.tool_result")}
        if name := names.get(result.call_id):
            entry["tool_name"] = name
        entry["tool_call_id"] = result.call_id
        wire.append(entry)
    return wire


def _result(result: ToolResultPart, path: str) -> str:
    """The result as one text: the wire has no field for failure, so the text says it."""
    texts: list[str] = []
    for position, part in enumerate(result.parts):
        kind = part.WhichOneof("kind")
        if kind != "text":
            message = "a tool result is text on this wire; give what it shows in a message of role user"
            raise UnsupportedParameter.at(f"{path}.parts[{position}].{kind}", message)
        texts.append(part.text.text)
    text = "\n".join(texts)
    return f"Error: {text}" if result.is_error else text


def _call(call: ToolCallPart, path: str) -> dict[str, Any]:
    arguments = call.arguments_json or "{}"
    try:
        value: Any = orjson.loads(arguments)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest.at(f"{path}.arguments_json", f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest.at(f"{path}.arguments_json", "is not a JSON object")
    return {"id": call.call_id, "function": {"name": call.name, "arguments": orjson.Fragment(arguments)}}


def _image(image: ImagePart, path: str) -> str:
    match image.WhichOneof("source"):
        case "data":
            return base64.b64encode(image.data).decode("ascii")
        case "url" if image.url.startswith("data:"):
            head, _, data = image.url.partition(",")
            try:
                base64.b64decode(data, validate=True)
            except binascii.Error as error:
                raise InvalidRequest.at(f"{path}.url", f"is a data URL that can't be read: {error}") from error
            if not head.endswith(";base64") or not data:
                raise InvalidRequest.at(f"{path}.url", "is a data URL without base64 data")
            return data
        case source:
            raise UnsupportedParameter.at(f"{path}.{source}", "Ollama loads no addresses; send the image as data")


def _opaque(part: Part, path: str, drop: DropForeign) -> None:
    if not part.HasField("origin"):
        raise InvalidRequest.at(f"{path}.origin", "is required with opaque content: it says who understands it")
    if _is_own(part):
        raise UnsupportedParameter.at(f"{path}.opaque", "Ollama has no content of its own kind")
    drop(f"{path}.opaque", part.origin, PROVIDER)


def _is_own(part: Part) -> bool:
    return part.origin.provider == PROVIDER and part.origin.api == API


def _unknown(path: str, kind: str | None) -> InvalidRequest:
    if kind is None:
        return InvalidRequest.at(path, "has no content")
    return UnsupportedParameter.at(f"{path}.{kind}", "the contract is newer than this adapter")
