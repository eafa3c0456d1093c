"""Scripts of Bedrock's wire: `POST /model/<id>/converse` with a document, and `…/converse-stream` with an event stream.

The event stream is AWS's own framing: each message has a prelude with its lengths, headers, a payload of JSON, and the
checksums of both.
"""

from __future__ import annotations

import json
from binascii import crc32
from collections.abc import Mapping, Sequence
from struct import pack
from typing import Any

from maestro_sdk.testing.faults import Cut, Headers, Reply, Seen, Send, SendJson, Step, Wait
from maestro_sdk.testing.wire import SETTLE, Answer, Tokens, Wire, alternate, fragments

PATH = "/model/*/converse*"
"""Both operations, for all models."""
REQUEST_ID = "7a1c4e0f-0000-4000-8000-000000000001"

_HEAD = {"content-type": "application/vnd.amazon.eventstream", "x-amzn-requestid": REQUEST_ID}
_KINDS: Mapping[int, str] = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message of the event stream; all headers are texts."""
    head = b"".join(
        pack(">B", len(name.encode())) + name.encode() + pack(">BH", 7, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + pack(">I", crc32(prelude)) + head + payload
    return message + pack(">I", crc32(message))


def event(kind: str, payload: Mapping[str, Any] | bytes) -> bytes:
    """An event; payloads that are no bytes are sent as JSON."""
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, payload if isinstance(payload, bytes) else _dump(payload))


def exception(kind: str, payload: Mapping[str, Any]) -> bytes:
    """An exception inside the stream, such as "throttlingException"."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, _dump(payload))


def delta(index: int, content: Mapping[str, Any]) -> Send:
    """A piece of the block with that number. "p" pads real streams, against guessing texts by their lengths."""
    return Send(event("contentBlockDelta", {"contentBlockIndex": index, "delta": content, "p": "abcdefghij"}))


class BedrockConverse(Wire):
    """Numbered blocks, of which only some are announced; the stop reason first, then the usage; no terminal event."""

    path = PATH

    def streams(self, seen: Seen) -> bool:
        return seen.path.endswith("/converse-stream")

    def opening(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        return (Headers(200, _HEAD), Send(event("messageStart", {"role": "assistant", "p": "abc"})))

    def content(self, answer: Answer, seen: Seen) -> Sequence[Sequence[Step]]:
        first = 0
        groups: list[Sequence[Step]] = []
        if answer.thoughts or answer.signature:
            pieces: list[dict[str, Any]] = [{"text": text} for text in answer.thoughts]
            if answer.signature:
                pieces.append({"signature": answer.signature})
            groups += _block(first, [{"reasoningContent": piece} for piece in pieces])
            first += 1
        if answer.pieces:
            groups += _block(first, [{"text": piece} for piece in answer.pieces])
            first += 1
        columns: list[list[Sequence[Step]]] = []
        for index, call in enumerate(answer.calls, first):
            start = {"toolUse": {"toolUseId": call.call_id, "name": call.name}}
            deltas = [{"toolUse": {"input": piece}} for piece in fragments(call.text, answer.fragment)]
            columns.append(_block(index, deltas, start))
        return groups + alternate(columns, answer.interleaved)

    def closing(self, answer: Answer, seen: Seen) -> Sequence[Step]:
        steps: list[Step] = [Send(event("messageStop", {"stopReason": _stop(answer), "p": "abcd"}))]
        if answer.tokens is not None:
            metadata = {"usage": _usage(answer.tokens), "metrics": {"latencyMs": 551}, "p": "abcdefg"}
            steps.append(Send(event("metadata", metadata)))
        return steps

    def document(self, answer: Answer, seen: Seen) -> Any:
        content: list[dict[str, Any]] = []
        if answer.thoughts or answer.signature:
            reasoning = {"text": "".join(answer.thoughts)}
            if answer.signature:
                reasoning["signature"] = answer.signature
            content.append({"reasoningContent": {"reasoningText": reasoning}})
        if answer.pieces:
            content.append({"text": "".join(answer.pieces)})
        content += [
            {"toolUse": {"toolUseId": call.call_id, "name": call.name, "input": json.loads(call.text)}}
            for call in answer.calls
        ]
        usage = {} if answer.tokens is None else {"usage": _usage(answer.tokens)}
        message = {"role": "assistant", "content": content}
        return {"metrics": {"latencyMs": 551}, "output": {"message": message}, "stopReason": _stop(answer), **usage}

    def refusal(self, status: int, kind: str, message: str) -> Any:
        return {"__type": kind or _KINDS.get(status, "InternalServerException"), "message": message}

    def error(
        self, status: int, kind: str = "", message: str = "no", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """A refused call: the exception's name stands in a header, the body has the message only."""
        name = kind or _KINDS.get(status, "InternalServerException")
        told = {"x-amzn-requestid": REQUEST_ID, "x-amzn-errortype": f"{name}:http://internal.amazon.com/coral/"}
        return lambda _: (Headers(status, {**told, **(headers or {})}), SendJson({"message": message}))

    def broken_event(self) -> Step:
        return Send(event("contentBlockDelta", b'{"contentBlockIndex": 0, "del'))

    def error_event(self, kind: str, message: str) -> Step:
        return Send(exception(kind or "internalServerException", {"message": message}))

    def malformed_frame(self, pieces: int = 0) -> Reply:
        """After so many pieces one message has a wrong checksum; the rest is good. A unary answer is no JSON."""

        def reply(seen: Seen) -> Sequence[Step]:
            if not self.streams(seen):
                return (Headers(200, {"content-type": "application/json"}), Send(b'{"output": {"mess'))
            answer = Answer()
            groups = self.content(answer, seen)
            before = [step for group in groups[:pieces] for step in group]
            broken = bytearray(event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "lie"}}))
            broken[-6] ^= 1
            rest = [step for group in groups[pieces:] for step in group]
            wait = (Wait(SETTLE),) if before else ()
            return (
                *self.opening(answer, seen),
                *before,
                *wait,
                Send(bytes(broken)),
                *rest,
                *self.closing(answer, seen),
            )

        return reply

    def cut_inside_frame(self, pieces: int = 0, *, cleanly: bool = False) -> Reply:
        """After so many pieces the stream ends inside a message: cut, or with a clean end of the body."""

        def reply(seen: Seen) -> Sequence[Step]:
            answer = Answer()
            before = [step for group in self.content(answer, seen)[:pieces] for step in group]
            half = event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "half"}})[:40]
            wait = (Wait(SETTLE),) if before else ()
            return (
                *self.opening(answer, seen),
                *before,
                *wait,
                Send(half),
                *(() if cleanly else (Wait(SETTLE), Cut())),
            )

        return reply


