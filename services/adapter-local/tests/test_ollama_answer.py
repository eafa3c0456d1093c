"""Ollama's answers as events: recorded streams, tables of words, counts and errors, and properties of all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatEvent, FinishReason
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_local.ollama import Outgoing, Stream, to_error, to_events
from maestro_adapter_local.ollama.answer import FINISH_REASONS, LONGEST_LINE, to_embeddings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import (
    ContextTooLong,
    InvalidRequest,
    MaestroError,
    NotFound,
    OutputInvalid,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    StreamBroken,
    Timeout,
    TooLarge,
    UnsupportedParameter,
    UpstreamError,
)
from maestro_sdk.testing.golden import check, plain

STREAMS = sorted(Path(__file__).with_name("golden").glob("streams/*.ndjson"))
OUTGOING = Outgoing({}, "qwen3:8b")


def line(message: Any = None, **fields: Any) -> bytes:
    frame = {"model": "qwen3:8b", "message": {"role": "assistant", "content": "", **(message or {})}, "done": False}
    return orjson.dumps({**frame, **fields}) + b"\n"


def run(*pieces: bytes, outgoing: Outgoing = OUTGOING) -> list[ChatEvent]:
    stream = Stream(outgoing, "r")
    return [*(event for piece in pieces for event in stream.feed(piece)), *stream.end()]


def outcome(raw: list[bytes]) -> tuple[list[ChatEvent], str]:
    """All events, and how it ended."""
    stream = Stream(OUTGOING, "r")
    events = [event for piece in raw for event in stream.feed(piece)]
    try:
        events += stream.end()
    except MaestroError as error:
        return events, f"{error.reason}: {error.message}"
    return events, ""


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_golden_stream(path: Path) -> None:
    events, failure = outcome([path.read_bytes()])
    check(path.with_name(f"{path.stem}.events.json"), {"events": plain(events), "failure": failure})


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_every_split_gives_the_same_events(path: Path) -> None:
    raw = path.read_bytes()
    expected = outcome([raw])
    for cut in range(1, len(raw)):
        assert outcome([raw[:cut], raw[cut:]]) == expected, f"cut at byte {cut}"
    assert outcome([bytes([byte]) for byte in raw]) == expected
    events, failure = outcome([raw.replace(b"\n", b"\r\n")])
    assert (events, bool(failure)) == (expected[0], bool(expected[1]))


def test_done_reasons() -> None:
    expected = {"stop": "STOP", "length": "LENGTH", "tool_calls": "TOOL_CALLS"}
    expected |= {"load": "OTHER", "unload": "OTHER", "content_filter": "OTHER", "": "OTHER"}
    for word, name in expected.items():
        done = line(done=True, done_reason=word)
        for events in (run(done), to_events(done, OUTGOING, "r")):
            last = events[-1].finish
            assert FinishReason.Name(last.reason) == f"FINISH_REASON_{name}"
            assert last.raw_reason == word
    assert set(FINISH_REASONS) <= set(expected)


@pytest.mark.parametrize(
    ("word", "name"), [("stop", "TOOL_CALLS"), ("tool_calls", "TOOL_CALLS"), ("length", "LENGTH"), ("load", "OTHER")]
)
def test_done_reasons_with_a_call_in_an_earlier_line(word: str, name: str) -> None:
    call = line({"tool_calls": [{"function": {"name": "f", "arguments": {}}}]})
    last = run(call, line({"content": "."}), line(done=True, done_reason=word))[-1].finish
    assert FinishReason.Name(last.reason) == f"FINISH_REASON_{name}"


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"prompt_eval_count": 26, "eval_count": 9}, Usage(input_tokens=26, output_tokens=9)),
        ({"eval_count": 9}, Usage(output_tokens=9)),
        ({"prompt_eval_count": 3}, Usage(input_tokens=3)),
        ({"prompt_eval_count": 0, "eval_count": 0}, Usage()),
        ({}, None),
    ],
)
def test_usages(counts: dict[str, int], usage: Usage | None) -> None:
    finish = run(line(done=True, done_reason="stop", **counts))[-1].finish
    assert finish.HasField("usage") is (usage is not None)
    assert usage is None or finish.usage == usage


@pytest.mark.parametrize("raw", [b"", line({"content": "x"}), line({"content": "x"}) + b'{"model": "q', b"\n\n"])
def test_an_answer_that_is_never_done_is_broken(raw: bytes) -> None:
    with pytest.raises(StreamBroken):
        run(raw)
    with pytest.raises(StreamBroken):
        to_events(raw, OUTGOING, "r")


@pytest.mark.parametrize("raw", [b"[]\n", b"7\n", b'{"message": 1}\n', b'{"message": {"tool_calls": [{}]}}\n', b"<\n"])
def test_what_is_no_answer_is_broken(raw: bytes) -> None:
    with pytest.raises(StreamBroken, match="can't be read"):
        run(raw, line(done=True, done_reason="stop"))


def test_a_line_without_end_is_not_kept() -> None:
    stream = Stream(OUTGOING, "r")
    fed = 0
    while stream.failure is None and fed <= 2 * LONGEST_LINE:
        stream.feed(b"x" * (1 << 22))
        fed += 1 << 22
    assert LONGEST_LINE < fed <= LONGEST_LINE + (1 << 22)
    with pytest.raises(StreamBroken, match="a line of more than"):
        stream.end()


def test_logprobs_that_did_not_come_are_warned_of() -> None:
    outgoing = Outgoing({}, "qwen3:8b", logprobs=True)
    said, done = line({"content": "hi"}), line(done=True, done_reason="stop")
    assert [event.warning.field for event in run(said, done, outgoing=outgoing) if event.HasField("warning")] == [
        "logprobs"
    ]
    probable = line({"content": "hi"}, logprobs=[{"token": "hi", "logprob": -0.1}])
    for events in (run(probable, done, outgoing=outgoing), run(said, done), run(done, outgoing=outgoing)):
        assert not any(event.HasField("warning") for event in events)


def test_a_document_may_be_laid_out_in_lines() -> None:
    frame = json.loads(line({"content": "a\nb"}, done=True, done_reason="stop"))
    events = to_events(json.dumps(frame, indent=2).encode(), OUTGOING, "r")
    assert events == run(line({"content": "a\nb"}, done=True, done_reason="stop"))


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (404, "model 'x' not found", NotFound),
        (404, 'model "x" not found, try pulling it first', NotFound),
        (404, "404 page not found", NotFound),
        (400, '"x" does not support chat', UnsupportedParameter),
        (400, "registry.ollama.ai/library/x:latest does not support tools", UnsupportedParameter),
        (400, '"x" does not support thinking', UnsupportedParameter),
        (400, 'think value "low" is not supported for this model', UnsupportedParameter),
        (400, "the input length exceeds the context length", ContextTooLong),
        (500, "input length exceeds maximum context length", ContextTooLong),
        (400, "the prompt is longer than the context length currently available to the model", ContextTooLong),
        (400, "model is required", InvalidRequest),
        (500, "failed to load model vocabulary required for format: failed to parse grammar", InvalidRequest),
        (401, "unauthorized", ProviderAuth),
        (403, "forbidden", ProviderAuth),
        (402, "payment required", ProviderQuota),
        (429, "you've reached your hourly usage limit, please upgrade to continue", ProviderQuota),
        (429, "too many requests", RateLimited),
        (413, "request body too large", TooLarge),
        (503, "server busy, please try again.  maximum pending requests exceeded", Overloaded),
        (503, "", Overloaded),
        (500, "error parsing tool call: raw='{\"a\"', err=unexpected end of JSON input", OutputInvalid),
        (500, "timed out waiting for llama runner to start: progress 0.00", Timeout),
        (504, "gateway", Timeout),
        (500, "llama runner process has terminated: exit status 2", UpstreamError),
        (500, "model requires more system memory (9.8 GiB) than is available (3.2 GiB)", UpstreamError),
        (502, "", UpstreamError),
        (200, "an error was encountered while running the model: unexpected EOF", UpstreamError),
        (200, "server busy, please try again", Overloaded),
        (200, "error parsing tool call: raw='x'", OutputInvalid),
    ],
)
def test_errors(status: int, text: str, expected: type[MaestroError]) -> None:
    error = to_error(status, orjson.dumps({"error": text}), {"retry-after": "3"})
    assert type(error) is expected
    assert error.metadata == {"provider": "local", "upstream_status": str(status)}
    assert error.retry_after == (None if expected is ProviderQuota else 3.0)
    assert error.retryable is (expected.retryable and "more system memory" not in text)
    if expected is not ProviderAuth:
        assert text in error.message
    if status == 200:
        with pytest.raises(expected):
            run(line({"content": "x"}), orjson.dumps({"error": text}) + b"\n")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"<html>nginx</html>", "HTTP 502 without"),
        (b"bad gateway", "bad gateway"),
        (b'{"error": {"message": "nested"}}', "nested"),
        (rb'{"error": "{\"error\": {\"code\": 500, \"message\": \"no slot\"}}"}', "no slot"),
        (b'{"error": "{odd"}', "{odd"),
        (b"[]", "HTTP 502 without"),
        (b'{"error": 7}', "HTTP 502 without"),
        (b'{"error": "' + b"x" * 5000 + b'"}', "x" * 1000),
    ],
)
def test_odd_errors(body: bytes, told: str) -> None:
    error = to_error(502, body, {})
    assert type(error) is UpstreamError
    assert error.message.startswith(f"Ollama: {told}")
    assert len(error.message) < 1100


def test_a_prompt_that_does_not_fit_is_told_with_its_size() -> None:
    said = "request (8889 tokens) exceeds the available context size (4096 tokens), try increasing it"
    inner = orjson.dumps({"error": {"code": 400, "message": said, "type": "exceed_context_size_error"}}).decode()
    error = to_error(400, orjson.dumps({"error": inner}), {})
    assert type(error) is ContextTooLong
    assert error.message == f"Ollama: {said} (shorten the conversation, or give the server a larger num_ctx)"


ARGUMENTS = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
CALL = st.tuples(st.sampled_from(["weather", "clock", "find"]), ARGUMENTS, st.sampled_from(["", "call_1", "call_2"]))


@given(st.data())
def test_calls_arrive_as_they_were_made(data: st.DataObject) -> None:
    """Several per line or one, with text between them, with the index 0 for all, cut into reads of any size."""
    calls = data.draw(st.lists(CALL, min_size=1, max_size=6))
    raw, left = b"", list(calls)
    text = ""
    while left:
        if data.draw(st.booleans()):
            raw += line({"content": "…"})
            text += "…"
        count = data.draw(st.integers(1, len(left)))
        batch, left = left[:count], left[count:]
        made = [
            {**({"id": given} if given else {}), "function": {"index": 0, "name": name, "arguments": arguments}}
            for name, arguments, given in batch
        ]
        frame = {"model": "qwen3:8b", "message": {"role": "assistant", "content": "", "tool_calls": made}}
        raw += json.dumps(frame, ensure_ascii=data.draw(st.booleans())).encode() + b"\n"
    raw += line(done=True, done_reason="stop")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    answer = fold(run(*pieces))
    got = [part.tool_call for part in answer.parts if part.HasField("tool_call")]
    assert [(call.name, json.loads(call.arguments_json)) for call in got] == [
        (name, arguments) for name, arguments, _ in calls
    ]
    assert len({part.index for part in answer.parts}) == len(answer.parts)
    assert "".join(part.text.text for part in answer.parts) == text
    assert answer.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    for call, (_, _, given_id) in zip(got, calls, strict=True):
        assert call.call_id == given_id if given_id else call.call_id.startswith("call_r_")


def test_embeddings() -> None:
    body = b'{"model": "nomic", "embeddings": [[1.0, 0.5], [0.0, 2.0]], "prompt_eval_count": 8}'
    response = to_embeddings(body, Outgoing({}, "nomic"))
    assert [(vector.index, list(vector.values)) for vector in response.embeddings] == [(0, [1.0, 0.5]), (1, [0.0, 2.0])]
    assert response.usage.input_tokens == 8
    assert not to_embeddings(b'{"embeddings": [[1]]}', Outgoing({}, "nomic")).HasField("usage")
    for wrong in (b"", b"[]", b"{}", b'{"embeddings": [["x"]]}', b'{"embedding": [1.0]}'):
        with pytest.raises(StreamBroken, match="can't be read"):
            to_embeddings(wrong, Outgoing({}, "nomic"))
    with pytest.raises(NotFound):
        to_embeddings(b'{"error": "model \'x\' not found"}', Outgoing({}, "nomic"))
