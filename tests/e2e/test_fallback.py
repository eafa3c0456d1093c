"""A provider that fails: before the first content another answers invisibly, after it the answer ends in an error."""

import asyncio
import json
from collections.abc import Callable

import pytest

from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.callers import Arrived, Caller, question
from maestro_sdk.testing.faults import FaultServer, Reply
from maestro_sdk.testing.wire import PIECES, Wire

ROUTES = [
    pytest.param("openai-first", openai_chat.WIRE, anthropic_messages.WIRE, id="openai"),
    pytest.param("anthropic-first", anthropic_messages.WIRE, openai_chat.WIRE, id="anthropic"),
]
Fault = Callable[[Wire], Reply]
BEFORE_CONTENT: dict[str, Fault] = {
    "cut before headers": lambda wire: wire.cut_before_headers(),
    "cut before content": lambda wire: wire.cut_before_content(),
    "500": lambda wire: wire.error(500),
    "overloaded": lambda wire: wire.error(529 if wire is anthropic_messages.WIRE else 503),
    "error in the stream": lambda wire: wire.in_band_error(0),
    "silent end": lambda wire: wire.silent_end(0),
    "malformed event": lambda wire: wire.malformed_json(0),
}
AFTER_CONTENT: dict[str, Fault] = {
    "cut": lambda wire: wire.cut_after(2),
    "error in the stream": lambda wire: wire.in_band_error(2),
    "silent end": lambda wire: wire.silent_end(2),
    "silent end after all": lambda wire: wire.silent_end(),
    "malformed event": lambda wire: wire.malformed_json(2),
}


def names(events: list[Arrived]) -> list[str]:
    return [event.name or event.data for event in events]


def text(events: list[Arrived]) -> str:
    return "".join(event.json()["text"] for event in events if event.name == "text")


@pytest.mark.parametrize(("route", "first", "second"), ROUTES)
@pytest.mark.parametrize("fault", BEFORE_CONTENT)
async def test_before_content_another_answers_invisibly(
    alpha: Caller, provider: FaultServer, route: str, first: Wire, second: Wire, fault: str
):
    provider.on("POST", first.path, BEFORE_CONTENT[fault](first))
    provider.on("POST", second.path, second.text("from the fallback"))
    events = await alpha.collect(question(model=route))
    assert names(events).count("started") == 1
    assert names(events)[0] == "started"
    assert names(events)[-2:] == ["finish", "[DONE]"]
    assert "error" not in names(events)
    assert text(events) == "from the fallback"
    started = events[0].json()
    assert started["provider"] == ("anthropic" if first is openai_chat.WIRE else "openai")
    assert started["attempt"] >= 2
    assert {seen.path for seen in provider.requests} == {first.path, second.path}


@pytest.mark.parametrize(("route", "first", "second"), ROUTES)
@pytest.mark.parametrize("fault", ["cut before headers", "cut before content", "500", "overloaded", "malformed event"])
async def test_unary_falls_over_too(
    alpha: Caller, provider: FaultServer, route: str, first: Wire, second: Wire, fault: str
):
    provider.on("POST", first.path, BEFORE_CONTENT[fault](first))
    provider.on("POST", second.path, second.text("from the fallback"))
    answer = (await alpha.chat(question(model=route))).json()
    assert answer["text"] == "from the fallback"
    assert answer["attempt"] >= 2


@pytest.mark.parametrize(("route", "first", "second"), ROUTES)
@pytest.mark.parametrize("fault", AFTER_CONTENT)
async def test_after_content_the_stream_ends_in_an_error(
    alpha: Caller, provider: FaultServer, route: str, first: Wire, second: Wire, fault: str
):
    provider.on("POST", first.path, AFTER_CONTENT[fault](first))
    provider.on("POST", second.path, second.text("from the fallback"))
    events = await alpha.collect(question(model=route))
    assert names(events)[0] == "started"
    assert names(events)[-1] == "error"
    assert "finish" not in names(events)
    assert "[DONE]" not in names(events)
    assert "".join(PIECES).startswith(text(events))
    assert text(events).startswith("".join(PIECES[:2]))
    error = events[-1].json()["error"]
    # An error in the stream keeps its own meaning; a broken stream is a broken stream.
    assert error["reason"] in ({"OVERLOADED", "UPSTREAM_ERROR"} if fault.startswith("error") else {"STREAM_BROKEN"})
    assert {seen.path for seen in provider.requests} == {first.path}


