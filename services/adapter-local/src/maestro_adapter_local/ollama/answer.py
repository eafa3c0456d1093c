"""Ollama's answers as events of the contract: the lines of `POST /api/chat`, or its one document."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.embedding_pb2 import Embedding, EmbedResponse
from maestro.llm.v1.message_pb2 import Origin, TokenLogprob, TopLogprob
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_local.ollama.conversation import API
from maestro_adapter_local.ollama.failure import PROVIDER, to_error
from maestro_adapter_local.ollama.request import Outgoing
from maestro_sdk.adapter.toolcalls import PartIndexes, ToolCalls
from maestro_sdk.errors import MaestroError, StreamBroken

FINISH_REASONS: Mapping[str, FinishReason.ValueType] = {
    "stop": FinishReason.FINISH_REASON_STOP,
    "length": FinishReason.FINISH_REASON_LENGTH,
    "tool_calls": FinishReason.FINISH_REASON_TOOL_CALLS,
}
"""Every other word, "load" and "unload" among them, is OTHER, with the word itself in `raw_reason`."""
LONGEST_LINE = 1 << 24
"""Bytes of one line that are kept while it is not complete."""
_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)

Json = Mapping[str, Any]


class Stream:
    """The way back of one request. `feed` takes the stream's bytes as they come, in pieces of any size.

    An error line, and a line that can't be read, do not swallow the events before them: `feed` returns those, and
    `failure` holds the error. `finished` tells that the line with `done` came; a stream without it is broken.
    """

    __slots__ = (
        "_buffer",
        "_calls",
        "_indexes",
        "_outgoing",
        "_probable",
        "_response_id",
        "_started",
        "_thought",
        "_wrote",
        "failure",
        "finished",
    )

    def __init__(self, outgoing: Outgoing, response_id: str) -> None:
        """`response_id` names the answer: Ollama's have no names."""
        self.failure: MaestroError | None = None
        self.finished = False
        self._outgoing = outgoing
        self._response_id = response_id
        self._buffer = b""
        self._indexes = PartIndexes()
        self._calls = ToolCalls(self._indexes, response_id)
        self._probable = False
        self._started = False
        self._thought = -1
        self._wrote = False

    def feed(self, raw: bytes) -> list[ChatEvent]:
        """The events that `raw` completes."""
        events: list[ChatEvent] = []
        lines = (self._buffer + raw if self._buffer else raw).split(b"\n")
        self._buffer = lines.pop()
        for line in lines:
            if self.failure is not None or self.finished:
                break
            self._line(line, events)
        if self.failure is None and not self.finished and len(self._buffer) > LONGEST_LINE:
            self.failure = StreamBroken(f"Ollama sent a line of more than {LONGEST_LINE} bytes")
        return events

    def end(self) -> list[ChatEvent]:
        """The last events. Raises the failure, or `StreamBroken` when the answer is not complete."""
        events: list[ChatEvent] = []
        if self.failure is None and not self.finished and self._buffer:
            # The last line may lack its newline.
            self._line(self._buffer, events)
        if self.failure is not None:
            raise self.failure
        if not self.finished:
            where = "in the middle of its answer" if self._started else "before its answer began"
            raise StreamBroken(f"Ollama stopped {where}, without a line that says it is done")
        return events

    def _line(self, line: bytes, events: list[ChatEvent]) -> None:
        if not line.strip():
            return
        try:
            # Arguments are JSON text: only this reader keeps large integers as they are.
            frame: Any = json.loads(line) if b'"tool_calls"' in line else orjson.loads(line)
            if frame.get("error"):
                self.failure = to_error(200, line, {})
                return
            self._read(frame, events)
        except _UNREADABLE as error:
            self.failure = StreamBroken(f"Ollama's answer can't be read: {type(error).__name__}: {error}")

    def _read(self, frame: Json, events: list[ChatEvent]) -> None:
        message: Json = frame.get("message") or {}
        if not self._started:
            self._begin(events)
        if thought := message.get("thinking"):
            self._think(thought, events)
        if text := message.get("content"):
            self._wrote = True
            piece = TextDelta(index=self._indexes.get("text"), text=text)
            if probable := frame.get("logprobs"):
                self._probable = True
                piece.logprobs.extend(_logprob(entry) for entry in probable)
            events.append(ChatEvent(text=piece))
        for call in message.get("tool_calls") or ():
            function: Json = call["function"]
            # Whole calls, all with the index 0 in some versions: each one is a call of its own.
            events.append(self._calls.whole(call.get("id") or "", function["name"], _arguments(function)))
        if frame.get("done"):
            self._finish(frame, events)

    def _begin(self, events: list[ChatEvent]) -> None:
        self._started = True
        started = Started(response_id=self._response_id, provider=PROVIDER, model=self._outgoing.model, attempt=1)
        events.append(ChatEvent(started=started))
        events += [ChatEvent(warning=warning) for warning in self._outgoing.warnings]

    def _think(self, thought: str, events: list[ChatEvent]) -> None:
        self._thought = self._indexes.get("reasoning")
        events.append(ChatEvent(reasoning=ReasoningDelta(index=self._thought, text=thought)))

    def _finish(self, frame: Json, events: list[ChatEvent]) -> None:
        self.finished = True
        if self._thought >= 0:
            # Says whose reasoning it is: only Ollama gets it back.
            origin = Origin(provider=PROVIDER, api=API, model=self._outgoing.model)
            events.append(ChatEvent(part_state=PartState(index=self._thought, origin=origin)))
        if self._outgoing.logprobs and self._wrote and not self._probable:
            message = "logprobs: the server returned none; Ollama does from version 0.12.11 on"
            events.append(ChatEvent(warning=Warning(code="unsupported_parameter", message=message, field="logprobs")))
        raw = str(frame.get("done_reason") or "")
        reason = FINISH_REASONS.get(raw, FinishReason.FINISH_REASON_OTHER)
        if self._calls.count and reason == FinishReason.FINISH_REASON_STOP:
            # Ollama says "stop" with calls too.
            reason = FinishReason.FINISH_REASON_TOOL_CALLS
        finish = Finish(reason=reason, raw_reason=raw)
        if "prompt_eval_count" in frame or "eval_count" in frame:
            # A count is missing where nothing was read or written.
            finish.usage.CopyFrom(to_usage(frame))
        facts = {name: frame[name] for name in _DURATIONS if frame.get(name)}
        model = frame.get("model")
        if model and model != self._outgoing.model:
            facts["model"] = model
        if facts:
            finish.provider_metadata[PROVIDER].update(facts)
        events.append(ChatEvent(finish=finish))


