"""Bedrock's answers as events: recorded streams, tables of words and counts, and properties of all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatEvent, FinishReason
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_bedrock.answer import FINISH_REASONS
from maestro_adapter_bedrock.translate import Outgoing, Stream, to_events
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.models import cost_of
from maestro_sdk.errors import MaestroError, Overloaded, StreamBroken
from maestro_sdk.testing.bedrock_converse import event, exception
from maestro_sdk.testing.golden import check, plain

STREAMS = sorted(Path(__file__).with_name("golden").glob("streams/*.jsonl"))
MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
OUTGOING = Outgoing({}, MODEL, "/model/x", MODEL, tool_names={"time_now": "time.now"})


def raw_stream(path: Path) -> bytes:
    """A recorded stream, one message per line with its kind as the key, framed as on the wire."""
    messages: list[bytes] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        ((kind, payload),) = json.loads(line).items()
        prefix, _, name = kind.rpartition(":")
        messages.append(exception(name, payload) if prefix == "exception" else event(kind, payload))
    return b"".join(messages)


def run(raw: bytes, outgoing: Outgoing = OUTGOING) -> list[ChatEvent]:
    stream = Stream(outgoing, "r1")
    return [*stream.feed(raw), *stream.end()]


def frames(*messages: tuple[str, Mapping[str, Any]]) -> bytes:
    return b"".join(event(kind, payload) for kind, payload in messages)


def begun(*messages: tuple[str, Mapping[str, Any]]) -> bytes:
    return frames(("messageStart", {"role": "assistant"}), *messages)


def document(content: Any = (), stop: Any = "end_turn", **fields: Any) -> bytes:
    message = {"role": "assistant", "content": list(content)}
    return orjson.dumps({"output": {"message": message}, "stopReason": stop, **fields})


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_golden_stream(path: Path) -> None:
    stream = Stream(OUTGOING, "r1")
    events = stream.feed(raw_stream(path))
    got: dict[str, Any] = {}
    try:
        events += stream.end()
    except MaestroError as error:
        got["failure"] = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
    check(path.with_name(f"{path.stem}.events.json"), {"events": plain(events), **got})


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_every_split_gives_the_same_events(path: Path) -> None:
    raw = raw_stream(path)
    whole = Stream(OUTGOING, "r1")
    expected = whole.feed(raw)
    for cut in range(1, len(raw)):
        split = Stream(OUTGOING, "r1")
        assert [*split.feed(raw[:cut]), *split.feed(raw[cut:])] == expected, f"cut at byte {cut}"
        assert (split.finished, str(split.failure)) == (whole.finished, str(whole.failure))
    bytewise = Stream(OUTGOING, "r1")
    assert [made for byte in raw for made in bytewise.feed(bytes([byte]))] == expected


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_a_flipped_bit_is_never_passed_on(path: Path) -> None:
    """Whatever bit of whatever message: what was whole before it comes through, then the stream is broken."""
    raw = raw_stream(path)
    expected = Stream(OUTGOING, "r1").feed(raw)
    for place in range(0, len(raw), 7):
        broken = bytearray(raw)
        broken[place] ^= 0x10
        stream = Stream(OUTGOING, "r1")
        events = stream.feed(bytes(broken))
        assert events == expected[: len(events)]
        assert not stream.finished or len(events) == len(expected)
        if not stream.finished:
            with pytest.raises((StreamBroken, Overloaded)):
                stream.end()


def test_finish_reasons() -> None:
    expected = {
        "end_turn": "STOP",
        "stop_sequence": "STOP_SEQUENCE",
        "max_tokens": "LENGTH",
        "tool_use": "TOOL_CALLS",
        "guardrail_intervened": "CONTENT_FILTER",
        "content_filtered": "CONTENT_FILTER",
        "malformed_model_output": "MALFORMED",
        "malformed_tool_use": "MALFORMED",
        "model_context_window_exceeded": "CONTEXT_WINDOW",
        "content_filter": "OTHER",
        "something_new": "OTHER",
    }
    usage = {"usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}}
    for word, name in expected.items():
        streamed = run(begun(("messageStop", {"stopReason": word}), ("metadata", usage)))
        for events in (streamed, to_events(document(stop=word, **usage), OUTGOING, "r1")):
            last = events[-1].finish
            assert FinishReason.Name(last.reason) == f"FINISH_REASON_{name}"
            assert last.raw_reason == word
    assert set(FINISH_REASONS) <= set(expected)


def test_an_end_of_turn_with_calls_waits_for_their_results() -> None:
    call = {"toolUse": {"toolUseId": "t", "name": "clock", "input": {}}}
    last = to_events(document([call]), OUTGOING, "r1")[-1].finish
    assert (last.reason, last.raw_reason) == (FinishReason.FINISH_REASON_TOOL_CALLS, "end_turn")


def test_the_stop_text() -> None:
    body = document(stop="stop_sequence")
    one = Outgoing({}, MODEL, "/model/x", MODEL, stops=("END",))
    two = Outgoing({}, MODEL, "/model/x", MODEL, stops=("END", "STOP"))
    assert to_events(body, one)[-1].finish.stop_sequence == "END"
    assert to_events(body, two)[-1].finish.stop_sequence == ""
    told = document(stop="stop_sequence", additionalModelResponseFields={"stop_sequence": "STOP"})
    assert to_events(told, two)[-1].finish.stop_sequence == "STOP"


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        ({"inputTokens": 3, "outputTokens": 9, "totalTokens": 12}, Usage(input_tokens=3, output_tokens=9)),
        (
            {"inputTokens": 3, "outputTokens": 550, "totalTokens": 12857, "cacheWriteInputTokens": 12304},
            Usage(input_tokens=12307, cache_write_5m_tokens=12304, output_tokens=550),
        ),
        (
            {
                "inputTokens": 5,
                "outputTokens": 7,
                "totalTokens": 1012,
                "cacheReadInputTokens": 700,
                "cacheWriteInputTokens": 300,
                "cacheDetails": [{"ttl": "1h", "inputTokens": 200}, {"ttl": "5m", "inputTokens": 100}],
            },
            Usage(
                input_tokens=1005,
                cache_read_tokens=700,
                cache_write_5m_tokens=100,
                cache_write_1h_tokens=200,
                output_tokens=7,
            ),
        ),
        (
            {"inputTokens": 1, "outputTokens": 1, "cacheDetails": [{"ttl": "1h", "inputTokens": 4}]},
            Usage(input_tokens=5, cache_write_1h_tokens=4, output_tokens=1),
        ),
    ],
)
def test_usage_is_inclusive(wire: Any, expected: Usage) -> None:
    streamed = run(begun(("messageStop", {"stopReason": "end_turn"}), ("metadata", {"usage": wire})))
    assert streamed[-1].finish.usage == expected
    assert to_events(document(usage=wire), OUTGOING)[-1].finish.usage == expected


def test_money(catalogue: Any) -> None:
    """Three tokens in, 12 304 written to the cache, 550 out, at 3, 3.75 and 15 dollars per million."""
    price = catalogue[f"bedrock/global.{MODEL}"].model.price
    wire = {"inputTokens": 3, "outputTokens": 550, "totalTokens": 12857, "cacheWriteInputTokens": 12304}
    usage = to_events(document(usage=wire), OUTGOING)[-1].finish.usage
    assert cost_of(usage, price).usd == "0.054399"
    hour = {**wire, "cacheReadInputTokens": 1000, "cacheDetails": [{"ttl": "1h", "inputTokens": 12304}]}
    usage = to_events(document(usage=hour), OUTGOING)[-1].finish.usage
    assert cost_of(usage, price).usd == "0.082383"
    assert not catalogue[f"bedrock/eu.{MODEL}"].model.HasField("price")


def test_the_finish_waits_for_the_usage() -> None:
    stream = Stream(OUTGOING, "r1")
    assert [made.WhichOneof("kind") for made in stream.feed(begun(("messageStop", {"stopReason": "end_turn"})))] == [
        "started"
    ]
    assert not stream.finished
    usage = {"usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}}
    assert stream.feed(frames(("metadata", usage)))[-1].finish.usage.output_tokens == 2
    assert stream.finished
    assert stream.end() == []


def test_a_clean_end_without_usage_is_an_answer_of_unknown_cost() -> None:
    last = run(begun(("messageStop", {"stopReason": "end_turn"})))[-1]
    assert last.WhichOneof("kind") == "finish"
    assert not last.finish.HasField("usage")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        begun(),
        begun(("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "a"}})),
        frames(("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "a"}})),
        begun(("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"toolUse": {"input": "{"}}})),
        begun(("contentBlockDelta", {"delta": {}})),
        begun(("contentBlockDelta", {"contentBlockIndex": 0, "delta": {}})),
        begun(("messageStop", {"stopReason": None})),
        begun(("messageStop", {"stopReason": "end_turn"})) + b"\0\0\0",
        frames(("messageStart", {}), ("messageStart", {})),
        b'{"message":"a document instead of a stream"}',
        event("messageStart", b"[]"),
        begun(("metadata", {"usage": {}})),
    ],
)
def test_streams_that_are_no_answer(raw: bytes) -> None:
    with pytest.raises(StreamBroken):
        run(raw)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"output":{}}', document(stop=None), document(["x"]), document([{}]), b"<html>", b"null"],
)
def test_documents_that_are_no_answer(body: bytes) -> None:
    with pytest.raises(StreamBroken):
        to_events(body, OUTGOING)


def test_a_text_block_may_be_announced() -> None:
    """Some servers begin text, too, with an empty start."""
    start = ("contentBlockStart", {"contentBlockIndex": 0, "start": {}})
    delta = ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "hi"}})
    answer = fold(run(begun(start, delta, ("messageStop", {"stopReason": "end_turn"}))))
    assert [part.text.text for part in answer.parts] == ["hi"]


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["weather", "clock", "time_now"]),
        st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=6)), max_size=3),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=5,
)


@given(calls=CALLS, data=st.data())
def test_interleaved_calls_come_out_whole(calls: list[tuple[str, dict[str, Any], int]], data: st.DataObject) -> None:
    """Any order of the pieces that keeps each call's own, read in pieces of any size."""
    columns: list[list[bytes]] = []
    for number, (name, arguments, size) in enumerate(calls):
        text = json.dumps(arguments, ensure_ascii=False)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        start = {"toolUse": {"toolUseId": f"t{number}", "name": name}}
        deltas = [
            event("contentBlockDelta", {"contentBlockIndex": number, "delta": {"toolUse": {"input": piece}}})
            for piece in pieces
        ]
        columns.append(
            [
                event("contentBlockStart", {"contentBlockIndex": number, "start": start}),
                *deltas,
                event("contentBlockStop", {"contentBlockIndex": number}),
            ]
        )
    raw = begun()
    left = [list(column) for column in columns]
    order: list[int] = []
    while any(left):
        number = data.draw(st.sampled_from([number for number, column in enumerate(left) if column]))
        order.append(number)
        raw += left[number].pop(0)
    raw += frames(("messageStop", {"stopReason": "tool_use"}))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    stream = Stream(OUTGOING, "r1")
    events = [
        made for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True) for made in stream.feed(raw[start:stop])
    ]
    answer = fold([*events, *stream.end()])
    begun_in = list(dict.fromkeys(order))
    assert [part.tool_call.call_id for part in answer.parts] == [f"t{number}" for number in begun_in]
    assert len({part.index for part in answer.parts}) == len(calls)
    for part, number in zip(answer.parts, begun_in, strict=True):
        name, arguments, _ = calls[number]
        assert part.tool_call.name == ("time.now" if name == "time_now" else name)
        assert json.loads(part.tool_call.arguments_json) == arguments