@pytest.mark.parametrize("silent", [True, False], ids=["nothing comes", "only a beginning comes"])
async def test_a_stall_before_content_falls_over_in_time(alpha: Caller, provider: FaultServer, silent: bool):
    provider.on("POST", openai_chat.PATH, openai_chat.stall_before_headers() if silent else openai_chat.stall_after(0))
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.text("from the fallback"))
    events = await alpha.collect(question(model="openai-first"))
    assert text(events) == "from the fallback"
    assert names(events).count("started") == 1
    # What lost was cancelled, not forgotten.
    async with asyncio.timeout(5):
        await asyncio.gather(*(seen.closed.wait() for seen in provider.requests if seen.path == openai_chat.PATH))


async def test_our_own_key_refused_falls_over(alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.error(403))
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.text("from the fallback"))
    answer = (await alpha.chat(question(model="refused-first"))).json()
    assert answer["text"] == "from the fallback"


async def test_rate_limited_falls_over_at_once(alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.rate_limited(30))
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.text("from the fallback"))
    answer = (await alpha.chat(question(model="limited-first"))).json()
    assert answer["text"] == "from the fallback"
    # While the limit lasts, nobody asks there again.
    answer = (await alpha.chat(question(model="limited-first"))).json()
    assert answer["text"] == "from the fallback"
    assert [seen.path for seen in provider.requests].count(openai_chat.PATH) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_when_all_fail_the_error_tells_what_was_tried(alpha: Caller, provider: FaultServer, stream: bool):
    provider.on("POST", openai_chat.PATH, openai_chat.error(500, message="openai is down"))
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.error(529))
    answer = await alpha.chat(question(model="openai-first", stream=stream))
    assert answer.status == 503, answer.body
    told = json.dumps(answer.error)
    assert "openai/gpt-6.1-terra" in told
    assert "anthropic/claude-sonnet-5-5" in told
    assert answer.error["retryable"] is True


@pytest.mark.parametrize("stream", [True, False])
async def test_a_single_model_fails_with_its_reason(alpha: Caller, provider: FaultServer, stream: bool):
    provider.on("POST", openai_chat.PATH, openai_chat.cut_before_headers())
    answer = await alpha.chat(question(model="openai/gpt-6.1-terra", stream=stream))
    assert answer.status == 503
    assert answer.error["reason"] in {"UPSTREAM_ERROR", "STREAM_BROKEN"}
    assert "openai" in json.dumps(answer.error)


@pytest.mark.parametrize("stream", [True, False])
async def test_limits_of_the_provider_reach_the_caller(alpha: Caller, provider: FaultServer, stream: bool):
    provider.on("POST", openai_chat.PATH, openai_chat.rate_limited(30))
    model = "openai/gpt-5.6-terra" if stream else "openai/gpt-5.6-luna"
    answer = await alpha.chat(question(model=model, stream=stream))
    assert (answer.status, answer.error["reason"]) == (429, "RATE_LIMITED")
    assert 25 <= int(answer.headers["retry-after"]) <= 30


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [(400, 400, "INVALID_REQUEST"), (404, 404, "NOT_FOUND"), (500, 503, "UPSTREAM_ERROR"), (529, 503, "OVERLOADED")],
)
async def test_refusals_of_the_provider_keep_their_meaning(
    alpha: Caller, provider: FaultServer, status: int, expected: int, reason: str
):
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.error(status, message="as it is"))
    answer = await alpha.chat(question(model="anthropic/claude-haiku-5-5"))
    assert (answer.status, answer.error["reason"]) == (expected, reason)
