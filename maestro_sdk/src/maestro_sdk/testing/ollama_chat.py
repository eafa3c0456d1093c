"""Scripts of Ollama's own chat wire: `POST /api/chat`, one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from maestro_sdk.testing.faults import Headers, Seen, Send, Step
from maestro_sdk.testing.wire import Answer, Tokens, Wire

PATH = "/api/chat"
_CREATED = "2026-09-21T12:00:00.000000Z"
_HEAD = Headers(200, {"content-type": "application/x-ndjson"})


class OllamaChat(Wire):
    """Lines with pieces of one message, each call whole and all of them with the index 0, `done` on the last line."""

    path = PATH

    def opening(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        return (_HEAD, _line(seen, {"content": ""}))

    def content(self, answer: Answer, seen: Seen) -> Sequence[Sequence[Step]]:
        groups: list[Sequence[Step]] = [
            [_line(seen, {"content": "", "thinking": thought})] for thought in answer.thoughts
        ]
        groups += [[_line(seen, {"content": piece})] for piece in answer.pieces]
        groups += [[_line(seen, {"content": "", "tool_calls": [call]})] for call in _calls(answer)]
        return groups

    def closing(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        return (_line(seen, {"content": ""}, done=True, done_reason=answer.stop or "stop", **_counts(answer.tokens)),)

    def document(self, answer: Answer, seen: Seen) -> Any:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.pieces)}
        if answer.thoughts:
            message["thinking"] = "".join(answer.thoughts)
        if answer.calls:
            message["tool_calls"] = _calls(answer)
        if answer.stop == "":
            return {**_frame(seen), "message": message, "done": False}
        end = {"done": True, "done_reason": answer.stop or "stop", **_counts(answer.tokens)}
        return {**_frame(seen), "message": message, **end}

    def refusal(self, status: int, kind: str, message: str) -> Any:
        return {"error": message}

    def broken_event(self) -> Step:
        return Send(b'{"model": "x", "message": {"con\n')

    def error_event(self, kind: str, message: str) -> Step:
        return Send(json.dumps({"error": message}).encode() + b"\n")


def _frame(seen: Seen) -> dict[str, Any]:
    return {"model": str(seen.json().get("model", "")), "created_at": _CREATED}


def _line(seen: Seen, message: Mapping[str, Any], *, done: bool = False, **fields: Any) -> Send:
    frame = {**_frame(seen), "message": {"role": "assistant", **message}, "done": done, **fields}
    return Send(json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def _calls(answer: Answer) -> list[dict[str, Any]]:
    # No id, and the index does not tell calls apart, as several versions have it.
    return [{"function": {"index": 0, "name": call.name, "arguments": json.loads(call.text)}} for call in answer.calls]


def _counts(tokens: Tokens | None) -> dict[str, Any]:
    if tokens is None:
        return {}
    return {"prompt_eval_count": tokens.input, "eval_count": tokens.output}


WIRE = OllamaChat()
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