def _dump(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _block(
    index: int, deltas: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None = None
) -> list[Sequence[Step]]:
    groups: list[list[Step]] = [[delta(index, piece)] for piece in deltas]
    if start is not None:
        groups[0].insert(0, Send(event("contentBlockStart", {"contentBlockIndex": index, "start": start})))
    groups[-1].append(Send(event("contentBlockStop", {"contentBlockIndex": index})))
    return [*groups]


def _stop(answer: Answer) -> str | None:
    if answer.stop is not None:
        return answer.stop or None
    return "tool_use" if answer.calls else "end_turn"


def _usage(tokens: Tokens) -> dict[str, Any]:
    # The wire counts cached tokens apart from `inputTokens`, and reasoning not at all.
    written = tokens.cache_write_5m + tokens.cache_write_1h
    usage: dict[str, Any] = {
        "inputTokens": tokens.input - tokens.cache_read - written,
        "outputTokens": tokens.output,
        "totalTokens": tokens.input + tokens.output,
        "cacheReadInputTokens": tokens.cache_read,
        "cacheWriteInputTokens": written,
    }
    details = (("5m", tokens.cache_write_5m), ("1h", tokens.cache_write_1h))
    if written:
        usage["cacheDetails"] = [{"ttl": ttl, "inputTokens": count} for ttl, count in details if count]
    return usage


WIRE = BedrockConverse()
answer = WIRE.answer
text = WIRE.text
tools = WIRE.tools
error = WIRE.error
rate_limited = WIRE.rate_limited
cut_before_headers = WIRE.cut_before_headers
cut_before_content = WIRE.cut_before_content
cut_after = WIRE.cut_after
cut_inside_frame = WIRE.cut_inside_frame
stall_before_headers = WIRE.stall_before_headers
stall_after = WIRE.stall_after
silent_end = WIRE.silent_end
in_band_error = WIRE.in_band_error
malformed_json = WIRE.malformed_json
malformed_frame = WIRE.malformed_frame
slow_first_token = WIRE.slow_first_token
hold_after = WIRE.hold_after
