"""Gemini's answers as events: recorded streams, and tables of words and counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import MessageToDict

from maestro.llm.v1.chat_pb2 import ChatEvent, FinishReason
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_vertex.answer import FINISH_REASONS
from maestro_adapter_vertex.translate import Outgoing, Stream, to_events
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import ContentPolicy, MaestroError, Overloaded, StreamBroken
from maestro_sdk.testing.golden import check, plain

from .frames import OUTGOING, frame, frames

STREAMS = sorted(Path(__file__).with_name("golden").glob("streams/*.sse"))


def call(name: str = "weather", **fields: Any) -> dict[str, Any]:
    return {"functionCall": {"name": name, **fields}}


def run(raw: bytes, outgoing: Outgoing = OUTGOING) -> list[ChatEvent]:
    stream = Stream(outgoing)
    return [*stream.feed(raw), *stream.end()]


def outcome(stream: Stream) -> tuple[list[ChatEvent], MaestroError | None]:
    """The last events, or what the end raised."""
    try:
        return stream.end(), None
    except MaestroError as error:
        return [], error


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_golden_stream(path: Path) -> None:
    stream = Stream(OUTGOING)
    events = stream.feed(path.read_bytes())
    last, failure = outcome(stream)
    got: dict[str, Any] = {"events": plain([*events, *last])}
    if failure is not None:
        got["failure"] = {"reason": failure.reason, "message": failure.message}
    check(path.with_name(f"{path.stem}.events.json"), got)


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_every_split_gives_the_same_events(path: Path) -> None:
    raw = path.read_bytes()
    whole = Stream(OUTGOING)
    expected = whole.feed(raw)
    ending = outcome(whole)
    for cut in range(1, len(raw)):
        split = Stream(OUTGOING)
        assert [*split.feed(raw[:cut]), *split.feed(raw[cut:])] == expected, f"cut at byte {cut}"
        last, failure = outcome(split)
        assert (last, str(failure)) == (ending[0], str(ending[1])), f"cut at byte {cut}"
    bytewise = Stream(OUTGOING)
    assert [event for byte in raw for event in bytewise.feed(bytes([byte]))] == expected
    assert Stream(OUTGOING).feed(raw.replace(b"\n", b"\r\n")) == expected


def test_finish_reasons() -> None:
    expected = {
        "STOP": "STOP",
        "FUNCTION_CALL": "TOOL_CALLS",
        "MAX_TOKENS": "LENGTH",
        "CONTINUATION": "LENGTH",
        "SAFETY": "CONTENT_FILTER",
        "RECITATION": "CONTENT_FILTER",
        "LANGUAGE": "CONTENT_FILTER",
        "BLOCKLIST": "CONTENT_FILTER",
        "PROHIBITED_CONTENT": "CONTENT_FILTER",
        "SPII": "CONTENT_FILTER",
        "IMAGE_SAFETY": "CONTENT_FILTER",
        "IMAGE_PROHIBITED_CONTENT": "CONTENT_FILTER",
        "IMAGE_RECITATION": "CONTENT_FILTER",
        "ESCALATION": "CONTENT_FILTER",
        "MODEL_ARMOR": "CONTENT_FILTER",
        "MALFORMED_FUNCTION_CALL": "MALFORMED",
        "MALFORMED_RESPONSE": "MALFORMED",
        "UNEXPECTED_TOOL_CALL": "MALFORMED",
        "TOO_MANY_TOOL_CALLS": "OTHER",
        "MISSING_THOUGHT_SIGNATURE": "OTHER",
        "PUP_LIMITED_DISABLED": "OTHER",
        "IMAGE_OTHER": "OTHER",
        "NO_IMAGE": "OTHER",
        "OTHER": "OTHER",
        "FINISH_REASON_UNSPECIFIED": "OTHER",
        "SOMETHING_NEW": "OTHER",
    }
    for word, name in expected.items():
        document = frame({"text": "x"}, stop=word)
        for events in (run(frames(document)), to_events(orjson.dumps(document), OUTGOING)):
            last = events[-1].finish
            assert FinishReason.Name(last.reason) == f"FINISH_REASON_{name}"
            assert last.raw_reason == word
    assert set(FINISH_REASONS) <= set(expected)


def test_the_words_are_those_of_the_provider() -> None:
    from google.genai.types import FinishReason as Theirs

    words = {reason.value for reason in Theirs}
    # The one that only other servers say.
    assert set(FINISH_REASONS) - words == {"FUNCTION_CALL"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([frame(call(), stop="STOP")], "TOOL_CALLS"),
        ([frame(call()), frame(stop="STOP")], "TOOL_CALLS"),
        ([frame(call()), frame({"text": "so"}), frame({"text": ""}, stop="STOP")], "TOOL_CALLS"),
        ([frame(stop="STOP"), frame(call())], "TOOL_CALLS"),
        ([frame(call(partialArgs=[], willContinue=True)), frame(stop="STOP")], "TOOL_CALLS"),
        # The answer was cut: a caller must not run what may lack its end.
        ([frame(call()), frame(stop="MAX_TOKENS")], "LENGTH"),
        ([frame(call()), frame(stop="MALFORMED_FUNCTION_CALL")], "MALFORMED"),
        ([frame({"text": "x"}), frame(stop="STOP")], "STOP"),
    ],
)
def test_a_call_anywhere_makes_it_tool_calls(answer: Sequence[Any], reason: str) -> None:
    assert FinishReason.Name(run(frames(*answer))[-1].finish.reason) == f"FINISH_REASON_{reason}"


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([{"promptTokenCount": 3, "candidatesTokenCount": 9}], Usage(input_tokens=3, output_tokens=9)),
        (
            [
                {
                    "promptTokenCount": 30,
                    "cachedContentTokenCount": 20,
                    "candidatesTokenCount": 2,
                    "thoughtsTokenCount": 7,
                }
            ],
            Usage(input_tokens=30, cache_read_tokens=20, output_tokens=9, reasoning_tokens=7),
        ),
        # Cumulative; the last report lacks what an early one had.
        (
            [
                {"promptTokenCount": 30, "thoughtsTokenCount": 7},
                {"promptTokenCount": 30, "candidatesTokenCount": 5, "thoughtsTokenCount": 7},
                {"candidatesTokenCount": 8},
            ],
            Usage(input_tokens=30, output_tokens=15, reasoning_tokens=7),
        ),
        (
            [
                {
                    "promptTokenCount": 30,
                    "toolUsePromptTokenCount": 12,
                    "candidatesTokenCount": 5,
                    "promptTokensDetails": [
                        {"modality": "TEXT", "tokenCount": 10},
                        {"modality": "AUDIO", "tokenCount": 20},
                    ],
                    "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 4}],
                }
            ],
            Usage(input_tokens=42, output_tokens=5, audio_input_tokens=20, audio_output_tokens=4),
        ),
        ([{"promptTokenCount": 4, "candidatesTokenCount": None}], Usage(input_tokens=4)),
    ],
)
def test_usage_is_inclusive_and_cumulative(reports: Sequence[Any], expected: Usage) -> None:
    documents = [frame({"text": "x"}, usage=report) for report in reports]
    assert run(frames(*documents, frame(stop="STOP")))[-1].finish.usage == expected
    if len(reports) == 1:
        whole = orjson.dumps(frame({"text": "x"}, stop="STOP", usage=reports[0]))
        assert to_events(whole, OUTGOING)[-1].finish.usage == expected


def test_usage_is_told_at_the_start() -> None:
    events = run(frames(frame(usage={"promptTokenCount": 3}), frame(stop="STOP", usage={"candidatesTokenCount": 4})))
    assert [event.usage.input_tokens for event in events if event.HasField("usage")] == [3]


def test_without_usage_the_cost_stays_unknown() -> None:
    assert not run(frames(frame({"text": "x"}, stop="STOP")))[-1].finish.HasField("usage")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n\n",
        frames(frame({"text": "x"})),
        frames(frame({"text": "x"}, stop="")),
        frames({"usageMetadata": {"promptTokenCount": 3}}),
        frames(frame({"text": "x"})) + b'data: {"candidates": [{"cont\n\n' + frames(frame(stop="STOP")),
        frames([1], frame(stop="STOP")),
        frames(5, frame(stop="STOP")),
        frames({"candidates": [7]}, frame(stop="STOP")),
        frames(frame({"functionCall": {"partialArgs": [{"jsonPath": "$.a", "stringValue": "x"}]}}, stop="STOP")),
        frames(frame(call(partialArgs=[{"jsonPath": "a.b", "stringValue": "x"}]), stop="STOP")),
        frames(frame(call(partialArgs=[{"jsonPath": "$.a[*]", "stringValue": "x"}]), stop="STOP")),
        frames(frame(call(partialArgs=[{"jsonPath": "$[0]", "stringValue": "x"}]), stop="STOP")),
    ],
)
def test_what_is_not_a_whole_answer_is_broken(raw: bytes) -> None:
    stream = Stream(OUTGOING)
    events = stream.feed(raw)
    with pytest.raises(StreamBroken):
        stream.end()
    assert not any(event.HasField("finish") for event in events)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'"x"', b"{}", b'{"candidates":[]}', orjson.dumps(frame({"text": "x"})), b'{"candi']
)
def test_unreadable_unary_answers_are_broken(body: bytes) -> None:
    with pytest.raises(StreamBroken):
        to_events(body, OUTGOING)


BUSY = {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize("body", [orjson.dumps(BUSY), orjson.dumps([BUSY], option=orjson.OPT_INDENT_2)])
def test_an_error_in_place_of_an_answer(body: bytes) -> None:
    with pytest.raises(Overloaded):
        to_events(body, OUTGOING)
    # The stream may hold the same document instead of events.
    for size in (1, 7, len(body)):
        stream = Stream(OUTGOING)
        assert [event for at in range(0, len(body), size) for event in stream.feed(body[at : at + size])] == []
        with pytest.raises(Overloaded):
            stream.end()


def test_events_before_an_error_are_not_lost() -> None:
    stream = Stream(OUTGOING)
    events = stream.feed(frames(frame({"text": "Hel"}), BUSY, frame({"text": "lo"}, stop="STOP")))
    assert [event.text.text for event in events if event.HasField("text")] == ["Hel"]
    assert stream.feed(frames(frame(stop="STOP"))) == []
    with pytest.raises(Overloaded):
        stream.end()


def test_a_blocked_prompt_is_an_error_and_a_blocked_answer_is_not() -> None:
    document = {"promptFeedback": {"blockReason": "JAILBREAK"}, "usageMetadata": {"promptTokenCount": 5}}
    with pytest.raises(ContentPolicy) as caught:
        to_events(orjson.dumps(document), OUTGOING)
    assert caught.value.metadata["upstream_code"] == "JAILBREAK"
    stream = Stream(OUTGOING)
    stream.feed(frames(document))
    with pytest.raises(ContentPolicy):
        stream.end()
    # With candidates there is an answer, and the remark about the prompt goes with it.
    answered = to_events(orjson.dumps({**frame({"text": "x"}, stop="STOP"), **document}), OUTGOING)
    told = MessageToDict(answered[-1].finish.provider_metadata["vertex"])
    assert told["promptFeedback"]["blockReason"] == "JAILBREAK"


def test_other_candidates_are_passed_over() -> None:
    other = {"index": 1, "content": {"parts": [{"text": "no"}]}, "finishReason": "SAFETY"}
    document = frame({"text": "yes"}, stop="STOP")
    document["candidates"].append(other)
    answer = fold(to_events(orjson.dumps(document), OUTGOING))
    assert [part.text.text for part in answer.parts] == ["yes"]
    assert answer.raw_reason == "STOP"


def test_ids_are_made_where_there_are_none() -> None:
    answer = fold(run(frames(frame(call(), call(id="own"), call(), stop="STOP"))))
    assert [part.tool_call.call_id for part in answer.parts] == ["call_r1_1", "own", "call_r1_3"]
    nameless = orjson.dumps({"candidates": frame(call(), stop="STOP")["candidates"]})
    assert fold(to_events(nameless, OUTGOING, "f00d")).parts[0].tool_call.call_id == "call_f00d_1"


def test_state_comes_back_as_it_went_out(ask: Any, translate: Any) -> None:
    """Everything that carries a signature: thoughts, calls, text, and a text that is nothing but its signature."""
    parts = [
        {"text": "Thought.", "thought": True, "thoughtSignature": "dGg+/8=="},
        {"text": "Text."},
        {"functionCall": {"id": "a", "name": "weather", "args": {"city": "Rome"}}, "thoughtSignature": "Y2Fs/bA="},
        {"functionCall": {"id": "b", "name": "weather", "args": {}}},
        {"text": "Signed.", "thoughtSignature": "dHh0"},
        {"text": "", "thoughtSignature": "bGFz/dA=="},
        {"executableCode": {"language": "PYTHON", "code": "1"}, "thoughtSignature": "eA=="},
        {"inlineData": {"mimeType": "image/png", "data": "iVBO"}, "thoughtSignature": "aW0="},
    ]
    for answer in (
        fold(to_events(orjson.dumps(frame(*parts, stop="STOP")), OUTGOING)),
        fold(run(frames(*(frame(part) for part in parts), frame(stop="STOP")))),
    ):
        request = ask(model="vertex/gemini-3.5-flash")
        request.messages.add(role="ROLE_ASSISTANT").parts.extend(answer.parts)
        sent = json.loads(orjson.dumps(translate(request).body))["contents"][1]["parts"]
        assert sent == parts
        # Another model gets what it can read: no thought, no signature, no code of another.
        other = ask(model="vertex/gemini-2.5-flash")
        other.messages.add(role="ROLE_ASSISTANT").parts.extend(answer.parts)
        sent = json.loads(orjson.dumps(translate(other).body))["contents"][1]["parts"]
        image = {"inlineData": parts[7]["inlineData"]}
        assert sent == [parts[1], {"functionCall": parts[2]["functionCall"]}, parts[3], {"text": "Signed."}, image]
