"""Answers in the shape of OpenAI's chat completions: a document, or chunks. Pure.

What that shape has no place for (provider, route, attempts, cost, warnings) stands under `maestro`, which OpenAI's
clients pass over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from google.protobuf.struct_pb2 import Struct

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatResponse,
    Finish,
    FinishReason,
    Started,
    ToolCallDelta,
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.message_pb2 import Citation, Part, TokenLogprob
from maestro.llm.v1.usage_pb2 import Usage
from maestro_gateway.dialect import facts, foreign_to, warnings_data
from maestro_gateway.json_codec.answer import PING
from maestro_gateway.openai.request import OWN, Asked
from maestro_sdk.adapter.fold import merge_usage
from maestro_sdk.errors import MaestroError

DONE = b"data: [DONE]\n\n"
_REASONS: Mapping[FinishReason.ValueType, str] = {
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_STOP_SEQUENCE: "stop",
    FinishReason.FINISH_REASON_PAUSED: "stop",
    FinishReason.FINISH_REASON_REFUSAL: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
    FinishReason.FINISH_REASON_CONTEXT_WINDOW: "length",
    FinishReason.FINISH_REASON_TOOL_CALLS: "tool_calls",
    FinishReason.FINISH_REASON_CONTENT_FILTER: "content_filter",
}
_dumps = orjson.dumps


def encode_completion(response: ChatResponse, asked: Asked, route: str, created: int) -> bytes:
    """The unary answer; `created` is Unix time in seconds, `route` is empty when the model was named directly."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    texts: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    logprobs: list[TokenLogprob] = []
    for part in response.parts:
        match part.WhichOneof("kind"):
            case "text":
                texts.append(part.text.text)
                logprobs.extend(part.text.logprobs)
                if part.text.citations:
                    annotations += _annotations(part.text.citations)
            case "refusal":
                refusals.append(part.refusal.text)
            case "reasoning":
                thoughts.append(part.reasoning.text)
            case "tool_call":
                calls.append(_call(part))
            case _:
                pass  # Has no place in this shape.
    if texts:
        message["content"] = "".join(texts)
    if refusals:
        message["refusal"] = "".join(refusals)
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    if annotations:
        message["annotations"] = annotations
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": _logprobs(logprobs), "refusal": None} if logprobs else None,
        "finish_reason": _REASONS.get(response.finish_reason, "other"),
    }
    return _dumps(
        {
            "id": response.response_id,
            "object": "chat.completion",
            "created": created,
            "model": f"{response.provider}/{response.model}",
            "choices": [choice],
            "usage": _usage(response.usage),
            "system_fingerprint": None,
            **_served(asked, response.provider, response.provider_metadata),
            "maestro": facts(
                response.provider,
                response.attempt,
                route,
                response.cost if response.HasField("cost") else None,
                _warnings(asked, response.provider, response.warnings),
            ),
        }
    )


