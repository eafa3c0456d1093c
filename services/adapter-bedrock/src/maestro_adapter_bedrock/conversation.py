"""The messages of a conversation as Converse's content blocks."""

from __future__ import annotations

import re
import zlib
from typing import Any

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import ImageDetail, ImagePart, Part, ReasoningPart, Role, ToolResultPart
from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_bedrock.cache import CachePlan, CachePoint
from maestro_adapter_bedrock.media import audio_block, document_block, image_block, refuse
from maestro_adapter_bedrock.models import PROVIDER, BedrockModel
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.parts import Place, path_of, to_arguments, to_own_block
from maestro_sdk.adapter.tool_names import ToolNames
from maestro_sdk.errors import InvalidRequest

API = "converse"
"""`origin.api` of the parts that this wire makes."""

_WRONG_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_ID = 64
_ONLY_USER = frozenset({"image", "audio", "document", "tool_result"})
_ONLY_ASSISTANT = frozenset({"tool_call", "reasoning", "refusal", "opaque"})


class Conversation:
    """The wire's messages, and the names of the tools that they call, in order."""

    __slots__ = ("_calls", "_documents", "_model", "_names", "_notes", "called", "messages")

    def __init__(
        self, request: ChatRequest, model: BedrockModel, names: ToolNames, cache: CachePlan, notes: Notes
    ) -> None:
        self._model = model
        self._names = names
        self._notes = notes
        self._calls: set[str] = set()
        self._documents: set[str] = set()
        self.called: list[str] = []
        self.messages: list[dict[str, Any]] = []
        for number, message in enumerate(request.messages):
            assistant = message.role == Role.ROLE_ASSISTANT
            content: list[Any] = []
            for position, part in enumerate(message.parts):
                block = self._block(part, (number, position), assistant)
                if block is not None:
                    content.append(block)
            if not content:
                continue
            if number in cache.messages:
                _mark(content, cache.point)
            role = "assistant" if assistant else "user"
            # Turns of one side are joined: the results of parallel calls have to stand in one.
            if self.messages and self.messages[-1]["role"] == role:
                self.messages[-1]["content"] += content
            else:
                self.messages.append({"role": role, "content": content})
        if not self.messages:
            raise InvalidRequest.at("messages", "nothing in them can be sent: no text, no content")

    def _block(self, part: Part, place: Place, assistant: bool) -> Any:
        """One content block, or None for a part that is dropped: empty text, another provider's own state."""
        kind = part.WhichOneof("kind")
        if kind in (_ONLY_USER if assistant else _ONLY_ASSISTANT):
            whose = "the assistant's" if assistant else "the user's"
            raise refuse(f"{path_of(place)}.{kind}", f"can't stand in {whose} turn")
        match kind:
            case "text":
                # The wire refuses text without content.
                return {"text": part.text.text} if part.text.text.strip() else None
            case "tool_call":
                call = part.tool_call
                self._calls.add(call.call_id)
                name = self._names[call.name]
                if name not in self.called:
                    self.called.append(name)
                given = to_arguments(call.arguments_json, place)
                return {"toolUse": {"toolUseId": wire_id(call.call_id), "name": name, "input": given}}
            case "tool_result":
                return self._result(part.tool_result, place)
            case "image":
                return self._image(part.image, place)
            case "document":
                return self._document(part, place)
            case "audio":
                self._demand(Feature.FEATURE_AUDIO, f"{path_of(place)}.audio", "sound")
                return audio_block(part.audio, f"{path_of(place)}.audio")
            case "reasoning":
                return _reasoning(part.reasoning, part, place) if self._ours(part) else None
            case "refusal":
                return {"text": part.refusal.text} if part.refusal.text.strip() else None
            case "opaque":
                return to_own_block(part, place, PROVIDER, self._notes, ours=self._ours(part))
            case _:
                raise refuse(f"{path_of(place)}.{kind or 'kind'}", "can't be sent to Bedrock")

    def _result(self, result: ToolResultPart, place: Place) -> Any:
        if result.call_id not in self._calls:
            raise InvalidRequest.at(f"{path_of(place)}.tool_result.call_id", "answers no call that stands before it")
        content: list[Any] = []
        for position, inner in enumerate(result.parts):
            at = (*place, position)
            match kind := inner.WhichOneof("kind"):
                case "text":
                    if inner.text.text.strip():
                        content.append({"text": inner.text.text})
                case "image":
                    content.append(self._image(inner.image, at))
                case "document":
                    content.append(self._document(inner, at))
                case _:
                    raise refuse(f"{path_of(at)}.{kind or 'kind'}", "can't stand in a tool result for Bedrock")
        block: dict[str, Any] = {"toolUseId": wire_id(result.call_id), "content": content}
        if result.is_error:
            if self._model.wire.result_status:
                block["status"] = "error"
            else:
                message = f"{self._model.name} is not told that the tool failed, only what the result says"
                self._notes.unsupported(f"{path_of(place)}.tool_result.is_error", message)
        return {"toolResult": block}

    def _image(self, image: ImagePart, place: Place) -> Any:
        path = f"{path_of(place)}.image"
        self._demand(Feature.FEATURE_VISION, path, "images")
        if image.detail in {ImageDetail.IMAGE_DETAIL_LOW, ImageDetail.IMAGE_DETAIL_HIGH}:
            self._notes.unsupported(f"{path}.detail", "the provider chooses the resolution")
        return image_block(image, path)

    def _document(self, part: Part, place: Place) -> Any:
        path = f"{path_of(place)}.document"
        self._demand(Feature.FEATURE_DOCUMENTS, path, "documents")
        return document_block(part.document, path, self._documents)

    def _demand(self, feature: Feature.ValueType, path: str, what: str) -> None:
        if not self._model.has(feature):
            raise refuse(path, f"{self._model.name} takes no {what}")

    def _ours(self, part: Part) -> bool:
        """Whether this wire and model made the part: a model refuses reasoning that another one signed."""
        origin = part.origin
        lineage = self._model.lineage
        return origin.provider == PROVIDER and origin.api in {"", API} and origin.model in {"", lineage}


def _mark(content: list[Any], point: CachePoint) -> None:
    """Puts the point behind the last block that can be kept: reasoning can't."""
    for at in range(len(content), 0, -1):
        block = content[at - 1]
        if not isinstance(block, dict) or "reasoningContent" not in block:
            content.insert(at, point)
            return


def _reasoning(reasoning: ReasoningPart, part: Part, place: Place) -> Any:
    """The block, byte for byte; without state it is nobody's, and models refuse it."""
    if not part.HasField("provider_state"):
        return None
    try:
        state = part.provider_state.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest.at(f"{path_of(place)}.provider_state", "is not what Bedrock made") from error
    if reasoning.redacted:
        return {"reasoningContent": {"redactedContent": state}}
    return {"reasoningContent": {"reasoningText": {"text": reasoning.text, "signature": state}}}


def wire_id(call_id: str) -> str:
    """The id of a call as the wire takes it: other providers use characters that it refuses. One id gives one id."""
    if len(call_id) <= _MAX_ID and not _WRONG_IN_ID.search(call_id):
        return call_id
    return f"{_WRONG_IN_ID.sub('_', call_id)[: _MAX_ID - 9]}_{zlib.crc32(call_id.encode()):08x}"
