"""From the chat-completions wire to events: every reason, every kind of piece, whatever the boundaries of the reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from maestro.llm.v1.chat_pb2 import ChatEvent, FinishReason, Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.adapter.chat_completions import Dialect, Stream, answer
from maestro_sdk.adapter.chat_completions.answer import to_usage
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import ContextTooLong, MaestroError, Overloaded, RateLimited, StreamBroken, UpstreamError

DIALECT = Dialect(provider="local")


def chunk(delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None, **more}
    return {"id": "r1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], "usage": None}


def sse(*chunks: Mapping[str, Any], done: bool = True) -> bytes:
    body = b"".join(b"data: " + orjson.dumps(item) + b"\n\n" for item in chunks)
    return body + (b"data: [DONE]\n\n" if done else b"")


def read(data: bytes, dialect: Dialect = DIALECT) -> list[ChatEvent]:
    stream = Stream(dialect, "m")
    return [*stream.feed(data), *stream.end()]


CALL = {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("deltas", "reason", "more", "expected"),
    [
        ([{"content": "a"}], "stop", {}, "STOP"),
        ([{"content": "a"}], "stop", {"stop_reason": "END"}, "STOP_SEQUENCE"),
        ([{"content": "a"}], "stop", {"stop_reason": 128001}, "STOP"),
        ([{"content": "a"}], "length", {}, "LENGTH"),
        ([{"content": "a"}], "content_filter", {}, "CONTENT_FILTER"),
        ([{"refusal": "no"}], "stop", {}, "REFUSAL"),
        ([CALL], "tool_calls", {}, "TOOL_CALLS"),
        ([CALL], "function_call", {}, "TOOL_CALLS"),
        # A named tool, and Ollama always: "stop" although a call waits for its result.
        ([CALL], "stop", {}, "TOOL_CALLS"),
        # A call that was cut is no call.
        ([CALL], "length", {}, "LENGTH"),
        ([{"content": "a"}], "eos_token", {}, "OTHER"),
        ([], "stop", {}, "STOP"),
    ],
)
def test_finish_reason(
    deltas: Sequence[Mapping[str, Any]], reason: str, more: Mapping[str, Any], expected: str
) -> None:
    events = read(sse(*(chunk(delta) for delta in deltas), chunk({}, reason, **more)))
    finish = events[-1].finish
    assert FinishReason.Name(finish.reason) == f"FINISH_REASON_{expected}"
    assert finish.raw_reason == reason
    assert finish.stop_sequence == ("END" if expected == "STOP_SEQUENCE" else "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "before its answer began"),
        (b"data: [DONE]\n\n", "before its answer began"),
        (b": ping\n\n", "before its answer began"),
        (sse(chunk({"content": "a"})), "in the middle"),
        (sse(chunk({"content": "a"}), done=False), "in the middle"),
        (sse(chunk({"content": "a"}, ""), done=False), "in the middle"),
        (sse(chunk({"content": "a"}), done=False) + b'data: {"choices": [', "not JSON"),
        (b"data: {oops}\n\n", "not JSON"),
        (b"data: [1]\n\n", "can't be read"),
        (sse(chunk({"tool_calls": [{"index": 0, "type": "custom", "custom": {}}]})), "unknown type 'custom'"),
        # What is JSON but not the wire is broken too, never a crash.
        (sse({"id": "r1", "choices": ["a"]}), "can't be read"),
        (sse(chunk({"content": 5}, "stop")), "can't be read"),
        (sse(chunk({"tool_calls": [{"index": [], "function": {}}]}, "stop")), "can't be read"),
        (sse(chunk({}, "stop"), {"choices": [], "usage": {"prompt_tokens": "many"}}), "can't be read"),
    ],
)
def test_broken_stream(data: bytes, message: str) -> None:
    with pytest.raises(StreamBroken, match=message):
        read(data)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"error": {"message": "Slow down", "code": "rate_limit_exceeded", "type": "tokens"}}, RateLimited),
        ({"error": {"message": "busy", "code": 503}}, Overloaded),
        ({"error": {"message": "boom", "type": "server_error"}}, UpstreamError),
        ({"error": "boom"}, UpstreamError),
        ({"error": {"message": "This model's maximum context length is 10 tokens.", "code": 400}}, ContextTooLong),
        ({"object": "error", "message": "boom", "code": 500}, UpstreamError),
        ({**chunk({}, "error"), "error": {"message": "busy", "code": 503}}, Overloaded),
        (chunk({}, "error"), UpstreamError),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_error_inside_stream(error: Mapping[str, Any], expected: type[MaestroError], before: int) -> None:
    stream = Stream(DIALECT, "m")
    assert len(stream.feed(sse(*[chunk({"content": "a"})] * before, done=False))) == (2 if before else 0)
    with pytest.raises(expected) as caught:
        stream.feed(sse(error, done=False))
    assert type(caught.value) is expected


def test_all_events_of_a_read_come_at_once() -> None:
    pieces = [chunk({"content": str(number)}) for number in range(50)]
    events = Stream(DIALECT, "m").feed(sse(*pieces, chunk({}, "stop")))
    assert [event.WhichOneof("kind") for event in events] == ["started", *["text"] * 50, "finish"]
    assert fold(events).parts[0].text.text == "".join(str(number) for number in range(50))


def test_nothing_after_the_finish_belongs_to_the_answer() -> None:
    stream = Stream(DIALECT, "m")
    events = stream.feed(sse(chunk({"content": "a"}, "stop")) + b'data: {"oops\n\n')
    assert events[-1].WhichOneof("kind") == "finish"
    assert stream.finished
    assert stream.feed(sse(chunk({"content": "b"}))) == []
    assert stream.end() == []


def test_usage_on_the_way_is_cumulative() -> None:
    one = {**chunk({"content": "a"}), "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
    two = {**chunk({"content": "b"}), "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    events = read(sse(one, two, chunk({}, "stop")))
    assert [event.usage.output_tokens for event in events if event.WhichOneof("kind") == "usage"] == [1, 2]
    assert events[-1].finish.usage == Usage(input_tokens=5, output_tokens=2)


def test_unreported_usage_stays_absent() -> None:
    assert not read(sse(chunk({"content": "a"}, "stop")))[-1].finish.HasField("usage")


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        ({}, Usage()),
        ({"prompt_tokens": None, "completion_tokens": 3, "prompt_tokens_details": None}, Usage(output_tokens=3)),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 20, "audio_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 2},
            },
            Usage(
                input_tokens=100,
                cache_read_tokens=60,
                cache_write_5m_tokens=20,
                audio_input_tokens=4,
                output_tokens=50,
                reasoning_tokens=30,
                audio_output_tokens=2,
            ),
        ),
    ],
)
def test_usage(wire: Mapping[str, Any], expected: Usage) -> None:
    assert to_usage(wire) == expected


def test_reasoning_is_taken_once() -> None:
    # Some servers say it under both names.
    events = read(sse(chunk({"reasoning_content": "hm", "reasoning": "hm"}), chunk({"content": "a"}, "stop")))
    parts = fold(events).parts
    assert [part.WhichOneof("kind") for part in parts] == ["reasoning", "text"]
    assert parts[0].reasoning.text == "hm"


def test_citations() -> None:
    note = {
        "type": "url_citation",
        "url_citation": {"title": "T", "url": "https://e.x", "start_index": 1, "end_index": 2},
    }
    part = fold(read(sse(chunk({"content": "a"}), chunk({"annotations": [note]}, "stop")))).parts[0]
    assert (part.text.text, part.text.citations[0].title, part.text.citations[0].url) == ("a", "T", "https://e.x")
    assert not part.text.citations[0].HasField("start")


def test_warnings_and_names() -> None:
    stream = Stream(DIALECT, "m", warnings=[Warning(code="w")], fallback_id="made")
    events = stream.feed(sse({"choices": [{"delta": CALL_WITHOUT_ID, "finish_reason": "stop"}], "model": "m-2026"}))
    assert [event.WhichOneof("kind") for event in events] == ["started", "warning", "tool_call", "finish"]
    assert events[0].started.response_id == "made"
    assert events[2].tool_call.call_id == "call_made_1"
    assert events[3].finish.provider_metadata["local"]["model"] == "m-2026"


CALL_WITHOUT_ID = {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


def test_calls_without_indexes_are_distinct() -> None:
    first, second = ({"id": name, "function": {"name": name, "arguments": "{}"}} for name in ("a", "b"))
    together = fold(read(sse(chunk({"tool_calls": [first, second]}, "tool_calls"))))
    apart = fold(read(sse(chunk({"tool_calls": [first]}), chunk({"tool_calls": [second]}, "tool_calls"))))
    for response in (together, apart):
        assert [(part.index, part.tool_call.call_id, part.tool_call.name) for part in response.parts] == [
            (0, "a", "a"),
            (1, "b", "b"),
        ]


def test_name_that_comes_late() -> None:
    late = chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}, "tool_calls")
    response = fold(read(sse(chunk({"tool_calls": [{"index": 0, "id": "c1"}]}), late)))
    assert (response.parts[0].tool_call.name, response.parts[0].tool_call.arguments_json) == ("f", "{}")


def test_other_choices_are_not_mixed_in() -> None:
    other = {"id": "r1", "choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    assert fold(read(sse(chunk({"content": "a"}), other, chunk({}, "stop")))).parts[0].text.text == "a"


# --- properties -------------------------------------------------------------------------------------------------------

texts = st.text(min_size=1, max_size=12)
calls = st.lists(
    st.tuples(
        texts, st.dictionaries(texts, st.integers() | texts, max_size=3).map(lambda v: orjson.dumps(str(v)).decode())
    ),
    max_size=3,
)


def pieces(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole completion and the chunks of its stream, with calls interleaved at random."""
    thought, text = draw(st.just("") | texts), draw(st.just("") | texts)
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "reasoning": thought or None}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning": piece} for piece in pieces(draw, thought)]
    deltas += [{"content": piece} for piece in pieces(draw, text)]
    made = draw(calls)
    queues: list[list[dict[str, Any]]] = []
    for index, (name, arguments) in enumerate(made):
        call_id = f"call_{index}"
        message.setdefault("tool_calls", []).append(
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        )
        deltas.append({"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": {"name": name}}]})
        queues.append([{"index": index, "function": {"arguments": piece}} for piece in pieces(draw, arguments)])
    while queues := [queue for queue in queues if queue]:
        queue = draw(st.sampled_from(queues))
        deltas.append({"tool_calls": [queue.pop(0)]})
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter", "strange"]))
    usage = {"prompt_tokens": draw(st.integers(0, 9)), "completion_tokens": draw(st.integers(0, 9))}
    head = {"id": "r1", "model": "m-1", "service_tier": "default"}
    whole = {**head, "choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}
    chunks: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    chunks.append({**head, "choices": [], "usage": usage})
    return whole, chunks


@settings(max_examples=80, deadline=None)
@given(answers(), st.data())
def test_whole_and_stream_fold_to_the_same(
    made: tuple[dict[str, Any], list[dict[str, Any]]], data: st.DataObject
) -> None:
    whole, chunks = made
    wire = sse(*chunks, done=data.draw(st.booleans()))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    stream = Stream(DIALECT, "m")
    events: list[ChatEvent] = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        events += stream.feed(wire[start:end])
    events += stream.end()
    expected = fold(answer(orjson.dumps(whole), DIALECT, "m"))
    assert fold(events).SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    message = whole["choices"][0]["message"]
    found = [
        (part.tool_call.name, part.tool_call.arguments_json) for part in expected.parts if part.HasField("tool_call")
    ]
    asked = [call["function"] for call in message.get("tool_calls", ())]
    assert found == [(function["name"], function["arguments"]) for function in asked]


def test_every_byte_boundary() -> None:
    wire = sse(
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning": "é"}),
        chunk({"content": "naïve 🗼"}),
        chunk(CALL),
        chunk({}, "tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    ).replace(b"\n", b"\r\n")
    expected = read(wire)
    assert expected[-1].finish.usage.output_tokens == 4
    for cut in range(len(wire) + 1):
        stream = Stream(DIALECT, "m")
        assert [*stream.feed(wire[:cut]), *stream.feed(wire[cut:]), *stream.end()] == expected
    stream = Stream(DIALECT, "m")
    single = [event for position in range(len(wire)) for event in stream.feed(wire[position : position + 1])]
    assert [*single, *stream.end()] == expected


def test_every_cut_before_the_reason_is_an_error() -> None:
    wire = sse(chunk({"content": "Hello"}), chunk({"content": " world"}), chunk({}, "stop"), done=False)
    complete = wire.rindex(b"}")
    for cut in range(complete + 1):
        stream = Stream(DIALECT, "m")
        stream.feed(wire[:cut])
        with pytest.raises(StreamBroken):
            stream.end()


FILTERED = Dialect(provider="azure", content_filters=True, metadata_fields=("prompt_filter_results",))


def found(**kinds: tuple[bool, str]) -> dict[str, Any]:
    results = {kind: {"filtered": filtered, "severity": severity} for kind, (filtered, severity) in kinds.items()}
    return {"content_filter_results": results}


def test_the_worst_that_a_filter_found_is_kept() -> None:
    data = sse(
        chunk({"content": "a"}, **found(hate=(False, "safe"), violence=(False, "medium"))),
        chunk({"content": "b"}, **found(hate=(False, "low"), violence=(False, "low"))),
        chunk({"content": "c"}, **found(hate=(True, "low"), violence=(False, "unheard of"))),
        chunk({"content": "d"}, **found(hate=(False, "high"))),
        chunk({}, "stop"),
    )
    facts: Any = fold(read(data, FILTERED)).provider_metadata["azure"]["content_filter_results"]
    assert facts["hate"]["filtered"] is True
    assert facts["hate"]["severity"] == "low"
    assert facts["violence"]["severity"] == "medium"
    # Whoever has no filters is not asked for what they found.
    assert "local" not in fold(read(data)).provider_metadata


def test_what_a_filter_found_in_the_prompt_is_no_beginning() -> None:
    results = [{"prompt_index": 0, **found(hate=(False, "safe"))}]
    first = {"id": "", "model": "", "choices": [], "prompt_filter_results": results}
    events = read(sse(first, chunk({"content": "a"}), chunk({}, "stop")), FILTERED)
    assert [event.WhichOneof("kind") for event in events] == ["started", "text", "finish"]
    assert events[0].started.response_id == "r1"
    kept: Any = events[-1].finish.provider_metadata["azure"]["prompt_filter_results"]
    assert kept[0]["content_filter_results"]["hate"]["severity"] == "safe"


def test_a_filter_may_have_the_last_word() -> None:
    """It may judge what was sent before: the reason that comes last holds."""
    late = {"index": 0, "finish_reason": "content_filter", **found(violence=(True, "high"))}
    response = fold(read(sse(chunk({"content": "a"}), chunk({}, "stop"), {"id": "", "choices": [late]}), FILTERED))
    assert response.finish_reason == FinishReason.FINISH_REASON_CONTENT_FILTER


@pytest.mark.parametrize("name", ["x-request-id", "X-Request-Id"])
def test_headers_become_facts(name: str) -> None:
    dialect = Dialect(provider="local", metadata_headers={"x-request-id": "request_id", "x-region": "region"})
    stream = Stream(dialect, "m")
    stream.hear(CIMultiDict({name: "req-1"}))
    events = [*stream.feed(sse(chunk({"content": "a"}), chunk({}, "stop"))), *stream.end()]
    assert dict(events[-1].finish.provider_metadata["local"]) == {"request_id": "req-1"}


def test_padding_is_no_content() -> None:
    """OpenAI pads its chunks against those who measure packets."""
    padded = {**chunk({"content": "a"}), "obfuscation": "x9Qzk"}
    assert read(sse(padded, {**chunk({}, "stop"), "obfuscation": ""})) == read(
        sse(chunk({"content": "a"}), chunk({}, "stop"))
    )
