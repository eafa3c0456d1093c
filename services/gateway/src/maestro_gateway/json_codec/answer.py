"""Answers as JSON: the unary document, and one object per event for server-sent events and WebSocket frames.

Text deltas are the hot path: their frame is put together from bytes, and only the text itself goes through the JSON
writer.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, cast

import orjson

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatResponse,
    Finish,
    FinishReason,
    Switched,
    TextDelta,
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.message_pb2 import Part
from maestro.llm.v1.usage_pb2 import Usage
from maestro_gateway.json_codec.decoder import short_names
from maestro_gateway.json_codec.encoder import plain, struct_data
from maestro_sdk.errors import MaestroError, to_json

DONE = b"data: [DONE]\n\n"
"""Ends a stream of server-sent events that succeeded."""
PING = b": ping\n\n"
"""A comment that keeps an idle connection open; clients never see it."""

PONG = b'{"type":"pong"}'
"""The answer to a client's `ping` frame."""

_FINISH_REASONS = short_names(FinishReason.DESCRIPTOR)
_USAGE_FIELDS = tuple(field.name for field in Usage.DESCRIPTOR.fields)

_TEXT_FRAME = b'event: text\ndata: {"index":%d,"text":%b}\nid: %d\n\n'
_dumps = orjson.dumps


def encode_answer(response: ChatResponse, route: str, warnings: Iterable[Warning] = ()) -> bytes:
    """The unary answer; `route` is empty when the model was named directly, `warnings` are those of the body."""
    parts = [part_data(part) for part in response.parts]
    return _dumps(
        {
            "id": response.response_id,
            "model": response.model,
            "provider": response.provider,
            "text": "".join([part["text"] for part in parts if part["type"] == "text"]),
            "parts": parts,
            "tool_calls": [
                {"call_id": part["call_id"], "name": part["name"], "arguments": part["arguments"]}
                for part in parts
                if part["type"] == "tool_call"
            ],
            "finish_reason": _FINISH_REASONS.get(response.finish_reason, "other"),
            "raw_finish_reason": response.raw_reason or None,
            "stop_sequence": response.stop_sequence or None,
            "usage": usage_data(response.usage),
            "cost_usd": response.cost.usd if response.HasField("cost") else None,
            "warnings": [_warning_data(warning) for warning in (*warnings, *response.warnings)],
            "switches": [_switch_data(switch) for switch in response.switches],
            "provider_metadata": {key: struct_data(value) for key, value in response.provider_metadata.items()},
            "route": route or None,
            "attempt": response.attempt,
            "cached": response.cached,
        }
    )


def encode_error(error: MaestroError, request_id: str) -> bytes:
    """The body of an error."""
    body = to_json(error)
    body["error"]["request_id"] = request_id
    return _dumps(body)


class Frames:
    """Turns the events of one answer into server-sent events, numbered from 1."""

    __slots__ = ("_goes_on", "_number", "_warnings", "route")

    def __init__(self, warnings: list[Warning], after: int | None = None) -> None:
        """`warnings` of the body follow `started`.

        `after` is the number of the last event that the reader of a resumable stream has.
        """
        self._goes_on = after is not None
        self._number = after or 0
        self._warnings = warnings
        self.route = ""
        """What `started` tells; empty when the model was named directly."""

    def frames(self, events: Iterable[ChatEvent]) -> bytes:
        """The frames of some events; `[DONE]` follows `finish`."""
        number = self._number
        found: list[bytes] = []
        for event in events:
            number += 1
            delta = event.text
            # Nearly all events are plain text, and reading it is as quick as asking what they are.
            if (text := delta.text) and not (delta.logprobs or delta.citations or delta.polyfilled):
                found.append(_TEXT_FRAME % (delta.index, _dumps(text), number))
                continue
            kind = event.WhichOneof("kind")
            body = event_bytes(event, self.route)
            found.append(b"event: %b\ndata: %b\nid: %d\n\n" % ((kind or "").encode(), body, number))
            if kind == "started":
                for warning in self._warnings:
                    number += 1
                    found.append(b"event: warning\ndata: %b\nid: %d\n\n" % (_dumps(_warning_data(warning)), number))
            elif kind == "finish":
                found.append(DONE)
        self._number = number
        return b"".join(found)

    def idle(self) -> bytes:
        """A sign of life; it has no number."""
        return PING

    def error(self, error: MaestroError, request_id: str) -> bytes:
        """The frame of an error that ends a stream; no `[DONE]` follows.

        Without a number it ends only this connection: the stream goes on.
        """
        if self._goes_on and error.metadata.get("stream") != "over":
            return b"event: error\ndata: %b\n\n" % encode_error(error, request_id)
        self._number += 1
        return b"event: error\ndata: %b\nid: %d\n\n" % (encode_error(error, request_id), self._number)


def socket_frames(
    conversation: bytes, events: Iterable[ChatEvent], route: str, warnings: Iterable[Warning]
) -> list[bytes]:
    """The WebSocket frames of some events; `conversation` is the client's id as JSON text."""
    found: list[bytes] = []
    for event in events:
        kind = event.WhichOneof("kind") or ""
        body = _text_bytes(event.text) if kind == "text" else event_bytes(event, route)
        found.append(b'{"id":%b,"type":"%b",%b' % (conversation, kind.encode(), body[1:]))
        if kind == "started":
            for warning in warnings:
                text = _dumps(_warning_data(warning))
                found.append(b'{"id":%b,"type":"warning",%b' % (conversation, text[1:]))
    return found


