"""Bedrock's answers as events of the contract: the event stream of ConverseStream, and the document of Converse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import ChatEvent, Finish, FinishReason, Started
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_bedrock.blocks import Blocks
from maestro_adapter_bedrock.eventstream import Frames, Message
from maestro_adapter_bedrock.failure import UNREADABLE, to_error, to_stream_error, unreadable
from maestro_adapter_bedrock.models import PROVIDER
from maestro_adapter_bedrock.request import Outgoing
from maestro_sdk.adapter.facts import to_struct
from maestro_sdk.errors import MaestroError, StreamBroken

FINISH_REASONS: dict[str, FinishReason.ValueType] = {
    "end_turn": FinishReason.FINISH_REASON_STOP,
    "stop_sequence": FinishReason.FINISH_REASON_STOP_SEQUENCE,
    "max_tokens": FinishReason.FINISH_REASON_LENGTH,
    "tool_use": FinishReason.FINISH_REASON_TOOL_CALLS,
    "guardrail_intervened": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "content_filtered": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "malformed_model_output": FinishReason.FINISH_REASON_MALFORMED,
    "malformed_tool_use": FinishReason.FINISH_REASON_MALFORMED,
    "model_context_window_exceeded": FinishReason.FINISH_REASON_CONTEXT_WINDOW,
}
"""Every other word is OTHER, with the word itself in `raw_reason`."""

# Facts beside the answer that are told on, where they are not what is always there.
_FACTS = ("trace", "performanceConfig", "serviceTier", "additionalModelResponseFields")
_USUAL: Mapping[str, Any] = {"performanceConfig": {"latency": "standard"}, "serviceTier": {"type": "default"}}

Json = Mapping[str, Any]


class Stream:
    """The way back of one request. `feed` takes the stream's bytes as they come, in pieces of any size.

    An exception inside the stream, and a frame that can't be read, do not swallow the events before them: `feed`
    returns those, and `failure` holds the error. Bedrock sends the stop reason before the usage, so the finish event
    waits for both; `finished` tells that it was made. A stream that ends before its stop reason is broken; one that
    ends cleanly after it is a whole answer without usage.
    """

    __slots__ = ("_blocks", "_facts", "_frames", "_handlers", "_outgoing", "_reason", "_usage", "failure", "finished")

    def __init__(self, outgoing: Outgoing, response_id: str = "") -> None:
        self.failure: MaestroError | None = None
        self.finished = False
        self._outgoing = outgoing
        self._frames = Frames()
        self._blocks = Blocks(outgoing, response_id)
        self._reason = ""
        self._usage: Usage | None = None
        self._facts: dict[str, Any] = {}
        self._handlers: dict[str, Callable[[Json, list[ChatEvent]], None]] = {
            "contentBlockDelta": self._blocks.on_delta,
            "contentBlockStart": self._blocks.on_start,
            "contentBlockStop": self._blocks.on_stop,
            "messageStart": self._on_message,
            "messageStop": self._on_message_stop,
            "metadata": self._on_metadata,
        }

    def feed(self, raw: bytes) -> list[ChatEvent]:
        """The events that `raw` completes."""
        events: list[ChatEvent] = []
        if self.failure is not None:
            return events
        messages, broken = self._frames.feed(raw)
        handlers = self._handlers
        try:
            for headers, payload in messages:
                if self.finished:
                    break
                handler = handlers.get(headers.get(":event-type", ""))
                if handler is not None:
                    handler(orjson.loads(payload), events)
                elif (failure := _failure((headers, payload))) is not None:
                    self.failure = failure
                    return events
                # Other events are the provider's to add.
        except UNREADABLE as error:
            self.failure = unreadable("stream", error)
            return events
        except MaestroError as error:
            self.failure = error
            return events
        if not self.finished:
            self.failure = broken
        return events

    def end(self) -> list[ChatEvent]:
        """The last events, once the provider ended the stream cleanly. Raises what makes the answer no answer."""
        if self.failure is not None:
            raise self.failure
        if self.finished:
            return []
        if not self._reason or self._frames.partial:
            raise StreamBroken("the provider's stream ended before its answer did")
        return [self._finish()]

    def read(self, document: Json) -> list[ChatEvent]:
        """The events of a unary answer, which is the stream's content in one document."""
        events: list[ChatEvent] = []
        message: Json = document["output"]["message"]
        self._on_message(message, events)
        for position, block in enumerate(message.get("content") or ()):
            self._blocks.read(position, block, events)
        stop = {"stopReason": document.get("stopReason")}
        if (fields := document.get("additionalModelResponseFields")) is not None:
            stop["additionalModelResponseFields"] = fields
        self._on_message_stop(stop, events)
        self._on_metadata(document, events)
        return events

    def _on_message(self, message: Json, events: list[ChatEvent]) -> None:
        blocks, outgoing = self._blocks, self._outgoing
        if blocks.begun:
            raise StreamBroken("the provider's stream began twice")
        blocks.begun = True
        started = Started(response_id=blocks.response_id, provider=PROVIDER, model=outgoing.model, attempt=1)
        events.append(ChatEvent(started=started))
        for warning in outgoing.warnings:
            events.append(ChatEvent(warning=warning))  # noqa: PERF401 - two kinds of events in one list

    def _on_message_stop(self, stop: Json, events: list[ChatEvent]) -> None:
        reason = stop.get("stopReason")
        if not self._blocks.begun or not isinstance(reason, str) or not reason:
            raise StreamBroken("the provider's answer ended without a stop reason")
        self._blocks.close(events)
        self._reason = reason
        self._note(stop)

    def _on_metadata(self, metadata: Json, events: list[ChatEvent]) -> None:
        self._note(metadata)
        if (found := metadata.get("usage")) is not None:
            self._usage = _count(found)
        if self._reason:
            events.append(self._finish())

    def _note(self, found: Json) -> None:
        for name in _FACTS:
            value = found.get(name)
            if value is not None and value != _USUAL.get(name):
                self._facts[name] = value

    def _finish(self) -> ChatEvent:
        reason = FINISH_REASONS.get(self._reason, FinishReason.FINISH_REASON_OTHER)
        if reason == FinishReason.FINISH_REASON_STOP and self._blocks.calls:
            # Some models end their turn with calls in it.
            reason = FinishReason.FINISH_REASON_TOOL_CALLS
        finish = Finish(reason=reason, raw_reason=self._reason, stop_sequence=self._stop_sequence(reason))
        if self._usage is not None:
            # Without any usage on the wire there is none here: the cost is unknown then, not zero.
            finish.usage.CopyFrom(self._usage)
        if self._facts:
            finish.provider_metadata[PROVIDER].CopyFrom(to_struct(self._facts))
        self.finished = True
        return ChatEvent(finish=finish)

    def _stop_sequence(self, reason: FinishReason.ValueType) -> str:
        """The text that was met: the wire tells it on demand only, but of one it must have been that one."""
        if reason != FinishReason.FINISH_REASON_STOP_SEQUENCE:
            return ""
        match self._facts.get("additionalModelResponseFields"):
            case {"stop_sequence": str(told)}:
                return told
            case _:
                pass
        stops = self._outgoing.stops
        return stops[0] if len(stops) == 1 else ""


