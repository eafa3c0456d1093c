"""Anthropic's answers as events of the contract: the stream of `POST /v1/messages`, and its unary document."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    Finish,
    FinishReason,
    PartState,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
)
from maestro.llm.v1.message_pb2 import OpaquePart, Origin, Part, ReasoningPart
from maestro.llm.v1.usage_pb2 import Headroom
from maestro_adapter_claude.conversation import API
from maestro_adapter_claude.facts import Counts, Json, to_citation
from maestro_adapter_claude.failure import to_error
from maestro_adapter_claude.models import PROVIDER
from maestro_adapter_claude.request import Outgoing
from maestro_sdk.adapter.facts import to_struct
from maestro_sdk.adapter.headroom import headroom
from maestro_sdk.adapter.sse import SseParser
from maestro_sdk.errors import MaestroError, StreamBroken

FINISH_REASONS: dict[str, FinishReason.ValueType] = {
    "end_turn": FinishReason.FINISH_REASON_STOP,
    "stop_sequence": FinishReason.FINISH_REASON_STOP_SEQUENCE,
    "max_tokens": FinishReason.FINISH_REASON_LENGTH,
    "model_context_window_exceeded": FinishReason.FINISH_REASON_CONTEXT_WINDOW,
    "tool_use": FinishReason.FINISH_REASON_TOOL_CALLS,
    "refusal": FinishReason.FINISH_REASON_REFUSAL,
    "pause_turn": FinishReason.FINISH_REASON_PAUSED,
}
"""Every other word is OTHER, with the word itself in `raw_reason`."""


class _Block:
    """A content block under way: its part, its kind, and what waits for its end."""

    __slots__ = ("begun", "index", "kind", "pending", "raw")

    def __init__(self, index: int, kind: str) -> None:
        self.index = index
        self.kind = kind
        self.begun = False
        self.pending: list[str] = []
        self.raw: dict[str, Any] = {}


class Stream:
    """The way back of one request. `feed` takes the stream's bytes as they come, in pieces of any size.

    An error inside the stream, and a frame that can't be read, do not swallow the events before them: `feed` returns
    those, and `failure` holds the error. `finished` tells that `message_stop` came; a stream without it is broken.
    """

    __slots__ = (
        "_blocks",
        "_calls",
        "_counts",
        "_handlers",
        "_headroom",
        "_message",
        "_next",
        "_origin",
        "_outgoing",
        "_sse",
        "_started",
        "_stops",
        "failure",
        "finished",
    )

    def __init__(self, outgoing: Outgoing) -> None:
        self.failure: MaestroError | None = None
        self.finished = False
        self._outgoing = outgoing
        self._sse = SseParser()
        self._started = False
        self._message: Json = {}
        self._blocks: dict[int, _Block] = {}
        self._next = 0
        self._calls = 0
        self._stops: dict[str, Any] = {}
        self._counts = Counts()
        self._headroom: Headroom | None = None
        self._origin = Origin(provider=PROVIDER, api=API, model=outgoing.model)
        self._handlers: dict[str, Callable[[Json, list[ChatEvent]], None]] = {
            "content_block_delta": self._on_delta,
            "content_block_start": self._on_block,
            "content_block_stop": self._on_block_stop,
            "message_start": self._on_message,
            "message_delta": self._on_message_delta,
            "message_stop": self._on_message_stop,
        }

    def hear(self, headers: Mapping[str, str]) -> None:
        """Takes the headers of the answer; call it before the events, or not at all."""
        self._headroom = headroom(headers, time.time())

    def feed(self, raw: bytes) -> list[ChatEvent]:
        """The events that `raw` completes."""
        events: list[ChatEvent] = []
        if self.failure is not None:
            return events
        handlers = self._handlers
        try:
            for name, data in self._sse.feed(raw):
                if name == b"ping":
                    continue
                if self.finished:
                    break
                frame: Any = orjson.loads(data)
                kind = frame["type"]
                handler = handlers.get(kind)
                if handler is not None:
                    handler(frame, events)
                elif kind == "error":
                    self.failure = to_error(200, data, {})
                    break
                # Other events are the provider's to add; its versioning rules ask clients to pass over them.
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self.failure = StreamBroken(f"the provider's stream can't be read: {type(error).__name__}: {error}")
        except MaestroError as error:
            self.failure = error
        return events

    def take(self, frame: Json) -> list[ChatEvent]:
        """The events of one event of the wire that somebody else has read; as `feed`."""
        events: list[ChatEvent] = []
        handler = self._handlers.get(str(frame.get("type")))
        if handler is None or self.finished or self.failure is not None:
            return events
        try:
            handler(frame, events)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self.failure = StreamBroken(f"the provider's stream can't be read: {type(error).__name__}: {error}")
        except MaestroError as error:
            self.failure = error
        return events

    def end(self) -> None:
        """Tells that the bytes are over. Raises the failure, or `StreamBroken` when the answer is not complete."""
        if self.failure is not None:
            raise self.failure
        if not self.finished:
            raise StreamBroken("the provider's stream ended without message_stop")

    def whole(self, body: bytes) -> list[ChatEvent]:
        """The events of a unary answer. Raises `StreamBroken` when it can't be read, or the error that it holds."""
        try:
            message: Any = orjson.loads(body)
            if message["type"] == "error":
                raise to_error(200, body, {})
            return self.read(message)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StreamBroken(f"the provider's answer can't be read: {type(error).__name__}: {error}") from error

    def read(self, message: Json) -> list[ChatEvent]:
        """The events of a unary answer: the same that its stream would have brought."""
        events: list[ChatEvent] = []
        self._begin(message, events)
        for number, block in enumerate(message["content"]):
            self._on_block({"index": number, "content_block": block}, events)
            self._on_block_stop({"index": number}, events)
        self._on_message_delta({"delta": message, "usage": message.get("usage")}, events)
        self._on_message_stop({}, events)
        return events

    def _on_message(self, frame: Json, events: list[ChatEvent]) -> None:
        message: Json = frame["message"]
        self._begin(message, events)
        if self._counts.take(message.get("usage")):
            events.append(ChatEvent(usage=self._counts.usage()))

    def _begin(self, message: Json, events: list[ChatEvent]) -> None:
        if self._started:
            raise StreamBroken("the provider's stream began twice")
        self._started = True
        self._message = message
        outgoing = self._outgoing
        events.append(
            ChatEvent(
                started=Started(
                    response_id=message.get("id") or "", provider=outgoing.provider, model=outgoing.model, attempt=1
                )
            )
        )
        for warning in outgoing.warnings:
            events.append(ChatEvent(warning=warning))  # noqa: PERF401 - two kinds of events in one list

    def _on_block(self, frame: Json, events: list[ChatEvent]) -> None:
        if not self._started:
            raise StreamBroken("the provider's stream has content before message_start")
        content: Json = frame["content_block"]
        kind: str = content["type"]
        block = self._blocks[frame["index"]] = _Block(self._next, kind)
        self._next += 1
        match kind:
            case "text":
                citations = [to_citation(found) for found in content.get("citations") or ()]
                if content.get("text") or citations:
                    delta = TextDelta(index=block.index, text=content.get("text", ""), citations=citations)
                    events.append(ChatEvent(text=delta))
            case "thinking":
                if text := content.get("thinking"):
                    self._think(block, text, events)
                if signature := content.get("signature"):
                    self._sign(block, signature, events)
            case "redacted_thinking":
                part = Part(
                    index=block.index,
                    reasoning=ReasoningPart(redacted=True),
                    origin=self._origin,
                    provider_state=content["data"].encode(),
                )
                events.append(ChatEvent(part=part))
            case "tool_use":
                self._calls += 1
                name = content["name"]
                call = ToolCallDelta(
                    index=block.index,
                    call_id=content.get("id") or f"call_{self._message.get('id', '')}_{self._calls}",
                    name=self._outgoing.tool_names.get(name, name),
                )
                events.append(ChatEvent(tool_call=call))
                # Some servers send the arguments whole; the provider itself sends an empty object here, and fragments.
                block.pending.append(_dump(content.get("input") or {}))
            case _:
                block.raw = dict(content)

    def _on_delta(self, frame: Json, events: list[ChatEvent]) -> None:
        block = self._blocks[frame["index"]]
        delta = frame["delta"]
        match delta["type"]:
            case "text_delta":
                events.append(ChatEvent(text=TextDelta(index=block.index, text=delta["text"])))
            case "input_json_delta":
                if fragment := delta["partial_json"]:
                    if block.kind == "tool_use":
                        block.begun = True
                        call = ToolCallDelta(index=block.index, arguments_json=fragment)
                        events.append(ChatEvent(tool_call=call))
                    else:
                        block.pending.append(fragment)
            case "thinking_delta":
                self._think(block, delta["thinking"], events)
            case "signature_delta":
                self._sign(block, delta["signature"], events)
            case "citations_delta":
                citation = to_citation(delta["citation"])
                events.append(ChatEvent(text=TextDelta(index=block.index, citations=[citation])))
            case _:
                # A kind of delta that is newer than this adapter belongs to a kind of block that is, too.
                block.raw.setdefault("deltas", []).append(delta)

    def _on_block_stop(self, frame: Json, events: list[ChatEvent]) -> None:
        self._close(self._blocks.pop(frame["index"]), events)

    def _close(self, block: _Block, events: list[ChatEvent]) -> None:
        match block.kind:
            case "text" | "redacted_thinking":
                pass
            case "thinking":
                # Neither text nor signature: the part is empty, but it is there.
                if not block.begun:
                    self._think(block, "", events)
            case "tool_use":
                if not block.begun:
                    call = ToolCallDelta(index=block.index, arguments_json=block.pending[0])
                    events.append(ChatEvent(tool_call=call))
            case _:
                if block.pending:
                    block.raw["input"] = orjson.loads("".join(block.pending))
                opaque = OpaquePart(json=_dump(block.raw))
                events.append(ChatEvent(part=Part(index=block.index, opaque=opaque, origin=self._origin)))

    def _on_message_delta(self, frame: Json, events: list[ChatEvent]) -> None:
        delta = frame["delta"]
        counted = self._counts.take(frame.get("usage"))
        for name in ("stop_reason", "stop_sequence", "stop_details", "container"):
            if (value := delta.get(name)) is not None:
                self._stops[name] = value
        if counted and "stop_reason" not in self._stops:
            events.append(ChatEvent(usage=self._counts.usage()))

    def _on_message_stop(self, frame: Json, events: list[ChatEvent]) -> None:
        reason = self._stops.get("stop_reason")
        if not self._started or not isinstance(reason, str) or not reason:
            raise StreamBroken("the provider's answer ended without a stop reason")
        for block in self._blocks.values():
            self._close(block, events)
        meaning = FINISH_REASONS.get(reason, FinishReason.FINISH_REASON_OTHER)
        if self._calls and meaning == FinishReason.FINISH_REASON_STOP:
            # Servers that only speak the provider's wire may end a turn with calls like any other.
            meaning = FinishReason.FINISH_REASON_TOOL_CALLS
        finish = Finish(
            reason=meaning,
            raw_reason=reason,
            stop_sequence=self._stops.get("stop_sequence") or "",
            headroom=self._headroom,
        )
        if self._counts.known:
            # Without any usage on the wire there is none here: the cost is unknown then, not zero.
            finish.usage.CopyFrom(self._counts.usage())
        if facts := self._provider_facts():
            finish.provider_metadata[self._outgoing.provider].CopyFrom(to_struct(facts))
        self.finished = True
        events.append(ChatEvent(finish=finish))

    def _think(self, block: _Block, text: str, events: list[ChatEvent]) -> None:
        block.begun = True
        events.append(ChatEvent(reasoning=ReasoningDelta(index=block.index, text=text)))

    def _sign(self, block: _Block, signature: str, events: list[ChatEvent]) -> None:
        if not block.begun:
            # The model may hide its thinking and sign it all the same: the state needs its part.
            self._think(block, "", events)
        state = PartState(index=block.index, origin=self._origin, provider_state=signature.encode())
        events.append(ChatEvent(part_state=state))

    def _provider_facts(self) -> dict[str, Any]:
        facts = {name: self._stops[name] for name in ("stop_details", "container") if name in self._stops}
        if self._counts.facts:
            facts["usage"] = self._counts.facts
        model = self._message.get("model")
        if model and model != self._outgoing.model:
            facts["model"] = model
        return facts


def to_events(body: bytes, outgoing: Outgoing) -> list[ChatEvent]:
    """The events of a unary answer. Raises `StreamBroken` when it can't be read, or the error that it holds."""
    return Stream(outgoing).whole(body)


def _dump(value: object) -> str:
    return orjson.dumps(value).decode()