class Chunks:
    """Turns the events of one answer into chunks as server-sent events."""

    __slots__ = ("_asked", "_bare", "_calls", "_created", "_head", "_started", "_usage", "_warnings", "route")

    def __init__(self, asked: Asked, created: int) -> None:
        self._asked = asked
        self._created = created
        self._started = Started()
        self._head: dict[str, Any] = {}
        # The place of each call among the calls, by the index of its part.
        self._calls: dict[int, int] = {}
        # Parts of calls that had no arguments so far.
        self._bare: set[int] = set()
        self._usage = Usage()
        self._warnings: list[Warning] = []
        self.route = ""
        """Empty when the model was named directly."""

    def frames(self, events: Iterable[ChatEvent]) -> bytes:
        """The chunks of some events; `[DONE]` follows the last one."""
        found: list[bytes] = []
        for event in events:
            match event.WhichOneof("kind"):
                case "text":
                    delta = event.text
                    tokens = {"content": _logprobs(delta.logprobs), "refusal": None} if delta.logprobs else None
                    said: dict[str, Any] = {"content": delta.text}
                    if delta.citations:
                        said["annotations"] = _annotations(delta.citations)
                    found.append(self._chunk(said, logprobs=tokens))
                case "reasoning":
                    found.append(self._chunk({"reasoning_content": event.reasoning.text}))
                case "tool_call":
                    found.append(self._chunk({"tool_calls": [self._call(event.tool_call)]}))
                case "part":
                    found += self._part(event.part)
                case "started":
                    self._begin(event.started)
                    found.append(self._chunk({"role": "assistant", "content": "", "refusal": None}))
                case "usage":
                    merge_usage(self._usage, event.usage)
                case "warning":
                    self._warnings.append(event.warning)
                case "finish":
                    found += self._finish(event.finish)
                case _:
                    pass  # Has no place in this shape.
        return b"".join(found)

    def idle(self) -> bytes:
        """A sign of life."""
        return PING

    def error(self, error: MaestroError, request_id: str) -> bytes:
        """The event of an error that ends a stream; no `[DONE]` follows."""
        return b"data: %b\n\n" % encode_error(error, request_id)

    def _begin(self, started: Started) -> None:
        self._started = started
        self._head = {
            "id": started.response_id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": f"{started.provider}/{started.model}",
            "system_fingerprint": None,
        }

    def _chunk(self, delta: Mapping[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._frame({"choices": [choice]})

    def _frame(self, body: Mapping[str, Any]) -> bytes:
        # With usage asked for, every chunk has the field, and it is null until the last one.
        usage = {"usage": None} if self._asked.include_usage and "usage" not in body else {}
        return b"data: %b\n\n" % _dumps({**self._head, **body, **usage})

    def _call(self, call: ToolCallDelta) -> dict[str, Any]:
        place = self._calls.get(call.index)
        if call.arguments_json:
            self._bare.discard(call.index)
        elif place is None:
            self._bare.add(call.index)
        if place is None:
            place = self._calls[call.index] = len(self._calls)
            function = {"name": call.name, "arguments": call.arguments_json}
            return {"index": place, "id": call.call_id, "type": "function", "function": function}
        return {"index": place, "function": {"arguments": call.arguments_json}}

    def _part(self, part: Part) -> list[bytes]:
        match part.WhichOneof("kind"):
            case "text":
                said: dict[str, Any] = {"content": part.text.text}
                if part.text.citations:
                    said["annotations"] = _annotations(part.text.citations)
                return [self._chunk(said)]
            case "refusal":
                return [self._chunk({"refusal": part.refusal.text})]
            case "reasoning":
                return [self._chunk({"reasoning_content": part.reasoning.text})]
            case "tool_call" if part.index not in self._calls:
                place = self._calls[part.index] = len(self._calls)
                return [self._chunk({"tool_calls": [{"index": place, **_call(part)}]})]
            case _:
                return []

    def _finish(self, finish: Finish) -> list[bytes]:
        started = self._started
        cost = finish.cost if finish.HasField("cost") else None
        warnings = _warnings(self._asked, started.provider, self._warnings)
        told = facts(started.provider, started.attempt, self.route, cost, warnings)
        reason = _REASONS.get(finish.reason, "other")
        choice: dict[str, Any] = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}
        # Clients parse the arguments as JSON: a call without any has an empty object.
        last = [
            self._chunk({"tool_calls": [{"index": self._calls[index], "function": {"arguments": "{}"}}]})
            for index in sorted(self._bare)
        ]
        served = _served(self._asked, started.provider, finish.provider_metadata)
        last.append(self._frame({"choices": [choice], **served, "maestro": told}))
        if self._asked.include_usage:
            merge_usage(self._usage, finish.usage)
            last.append(self._frame({"choices": [], **served, "usage": _usage(self._usage)}))
        return [*last, DONE]


def encode_error(error: MaestroError, request_id: str, *, missing: str = "model_not_found") -> bytes:
    """The body of an error; OpenAI's clients choose their exception class by the status that goes with it.

    `missing` is the code of what was not found.
    """
    return _dumps(
        {
            "error": {
                "message": error.message,
                "type": _type_of(error),
                "param": error.violations[0].field if error.violations else None,
                "code": missing if error.reason == "NOT_FOUND" else _CODES.get(error.reason, error.reason.lower()),
                "maestro": {"reason": error.reason, "retryable": error.retryable, "request_id": request_id},
            }
        }
    )


_CODES: Mapping[str, str] = {
    "CONTEXT_TOO_LONG": "context_length_exceeded",
    "UNAUTHENTICATED": "invalid_api_key",
    "RATE_LIMITED": "rate_limit_exceeded",
    "TENANT_RATE_LIMITED": "rate_limit_exceeded",
    "PROVIDER_QUOTA": "insufficient_quota",
    "BUDGET_EXHAUSTED": "insufficient_quota",
    "CONTENT_POLICY": "content_policy_violation",
}


def _type_of(error: MaestroError) -> str:
    match error.http_status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 402 | 429:
            return "insufficient_quota" if _CODES.get(error.reason) == "insufficient_quota" else "rate_limit_error"
        case status if status < 500:
            return "invalid_request_error"
        case _:
            return "server_error"


def _warnings(asked: Asked, provider: str, told: Iterable[Warning]) -> list[dict[str, Any]]:
    foreign = foreign_to(provider, OWN, asked.passed)
    return warnings_data(asked.unknown, foreign, provider, told)


def _call(part: Part) -> dict[str, Any]:
    call = part.tool_call
    # A call without arguments has empty text in the contract; clients parse it as JSON.
    function = {"name": call.name, "arguments": call.arguments_json or "{}"}
    return {"id": call.call_id, "type": "function", "function": function}


def _served(asked: Asked, provider: str, metadata: Mapping[str, Struct]) -> dict[str, Any]:
    """What OpenAI tells of how it answered, for those who asked for something: a tier, or the same words again."""
    names = ["service_tier"] if "service_tier" in asked.passed else []
    if asked.request.HasField("seed"):
        names.append("system_fingerprint")
    if not names or provider not in metadata:
        return {}
    told = metadata[provider]
    return {name: told[name] for name in names if name in told}


def _annotations(citations: Iterable[Citation]) -> list[dict[str, Any]]:
    """Sources with an address: that shape has no others."""
    # Nobody tells where in the answer they belong, and clients want a place: an empty one.
    nowhere = {"start_index": 0, "end_index": 0}
    return [
        {"type": "url_citation", "url_citation": {"title": each.title, "url": each.url, **nowhere}}
        for each in citations
        if each.url
    ]


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
            "audio_tokens": usage.audio_input_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_output_tokens,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {
            "token": token.token,
            "logprob": token.logprob,
            "bytes": list(token.utf8) if token.utf8 else None,
            "top_logprobs": [
                {"token": other.token, "logprob": other.logprob, "bytes": list(other.token.encode())}
                for other in token.top
            ],
        }
        for token in tokens
    ]
