"""Gemini's answers as events of the contract: the stream of `:streamGenerateContent?alt=sse`, and the unary one."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
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
from maestro.llm.v1.message_pb2 import AudioPart, ImagePart, OpaquePart, Origin, Part, TokenLogprob
from maestro_adapter_vertex.conversation import API
from maestro_adapter_vertex.facts import Counts, citations, provider_facts, to_logprobs
from maestro_adapter_vertex.failure import UNREADABLE, to_error, unreadable
from maestro_adapter_vertex.models import PROVIDER
from maestro_adapter_vertex.partial import PartialCall
from maestro_adapter_vertex.request import Outgoing
from maestro_sdk.adapter.facts import to_struct
from maestro_sdk.adapter.sse import SseParser
from maestro_sdk.errors import ContentPolicy, MaestroError, StreamBroken

FINISH_REASONS: dict[str, FinishReason.ValueType] = {
    "STOP": FinishReason.FINISH_REASON_STOP,
    # Not a word of the provider; servers that speak its wire say it for calls.
    "FUNCTION_CALL": FinishReason.FINISH_REASON_TOOL_CALLS,
    "MAX_TOKENS": FinishReason.FINISH_REASON_LENGTH,
    # The output limit of one request was met; the continuation token is in the metadata.
    "CONTINUATION": FinishReason.FINISH_REASON_LENGTH,
    "SAFETY": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "RECITATION": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "LANGUAGE": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "BLOCKLIST": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "PROHIBITED_CONTENT": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "SPII": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "IMAGE_SAFETY": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "IMAGE_PROHIBITED_CONTENT": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "IMAGE_RECITATION": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "ESCALATION": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "MODEL_ARMOR": FinishReason.FINISH_REASON_CONTENT_FILTER,
    "MALFORMED_FUNCTION_CALL": FinishReason.FINISH_REASON_MALFORMED,
    "MALFORMED_RESPONSE": FinishReason.FINISH_REASON_MALFORMED,
    "UNEXPECTED_TOOL_CALL": FinishReason.FINISH_REASON_MALFORMED,
}
"""Every other word is OTHER, with the word itself in `raw_reason`."""

Json = Mapping[str, Any]


class Stream:
    """The way back of one request. `feed` takes the stream's bytes as they come, in pieces of any size.

    The wire has no last event, only a finish reason that more may follow; so `finish` comes from `end`, when the bytes
    are over. An error inside the stream, and a frame that can't be read, do not swallow the events before them: `feed`
    returns those, and `failure` holds the error. `stopped` tells that a finish reason came.
    """

    __slots__ = (
        "_call",
        "_calls",
        "_cited",
        "_counts",
        "_facts",
        "_name",
        "_next",
        "_origin",
        "_outgoing",
        "_plain",
        "_run",
        "_sse",
        "_started",
        "_text",
        "_told",
        "failure",
        "reason",
    )

    def __init__(self, outgoing: Outgoing, name: str = "answer") -> None:
        """`name` identifies the answer where the provider gives it no id."""
        self.failure: MaestroError | None = None
        self.reason = ""
        self._outgoing = outgoing
        self._name = name
        self._sse = SseParser()
        self._plain: bytes | None = b""
        self._started = False
        self._next = 0
        self._run: tuple[str, int] | None = None  # kind and index of the part that text still joins
        self._text: int | None = None  # index of the last text, which sources belong to
        self._calls = 0
        self._call: PartialCall | None = None
        self._counts = Counts()
        self._told = False
        self._facts: dict[str, Any] = {}
        self._cited: set[tuple[str, str]] = set()
        self._origin = Origin(provider=PROVIDER, api=API, model=outgoing.model)

    @property
    def stopped(self) -> bool:
        """Whether a finish reason came."""
        return bool(self.reason)

    def feed(self, raw: bytes) -> list[ChatEvent]:
        """The events that `raw` completes."""
        events: list[ChatEvent] = []
        if self.failure is not None:
            return events
        if self._plain is not None:
            raw = self._stream_bytes(raw)
        try:
            for _, data in self._sse.feed(raw):
                if data != b"[DONE]":
                    self._on_frame(orjson.loads(data), data, events)
        except MaestroError as error:
            self.failure = error
        except UNREADABLE as error:
            self.failure = unreadable("stream", error)
        return events

    def end(self) -> list[ChatEvent]:
        """The last events, once the bytes are over. Raises the failure, or `StreamBroken` for an incomplete answer."""
        if self.failure is None and self._plain and b'"error"' in self._plain:
            # Refusals within a stream may come as the plain document that a unary call gets.
            self.failure = to_error(200, self._plain, {})
        if self.failure is not None:
            raise self.failure
        if not self._started or not self.reason:
            raise StreamBroken("the provider's stream ended without a finish reason")
        events: list[ChatEvent] = []
        try:
            self._close_call(events)
            events.append(self._finish())
        except UNREADABLE as error:
            raise unreadable("stream", error) from error
        return events

    def read(self, document: Json) -> list[ChatEvent]:
        """The events of a unary answer: the same that its stream would have brought."""
        events: list[ChatEvent] = []
        self._on_frame(document, b"", events)
        return [*events, *self.end()]

    def _stream_bytes(self, raw: bytes) -> bytes:
        """All bytes so far once the first one tells that they are events; none, and they are kept, before that."""
        known = (self._plain or b"") + raw
        is_plain = known.lstrip()[:1] in (b"{", b"[", b"")
        self._plain = known if is_plain else None
        return b"" if is_plain else known

    def _on_frame(self, frame: Any, data: bytes, events: list[ChatEvent]) -> None:
        if "error" in frame:
            raise to_error(200, data or orjson.dumps(frame), {})
        if not self._started:
            self._begin(frame, events)
        self._facts.update((name, frame[name]) for name in ("promptFeedback", "modelVersion") if name in frame)
        self._counts.take(frame.get("usageMetadata"))
        if not self._told and self._counts.known:
            self._told = True
            events.append(ChatEvent(usage=self._counts.usage()))
        candidates: Sequence[Json] = frame.get("candidates") or ()
        for candidate in candidates:
            # Only one was asked for.
            if not candidate.get("index"):
                self._on_candidate(candidate, events)
        if not candidates:
            self._check_blocked(frame)

    def _begin(self, frame: Json, events: list[ChatEvent]) -> None:
        self._started = True
        self._name = frame.get("responseId") or self._name
        outgoing = self._outgoing
        started = Started(response_id=self._name, provider=PROVIDER, model=outgoing.model, attempt=1)
        events.append(ChatEvent(started=started))
        for warning in outgoing.warnings:
            events.append(ChatEvent(warning=warning))  # noqa: PERF401 - two kinds of events in one list

    @staticmethod
    def _check_blocked(frame: Json) -> None:
        feedback: Json = frame.get("promptFeedback") or {}
        if word := feedback.get("blockReason"):
            told = feedback.get("blockReasonMessage") or "the prompt was blocked"
            metadata = {"provider": PROVIDER, "upstream_status": "200", "upstream_code": str(word)}
            raise ContentPolicy(f"Vertex AI: {told} ({word})", metadata=metadata)

    def _on_candidate(self, candidate: Json, events: list[ChatEvent]) -> None:
        logprobs = to_logprobs(candidate.get("logprobsResult"))
        content: Json = candidate.get("content") or {}
        for part in content.get("parts") or ():
            if logprobs and "text" in part and not part.get("thought"):
                self._on_text(part, events, logprobs)
                logprobs = []
            else:
                self._on_part(part, events)
        if logprobs and self._run is not None and self._run[0] == "text":
            events.append(ChatEvent(text=TextDelta(index=self._run[1], logprobs=logprobs)))
        self._cite(candidate, events)
        for name, value in candidate.items():
            if name not in {"content", "finishReason", "index", "logprobsResult", "citationMetadata"}:
                self._facts[name] = value
        if reason := candidate.get("finishReason"):
            self.reason = str(reason)

    def _on_part(self, part: Json, events: list[ChatEvent]) -> None:
        if "functionCall" in part:
            self._on_call(part["functionCall"], part, events)
        elif "text" in part:
            self._on_text(part, events, ())
        elif "inlineData" in part and (made := _media(part["inlineData"])) is not None:
            made.index = self._index()
            events.append(ChatEvent(part=made))
            self._sign(made.index, part, events)
        elif set(part) - {"thoughtSignature", "thought"}:
            # Code that the provider ran, its result, and whatever it learns to send: back it goes as it came.
            opaque = OpaquePart(json=orjson.dumps(part).decode())
            events.append(ChatEvent(part=Part(index=self._index(), opaque=opaque, origin=self._origin)))
        elif "thoughtSignature" in part:
            self._on_text({"text": "", **part}, events, ())

    def _on_text(self, part: Json, events: list[ChatEvent], logprobs: Sequence[TokenLogprob]) -> None:
        text: str = part["text"]
        signed = "thoughtSignature" in part
        if not text and not signed and not logprobs:
            return
        kind = "thought" if part.get("thought") else "text"
        # What is signed stands alone: joined to its neighbours it could not go back as it came.
        if self._run is None or self._run[0] != kind or signed:
            self._close_call(events)
            self._run = (kind, self._next)
            self._next += 1
        index = self._run[1]
        if kind == "thought":
            # The provider shows summaries of thoughts, never the thoughts.
            events.append(ChatEvent(reasoning=ReasoningDelta(index=index, text=text, summary=True)))
        else:
            self._text = index
            events.append(ChatEvent(text=TextDelta(index=index, text=text, logprobs=logprobs)))
        if signed:
            self._sign(index, part, events)
            self._run = None

    def _on_call(self, call: Json, part: Json, events: list[ChatEvent]) -> None:
        name: str = call.get("name") or ""
        call_id: str = call.get("id") or ""
        pieces: Sequence[Json] = call.get("partialArgs") or ()
        known = self._call
        if known is not None and (name or (call_id and call_id != known.call_id)):
            self._close_call(events)
            known = None
        if known is None:
            if not name:
                if not call_id and not pieces:
                    return  # the end of a call that has ended
                raise StreamBroken("the provider's stream goes on with a call that never began")
            known = self._begin_call(name, call_id, call, part, events)
            if self._call is None:
                return
        for piece in pieces:
            known.add(piece)
        self._sign(known.index, part, events)
        if not call.get("willContinue"):
            self._close_call(events)

    def _begin_call(self, name: str, call_id: str, call: Json, part: Json, events: list[ChatEvent]) -> PartialCall:
        """A call that begins; it is the one under way unless it came whole, as nearly all do."""
        self._calls += 1
        begun = PartialCall(self._index(), call_id, call.get("args") or {})
        delta = ToolCallDelta(
            index=begun.index,
            call_id=call_id or f"call_{self._name}_{self._calls}",
            name=self._outgoing.tool_names.get(name, name),
        )
        if call.get("partialArgs") or call.get("willContinue"):
            self._call = begun
            events.append(ChatEvent(tool_call=delta))
        else:
            delta.arguments_json = begun.text()
            events.append(ChatEvent(tool_call=delta))
            self._sign(begun.index, part, events)
        return begun

    def _close_call(self, events: list[ChatEvent]) -> None:
        if self._call is not None:
            delta = ToolCallDelta(index=self._call.index, arguments_json=self._call.text())
            events.append(ChatEvent(tool_call=delta))
            self._call = None

    def _index(self) -> int:
        """The index of a new part that is not text."""
        self._run = None
        self._next += 1
        return self._next - 1

    def _sign(self, index: int, part: Json, events: list[ChatEvent]) -> None:
        if signature := part.get("thoughtSignature"):
            state = PartState(index=index, origin=self._origin, provider_state=signature.encode())
            events.append(ChatEvent(part_state=state))

    def _cite(self, candidate: Json, events: list[ChatEvent]) -> None:
        found = [one for one in citations(candidate) if (one.url, one.title) not in self._cited]
        if not found:
            return
        self._cited.update((one.url, one.title) for one in found)
        if self._text is None:
            self._text = self._index()
        events.append(ChatEvent(text=TextDelta(index=self._text, citations=found)))

    def _finish(self) -> ChatEvent:
        reason = FINISH_REASONS.get(self.reason, FinishReason.FINISH_REASON_OTHER)
        if self._calls and reason == FinishReason.FINISH_REASON_STOP:
            # The provider says STOP for calls too, maybe long after the call.
            reason = FinishReason.FINISH_REASON_TOOL_CALLS
        finish = Finish(reason=reason, raw_reason=self.reason)
        if self._counts.known:
            # Without any usage on the wire there is none here: the cost is unknown then, not zero.
            finish.usage.CopyFrom(self._counts.usage())
        if facts := provider_facts(self._facts, self._counts, self._outgoing.model):
            finish.provider_metadata[PROVIDER].CopyFrom(to_struct(facts))
        return ChatEvent(finish=finish)


def to_events(body: bytes, outgoing: Outgoing, name: str = "answer") -> list[ChatEvent]:
    """The events of a unary answer. Raises `StreamBroken` when it can't be read, or the error that it holds."""
    try:
        document: Any = orjson.loads(body)
        if isinstance(document, list):
            raise to_error(200, body, {})
        return Stream(outgoing, name).read(document)
    except UNREADABLE as error:
        raise unreadable("answer", error) from error


def _media(blob: Json) -> Part | None:
    kind: str = blob.get("mimeType") or ""
    if kind.startswith("image/"):
        return Part(image=ImagePart(data=b64decode(blob["data"]), mime_type=kind))
    if kind.startswith("audio/"):
        return Part(audio=AudioPart(data=b64decode(blob["data"]), mime_type=kind))
    return None
