"""Scripts of Anthropic's messages wire: `POST /v1/messages`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from maestro_sdk.testing.faults import Seen, Sse, Step
from maestro_sdk.testing.wire import Answer, Tokens, Wire, alternate, fragments

PATH = "/v1/messages"

_KINDS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicMessages(Wire):
    """Named events, content in numbered blocks, usage at the start and cumulative at the end, `message_stop` last."""

    path = PATH

    def opening(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        message: dict[str, Any] = {**_frame(seen), "content": [], "stop_reason": None, "stop_sequence": None}
        if answer.tokens is not None:
            message["usage"] = {**_input(answer.tokens), "output_tokens": min(1, answer.tokens.output)}
        return (_event("message_start", message=message), _event("ping"))

    def content(self, answer: Answer, seen: Seen) -> Sequence[Sequence[Step]]:
        first = 0
        groups: list[Sequence[Step]] = []
        if answer.thoughts or answer.signature:
            deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": text} for text in answer.thoughts]
            if answer.signature:
                deltas.append({"type": "signature_delta", "signature": answer.signature})
            groups += _block(first, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
            first += 1
        if answer.pieces:
            deltas = [{"type": "text_delta", "text": piece} for piece in answer.pieces]
            groups += _block(first, {"type": "text", "text": ""}, deltas)
            first += 1
        columns: list[list[Sequence[Step]]] = []
        for index, call in enumerate(answer.calls, first):
            deltas = [
                {"type": "input_json_delta", "partial_json": piece}
                for piece in ("", *fragments(call.text, answer.fragment))
            ]
            block: dict[str, Any] = {"type": "tool_use", "id": call.call_id, "name": call.name, "input": {}}
            columns.append(_block(index, block, deltas))
        return groups + alternate(columns, answer.interleaved)

    def closing(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        usage: dict[str, Any] = {}
        if answer.tokens is not None:
            usage = {"usage": {**_input(answer.tokens), **_output(answer.tokens)}}
        delta = {"stop_reason": _stop(answer), "stop_sequence": None}
        return (_event("message_delta", delta=delta, **usage), _event("message_stop"))

    def document(self, answer: Answer, seen: Seen) -> Any:
        content: list[dict[str, Any]] = []
        if answer.thoughts or answer.signature:
            text = "".join(answer.thoughts)
            content.append({"type": "thinking", "thinking": text, "signature": answer.signature})
        if answer.pieces:
            content.append({"type": "text", "text": "".join(answer.pieces)})
        content += [
            {"type": "tool_use", "id": call.call_id, "name": call.name, "input": json.loads(call.text)}
            for call in answer.calls
        ]
        usage = {} if answer.tokens is None else {"usage": {**_input(answer.tokens), **_output(answer.tokens)}}
        return {**_frame(seen), "content": content, "stop_reason": _stop(answer), "stop_sequence": None, **usage}

    def refusal(self, status: int, kind: str, message: str) -> Any:
        kind = kind or _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}

    def broken_event(self) -> Step:
        return Sse("content_block_delta", '{"type": "content_block_delta", "index": 0, "del')

    def error_event(self, kind: str, message: str) -> Step:
        return _event("error", error={"type": kind or "overloaded_error", "message": message})


def _event(kind: str, **fields: Any) -> Sse:
    return Sse(kind, {"type": kind, **fields})


def _frame(seen: Seen) -> dict[str, Any]:
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": str(seen.json().get("model", ""))}


def _block(index: int, block: Mapping[str, Any], deltas: Sequence[Mapping[str, Any]]) -> list[Sequence[Step]]:
    start = _event("content_block_start", index=index, content_block=block)
    steps = [_event("content_block_delta", index=index, delta=delta) for delta in deltas]
    groups: list[list[Step]] = [[step] for step in steps]
    groups[0].insert(0, start)
    groups[-1].append(_event("content_block_stop", index=index))
    return [*groups]


def _stop(answer: Answer) -> str | None:
    if answer.stop is not None:
        return answer.stop or None
    return "tool_use" if answer.calls else "end_turn"


def _input(tokens: Tokens) -> dict[str, Any]:
    # The wire counts cached tokens apart from `input_tokens`.
    written = tokens.cache_write_5m + tokens.cache_write_1h
    return {
        "input_tokens": tokens.input - tokens.cache_read - written,
        "cache_read_input_tokens": tokens.cache_read,
        "cache_creation_input_tokens": written,
        "cache_creation": {
            "ephemeral_5m_input_tokens": tokens.cache_write_5m,
            "ephemeral_1h_input_tokens": tokens.cache_write_1h,
        },
    }


def _output(tokens: Tokens) -> dict[str, Any]:
    details = {"output_tokens_details": {"thinking_tokens": tokens.reasoning}} if tokens.reasoning else {}
    return {"output_tokens": tokens.output, **details}


WIRE = AnthropicMessages()
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
answer_after = WIRE.answer_after
