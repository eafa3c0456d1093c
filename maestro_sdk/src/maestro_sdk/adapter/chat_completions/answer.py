"""From the wire to the contract: the chunks of a stream, or one whole completion, become events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    Finish,
    FinishReason,
    ReasoningDelta,
    Started,
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.message_pb2 import Citation, Part, RefusalPart, TokenLogprob, TopLogprob
from maestro.llm.v1.usage_pb2 import Headroom, Usage
from maestro_sdk.adapter.chat_completions.dialect import Dialect
from maestro_sdk.adapter.chat_completions.failure import stream_error
from maestro_sdk.adapter.fold import merge_usage
from maestro_sdk.adapter.headroom import headroom
from maestro_sdk.adapter.sse import SseParser
from maestro_sdk.adapter.toolcalls import PartIndexes, ToolCalls
from maestro_sdk.errors import StreamBroken, UpstreamError

_REASONS: Mapping[str, FinishReason.ValueType] = {
    "stop": FinishReason.FINISH_REASON_STOP,
    "length": FinishReason.FINISH_REASON_LENGTH,
    "tool_calls": FinishReason.FINISH_REASON_TOOL_CALLS,
    "function_call": FinishReason.FINISH_REASON_TOOL_CALLS,
    "content_filter": FinishReason.FINISH_REASON_CONTENT_FILTER,
}

_BARE = frozenset({"content", "role"})
"""The keys of a delta that is text and nothing else; some servers repeat the role in each."""
_SEVERITIES = ("safe", "low", "medium", "high")


class Stream:
    """One answer: `feed` takes bytes as they come, `end` says that no more will come; the last event is `finish`."""

    __slots__ = (
        "_calls",
        "_dialect",
        "_fallback_id",
        "_filters",
        "_headroom",
        "_indexes",
        "_metadata",
        "_model",
        "_parser",
        "_raw_reason",
        "_refusal",
        "_started",
        "_stop_sequence",
        "_text_index",
        "_tool_names",
        "_usage",
        "_warnings",
        "finished",
    )

    def __init__(
        self,
        dialect: Dialect,
        model: str,
        *,
        warnings: Sequence[Warning] = (),
        fallback_id: str = "response",
        tool_names: Mapping[str, str] | None = None,
    ) -> None:
        """`model` is the name that was asked for; `fallback_id` names the answer where the server does not.

        `tool_names` are those of the `WireRequest`: the contract's names by the wire's.
        """
        self._tool_names: Mapping[str, str] = tool_names or {}
        self._dialect = dialect
        self._model = model
        self._warnings = warnings
        self._fallback_id = fallback_id
        self._parser = SseParser()
        self._indexes = PartIndexes()
        self._calls = ToolCalls(self._indexes, fallback_id)
        self._filters: dict[str, dict[str, Any]] = {}
        self._headroom: Headroom | None = None
        self._metadata: dict[str, Any] = {}
        self._raw_reason = ""
        self._refusal: list[str] = []
        self._started = False
        self._stop_sequence = ""
        self._text_index = -1
        self._usage: Usage | None = None
        self.finished = False
        """Whether `finish` was given out; what comes after it does not belong to the answer."""

    def hear(self, headers: Mapping[str, str]) -> None:
        """Takes the headers of the answer; call it before the events, or not at all."""
        for name, fact in self._dialect.metadata_headers.items():
            if value := headers.get(name):
                self._metadata[fact] = value
        self._headroom = headroom(headers, time.time())

    def feed(self, data: bytes) -> list[ChatEvent]:
        """The events that `data` completes.

        Raises what an error inside the stream means, and `StreamBroken` for what can't be read. What came before it in
        the same `data` is not given out: as nobody has seen it, another backend may still answer.
        """
        events: list[ChatEvent] = []
        for event in self._parser.feed(data):
            if self.finished:
                break
            if event.data == b"[DONE]":
                self._finish(events)
            else:
                self._read(event.data, events)
        return events

    def end(self) -> list[ChatEvent]:
        """The last events. Raises `StreamBroken` unless the server gave a reason why the answer is over.

        Servers may leave out `[DONE]`, and even the newline behind the last event, but never the finish reason.
        """
        if self.finished:
            return []
        events = self.feed(b"\n\n") if self._parser.pending else []
        if not self.finished:
            self._finish(events)
        return events

    def whole(self, body: bytes) -> list[ChatEvent]:
        """All events of a completion that came as a whole: the same that its stream would have given."""
        events: list[ChatEvent] = []
        self._read(body, events)
        self._finish(events)
        return events

    def _read(self, data: bytes, events: list[ChatEvent]) -> None:
        try:
            chunk: Any = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise StreamBroken(f"{self._dialect.provider} sent something that is not JSON: {error}") from error
        try:
            self._chunk(chunk, events)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            message = f"{self._dialect.provider} sent JSON that can't be read as a chat completion: {error}"
            raise StreamBroken(message) from error

    def _chunk(self, chunk: Mapping[str, Any], events: list[ChatEvent]) -> None:
        choices = chunk.get("choices")
        if not choices:
            self._bare(chunk, events)
            return
        if not self._started:
            self._start(chunk, events)
        if chunk.get("error"):
            raise stream_error(chunk["error"], self._dialect.provider)
        if usage := chunk.get("usage"):
            self._count(usage, events)
        choice = choices[0]
        if choice.get("index"):
            return
        if self._dialect.content_filters and (found := choice.get("content_filter_results")):
            self._filter(found)
        delta = choice.get("delta")
        if delta is None:
            delta = choice.get("message")
        if delta:
            text = delta.get("content")
            if text and self._text_index >= 0 and delta.keys() <= _BARE and not choice.get("logprobs"):
                # Nearly all of an answer.
                events.append(_text(self._text_index, text))
            else:
                self._delta(delta, choice, events)
        if reason := choice.get("finish_reason"):
            self._end(str(reason), choice, chunk)

    def _bare(self, chunk: Mapping[str, Any], events: list[ChatEvent]) -> None:
        """A chunk without choices: usage, an error, or facts such as the results of a filter on the prompt."""
        error = chunk.get("error") or (chunk if chunk.get("object") == "error" else None)
        if error:
            raise stream_error(error, self._dialect.provider)
        if usage := chunk.get("usage"):
            self._count(usage, events)
        self._note(chunk)

    def _start(self, chunk: Mapping[str, Any], events: list[ChatEvent]) -> None:
        self._started = True
        response_id = str(chunk.get("id") or self._fallback_id)
        self._calls = ToolCalls(self._indexes, response_id)
        events.append(
            ChatEvent(
                started=Started(response_id=response_id, provider=self._dialect.provider, model=self._model, attempt=1)
            )
        )
        events += [ChatEvent(warning=warning) for warning in self._warnings]
        self._note(chunk)

    def _delta(self, delta: Mapping[str, Any], choice: Mapping[str, Any], events: list[ChatEvent]) -> None:
        for name in self._dialect.reasoning_fields:
            if thought := delta.get(name):
                index = self._indexes.get("reasoning")
                events.append(ChatEvent(reasoning=ReasoningDelta(index=index, text=thought)))
                break
        text = delta.get("content")
        logprobs = choice.get("logprobs")
        annotations = delta.get("annotations")
        if text or annotations or (logprobs and logprobs.get("content")):
            if self._text_index < 0:
                self._text_index = self._indexes.get("text")
            event = _text(self._text_index, text or "")
            if logprobs:
                event.text.logprobs.extend(_logprobs(logprobs.get("content") or ()))
            if annotations:
                event.text.citations.extend(_citations(annotations))
            events.append(event)
        if refusal := delta.get("refusal"):
            if not self._refusal:
                self._indexes.get("refusal")
            self._refusal.append(refusal)
        for position, call in enumerate(delta.get("tool_calls") or ()):
            if call.get("type") not in (None, "", "function"):
                raise StreamBroken(f"{self._dialect.provider} called a tool of the unknown type {call['type']!r}")
            function = call.get("function") or {}
            index = call.get("index")
            name: str = function.get("name") or ""
            events.append(
                self._calls.delta(
                    position if index is None else index,
                    call.get("id") or "",
                    self._tool_names.get(name, name),
                    function.get("arguments") or "",
                )
            )

    def _end(self, reason: str, choice: Mapping[str, Any], chunk: Mapping[str, Any]) -> None:
        if reason == "error":
            raise UpstreamError(f"{self._dialect.provider} ended the answer with an unnamed error; try again")
        self._raw_reason = reason
        # vLLM tells which stop text was met; a number there is a token.
        stop = choice.get("stop_reason")
        if isinstance(stop, str):
            self._stop_sequence = stop
        self._note(chunk)

    def _count(self, usage: Mapping[str, Any], events: list[ChatEvent]) -> None:
        latest = to_usage(usage)
        if self._usage is None:
            self._usage = latest
        else:
            merge_usage(self._usage, latest)
        if self._started and not self._raw_reason and not self.finished:
            # Told on the way, so that a stream that breaks later has been counted as far as it came.
            event = ChatEvent()
            event.usage.CopyFrom(self._usage)
            events.append(event)

    def _filter(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps the worst that the filters found: they judge each piece of a stream on its own."""
        for kind, result in found.items():
            known = self._filters.get(kind)
            if known is None or _badness(result) >= _badness(known):
                self._filters[kind] = dict(result)

    def _note(self, chunk: Mapping[str, Any]) -> None:
        for name in self._dialect.metadata_fields:
            if value := chunk.get(name):
                self._metadata[name] = value if isinstance(value, list | dict) else str(value)
        # A name such as gpt-4o may be answered by a dated version.
        model = chunk.get("model")
        if model and model != self._model:
            self._metadata["model"] = str(model)

    def _finish(self, events: list[ChatEvent]) -> None:
        if not self._raw_reason:
            where = "in the middle of its answer" if self._started else "before its answer began"
            raise StreamBroken(f"{self._dialect.provider} stopped {where}, without a finish_reason")
        if self._refusal:
            index = self._indexes.get("refusal")
            events.append(ChatEvent(part=Part(index=index, refusal=RefusalPart(text="".join(self._refusal)))))
        finish = Finish(
            reason=self._reason(),
            raw_reason=self._raw_reason,
            stop_sequence=self._stop_sequence,
            headroom=self._headroom,
        )
        if self._usage is not None:
            finish.usage.CopyFrom(self._usage)
        if self._filters:
            self._metadata["content_filter_results"] = self._filters
        if self._metadata:
            finish.provider_metadata[self._dialect.provider].update(self._metadata)
        events.append(ChatEvent(finish=finish))
        self.finished = True

    def _reason(self) -> FinishReason.ValueType:
        """Why the answer is over.

        "stop" is said too when a named tool was called or the model refused; what the answer holds then decides.
        Any other word stands as it is: a call that was cut by "length" is not a call.
        """
        reason = _REASONS.get(self._raw_reason, FinishReason.FINISH_REASON_OTHER)
        if reason != FinishReason.FINISH_REASON_STOP:
            return reason
        if self._calls.count:
            return FinishReason.FINISH_REASON_TOOL_CALLS
        if self._refusal:
            return FinishReason.FINISH_REASON_REFUSAL
        if self._stop_sequence:
            return FinishReason.FINISH_REASON_STOP_SEQUENCE
        return reason


