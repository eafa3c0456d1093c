"""REST and server-sent events over the real gRPC facade, as Envoy's transcoder calls it."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import grpc
import orjson
import pytest

from maestro.gateway.v1.http_pb2 import GetProviderHealthRequest, ListBackendsRequest, ListModelsRequest
from maestro.llm.v1.usage_pb2 import Usage
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_sdk.errors import RateLimited, UpstreamError
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.servers import free_port

from .conftest import OTHER_KEY, Start, metadata, question


def frames(data: bytes) -> list[tuple[str, Any]]:
    """Events of a stream as (kind, data); `[DONE]` is ("", "[DONE]"). Checks that ids count from 1."""
    found: list[tuple[str, Any]] = []
    number = 0
    for block in data.decode().split("\n\n"):
        if not block or block.startswith(":"):
            continue
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if fields["data"] == "[DONE]":
            assert list(fields) == ["data"]
            found.append(("", "[DONE]"))
            continue
        number += 1
        assert list(fields) == ["event", "data", "id"]
        assert fields["id"] == str(number)
        found.append((fields["event"], orjson.loads(fields["data"])))
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("degraded", [False, True])
async def test_an_answer_says_when_nobody_renews_the_routes(start: Start, stream: bool, degraded: bool) -> None:
    gateway = await start(ScriptedProvider(answer("Hello")))
    gateway.routers.degraded = degraded
    reply = await gateway.post(question(stream=stream))
    assert reply.status == 200
    assert reply.headers.get("x-maestro-degraded") == ("true" if degraded else None)


async def test_a_whole_answer(start: Start) -> None:
    usage = Usage(input_tokens=12, output_tokens=5, cache_read_tokens=4)
    calls = [("call-1", "search", '{"query":"tea","limit":3}')]
    gateway = await start(ScriptedProvider(answer("Hello", " there", calls=calls, usage=usage)))
    reply = await gateway.post(question(colour="blue"))
    assert reply.status == 200
    body = reply.json
    assert body["id"] == "scripted-1"
    assert body["text"] == "Hello there"
    assert body["parts"][0] == {"type": "text", "index": 0, "text": "Hello there"}
    assert body["tool_calls"] == [{"call_id": "call-1", "name": "search", "arguments": {"query": "tea", "limit": 3}}]
    assert body["finish_reason"] == "tool_calls"
    assert body["raw_finish_reason"] == "scripted"
    assert body["usage"]["input_tokens"] == 12
    assert body["usage"]["cache_read_tokens"] == 4
    assert body["cost_usd"] is None
    assert body["route"] == "default"
    assert body["attempt"] == 1
    assert [warning["field"] for warning in body["warnings"]] == ["colour"]


async def test_a_streamed_answer(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer("Hello", " there")))
    reply = await gateway.post(question(stream=True, colour="blue"))
    assert reply.status == 200
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-request-id"] == "req-of-the-test"
    events = frames(reply.data)
    assert [kind for kind, _ in events] == ["started", "warning", "text", "text", "finish", ""]
    assert events[0][1]["route"] == "default"
    assert events[1][1]["code"] == "unknown_field"
    assert events[2][1] == {"index": 0, "text": "Hello"}
    assert events[4][1]["finish_reason"] == "stop"
    assert events[4][1]["usage"]["output_tokens"] == 2


async def test_the_first_message_names_the_content_type(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer("Hello", " there")))
    streamed = [message.content_type async for message in gateway.call(question(stream=True))]
    assert streamed[0] == "text/event-stream"
    assert not any(streamed[1:])
    whole = [message.content_type async for message in gateway.call(question())]
    assert whole == ["application/json"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_byte_is_plain_json(start: Start, *, stream: bool) -> None:
    error = RateLimited("slow down", retry_after=7.2, metadata={"upstream_status": "429"})
    gateway = await start(ScriptedProvider(fault=Fault.ERROR_BEFORE_CONTENT, error=error), max_attempts=1)
    reply = await gateway.post(question(stream=stream))
    assert reply.status == 429
    assert reply.headers["retry-after"] == "8"
    told = reply.json["error"]
    assert (told["code"], told["reason"], told["retryable"]) == (429, "RATE_LIMITED", True)
    assert told["metadata"]["upstream_status"] == "429"
    assert told["request_id"] == "req-of-the-test"


async def test_an_error_after_content_is_an_event_and_no_clean_end(start: Start) -> None:
    first = ScriptedProvider(answer("Hello", " there"), fault=Fault.ERROR_AFTER_CONTENT)
    gateway = await start(first, ScriptedProvider(answer("never")))
    events = frames((await gateway.post(question(stream=True))).data)
    assert [kind for kind, _ in events] == ["started", "text", "error"]
    assert events[-1][1]["error"]["reason"] == "OVERLOADED"
    assert events[-1][1]["error"]["metadata"]["after_content"] == "true"
    failed = await gateway.event("request.failed")
    assert failed.request_failed.after_content


async def test_a_failure_before_content_falls_over_with_one_started(start: Start) -> None:
    gateway = await start(ScriptedProvider(fault=Fault.ERROR_BEFORE_CONTENT), ScriptedProvider(answer("from", " two")))
    events = frames((await gateway.post(question(stream=True))).data)
    assert [kind for kind, _ in events] == ["started", "text", "text", "finish", ""]
    assert events[0][1]["attempt"] == 2


@pytest.mark.parametrize("key", ["", "mk-wrong"])
async def test_a_missing_or_wrong_key(start: Start, key: str) -> None:
    gateway = await start(ScriptedProvider())
    for reply in (
        await gateway.post(question(), key),
        await gateway.get("ListModels", ListModelsRequest(), key),
        await gateway.post(question(), key, method="Explain"),
    ):
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json["error"]["reason"] == "UNAUTHENTICATED"
        assert "authorization: Bearer" in reply.json["error"]["message"]
        assert "mk-wrong" not in reply.data.decode()
    assert gateway.events == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b'{"messages":"hello"}', "messages"),
        (b'{"messages":[{"role":"usr","content":"x"}]}', "messages[0].role"),
        (b'{"messages":[{"role":"user","content":"x"}],"temperature":9}', "temperature"),
    ],
)
async def test_a_wrong_body_names_its_field(start: Start, body: bytes, field: str) -> None:
    gateway = await start(ScriptedProvider())
    reply = await gateway.post(body)
    assert reply.status == 400
    assert reply.json["error"]["details"][0]["field"] == field


async def test_a_body_over_the_limit(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    reply = await gateway.post(question("x" * 100_001))
    assert (reply.status, reply.json["error"]["reason"]) == (413, "TOO_LARGE")


async def test_an_unknown_model_tells_what_there_is(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    reply = await gateway.post(question(model="p0/modell"))
    assert (reply.status, reply.json["error"]["reason"]) == (404, "NOT_FOUND")
    assert "did you mean p0/model" in reply.json["error"]["message"]
    assert "first" in reply.json["error"]["message"]


async def test_adapters_that_are_away_give_503_with_what_was_tried(start: Start) -> None:
    gateway = await start(f"127.0.0.1:{free_port()}")
    reply = await gateway.post(question())
    assert reply.status == 503
    assert "adapter-p0:p0/model" in reply.json["error"]["metadata"]["tried"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [Fault.STALL_BEFORE_CONTENT, Fault.STALL_AFTER_CONTENT])
async def test_a_caller_that_leaves_cancels_the_adapter(start: Start, fault: Fault, *, stream: bool) -> None:
    provider = ScriptedProvider(answer("Hello", " there"), fault=fault)
    gateway = await start(provider)
    call = gateway.call(question(stream=stream))
    reading = asyncio.create_task(_read_all(call))
    async with asyncio.timeout(5):
        while not provider.requests:
            await asyncio.sleep(0.005)
        if stream and fault is Fault.STALL_AFTER_CONTENT:
            await call.initial_metadata()
    left = time.monotonic()
    call.cancel()
    async with asyncio.timeout(5):
        await provider.abandoned.wait()
    assert time.monotonic() - left < 2
    with pytest.raises(asyncio.CancelledError):
        await reading
    failed = (await gateway.event("request.failed")).request_failed
    assert failed.failure.http_status == 499
    assert failed.attempts == 1
    assert gateway.source.local.load.in_flight == {"adapter-p0:p0/model": 0}


async def test_an_idle_stream_is_kept_alive(start: Start) -> None:
    provider = ScriptedProvider(answer("Hello", " there"), pace=0.25)
    gateway = await start(provider, ping=0.05)
    data = (await gateway.post(question(stream=True))).data
    assert data.startswith(b": ping\n\n")
    assert data.count(b": ping\n\n") >= 6
    assert [kind for kind, _ in frames(data)] == ["started", "text", "text", "finish", ""]


async def test_an_error_after_a_sign_of_life_is_an_event(start: Start) -> None:
    provider = ScriptedProvider(
        pace=0.15, fault=Fault.ERROR_BEFORE_CONTENT, error=UpstreamError("gone", retryable=False)
    )
    gateway = await start(provider, ping=0.05, max_attempts=1)
    reply = await gateway.post(question(stream=True))
    assert reply.status == 200
    assert [kind for kind, _ in frames(reply.data)] == ["error"]


async def test_the_deadline_of_the_route(start: Start) -> None:
    gateway = await start(ScriptedProvider(fault=Fault.STALL_BEFORE_CONTENT), total_timeout=0.2)
    for stream in (False, True):
        reply = await gateway.post(question(stream=stream))
        assert (reply.status, reply.json["error"]["reason"]) == (504, "TIMEOUT")


async def test_models(start: Start) -> None:
    gateway = await start(ScriptedProvider(), ScriptedProvider())
    body = (await gateway.get("ListModels", ListModelsRequest())).json
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["p0/model", "p1/model"]
    assert body["data"][0]["object"] == "model"
    assert body["data"][0]["owned_by"] == "p0"
    assert body["data"][0]["features"]["tools"] == "native"
    assert body["routes"] == [
        {"name": "default", "strategy": "fallback", "models": ["p0/model", "p1/model"], "missing": []}
    ]
    assert body["aliases"] == {"first": "p0/model"}


async def test_a_router_that_goes_while_it_is_asked_takes_no_answer_with_it(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        channel = open_channel(f"127.0.0.1:{silent.getsockname()[1]}")
        gateway.routers.router = RouterServiceStub(channel)
        asked = asyncio.create_task(gateway.get("ListBackends", ListBackendsRequest()))
        await asyncio.sleep(0.2)  # well below the time that the gateway gives a router to answer
        await channel.close()
        body = (await asyncio.wait_for(asked, 5)).json
    assert body["router"]["trouble"] == "the router has just gone; this is the last table that it sent"
    assert body["source"] == "last_table"


async def test_backends_without_a_router_come_from_the_last_table(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    body = (await gateway.get("ListBackends", ListBackendsRequest())).json
    assert body["source"] == "last_table"
    assert body["router"] == {
        "address": "127.0.0.1:50052",
        "reachable": False,
        "trouble": "no router answers; this is the last table that one sent",
        "degraded": True,
        "table_version": 7,
        "table_age_seconds": 7.5,
    }
    assert (await gateway.get("GetProviderHealth", GetProviderHealthRequest())).json["router"] == body["router"]
    assert body["backends"][0]["id"] == "adapter-p0:p0/model"
    assert body["backends"][0]["state"] == "active"
    assert body["backends"][0]["here"]["breaker"] == "closed"
    assert "address" not in body["backends"][0]


async def test_health_of_providers(start: Start) -> None:
    gateway = await start(ScriptedProvider(), f"127.0.0.1:{free_port()}", breaker={"consecutive_failures": 1})
    assert (await gateway.post(question(model="p1/model"))).status == 503
    body = (await gateway.get("GetProviderHealth", GetProviderHealthRequest())).json
    assert body["status"] == "degraded"
    assert [(entry["provider"], entry["status"]) for entry in body["providers"]] == [("p0", "ok"), ("p1", "down")]
    assert "failures in a row" in body["providers"][1]["troubles"]["adapter-p1:p1/model"]
    assert body["adapters_switched_off"] == [{"adapter": "claude", "reason": "ANTHROPIC_API_KEY is not set"}]


async def test_explain(start: Start) -> None:
    gateway = await start(ScriptedProvider(), ScriptedProvider())
    body = (await gateway.post({"routing": {"exclude_providers": ["p0"]}}, method="Explain")).json
    assert body["route"] == "default"
    assert [(c["backend_id"], c["kept"]) for c in body["candidates"]] == [
        ("adapter-p1:p1/model", True),
        ("adapter-p0:p0/model", False),
    ]
    assert body["error"] is None
    refused = (await gateway.post({"routing": {"required": ["vision"]}}, method="Explain")).json
    assert refused["error"]["reason"] == "CAPABILITY_UNAVAILABLE"
    assert refused["candidates"][0]["missing"] == ["vision"]
    assert (await gateway.post({"model": "nothing"}, method="Explain")).status == 404


async def test_the_account_of_a_request(start: Start) -> None:
    gateway = await start(ScriptedProvider(fault=Fault.ERROR_BEFORE_CONTENT), ScriptedProvider(answer("fine")))
    await gateway.post(question("a secret prompt", routing={"persona": "reviewer"}), OTHER_KEY)
    assert gateway.kinds() == ["request.started", "attempt.failed", "request.completed"]
    started, failed, completed = gateway.events
    assert {event.tenant for event in gateway.events} == {"globex"}
    assert {event.subject for event in gateway.events} == {"request/req-of-the-test"}
    assert started.request_started.requested_model == ""
    assert failed.attempt_failed.will_continue
    assert failed.attempt_failed.failure.counts_against_health
    assert (completed.request_completed.adapter, completed.request_completed.attempts) == ("adapter-p1", 2)
    assert completed.request_completed.persona == "reviewer"
    assert completed.request_completed.usage.output_tokens == 1
    assert completed.request_completed.latency.ToNanoseconds() > 0
    assert b"secret" not in b"".join(event.SerializeToString() for event in gateway.events)


async def test_unexpected_errors_are_internal_and_tell_nothing(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    gateway = await start(ScriptedProvider())
    gateway.source.table = None  # pyright: ignore[reportAttributeAccessIssue] - a fault of our own, of any kind
    reply = await gateway.post(question())
    assert (reply.status, reply.json["error"]["reason"]) == (500, "INTERNAL")
    assert "req-of-the-test" in reply.json["error"]["message"]
    assert "NoneType" not in reply.data.decode()
    assert "unexpected error while serving req-of-the-test" in caplog.text


async def test_rest_needs_no_key_metadata_but_grpc_does(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.chats.Chat(_proto_question(), metadata=metadata(""))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def _proto_question() -> Any:
    from maestro_gateway.json_codec.chat_request import read_chat

    return read_chat(question()).request


async def _read_all(call: Any) -> bytes:
    return b"".join([message.data async for message in call])
