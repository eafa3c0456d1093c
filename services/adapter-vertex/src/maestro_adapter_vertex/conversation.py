"""The messages of a conversation as Gemini's contents."""

from __future__ import annotations

import mimetypes
import re
from binascii import b2a_base64
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import (
    AudioPart,
    DocumentPart,
    ImageDetail,
    ImagePart,
    Part,
    Role,
    ToolCallPart,
    ToolResultPart,
)
from maestro_adapter_vertex.models import PROVIDER, VertexModel
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.parts import Place, path_of, to_arguments, to_own_block, to_text, unsupported
from maestro_sdk.errors import InvalidRequest

API = "generateContent"
"""`origin.api` of the parts that this wire makes."""

MADE_ID = re.compile(r"call_.+_[0-9]+")
"""Ids that the adapter gave to calls to which the provider gave none; they are not sent back."""

_ONLY_USER = frozenset({"document", "tool_result"})
_ONLY_ASSISTANT = frozenset({"tool_call", "reasoning", "refusal", "opaque"})
_RESOLUTIONS = {
    ImageDetail.IMAGE_DETAIL_LOW: "MEDIA_RESOLUTION_LOW",
    ImageDetail.IMAGE_DETAIL_HIGH: "MEDIA_RESOLUTION_HIGH",
}
_MIME = re.compile(r"[\w.+-]+/[\w.+-]+")

Media = ImagePart | AudioPart | DocumentPart


def to_contents(
    request: ChatRequest, model: VertexModel, tool_names: Mapping[str, str], notes: Notes
) -> list[dict[str, Any]]:
    """The contents. Turns of tools that follow each other are joined: the results of parallel calls stand in one.

    They stand there in the order of the calls, since calls may have no ids to find them by.
    """
    parts = _Parts(model, tool_names, notes)
    contents: list[dict[str, Any]] = []
    before = Role.ROLE_UNSPECIFIED
    turn: list[tuple[int, Any]] = []
    for number, message in enumerate(request.messages):
        assistant = message.role == Role.ROLE_ASSISTANT
        made = [
            (parts.rank(part), found)
            for position, part in enumerate(message.parts)
            if (found := parts.make(part, (number, position), assistant)) is not None
        ]
        if not made:
            continue
        if contents and before == message.role == Role.ROLE_TOOL:
            turn += made
            contents.pop()
        else:
            turn = made
        if message.role == Role.ROLE_TOOL:
            turn.sort(key=itemgetter(0))
        content = [found for _, found in turn]
        if assistant:
            _sign_first_call(content, model.wire.unsigned)
        contents.append({"role": "model" if assistant else "user", "parts": content})
        before = message.role
    if not contents:
        raise InvalidRequest.at("messages", "nothing in them can be sent: no text, no content")
    return contents


def _sign_first_call(parts: list[Any], signature: str) -> None:
    """Gives the turn's first call the signature for calls of others, where it has none and the model demands one."""
    if not signature:
        return
    for part in parts:
        if isinstance(part, dict) and "functionCall" in part:
            cast("dict[str, Any]", part).setdefault("thoughtSignature", signature)
            return


