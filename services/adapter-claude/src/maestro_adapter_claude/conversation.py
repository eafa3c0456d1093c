"""The messages of a conversation as Anthropic's content blocks."""

from __future__ import annotations

import re
import zlib
from binascii import b2a_base64
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import DocumentPart, ImageDetail, ImagePart, Part, Role, ToolResultPart
from maestro_adapter_claude.models import PROVIDER
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.parts import Place, path_of, to_arguments, to_own_block, to_text, unsupported
from maestro_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    # Importing the SDK takes seconds and 85 MB, so only the type checker does.
    from anthropic.types import (
        CacheControlEphemeralParam,
        DocumentBlockParam,
        ImageBlockParam,
        ToolResultBlockParam,
    )

API = "messages"
"""`origin.api` of the parts that this wire makes."""

_IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_WRONG_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")
_NOT_CACHEABLE = frozenset({"thinking", "redacted_thinking"})
_ONLY_USER = frozenset({"image", "document", "tool_result"})
_ONLY_ASSISTANT = frozenset({"tool_call", "reasoning", "refusal", "opaque"})

Block = dict[str, Any]
NameOf = Callable[[str], str]


def to_messages(
    request: ChatRequest,
    model: str,
    name_of: NameOf,
    cached: Collection[int],
    cache_control: CacheControlEphemeralParam,
    notes: Notes,
) -> list[dict[str, Any]]:
    """The messages. `name_of` gives a tool's name on the wire; `cached` are the places of messages with a mark behind.

    Turns of the same side are joined: the results of parallel calls have to stand in one.
    """
    blocks = _Blocks(model, name_of, notes)
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(request.messages):
        assistant = message.role == Role.ROLE_ASSISTANT
        content: list[Any] = []
        for position, part in enumerate(message.parts):
            block = blocks.make(part, (number, position), assistant)
            if block is not None:
                content.append(block)
        if number in cached:
            _mark(content, cache_control)
        if not content:
            continue
        role = "assistant" if assistant else "user"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += content
            content = messages[-1]["content"]
        else:
            messages.append({"role": role, "content": content})
        if not assistant and len(content) > 1 and _comes_late(content):
            # The wire wants results at once after their calls; whatever else was said stays in order behind them.
            content.sort(key=_behind_results)
    if not messages:
        raise InvalidRequest.at("messages", "nothing in them can be sent: no text, no content")
    return messages


def is_result(block: Any) -> bool:
    """Whether a block of the wire is the result of a tool."""
    return isinstance(block, dict) and cast("Block", block)["type"] == "tool_result"


def _comes_late(content: Sequence[Any]) -> bool:
    """Whether a result of a tool stands behind something else."""
    other = False
    for block in content:
        if not is_result(block):
            other = True
        elif other:
            return True
    return False


def _behind_results(block: Any) -> bool:
    return not is_result(block)


def find_places(request: ChatRequest, model: str) -> list[list[Place]]:
    """Where the blocks of each message of the wire come from: the order in which `to_messages` made them."""
    blocks = _Blocks(model, str, Notes(strict=False))
    places: list[list[Place]] = []
    last: bool | None = None
    for number, message in enumerate(request.messages):
        assistant = message.role == Role.ROLE_ASSISTANT
        every = [(number, position) for position in range(len(message.parts))]
        made = [place for place in every if blocks.make(message.parts[place[1]], place, assistant) is not None]
        if made and assistant is last:
            places[-1] += made
        elif made:
            places.append([*made])
            last = assistant
        if made and not assistant:
            places[-1].sort(key=lambda place: not _holds_result(request, place))
    return places


def _holds_result(request: ChatRequest, place: Place) -> bool:
    return request.messages[place[0]].parts[place[1]].WhichOneof("kind") == "tool_result"


