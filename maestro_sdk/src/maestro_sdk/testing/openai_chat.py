"""Scripts of OpenAI's chat completions wire: `POST /v1/chat/completions`, also spoken by Azure, vLLM and Ollama."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maestro_sdk.testing.faults import Seen, Sse, Step
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall, Wire, alternate, fragments

PATH = "/v1/chat/completions"

_KINDS: Mapping[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", None),
    503: ("server_error", "server_overloaded"),
}
_CREATED = 1_790_000_000


class OpenAIChat(Wire):
    """Chunks with choices, usage in a chunk of its own when it was asked for, `[DONE]` at the end."""

    path = PATH

    def opening(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        return (_chunk(seen, {"role": "assistant", "content": "", "refusal": None}),)

    def content(self, answer: Answer, seen: Seen) -> Sequence[Sequence[Step]]:
        # Reasoning as vLLM streams it; OpenAI itself shows none on this wire.
        groups: list[Sequence[Step]] = [[_chunk(seen, {"reasoning": thought})] for thought in answer.thoughts]
        groups += [[_chunk(seen, {"content": piece})] for piece in answer.pieces]
        columns = [
            [[_chunk(seen, {"tool_calls": [delta]})] for delta in _deltas(index, call, answer.fragment)]
            for index, call in enumerate(answer.calls)
        ]
        return groups + alternate(columns, answer.interleaved)

    def closing(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        steps: list[Step] = [_chunk(seen, {}, _stop(answer))]
        options: Mapping[str, Any] = seen.json().get("stream_options") or {}
        if answer.tokens is not None and options.get("include_usage"):
            steps.append(
                Sse(None, {**_frame(seen, "chat.completion.chunk"), "choices": [], "usage": _usage(answer.tokens)})
            )
        return (*steps, Sse(None, "[DONE]"))

    def document(self, answer: Answer, seen: Seen) -> Any:
        text = "".join(answer.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None}
        if answer.thoughts:
            message["reasoning"] = "".join(answer.thoughts)
        if answer.calls:
            message["tool_calls"] = [
                {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.text}}
                for call in answer.calls
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _stop(answer)}
        usage = {} if answer.tokens is None else {"usage": _usage(answer.tokens)}
        return {**_frame(seen, "chat.completion"), "choices": [choice], **usage}

    def refusal(self, status: int, kind: str, message: str) -> Any:
        usual, code = _KINDS.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
        return {"error": {"message": message, "type": usual, "param": None, "code": kind or code}}

    def broken_event(self) -> Step:
        return Sse(None, '{"id": "chatcmpl-1", "choices": [{"del')

    def error_event(self, kind: str, message: str) -> Step:
        return Sse(None, {"error": {"message": message, "type": "server_error", "param": None, "code": kind or None}})


def _frame(seen: Seen, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": _CREATED, "model": str(seen.json().get("model", ""))}


def _chunk(seen: Seen, delta: Mapping[str, Any], stop: str | None = None) -> Sse:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": stop}
    return Sse(None, {**_frame(seen, "chat.completion.chunk"), "choices": [choice]})


def _deltas(index: int, call: ToolCall, size: int) -> list[dict[str, Any]]:
    head = {"index": index, "id": call.call_id, "type": "function"}
    if not size:
        return [{**head, "function": {"name": call.name, "arguments": call.text}}]
    pieces = fragments(call.text, size)
    return [
        {**head, "function": {"name": call.name, "arguments": ""}},
        *({"index": index, "function": {"arguments": piece}} for piece in pieces),
    ]


def _stop(answer: Answer) -> str | None:
    if answer.stop is not None:
        return answer.stop or None
    return "tool_calls" if answer.calls else "stop"


def _usage(tokens: Tokens) -> dict[str, Any]:
    cached = {"cached_tokens": tokens.cache_read, "cache_write_tokens": tokens.cache_write_5m, "audio_tokens": 0}
    return {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
        "prompt_tokens_details": cached,
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning, "audio_tokens": 0},
    }


WIRE = OpenAIChat()
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
