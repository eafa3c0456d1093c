"""The content of one request as it is recorded: JSON text, redacted, without anything binary. No I/O.

What is binary (pictures, sound, documents, state of providers) is left out, and told by path, size and SHA-256. Log
probabilities are left out, too: they hold the text once more, token by token.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import orjson
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, StreamChatResponse
from maestro_gateway.audit.redaction import Redaction

Document: TypeAlias = dict[str, Any]

_NAMES = frozenset(
    {
        "adapter",
        "call_id",
        "file_id",
        "from_model",
        "mime_type",
        "model",
        "name",
        "names",
        "provider",
        "response_id",
        "to_model",
    }
)
"""Members that name something, often at several places, which belong together."""
_PLAIN = frozenset(
    {"detail", "effort", "finish_reason", "mode", "price_date", "reason", "required", "role", "seed", "ttl", "usd"}
)
"""Members of which the contract says what they may be, words and numbers, and those that the mesh itself writes."""
_BINARY = frozenset({"data", "provider_state", "utf8"})
_FREE = frozenset({"provider_options", "provider_metadata", "metadata"})
"""Members whose own members are named by others."""
_DELTAS = {"text": "text", "reasoning": "text", "tool_call": "arguments_json"}
"""Kinds of events that bring a piece of something, and the member that holds it."""


@dataclass(slots=True)
class Content:
    """What was asked and answered so far, as it came."""

    request: Document
    response: Document | None = None
    frames: list[Document] = field(default_factory=list[Document])
    truncated: bool = False
    ahead: int = 0
    """The last frames, which are not recorded: they tell whether what is ends in the middle of a find."""

    def document(self, redaction: Redaction) -> bytes:
        """The JSON text. Raises `TooSlowError`; the content is of no use afterwards."""
        omitted: list[Document] = []
        _clean(self.request, "request", redaction, omitted)
        found: Document = {"request": self.request}
        if self.response is not None:
            _clean(self.response, "response", redaction, omitted)
            found["response"] = self.response
        else:
            _redact_deltas(self.frames, redaction)
            if self.ahead:
                del self.frames[-self.ahead :]
            for number, frame in enumerate(self.frames):
                _clean(frame, f"frames[{number}]", redaction, omitted, deltas=False)
            found["frames"] = self.frames
        if omitted:
            found["omitted"] = omitted
        if redaction.counts:
            found["redactions"] = dict(redaction.counts)
        if self.truncated:
            found["truncated"] = True
        return orjson.dumps(found)


def as_document(message: ChatRequest | ChatResponse | StreamChatResponse) -> Document:
    """A message as ProtoJSON with the names of the contract; what JSON has no number for is told in words."""
    try:
        return MessageToDict(message, preserving_proto_field_name=True)
    except SerializeToJsonError:
        # An answer that was paid for is not lost because a provider's own facts hold "not a number".
        told = copy.deepcopy(message)
        _tell_numbers(told)
        return MessageToDict(told, preserving_proto_field_name=True)


def _tell_numbers(message: Message) -> None:
    """Replaces numbers of free values that are none by their names."""
    if isinstance(message, Value) and message.HasField("number_value") and not math.isfinite(message.number_value):
        message.string_value = str(message.number_value)
    for field_, value in message.ListFields():
        held: Any = value
        if field_.message_type is None:
            continue
        if field_.message_type.GetOptions().map_entry:
            members: Iterable[Any] = held.values()
        elif isinstance(held, Message):
            members = (held,)
        else:
            members = held
        for each in members:
            if isinstance(each, Message):
                _tell_numbers(each)


def digest_of(content: bytes) -> str:
    """What the event and the audit record of a request hold of its content."""
    return hashlib.sha256(content).hexdigest()


def _clean(value: Document, path: str, redaction: Redaction, omitted: list[Document], *, deltas: bool = True) -> None:
    """Redacts every text of a message, and leaves out what is binary. Without `deltas` those were seen to before."""
    for name in list(value):
        member, place = value[name], f"{path}.{name}"
        if name == "logprobs" and isinstance(member, list):
            del value[name]
        elif name in _BINARY and isinstance(member, str):
            data = base64.b64decode(member)
            omitted.append({"path": place, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
            del value[name]
        elif name in _FREE:
            value[name] = _freed(member, redaction)
        elif name == "events" and not deltas:
            for number, event in enumerate(cast("list[Document]", member)):
                _clean_event(event, f"{place}[{number}]", redaction, omitted)
        elif name in _NAMES:
            value[name] = _renamed(member, redaction)
        elif name not in _PLAIN:
            value[name] = _cleaned(member, place, redaction, omitted)


def _clean_event(event: Document, path: str, redaction: Redaction, omitted: list[Document]) -> None:
    for kind, body in event.items():
        held = _DELTAS.get(kind)
        piece = body.pop(held, None) if held is not None else None
        _clean(body, f"{path}.{kind}", redaction, omitted)
        if held is not None and piece is not None:
            body[held] = piece


def _cleaned(member: Any, path: str, redaction: Redaction, omitted: list[Document]) -> Any:
    match member:
        case str():
            return redaction.redact(member)
        case dict():
            _clean(cast("Document", member), path, redaction, omitted)
            return cast("Any", member)
        case list():
            members = cast("list[Any]", member)
            return [_cleaned(each, f"{path}[{number}]", redaction, omitted) for number, each in enumerate(members)]
        case _:
            return member


def _renamed(member: Any, redaction: Redaction) -> Any:
    """A name, or several of them."""
    if isinstance(member, str):
        return redaction.rename(member)
    return [redaction.rename(each) for each in cast("list[str]", member)]


def _freed(value: Any, redaction: Redaction, name: str = "") -> Any:
    """A value whose form others chose: its members' names are redacted too, and its numbers are read as text."""
    match value:
        case str():
            return redaction.redact_value(name, value)
        case bool() | None:
            return value
        case int() | float():
            told = orjson.dumps(value).decode()
            found = redaction.redact_value(name, told)
            return value if found == told else found
        case dict():
            members = cast("Document", value)
            return {redaction.rename(each): _freed(member, redaction, each) for each, member in members.items()}
        case _:
            return [_freed(each, redaction, name) for each in cast("list[Any]", value)]


def _redact_deltas(frames: Iterable[Document], redaction: Redaction) -> None:
    """Redacts what came in pieces as a whole: an address may begin in one piece and end in the next."""
    channels: dict[tuple[str, int], list[tuple[Document, str]]] = {}
    for kind, body, held in _deltas(frames):
        channels.setdefault((kind, body.get("index", 0)), []).append((body, held))
    for pieces in channels.values():
        texts = [body[held] for body, held in pieces]
        for (body, held), text in zip(pieces, redaction.redact_pieces(texts), strict=True):
            if text:
                body[held] = text
            else:
                del body[held]


def _deltas(frames: Iterable[Document]) -> Iterator[tuple[str, Document, str]]:
    for frame in frames:
        for event in frame.get("events", ()):
            for kind, body in event.items():
                held = _DELTAS.get(kind)
                if held is not None and body.get(held):
                    yield kind, body, held
