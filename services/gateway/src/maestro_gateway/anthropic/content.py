"""Content blocks of messages into parts. Pure."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, cast

import orjson

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import DocumentPart, ImagePart, Message, Origin, Part, Role, ToolResultPart
from maestro_gateway.anthropic.seal import unseal
from maestro_gateway.json_codec.decoder import (
    Path,
    Reading,
    mistyped,
    note_others,
    read_bool,
    read_bytes,
    read_object,
    read_text,
    wrong,
)

_OWN = Origin(provider="anthropic", api="messages")
_TEXT = frozenset({"type", "text", "cache_control"})
# `citations` of an answer come back with it, and say nothing new.
_SAID = frozenset({"type", "text", "cache_control", "citations"})
_CALL = frozenset({"type", "id", "name", "input", "cache_control"})
_THOUGHT = frozenset({"type", "thinking", "signature"})
_HIDDEN = frozenset({"type", "data"})
_RESULT = frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"})
_IMAGE = frozenset({"type", "source", "cache_control"})
_DOCUMENT = frozenset({"type", "source", "title", "cache_control"})
_SOURCE = frozenset({"type", "data", "media_type", "url", "file_id"})


def read_blocks(value: Any, path: Path) -> list[tuple[dict[str, Any], Path]]:
    """The blocks of a content with their places; a string is one block of text."""
    if type(value) is str:
        return [({"type": "text", "text": value}, path)]
    if type(value) is not list:
        raise mistyped(path, "a string or a list of blocks", value)
    return [(read_object(item, (path, index)), (path, index)) for index, item in enumerate(cast("list[Any]", value))]


def fill_user(request: ChatRequest, value: Any, path: Path, calls: AbstractSet[str], reading: Reading) -> bool:
    """What a user says; results of tools are a message of their own before it. Returns whether it has a cache point.

    `calls` are the calls of the turn before, which results may answer, each once.
    """
    cached = False
    answered: set[str] = set()
    results, said = Message(role=Role.ROLE_TOOL), Message(role=Role.ROLE_USER)
    for block, here in read_blocks(value, path):
        cached |= block.get("cache_control") is not None
        if block.get("type") == "tool_result":
            result = results.parts.add().tool_result
            cached |= _fill_result(result, block, here, reading)
            if result.call_id not in calls or result.call_id in answered:
                what = "answers no call of the assistant's turn before it, or one for the second time"
                raise wrong((here, "tool_use_id"), what)
            answered.add(result.call_id)
        else:
            _fill_shown(said.parts.add(), block, here, "text, image, document, tool_result", reading)
    if not results.parts and not said.parts:
        raise wrong(path, "must hold at least one block")
    request.messages.extend(message for message in (results, said) if message.parts)
    return cached


def fill_assistant(message: Message, value: Any, path: Path, reading: Reading) -> bool:
    """The parts of what an assistant said. Returns whether a cache point stands in it."""
    cached = False
    for block, here in read_blocks(value, path):
        cached |= block.get("cache_control") is not None
        match block.get("type"):
            case "text":
                message.parts.add().text.text = read_text(block.get("text"), (here, "text"))
                note_others(block, _SAID, here, reading)
            case "tool_use":
                note_others(block, _CALL, here, reading)
                call_id = read_text(block.get("id"), (here, "id"))
                if any(part.tool_call.call_id == call_id for part in message.parts if part.HasField("tool_call")):
                    raise wrong((here, "id"), "stands twice in this turn")
                call = message.parts.add().tool_call
                call.call_id = call_id
                call.name = read_text(block.get("name"), (here, "name"))
                call.arguments_json = orjson.dumps(read_object(block.get("input"), (here, "input"))).decode()
            case "thinking":
                note_others(block, _THOUGHT, here, reading)
                _think(message, block, here)
            case "redacted_thinking":
                note_others(block, _HIDDEN, here, reading)
                _restore(message, read_text(block.get("data"), (here, "data")), (here, "data"))
            case str(kind) if kind not in ("image", "document", "tool_result"):
                # A block of one of Anthropic's own tools: only Anthropic understands it.
                part = message.parts.add(origin=_OWN)
                part.opaque.json = orjson.dumps(block).decode()
            case _:
                raise wrong((here, "type"), "can't stand in the assistant's turn")
    return cached


def _think(message: Message, block: dict[str, Any], path: Path) -> None:
    signature = read_text(block.get("signature"), (path, "signature"))
    part = _unsealed(signature, (path, "signature")) if signature else Part()
    part.reasoning.text = read_text(block.get("thinking"), (path, "thinking"))
    message.parts.append(part)


def _restore(message: Message, data: str, path: Path) -> None:
    """Puts a state where it was: reasoning is a part of its own, other states belong to what stands before them."""
    kept = _unsealed(data, path)
    match kept.WhichOneof("kind"):
        case "reasoning":
            kept.reasoning.redacted = True
            message.parts.append(kept)
            return
        case "tool_call":
            calls = [part for part in message.parts if part.tool_call.call_id == kept.tool_call.call_id]
            target = calls[-1] if calls else None
        case _:
            last = message.parts[-1] if message.parts else None
            if last is None or not (kept.text.text and last.HasField("text")) or last.HasField("provider_state"):
                last = message.parts.add()
            target = last
            if not target.HasField("text"):
                target.text.SetInParent()
    if target is not None:
        target.origin.CopyFrom(kept.origin)
        target.provider_state = kept.provider_state


def _unsealed(text: str, path: Path) -> Part:
    try:
        return unseal(text)
    except ValueError as error:
        raise wrong(path, str(error)) from None


def _fill_result(result: ToolResultPart, block: dict[str, Any], path: Path, reading: Reading) -> bool:
    """Returns whether a cache point stands in it."""
    note_others(block, _RESULT, path, reading)
    cached = False
    result.call_id = read_text(block.get("tool_use_id"), (path, "tool_use_id"))
    if block.get("is_error") is not None:
        result.is_error = read_bool(block["is_error"], (path, "is_error"))
    if block.get("content") is not None:
        for inner, here in read_blocks(block["content"], (path, "content")):
            cached |= inner.get("cache_control") is not None
            _fill_shown(result.parts.add(), inner, here, "text, image, document", reading)
    return cached


def _fill_shown(part: Part, block: dict[str, Any], path: Path, allowed: str, reading: Reading) -> None:
    match block.get("type"):
        case "text":
            part.text.text = read_text(block.get("text"), (path, "text"))
            note_others(block, _TEXT, path, reading)
        case "image":
            source = read_object(block.get("source"), (path, "source"))
            note_others(block, _IMAGE, path, reading)
            note_others(source, _SOURCE, (path, "source"), reading)
            _fill_source(part.image, source, (path, "source"))
        case "document":
            document = part.document
            source = read_object(block.get("source"), (path, "source"))
            note_others(block, _DOCUMENT, path, reading)
            note_others(source, _SOURCE, (path, "source"), reading)
            if source.get("type") == "text":
                document.data = read_text(source.get("data"), ((path, "source"), "data")).encode()
                document.mime_type = "text/plain"
            else:
                _fill_source(document, source, (path, "source"))
            if block.get("title") is not None:
                document.title = read_text(block["title"], (path, "title"))
        case _:
            raise wrong((path, "type"), f"must be one of {allowed}")


def _fill_source(target: ImagePart | DocumentPart, source: dict[str, Any], path: Path) -> None:
    match source.get("type"):
        case "base64":
            target.data = read_bytes(source.get("data"), (path, "data"))
            target.mime_type = read_text(source.get("media_type"), (path, "media_type"))
        case "url":
            target.url = read_text(source.get("url"), (path, "url"))
        case "file":
            target.file_id = read_text(source.get("file_id"), (path, "file_id"))
        case _:
            raise wrong((path, "type"), "must be one of base64, url, file")