class _Parts:
    """Makes the parts of one request."""

    def __init__(self, model: VertexModel, tool_names: Mapping[str, str], notes: Notes) -> None:
        self._model = model
        self._tool_names = tool_names
        self._notes = notes
        self._calls: dict[str, str] = {}  # names by the ids of the calls so far
        self._ranks: dict[str, int] = {}

    def rank(self, part: Part) -> int:
        """The place of a result's call among all calls so far; what is no result comes after all results."""
        return self._ranks.get(part.tool_result.call_id, len(self._ranks))

    def make(self, part: Part, place: Place, assistant: bool) -> Any:
        """One part, or None for one that is dropped: empty text, another provider's own state."""
        kind = part.WhichOneof("kind")
        if kind in (_ONLY_USER if assistant else _ONLY_ASSISTANT):
            whose = "the assistant's" if assistant else "the user's"
            raise unsupported(place, kind, f"can't stand in {whose} turn")
        match kind:
            case "text":
                signature = self._signature(part, place)
                if not part.text.text and not signature:
                    return None
                return {"text": part.text.text, **signature}
            case "tool_call":
                return {"functionCall": self._call(part.tool_call, place), **self._signature(part, place)}
            case "tool_result":
                return {"functionResponse": self._result(part.tool_result, place)}
            case "image":
                # Models make images and sound as well, and sign them.
                return {**self._image(part.image, place), **self._signature(part, place)}
            case "audio":
                return {**self._media(part.audio, place, "audio", "audio/"), **self._signature(part, place)}
            case "document":
                return self._document(part.document, place)
            case "reasoning":
                # Thoughts are summaries for people; only what is signed helps the model.
                signature = self._signature(part, place)
                return {"text": part.reasoning.text, "thought": True, **signature} if signature else None
            case "refusal":
                return {"text": part.refusal.text} if part.refusal.text else None
            case "opaque":
                return to_own_block(part, place, PROVIDER, self._notes, ours=self._ours(part))
            case _:
                raise unsupported(place, kind, "can't be sent to Gemini")

    def _call(self, call: ToolCallPart, place: Place) -> dict[str, Any]:
        self._calls[call.call_id] = call.name
        self._ranks[call.call_id] = len(self._ranks)
        name = self._tool_names.get(call.name, call.name)
        return {**_call_id(call.call_id), "name": name, "args": to_arguments(call.arguments_json, place)}

    def _result(self, result: ToolResultPart, place: Place) -> dict[str, Any]:
        name = self._calls.get(result.call_id)
        if name is None:
            message = f"no call before it has the id {result.call_id!r}"
            raise InvalidRequest.at(f"{path_of(place)}.tool_result.call_id", message)
        texts: list[str] = []
        media: list[Any] = []
        for position, inner in enumerate(result.parts):
            at = (*place, position)
            match kind := inner.WhichOneof("kind"):
                case "text":
                    texts.append(inner.text.text)
                case "image" | "document" if self._model.wire.media_results:
                    media.append(self._inner(inner, at))
                case "image" | "document":
                    raise unsupported(at, kind, f"can't stand in a tool result for {self._model.model.name}")
                case _:
                    raise unsupported(at, kind, "can't stand in a tool result for Gemini")
        response = {"error" if result.is_error else "output": "\n".join(texts)}
        wire = {**_call_id(result.call_id), "name": self._tool_names.get(name, name), "response": response}
        return {**wire, "parts": media} if media else wire

    def _inner(self, part: Part, place: Place) -> Any:
        return self._image(part.image, place) if part.HasField("image") else self._document(part.document, place)

    def _image(self, image: ImagePart, place: Place) -> dict[str, Any]:
        made = self._media(image, place, "image", "image/")
        if level := _RESOLUTIONS.get(image.detail):
            if self._model.wire.levels:
                made["mediaResolution"] = {"level": level}
            else:
                self._notes.unsupported(f"{path_of(place)}.image.detail", "the model looks at all images alike")
        return made

    def _document(self, document: DocumentPart, place: Place) -> dict[str, Any]:
        if document.WhichOneof("source") == "data" and document.mime_type not in {"application/pdf", "text/plain"}:
            if not document.mime_type.startswith("text/"):
                found = document.mime_type or "empty"
                raise unsupported(place, "document.mime_type", f"is {found!r}, not application/pdf or text/*")
            # All other kinds of text are read as what they are: text.
            return {"text": to_text(document.data, f"{path_of(place)}.document.data")}
        made = self._media(document, place, "document", "")
        if document.title:
            for source in made.values():
                source["displayName"] = document.title
        return made

    def _media(self, media: Media, place: Place, kind: str, family: str) -> dict[str, Any]:
        match media.WhichOneof("source"):
            case "data":
                if not _MIME.fullmatch(media.mime_type) or not media.mime_type.startswith(family):
                    message = f"is {media.mime_type or 'empty'!r}, not one of {family or 'application/'}…"
                    raise unsupported(place, f"{kind}.mime_type", message)
                return {"inlineData": {"mimeType": media.mime_type, "data": _base64(media.data)}}
            case "url":
                if not media.url.startswith(("gs://", "https://", "http://")):
                    raise unsupported(place, f"{kind}.url", "is not a gs or https address")
                return _file(media.url, media.mime_type, f"{path_of(place)}.{kind}")
            case _:
                raise unsupported(place, f"{kind}.file_id", "the provider keeps no files; give a gs:// address as url")

    def _signature(self, part: Part, place: Place) -> dict[str, str]:
        if not part.HasField("provider_state") or not self._ours(part):
            return {}
        return {"thoughtSignature": to_text(part.provider_state, f"{path_of(place)}.provider_state")}

    def _ours(self, part: Part) -> bool:
        """Whether this wire and model made the part: a signature holds for the model that gave it."""
        origin = part.origin
        return origin.provider == PROVIDER and origin.api in {"", API} and origin.model in {"", self._model.model.name}


def _file(url: str, mime_type: str, path: str) -> dict[str, Any]:
    kind = mime_type or mimetypes.guess_type(url.partition("?")[0])[0]
    if not kind:
        raise InvalidRequest.at(f"{path}.mime_type", "is needed: the address does not tell what it is")
    return {"fileData": {"mimeType": kind, "fileUri": url}}


def _call_id(call_id: str) -> dict[str, str]:
    return {} if MADE_ID.fullmatch(call_id) else {"id": call_id}


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")