def numbered_frames(conversation: bytes, events: Iterable[ChatEvent], route: str, before: int) -> list[bytes]:
    """The WebSocket frames of some events of a resumable stream, which has `before` events before them."""
    found: list[bytes] = []
    for number, event in enumerate(events, before + 1):
        kind = event.WhichOneof("kind") or ""
        body = _text_bytes(event.text) if kind == "text" else event_bytes(event, route)
        found.append(b'{"id":%b,"type":"%b","seq":%d,%b' % (conversation, kind.encode(), number, body[1:]))
    return found


def socket_error(conversation: bytes, error: MaestroError, request_id: str) -> bytes:
    """The WebSocket frame of an error; `conversation` is "null" as JSON text when it belongs to none."""
    return b'{"id":%b,"type":"error",%b' % (conversation, encode_error(error, request_id)[1:])


def quoted(text: str) -> bytes:
    """A text as JSON."""
    return _dumps(text)


def _text_bytes(delta: TextDelta) -> bytes:
    if delta.logprobs or delta.citations or delta.polyfilled:
        return _dumps({"index": delta.index, "text": delta.text, **plain(delta)})
    return b'{"index":%d,"text":%b}' % (delta.index, _dumps(delta.text))


def event_bytes(event: ChatEvent, route: str = "") -> bytes:
    """One event as a JSON object, without its kind. Every object has at least one key."""
    match event.WhichOneof("kind"):
        case "text":
            return _text_bytes(event.text)
        case "reasoning":
            thought = event.reasoning
            data: dict[str, Any] = {"index": thought.index, "text": thought.text}
            if thought.summary:
                data["summary"] = True
        case "tool_call":
            call = event.tool_call
            data = {"index": call.index}
            if call.call_id:
                data["call_id"] = call.call_id
            if call.name:
                data["name"] = call.name
            data["arguments_json"] = call.arguments_json
            if call.polyfilled:
                data["polyfilled"] = True
        case "started":
            started = event.started
            data = {
                "response_id": started.response_id,
                "provider": started.provider,
                "model": started.model,
                "attempt": started.attempt,
                "route": route or None,
            }
            if started.stream:
                data["stream"] = started.stream
        case "part":
            data = {"index": event.part.index, "part": part_data(event.part)}
        case "part_state":
            state = event.part_state
            data = {
                "index": state.index,
                "origin": plain(state.origin),
                "provider_state": base64.b64encode(state.provider_state).decode(),
            }
        case "usage":
            data = {"usage": usage_data(event.usage)}
        case "warning":
            data = _warning_data(event.warning)
        case "switched":
            data = _switch_data(event.switched)
        case "finish":
            data = _finish_data(event.finish)
        case _:
            # A newer adapter may send kinds that this gateway does not know; the reader sees that there was one.
            data = {"unknown": True}
    return _dumps(data)


def part_data(part: Part) -> dict[str, Any]:
    """A part as a tagged object, which the body of a later request takes back unchanged."""
    kind = part.WhichOneof("kind")
    data: dict[str, Any]
    match kind:
        case "text":
            data = {"type": "text", "index": part.index, "text": part.text.text}
            if part.text.citations:
                data["citations"] = [plain(citation) for citation in part.text.citations]
            if part.text.logprobs:
                data["logprobs"] = [plain(entry) for entry in part.text.logprobs]
        case "tool_call":
            call = part.tool_call
            data = {
                "type": "tool_call",
                "index": part.index,
                "call_id": call.call_id,
                "name": call.name,
                "arguments": _arguments_data(call.arguments_json),
            }
        case "tool_result":
            data = {
                "type": "tool_result",
                "index": part.index,
                "call_id": part.tool_result.call_id,
                "content": [part_data(inner) for inner in part.tool_result.parts],
                "is_error": part.tool_result.is_error,
            }
        case "reasoning":
            data = {"type": "reasoning", "index": part.index, "text": part.reasoning.text}
            if part.reasoning.summary:
                data["summary"] = True
            if part.reasoning.redacted:
                data["redacted"] = True
        case "image" | "audio" | "document" | "refusal" | "opaque":
            data = {"type": kind, "index": part.index, **plain(getattr(part, kind))}
            if kind == "refusal":
                data["text"] = part.refusal.text
        case _:
            data = {"type": "unknown", "index": part.index}
    if part.HasField("origin"):
        data["origin"] = plain(part.origin)
    if part.HasField("provider_state"):
        data["provider_state"] = base64.b64encode(part.provider_state).decode()
    if part.polyfilled:
        data["polyfilled"] = True
    return data


def _arguments_data(text: str) -> Any:
    """The arguments as an object; text that a model broke stays text."""
    if not text or text.isspace():
        return {}
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return cast("Any", value) if type(value) is dict else text


def _finish_data(finish: Finish) -> dict[str, Any]:
    data: dict[str, Any] = {
        "finish_reason": _FINISH_REASONS.get(finish.reason, "other"),
        "raw_finish_reason": finish.raw_reason or None,
        "stop_sequence": finish.stop_sequence or None,
        "usage": usage_data(finish.usage),
        "cost_usd": finish.cost.usd if finish.HasField("cost") else None,
    }
    if finish.cached:
        data["cached"] = True
    if finish.provider_metadata:
        data["provider_metadata"] = {key: struct_data(value) for key, value in finish.provider_metadata.items()}
    return data


def usage_data(usage: Usage) -> dict[str, Any]:
    """Tokens."""
    return {name: getattr(usage, name) for name in _USAGE_FIELDS}


def _warning_data(warning: Warning) -> dict[str, Any]:
    return {"code": warning.code, "message": warning.message, "field": warning.field or None}


def _switch_data(switch: Switched) -> dict[str, Any]:
    return plain(switch)
