"""The JSON of answers and events: one frame per event, valid whatever a provider sent, the same facts as the answer."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings

from maestro.event.v1.event_pb2 import AttemptFailed, Event, Failure
from maestro.llm.v1 import chat_pb2 as chat
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.message_pb2 import Citation, OpaquePart, Origin, Part, TokenLogprob, ToolCallPart
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_gateway.json_codec.answer import DONE, Frames, encode_answer, event_bytes, socket_error, socket_frames
from maestro_gateway.json_codec.event import encode_event
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import InvalidRequest, Overloaded
from maestro_sdk.testing.strategies import answers


def event(**kind: Any) -> chat.ChatEvent:
    return chat.ChatEvent(**kind)


METADATA = Struct()
METADATA.update({"n": 3, "x": 1.5, "list": [True, None, "s"]})

SWITCH = {"from_model": "a/b", "to_model": "c/d", "why": "TIMEOUT"}

CASES = [
    (event(text=chat.TextDelta(index=2, text='a"\n\u2028b')), {"index": 2, "text": 'a"\n\u2028b'}),
    (
        event(text=chat.TextDelta(text="a", logprobs=[TokenLogprob(token="a", logprob=-0.5)])),
        {"index": 0, "text": "a", "logprobs": [{"token": "a", "logprob": -0.5}]},
    ),
    (
        event(text=chat.TextDelta(text="a", citations=[Citation(url="u", start=0)], polyfilled=True)),
        {"index": 0, "text": "a", "citations": [{"url": "u", "start": 0}], "polyfilled": True},
    ),
    (
        event(reasoning=chat.ReasoningDelta(index=1, text="hm", summary=True)),
        {"index": 1, "text": "hm", "summary": True},
    ),
    (
        event(tool_call=chat.ToolCallDelta(index=1, call_id="c", name="f", arguments_json='{"a')),
        {"index": 1, "call_id": "c", "name": "f", "arguments_json": '{"a'},
    ),
    (event(tool_call=chat.ToolCallDelta(index=1, arguments_json='":1}')), {"index": 1, "arguments_json": '":1}'}),
    (
        event(part=Part(index=3, opaque=OpaquePart(json='{"k": 1}'), origin=Origin(provider="p"))),
        {"index": 3, "part": {"type": "opaque", "index": 3, "json": '{"k": 1}', "origin": {"provider": "p"}}},
    ),
    (
        event(part_state=chat.PartState(index=3, origin=Origin(provider="p", api="a"), provider_state=b"\xff")),
        {"index": 3, "origin": {"provider": "p", "api": "a"}, "provider_state": "/w=="},
    ),
    (
        event(warning=chat.Warning(code="unsupported_parameter", message="m", field="seed")),
        {"code": "unsupported_parameter", "message": "m", "field": "seed"},
    ),
    (event(switched=chat.Switched(**SWITCH)), SWITCH),
]


@pytest.mark.parametrize(("given_event", "data"), CASES)
def test_events(given_event: chat.ChatEvent, data: dict[str, Any]) -> None:
    assert orjson.loads(event_bytes(given_event)) == data
    sent = Frames([]).frames([given_event])
    kind = given_event.WhichOneof("kind")
    assert sent.startswith(f"event: {kind}\ndata: {{".encode())
    assert sent.endswith(b"}\nid: 1\n\n")
    (frame,) = socket_frames(b'"c1"', [given_event], "", [])
    assert orjson.loads(frame) == {"id": "c1", "type": kind, **data}


def test_finish() -> None:
    finish = chat.Finish(
        reason=chat.FinishReason.FINISH_REASON_TOOL_CALLS,
        raw_reason="tool_use",
        usage=Usage(input_tokens=3, output_tokens=5, estimated=True),
        cost=Cost(usd="0.054390"),
        provider_metadata={"anthropic": METADATA},
    )
    data = orjson.loads(event_bytes(event(finish=finish)))
    assert data["finish_reason"] == "tool_calls"
    assert data["raw_finish_reason"] == "tool_use"
    assert data["stop_sequence"] is None
    assert (data["usage"]["input_tokens"], data["usage"]["reasoning_tokens"], data["usage"]["estimated"]) == (
        3,
        0,
        True,
    )
    assert data["cost_usd"] == "0.054390"
    assert data["provider_metadata"] == {"anthropic": {"n": 3, "x": 1.5, "list": [True, None, "s"]}}
    assert Frames([]).frames([event(finish=finish)]).endswith(b"id: 1\n\n" + DONE)
    unknown = orjson.loads(event_bytes(event(finish=chat.Finish(reason=99))))  # pyright: ignore[reportArgumentType] - newer than we are
    assert (unknown["finish_reason"], unknown["cost_usd"]) == ("other", None)


def test_arguments_that_a_model_broke_stay_text() -> None:
    texts = ['{"a": 1}', "", "{broken", "[1]"]
    parts = [
        Part(index=n, tool_call=ToolCallPart(call_id="c", name="f", arguments_json=t)) for n, t in enumerate(texts)
    ]
    data = orjson.loads(encode_answer(chat.ChatResponse(parts=parts), ""))
    assert [call["arguments"] for call in data["tool_calls"]] == [{"a": 1}, {}, "{broken", "[1]"]
    assert data["route"] is None


def test_errors() -> None:
    error = InvalidRequest.at("a.b", "is wrong")
    data = orjson.loads(Frames([]).error(error, "r1").split(b"\n")[1][6:])
    assert data["error"]["details"] == [{"field": "a.b", "message": "is wrong"}]
    assert data["error"]["request_id"] == "r1"
    frame = orjson.loads(socket_error(b"null", Overloaded("full", retry_after=2.5), "r1"))
    assert (frame["id"], frame["type"], frame["error"]["retry_after"]) == (None, "error", 2.5)


def test_lifecycle_events() -> None:
    failure = Failure(reason=ErrorReason.ERROR_REASON_RATE_LIMITED, retryable=True, upstream_status=429)
    failure.retry_after.FromNanoseconds(2_500_000_000)
    made = Event(id="e", sequence=2**53, tenant="t", kind="attempt.failed", subject="request/r")
    made.time.FromJsonString("2026-01-02T03:04:05.600Z")
    made.attempt_failed.CopyFrom(AttemptFailed(request_id="r", attempt=1, failure=failure))
    assert orjson.loads(encode_event(made)) == {
        "type": "event",
        "id": "e",
        "sequence": 2**53,
        "time": "2026-01-02T03:04:05.600Z",
        "tenant": "t",
        "kind": "attempt.failed",
        "subject": "request/r",
        "attempt_failed": {
            "request_id": "r",
            "attempt": 1,
            "failure": {"reason": "rate_limited", "retryable": True, "retry_after": 2.5, "upstream_status": 429},
        },
    }


@settings(max_examples=100, deadline=None)
@given(answers())
def test_the_frames_of_any_answer_hold_what_the_whole_answer_holds(events: list[chat.ChatEvent]) -> None:
    whole = orjson.loads(encode_answer(fold(events), "default"))
    stream = Frames([])
    stream.route = "default"
    blocks = b"".join(stream.frames([one]) for one in events).split(b"\n\n")
    assert blocks[-2:] == [b"data: [DONE]", b""]
    found = []
    for number, block in enumerate(blocks[:-2], 1):
        kind, data, identity = block.split(b"\n")
        assert identity == b"id: %d" % number
        found.append((kind[7:].decode(), orjson.loads(data[6:])))
    assert [kind for kind, _ in found] == [one.WhichOneof("kind") for one in events]
    assert found[0][1]["response_id"] == whole["id"]
    assert found[-1][1]["finish_reason"] == whole["finish_reason"]
    texts: dict[int, str] = {}
    for kind, data in found:
        if kind == "text":
            texts[data["index"]] = texts.get(data["index"], "") + data["text"]
        elif kind == "part" and data["part"]["type"] == "text":
            texts[data["index"]] = data["part"]["text"]
    assert {p["index"]: p["text"] for p in whole["parts"] if p["type"] == "text"} == texts
    joined = [orjson.loads(frame) for frame in socket_frames(b'"c"', events, "default", [])]
    assert [{k: v for k, v in frame.items() if k not in ("id", "type")} for frame in joined] == [
        data for _, data in found
    ]
