"""Anthropic's answers as events: recorded streams, tables of words and counts, and properties of all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatEvent, FinishReason
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_claude.answer import FINISH_REASONS
from maestro_adapter_claude.translate import Outgoing, Stream, to_events
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import Overloaded, StreamBroken
from maestro_sdk.testing.golden import check, plain

STREAMS = sorted(Path(__file__).with_name("golden").glob("streams/*.sse"))
OUTGOING = Outgoing({}, "claude-sonnet-5", tool_names={"time_now": "time.now"})


def frames(*documents: Mapping[str, Any]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (d["type"].encode(), orjson.dumps(d)) for d in documents)


def message(usage: Any = None, **fields: Any) -> dict[str, Any]:
    base = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5", "content": []}
    return {**base, "stop_reason": None, "stop_sequence": None, "usage": usage, **fields}


def start(usage: Any = None) -> dict[str, Any]:
    return {"type": "message_start", "message": message(usage)}


def finish(reason: Any, usage: Any = None) -> list[dict[str, Any]]:
    return [
        {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]


def run(raw: bytes, outgoing: Outgoing = OUTGOING) -> list[ChatEvent]:
    stream = Stream(outgoing)
    events = stream.feed(raw)
    stream.end()
    return events


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_golden_stream(path: Path) -> None:
    stream = Stream(OUTGOING)
    got: dict[str, Any] = {"events": plain(stream.feed(path.read_bytes())), "finished": stream.finished}
    if stream.failure is not None:
        got["failure"] = {"reason": stream.failure.reason, "message": stream.failure.message}
    check(path.with_name(f"{path.stem}.events.json"), got)


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_every_split_gives_the_same_events(path: Path) -> None:
    raw = path.read_bytes()
    whole = Stream(OUTGOING)
    expected = whole.feed(raw)
    for cut in range(1, len(raw)):
        split = Stream(OUTGOING)
        assert [*split.feed(raw[:cut]), *split.feed(raw[cut:])] == expected, f"cut at byte {cut}"
        assert (split.finished, str(split.failure)) == (whole.finished, str(whole.failure))
    bytewise = Stream(OUTGOING)
    assert [event for byte in raw for event in bytewise.feed(bytes([byte]))] == expected


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_line_ends_and_missing_event_names_change_nothing(path: Path) -> None:
    raw = path.read_bytes()
    expected = Stream(OUTGOING).feed(raw)
    assert Stream(OUTGOING).feed(raw.replace(b"\n", b"\r\n")) == expected
    nameless = b"\n".join(line for line in raw.split(b"\n") if not line.startswith(b"event:"))
    assert Stream(OUTGOING).feed(nameless) == expected


def test_finish_reasons() -> None:
    expected = {
        "end_turn": "STOP",
        "stop_sequence": "STOP_SEQUENCE",
        "max_tokens": "LENGTH",
        "model_context_window_exceeded": "CONTEXT_WINDOW",
        "tool_use": "TOOL_CALLS",
        "refusal": "REFUSAL",
        "pause_turn": "PAUSED",
        "compaction": "OTHER",
        "content_filter": "OTHER",
    }
    for word, name in expected.items():
        for events in (
            run(frames(start(), *finish(word))),
            to_events(orjson.dumps(message(stop_reason=word)), OUTGOING),
        ):
            last = events[-1].finish
            assert FinishReason.Name(last.reason) == f"FINISH_REASON_{name}"
            assert last.raw_reason == word
    assert set(FINISH_REASONS) <= set(expected)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ({"input_tokens": 3, "output_tokens": 1}, {"output_tokens": 9}, Usage(input_tokens=3, output_tokens=9)),
        (
            {"input_tokens": 3, "cache_creation_input_tokens": 12304, "cache_read_input_tokens": 0, "output_tokens": 1},
            {"output_tokens": 550},
            Usage(input_tokens=12307, cache_write_5m_tokens=12304, output_tokens=550),
        ),
        (
            {
                "input_tokens": 5,
                "cache_creation_input_tokens": 30,
                "cache_read_input_tokens": 100,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            },
            {"input_tokens": 5, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 100, "output_tokens": 2},
            Usage(
                input_tokens=135,
                cache_read_tokens=100,
                cache_write_5m_tokens=10,
                cache_write_1h_tokens=20,
                output_tokens=2,
            ),
        ),
        (
            {"input_tokens": 5, "cache_read_input_tokens": None, "cache_creation": None},
            {"output_tokens": 20, "output_tokens_details": {"thinking_tokens": 15}},
            Usage(input_tokens=5, output_tokens=20, reasoning_tokens=15),
        ),
        (None, {"input_tokens": 7, "output_tokens": 2}, Usage(input_tokens=7, output_tokens=2)),
    ],
)
def test_usage_is_inclusive_and_cumulative(first: Any, last: Any, expected: Usage) -> None:
    streamed = run(frames(start(first), *finish("end_turn", last)))
    assert streamed[-1].finish.usage == expected
    unary = to_events(orjson.dumps(message({**(first or {}), **last}, stop_reason="end_turn")), OUTGOING)
    assert unary[-1].finish.usage == expected
    assert fold(streamed) == fold(unary)


def test_usage_is_told_at_the_start_and_between() -> None:
    events = run(
        frames(
            start({"input_tokens": 3, "output_tokens": 1}),
            *finish(None, {"output_tokens": 4})[:1],
            *finish("end_turn", {"output_tokens": 6}),
        )
    )
    assert [event.usage.output_tokens for event in events if event.HasField("usage")] == [1, 4]
    assert events[-1].finish.usage.output_tokens == 6


def test_without_usage_the_cost_stays_unknown() -> None:
    last = run(frames(start(), *finish("end_turn")))[-1].finish
    assert not last.HasField("usage")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        frames(start()),
        frames(start(), *finish("end_turn")[:1]),
        frames(start(), {"type": "message_stop"}),
        frames(start(), *finish(None)),
        frames(*finish("end_turn")),
        frames(start(), start(), *finish("end_turn")),
        frames({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "x"}}),
        frames(start(), {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}),
        frames(start())
        + b'event: content_block_delta\ndata: {"type": "content_block_delta", "ind\n\n'
        + frames(*finish("end_turn")),
        frames(start()) + b"event: message_delta\ndata: [1]\n\n" + frames(*finish("end_turn")),
        frames(start(), {"type": "message_delta"}, *finish("end_turn")),
    ],
)
def test_what_is_not_a_whole_answer_is_broken(raw: bytes) -> None:
    stream = Stream(OUTGOING)
    events = stream.feed(raw)
    with pytest.raises(StreamBroken):
        stream.end()
    assert not any(event.HasField("finish") for event in events)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'"x"', b"{}", orjson.dumps(message()), b'{"id": "msg_1", "ty']
)
def test_unreadable_unary_answers_are_broken(body: bytes) -> None:
    with pytest.raises(StreamBroken):
        to_events(body, OUTGOING)


def test_error_in_a_unary_answer_is_raised() -> None:
    with pytest.raises(Overloaded):
        to_events(b'{"type":"error","error":{"type":"overloaded_error","message":"no"}}', OUTGOING)


def test_events_before_an_error_are_not_lost() -> None:
    stream = Stream(OUTGOING)
    events = stream.feed((Path(__file__).with_name("golden") / "streams/error.sse").read_bytes())
    assert [event.text.text for event in events if event.HasField("text")] == ["Hel"]
    assert stream.feed(frames(*finish("end_turn"))) == []
    with pytest.raises(Overloaded):
        stream.end()


def test_a_call_that_comes_whole() -> None:
    block = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}
    answer = fold(
        run(
            frames(
                start(),
                {"type": "content_block_start", "index": 0, "content_block": block},
                {"type": "content_block_stop", "index": 0},
                # A server that numbers all of its calls 0, and gives the second one no id.
                {"type": "content_block_start", "index": 0, "content_block": {**block, "id": "", "input": {}}},
                *finish("tool_use"),
            )
        )
    )
    calls = [part.tool_call for part in answer.parts]
    assert [part.index for part in answer.parts] == [0, 1]
    assert [call.arguments_json for call in calls] == ['{"city":"Paris"}', "{}"]
    assert [call.call_id for call in calls] == ["t1", "call_msg_1_2"]


# One answer, said on both of the provider's wires.
_text = st.text(max_size=12)
_blocks = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.just("text"), "text": _text}),
        st.fixed_dictionaries({"type": st.just("thinking"), "thinking": _text, "signature": st.text(max_size=5)}),
        st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": _text}),
        st.fixed_dictionaries(
            {
                "type": st.just("tool_use"),
                "id": st.uuids().map(str),
                "name": st.sampled_from(["weather", "time_now"]),
                "input": st.dictionaries(_text, st.one_of(_text, st.integers(-9, 9), st.none(), st.lists(_text))),
            }
        ),
        st.fixed_dictionaries({"type": st.just("web_search_tool_result"), "content": st.lists(_text)}),
    ),
    max_size=5,
)


def _deltas(number: int, block: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """A block as the provider streams it: an empty one, then pieces of at most `size` characters."""

    def pieces(text: str) -> list[str]:
        return [text[at : at + size] for at in range(0, len(text), size)]

    empty = dict(block)
    deltas: list[dict[str, Any]] = []
    match block["type"]:
        case "text":
            empty["text"] = ""
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
        case "thinking":
            empty |= {"thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
            if block["signature"]:
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case "tool_use":
            empty["input"] = {}
            text = orjson.dumps(block["input"]).decode()
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces(text)]]
        case _:
            pass
    yield {"type": "content_block_start", "index": number, "content_block": empty}
    yield from ({"type": "content_block_delta", "index": number, "delta": delta} for delta in deltas)
    yield {"type": "content_block_stop", "index": number}


@given(blocks=_blocks, size=st.integers(1, 6), reads=st.integers(1, 80), data=st.data())
def test_folding_the_stream_gives_the_unary_answer(
    blocks: list[Any], size: int, reads: int, data: st.DataObject
) -> None:
    content: list[dict[str, Any]] = []
    columns = [list(_deltas(number, block, size)) for number, block in enumerate(blocks)]
    for is_call, group in groupby(zip(blocks, columns, strict=True), lambda pair: pair[0]["type"] == "tool_use"):
        run_of = [column for _, column in group]
        if not is_call:
            content += [frame for column in run_of for frame in column]
            continue
        # Calls begin in order, but what follows may alternate.
        content += [column.pop(0) for column in run_of]
        while any(run_of):
            content.append(data.draw(st.sampled_from([column for column in run_of if column])).pop(0))
    usage = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 7}
    raw = frames(start({**usage, "output_tokens": 1}), *content, *finish("tool_use", usage))
    stream = Stream(OUTGOING)
    events = [event for at in range(0, len(raw), reads) for event in stream.feed(raw[at : at + reads])]
    stream.end()
    unary = to_events(orjson.dumps(message(usage, content=blocks, stop_reason="tool_use")), OUTGOING)
    assert fold(events).SerializeToString(deterministic=True) == fold(unary).SerializeToString(deterministic=True)
    indexes = [part.index for part in fold(unary).parts]
    assert indexes == sorted(set(indexes))


def test_state_comes_back_as_it_went_out(ask: Any, translate: Any) -> None:
    """The two-turn loop: what the provider signed is sent back byte for byte."""
    raw = (Path(__file__).with_name("golden") / "streams/thinking.sse").read_bytes()
    answer = fold(run(raw))
    request = ask("think")
    turn = request.messages.add(role="ROLE_ASSISTANT")
    turn.parts.extend(answer.parts)
    request.messages.add(role="ROLE_USER").parts.add().text.text = "and?"
    sent = json.loads(orjson.dumps(translate(request).body))["messages"][1]["content"]
    assert sent == [
        {"type": "thinking", "thinking": "Let me think.", "signature": "EqQBCgIYAhIk+/=sig"},
        {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4a=="},
        {"type": "thinking", "thinking": "", "signature": "only-a-signature"},
        {"type": "text", "text": "42"},
    ]