def to_events(body: bytes, outgoing: Outgoing, response_id: str) -> list[ChatEvent]:
    """The events of an answer that came as a whole. Raises `StreamBroken`, or the error that it holds."""
    stream = Stream(outgoing, response_id)
    # One document is one line, however it is laid out.
    return [*stream.feed(body.replace(b"\n", b" ") + b"\n"), *stream.end()]


def to_usage(frame: Json) -> Usage:
    """The wire's counts. What was read from the cache of the last prompt is not told apart."""
    return Usage(input_tokens=frame.get("prompt_eval_count") or 0, output_tokens=frame.get("eval_count") or 0)


def to_embeddings(body: bytes, outgoing: Outgoing) -> EmbedResponse:
    """The vectors of an answer to `POST /api/embed`, in the order of the inputs. Raises `StreamBroken`."""
    try:
        document: Any = orjson.loads(body)
        if document.get("error"):
            raise to_error(200, body, {})
        vectors: list[list[float]] = document["embeddings"]
        response = EmbedResponse(
            provider=PROVIDER,
            model=outgoing.model,
            embeddings=[Embedding(index=index, values=values) for index, values in enumerate(vectors)],
            warnings=outgoing.warnings,
        )
        if "prompt_eval_count" in document:
            if document["prompt_eval_count"] < 0:
                raise ValueError("the usage is negative")
            response.usage.input_tokens = document["prompt_eval_count"]
    except _UNREADABLE as error:
        raise StreamBroken(f"Ollama's vectors can't be read: {type(error).__name__}: {error}") from error
    return response


def _arguments(function: Json) -> str:
    """The arguments as JSON text: an object on this wire, text in servers that only resemble Ollama."""
    arguments: Any = function.get("arguments")
    if isinstance(arguments, str):
        return arguments
    if arguments is None:
        return "{}"
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))


def _logprob(entry: Json) -> TokenLogprob:
    return TokenLogprob(
        token=entry["token"],
        logprob=entry["logprob"],
        utf8=bytes(entry.get("bytes") or ()),
        top=[TopLogprob(token=top["token"], logprob=top["logprob"]) for top in entry.get("top_logprobs") or ()],
    )