class _Blocks:
    """Makes the content blocks of one request."""

    def __init__(self, model: str, name_of: NameOf, notes: Notes) -> None:
        self._model = model
        self._name_of = name_of
        self._notes = notes

    def make(self, part: Part, place: Place, assistant: bool) -> Any:
        """One content block, or None for a part that is dropped: empty text, another provider's own state."""
        kind = part.WhichOneof("kind")
        if kind in (_ONLY_USER if assistant else _ONLY_ASSISTANT):
            whose = "the assistant's" if assistant else "the user's"
            raise unsupported(place, kind, f"can't stand in {whose} turn")
        match kind:
            case "text":
                # The wire refuses text without content.
                return {"type": "text", "text": part.text.text} if part.text.text.strip() else None
            case "tool_call":
                call = part.tool_call
                return {
                    "type": "tool_use",
                    "id": _wire_id(call.call_id),
                    "name": self._name_of(call.name),
                    "input": to_arguments(call.arguments_json, place),
                }
            case "tool_result":
                return self._result(part.tool_result, place)
            case "image":
                return self._image(part.image, place)
            case "document":
                return _document(part.document, place)
            case "reasoning":
                if not self._ours(part) or not part.HasField("provider_state"):
                    return None
                state = to_text(part.provider_state, f"{path_of(place)}.provider_state")
                if part.reasoning.redacted:
                    return {"type": "redacted_thinking", "data": state}
                return {"type": "thinking", "thinking": part.reasoning.text, "signature": state}
            case "refusal":
                return {"type": "text", "text": part.refusal.text} if part.refusal.text.strip() else None
            case "opaque":
                return to_own_block(part, place, PROVIDER, self._notes, ours=self._ours(part))
            case _:
                raise unsupported(place, kind, "can't be sent to Claude")

    def _result(self, result: ToolResultPart, place: Place) -> ToolResultBlockParam:
        content: list[Any] = []
        for position, inner in enumerate(result.parts):
            at = (*place, position)
            match kind := inner.WhichOneof("kind"):
                case "text":
                    if inner.text.text.strip():
                        content.append({"type": "text", "text": inner.text.text})
                case "image":
                    content.append(self._image(inner.image, at))
                case "document":
                    content.append(_document(inner.document, at))
                case _:
                    raise unsupported(at, kind, "can't stand in a tool result for Claude")
        block: ToolResultBlockParam = {"type": "tool_result", "tool_use_id": _wire_id(result.call_id)}
        if content:
            block["content"] = content
        if result.is_error:
            block["is_error"] = True
        return block

    def _image(self, image: ImagePart, place: Place) -> ImageBlockParam:
        if image.detail in {ImageDetail.IMAGE_DETAIL_LOW, ImageDetail.IMAGE_DETAIL_HIGH}:
            self._notes.unsupported(f"{path_of(place)}.image.detail", "the provider chooses the resolution")
        match image.WhichOneof("source"):
            case "data":
                if image.mime_type not in _IMAGE_TYPES:
                    message = f"is {image.mime_type!r}, not one of {', '.join(sorted(_IMAGE_TYPES))}"
                    raise unsupported(place, "image.mime_type", message)
                source: Any = {"type": "base64", "media_type": image.mime_type, "data": _base64(image.data)}
            case "url":
                source = {"type": "url", "url": _url(image.url, place, "image")}
            case _:
                source = {"type": "file", "file_id": image.file_id}
        return {"type": "image", "source": source}

    def _ours(self, part: Part) -> bool:
        """Whether this wire and model made the part: newer models refuse reasoning that another one signed."""
        origin = part.origin
        return origin.provider == PROVIDER and origin.api in {"", API} and origin.model in {"", self._model}


def _document(document: DocumentPart, place: Place) -> DocumentBlockParam:
    source: Any
    match document.WhichOneof("source"):
        case "data" if document.mime_type == "application/pdf":
            source = {"type": "base64", "media_type": "application/pdf", "data": _base64(document.data)}
        case "data" if document.mime_type.startswith("text/"):
            text = to_text(document.data, f"{path_of(place)}.document.data")
            source = {"type": "text", "media_type": "text/plain", "data": text}
        case "data":
            found = document.mime_type or "empty"
            raise unsupported(place, "document.mime_type", f"is {found!r}, not application/pdf or text/*")
        case "url":
            source = {"type": "url", "url": _url(document.url, place, "document")}
        case _:
            source = {"type": "file", "file_id": document.file_id}
    block: DocumentBlockParam = {"type": "document", "source": source}
    if document.title:
        block["title"] = document.title
    return block


def _wire_id(call_id: str) -> str:
    """The id of a call as the wire takes it: other providers use characters that it refuses. One id gives one id."""
    if not _WRONG_IN_ID.search(call_id):
        return call_id
    return f"{_WRONG_IN_ID.sub('_', call_id)}_{zlib.crc32(call_id.encode()):08x}"


def _mark(content: list[Any], control: CacheControlEphemeralParam) -> None:
    for block in reversed(content):
        if isinstance(block, dict) and cast("Block", block)["type"] not in _NOT_CACHEABLE:
            block["cache_control"] = control
            return


def _url(url: str, place: Place, kind: str) -> str:
    if not url.startswith("https://"):
        raise unsupported(place, f"{kind}.url", "is not an https address, and Claude loads no other")
    return url


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")