def answer(
    body: bytes,
    dialect: Dialect,
    model: str,
    *,
    warnings: Sequence[Warning] = (),
    fallback_id: str = "response",
    tool_names: Mapping[str, str] | None = None,
) -> list[ChatEvent]:
    """The events of a completion that came as a whole."""
    stream = Stream(dialect, model, warnings=warnings, fallback_id=fallback_id, tool_names=tool_names)
    return stream.whole(body)


def to_usage(usage: Mapping[str, Any]) -> Usage:
    """The wire's usage, whose totals contain their details as the contract's do."""
    read: Mapping[str, int] = usage.get("prompt_tokens_details") or {}
    made: Mapping[str, int] = usage.get("completion_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("prompt_tokens") or 0,
        cache_read_tokens=read.get("cached_tokens") or 0,
        # The wire does not tell for how long; the contract counts a provider's default time here.
        cache_write_5m_tokens=read.get("cache_write_tokens") or 0,
        audio_input_tokens=read.get("audio_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or 0,
        reasoning_tokens=made.get("reasoning_tokens") or 0,
        audio_output_tokens=made.get("audio_tokens") or 0,
    )


def _text(index: int, text: str) -> ChatEvent:
    # Filled in place: a message that is given to another one is copied.
    event = ChatEvent()
    delta = event.text
    delta.text = text
    if index:
        delta.index = index
    return event


def _badness(result: Mapping[str, Any]) -> tuple[bool, bool, int]:
    """How bad a filter's result is: what was held back is worst, then what was detected, then the severity."""
    severity = result.get("severity")
    place = _SEVERITIES.index(severity) if severity in _SEVERITIES else 0
    return bool(result.get("filtered")), bool(result.get("detected")), place


def _logprobs(tokens: Sequence[Mapping[str, Any]]) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            token=token["token"],
            logprob=token["logprob"],
            utf8=bytes(token.get("bytes") or ()),
            top=[TopLogprob(token=top["token"], logprob=top["logprob"]) for top in token.get("top_logprobs") or ()],
        )
        for token in tokens
    ]


def _citations(annotations: Sequence[Mapping[str, Any]]) -> list[Citation]:
    # The wire's places are places in the answer, the contract's are places in the source: they are left out.
    sources = [note["url_citation"] for note in annotations if note.get("type") == "url_citation"]
    return [Citation(title=source.get("title") or "", url=source.get("url") or "") for source in sources]