def to_events(body: bytes, outgoing: Outgoing, response_id: str = "") -> list[ChatEvent]:
    """The events of a unary answer. Raises `StreamBroken` when it can't be read, or the error that it holds."""
    try:
        document: Any = orjson.loads(body)
        if "output" not in document and ("__type" in document or "message" in document):
            raise to_error(200, body, {})
        return Stream(outgoing, response_id).read(document)
    except UNREADABLE as error:
        raise unreadable("answer", error) from error


def _failure(message: Message) -> MaestroError | None:
    headers, payload = message
    match headers.get(":message-type"):
        case "exception":
            return to_stream_error(headers.get(":exception-type", ""), payload)
        case "error":
            return to_stream_error(headers.get(":error-code", ""), payload, headers.get(":error-message", ""))
        case _:
            return None


def _count(usage: Json) -> Usage:
    """The counts, inclusive: the wire counts cached tokens apart from `inputTokens`."""
    read = usage.get("cacheReadInputTokens") or 0
    details: Json = {}
    for entry in usage.get("cacheDetails") or ():
        details = {**details, entry["ttl"]: details.get(entry["ttl"], 0) + entry["inputTokens"]}
    hour = details.get("1h", 0)
    written = max(usage.get("cacheWriteInputTokens") or 0, sum(details.values()))
    return Usage(
        input_tokens=usage["inputTokens"] + read + written,
        cache_read_tokens=read,
        cache_write_5m_tokens=written - hour,
        cache_write_1h_tokens=hour,
        output_tokens=usage["outputTokens"],
    )
