"""Scripts of Gemini's wire on Vertex AI: `:generateContent` and `:streamGenerateContent?alt=sse` of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from maestro_sdk.testing.faults import Headers, Reply, Seen, SendJson, Sse, Step
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall, Wire, fragments

PATH = "/v1/projects/*/models/*:*[gG]enerateContent"
"""Both methods of every model, as a pattern of `FaultServer.on`."""

STATUSES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_CODES = {word: status for status, word in STATUSES.items()}

Parts = Sequence[Mapping[str, Any]]


class GeminiContent(Wire):
    """Nameless events that look like unary answers with a piece of content each; the finish reason ends the last one.

    Calls come whole, one per event, unless the request asks for `streamFunctionCallArguments`; so they never alternate.
    The signature stands on the first call, or else on an empty text at the end.
    """

    path = PATH

    def streams(self, seen: Seen) -> bool:
        return seen.path.endswith(":streamGenerateContent")

    def opening(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        first = Tokens(input=answer.tokens.input, output=0) if answer.tokens is not None else None
        return (_event(seen, (), first),)

    def content(self, answer: Answer, seen: Seen) -> Sequence[Sequence[Step]]:
        groups: list[Sequence[Step]] = [[_event(seen, ({"text": text, "thought": True},))] for text in answer.thoughts]
        groups += [[_event(seen, ({"text": piece},))] for piece in answer.pieces]
        pieces = _streams_arguments(seen) and answer.fragment
        for number, call in enumerate(answer.calls):
            signature = answer.signature if number == 0 else ""
            parts = _pieces(call, signature, answer.fragment) if pieces else [_call(call, signature)]
            groups += [[_event(seen, (part,))] for part in parts]
        return groups

    def closing(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        return (_event(seen, _last(answer), answer.tokens, _stop(answer)),)

    def document(self, answer: Answer, seen: Seen) -> Any:
        parts: list[Mapping[str, Any]] = []
        if answer.thoughts:
            parts.append({"text": "".join(answer.thoughts), "thought": True})
        if answer.pieces:
            parts.append({"text": "".join(answer.pieces)})
        parts += [_call(call, answer.signature if number == 0 else "") for number, call in enumerate(answer.calls)]
        return _frame(seen, [*parts, *_last(answer)], answer.tokens, _stop(answer))

    def refusal(self, status: int, kind: str, message: str) -> Any:
        return problem(_CODES.get(kind, status), message, kind)

    def broken_event(self) -> Step:
        return Sse(None, '{"candidates": [{"content": {"parts": [{"te')

    def error_event(self, kind: str, message: str) -> Step:
        return Sse(None, problem(_CODES.get(kind, 500), message, kind))


def problem(status: int, message: str, kind: str = "", details: Sequence[Mapping[str, Any]] = ()) -> Any:
    """The body of an error; `details` are of `google.rpc`, `@type` included."""
    error: dict[str, Any] = {"code": status, "message": message, "status": kind or STATUSES.get(status, "UNKNOWN")}
    return {"error": {**error, "details": [*details]} if details else error}


def exhausted(retry_delay: str = "", quota: str = "") -> Reply:
    """A 429; `retry_delay` such as "3.5s", `quota` the id of the quota that was met."""
    details: list[dict[str, Any]] = []
    if quota:
        failure = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota}]}
        details.append(failure)
    if retry_delay:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": retry_delay})
    body = problem(429, "You exceeded your current quota.", details=details)
    return lambda _: (Headers(429), SendJson(body))


def model_of(seen: Seen) -> str:
    """The name of the model in the path."""
    return seen.path.rpartition("/")[2].partition(":")[0]


def _event(seen: Seen, parts: Parts, tokens: Tokens | None = None, stop: str | None = None) -> Sse:
    return Sse(None, _frame(seen, parts, tokens, stop))


def _frame(seen: Seen, parts: Parts, tokens: Tokens | None, stop: str | None) -> dict[str, Any]:
    content: dict[str, Any] = {"role": "model", **({"parts": [*parts]} if parts else {})}
    candidate: dict[str, Any] = {"content": content, **({"finishReason": stop} if stop else {})}
    usage = {} if tokens is None else {"usageMetadata": _usage(tokens)}
    return {"candidates": [candidate], **usage, "modelVersion": model_of(seen), "responseId": "resp-1"}


def _last(answer: Answer) -> Parts:
    signed = {"thoughtSignature": answer.signature} if answer.signature and not answer.calls else {}
    return [{"text": "", **signed}] if signed or not answer.calls else []


def _call(call: ToolCall, signature: str) -> dict[str, Any]:
    made: dict[str, Any] = {"name": call.name, "args": json.loads(call.text)}
    if call.call_id:
        made["id"] = call.call_id
    return {"functionCall": made, **({"thoughtSignature": signature} if signature else {})}


def _pieces(call: ToolCall, signature: str, size: int) -> list[dict[str, Any]]:
    """The call as its arguments come: a head, texts in fragments and other values whole, and an empty end."""
    head: dict[str, Any] = {"name": call.name, "willContinue": True, **({"id": call.call_id} if call.call_id else {})}
    made: list[dict[str, Any]] = [{"functionCall": head, **({"thoughtSignature": signature} if signature else {})}]
    arguments: dict[str, Any] = json.loads(call.text)
    for name, value in arguments.items():
        made += [
            {"functionCall": {"partialArgs": [piece], "willContinue": True}}
            for piece in _values(f"$[{json.dumps(name)}]", value, size)
        ]
    return [*made, {"functionCall": {}}]


def _values(path: str, value: Any, size: int) -> list[dict[str, Any]]:
    inner: Any = value
    match value:
        case str():
            *first, last = fragments(value, size)
            going = [{"jsonPath": path, "stringValue": piece, "willContinue": True} for piece in first]
            return [*going, {"jsonPath": path, "stringValue": last}]
        case bool():
            return [{"jsonPath": path, "boolValue": value}]
        case int() | float():
            return [{"jsonPath": path, "numberValue": value}]
        case None:
            return [{"jsonPath": path, "nullValue": "NULL_VALUE"}]
        case list():
            return [piece for place, item in enumerate(inner) for piece in _values(f"{path}[{place}]", item, size)]
        case _:
            return [
                piece for name, item in inner.items() for piece in _values(f"{path}[{json.dumps(name)}]", item, size)
            ]


def _streams_arguments(seen: Seen) -> bool:
    config: Mapping[str, Any] = seen.json().get("toolConfig", {}).get("functionCallingConfig", {})
    return bool(config.get("streamFunctionCallArguments"))


def _stop(answer: Answer) -> str | None:
    # The wire has no word of its own for calls.
    return "STOP" if answer.stop is None else answer.stop or None


def _usage(tokens: Tokens) -> dict[str, Any]:
    # The wire counts thoughts apart from the candidates.
    visible = tokens.output - tokens.reasoning
    usage: dict[str, Any] = {"promptTokenCount": tokens.input, "totalTokenCount": tokens.input + tokens.output}
    if tokens.output:
        usage["candidatesTokenCount"] = visible
    if tokens.reasoning:
        usage["thoughtsTokenCount"] = tokens.reasoning
    if tokens.cache_read:
        usage["cachedContentTokenCount"] = tokens.cache_read
    return {**usage, "trafficType": "ON_DEMAND"}


WIRE = GeminiContent()
answer = WIRE.answer
text = WIRE.text
tools = WIRE.tools
error = WIRE.error
rate_limited = WIRE.rate_limited
cut_before_headers = WIRE.cut_before_headers
cut_before_content = WIRE.cut_before_content
cut_after = WIRE.cut_after
stall_before_headers = WIRE.stall_before_headers
stall_after = WIRE.stall_after
silent_end = WIRE.silent_end
in_band_error = WIRE.in_band_error
malformed_json = WIRE.malformed_json
slow_first_token = WIRE.slow_first_token
hold_after = WIRE.hold_after