CONTENT = st.lists(
    st.one_of(
        st.builds(lambda text: {"text": text}, st.text(min_size=1, max_size=10)),
        st.builds(
            lambda text, signature: {"reasoningContent": {"reasoningText": {"text": text, "signature": signature}}},
            st.text(max_size=10),
            st.text("abc+/=", min_size=1, max_size=9),
        ),
        st.builds(lambda blob: {"reasoningContent": {"redactedContent": blob}}, st.just("cmVk")),
        st.builds(
            lambda name, given: {"toolUse": {"toolUseId": "t", "name": name, "input": given}},
            st.sampled_from(["weather", "time_now"]),
            st.dictionaries(st.text(max_size=3), st.integers(-9, 9), max_size=2),
        ),
    ),
    max_size=5,
)


@given(content=CONTENT, size=st.integers(1, 5))
def test_the_unary_answer_is_the_fold_of_the_stream(content: list[dict[str, Any]], size: int) -> None:
    def split(text: str) -> list[str]:
        return [text[at : at + size] for at in range(0, len(text), size)]

    usage = {"inputTokens": 7, "outputTokens": 9, "totalTokens": 16}
    raw = begun()
    for number, block in enumerate(content):
        deltas: list[dict[str, Any]]
        match block:
            case {"text": text}:
                deltas = [{"text": piece} for piece in split(text)]
            case {"toolUse": call}:
                start = {"toolUse": {name: call[name] for name in ("toolUseId", "name")}}
                raw += frames(("contentBlockStart", {"contentBlockIndex": number, "start": start}))
                deltas = [{"toolUse": {"input": piece}} for piece in split(orjson.dumps(call["input"]).decode())]
            case {"reasoningContent": {"reasoningText": told}}:
                deltas = [{"reasoningContent": {"text": piece}} for piece in split(told["text"])]
                deltas.append({"reasoningContent": {"signature": told["signature"]}})
            case _:
                deltas = [block]
        raw += frames(*(("contentBlockDelta", {"contentBlockIndex": number, "delta": delta}) for delta in deltas))
        raw += frames(("contentBlockStop", {"contentBlockIndex": number}))
    stop = "tool_use" if any("toolUse" in block for block in content) else "end_turn"
    raw += frames(("messageStop", {"stopReason": stop}), ("metadata", {"usage": usage}))
    streamed = fold(run(raw))
    whole = fold(to_events(document(content, stop, usage=usage), OUTGOING, "r1"))
    assert streamed.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
