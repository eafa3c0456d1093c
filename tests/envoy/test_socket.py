"""WebSocket, native gRPC and gRPC-Web on the same listener, and the preflights of browsers."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, cast

import grpc
import pytest
from aiohttp import WSMsgType
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from maestro.llm.v1 import chat_pb2, chat_pb2_grpc
from maestro.router.v1 import router_pb2, router_pb2_grpc
from maestro_sdk.errors import InvalidRequest, RateLimited, from_rpc_error

pytestmark = pytest.mark.asyncio(loop_scope="module")
PAGE = "http://localhost:3000"


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/events/stream"])
async def test_websocket_both_ways_until_its_close_code(mesh: Any, path: str) -> None:
    async with mesh.client.ws_connect(f"{mesh.url}{path}?after=7", headers={"x-maestro-tenant": "forged"}) as socket:
        await socket.send_str("hello")
        assert (await socket.receive()).data == "after=7||hello"
        await socket.send_str("bye")
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.CLOSE, 4000)


async def test_native_call_stream_and_deadline(mesh: Any) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        answer = await stub.Chat(chat_pb2.ChatRequest(), metadata=[("x-maestro-tenant", "forged"), ("x-mine", "1")])
        assert answer.response_id == "r1"
        assert "x-maestro-tenant" not in mesh.doubles.native.seen
        assert mesh.doubles.native.seen["x-mine"] == "1"
        texts = [event.text.text async for each in stub.StreamChat(chat_pb2.ChatRequest()) for event in each.events]
        assert texts == ["0", "1", "2"]
        mesh.doubles.native.cancelled.clear()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(chat_pb2.ChatRequest(model="hang"), timeout=0.5)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < mesh.doubles.native.deadline < 0.6
        await asyncio.wait_for(mesh.doubles.native.cancelled.wait(), 5)


async def test_native_errors_keep_their_details(mesh: Any) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(chat_pb2.ChatRequest(model="abort"))
        error = from_rpc_error(caught.value)
        assert isinstance(error, InvalidRequest)
        assert error.violations[0].field == "messages[0]"
        seen: list[str] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for each in stub.StreamChat(chat_pb2.ChatRequest(model="abort")):
                seen += [event.text.text for event in each.events]
        error = from_rpc_error(caught.value)
        assert isinstance(error, RateLimited)
        assert (seen, error.retry_after) == (["0", "1", "2"], 2)


@pytest.mark.parametrize(("name", "bad"), [("grpc-timeout", "soon"), ("x-mine-bin", "%%%")])
async def test_a_bad_header_is_its_senders_problem_only(mesh: Any, name: str, bad: str) -> None:
    """All callers share one connection to the gateway, and gRPC's server remembers what it could not parse."""
    path = f"{mesh.url}/maestro.llm.v1.ChatService/Chat"
    good = chat_pb2.ChatRequest()
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        for _ in range(3):
            headers = {"content-type": "application/grpc-web+proto", name: bad}
            async with mesh.client.post(path, data=b"\0\0\0\0\0", headers=headers) as response:
                assert response.headers["grpc-status"] == str(grpc.StatusCode.INTERNAL.value[0])
            answer = await stub.Chat(good, timeout=5, metadata=[("x-mine-bin", b"fine")])
            assert answer.response_id == "r1"


async def test_native_body_is_not_bound_to_the_rest_limit(mesh: Any) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        request = chat_pb2.ChatRequest(system="x" * 2_000_000)
        answer = await chat_pb2_grpc.ChatServiceStub(channel).Chat(request)
    assert int(answer.raw_reason) == request.ByteSize()


async def test_health_and_reflection(mesh: Any) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(cast("Any", channel))
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = [service.name for service in (await call.read()).list_services_response.service]
        await call.done_writing()
    assert "maestro.gateway.v1.HttpService" in names


async def test_the_router_is_not_public(mesh: Any) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router_pb2_grpc.RouterServiceStub(channel).ListBackends(router_pb2.ListBackendsRequest())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_no_gateway_is_unavailable_in_plain_words(mesh: Any) -> None:
    async def wait(*, serving: bool) -> None:
        # By what callers see: Envoy's threads learn of a change one after the other.
        headers = {"content-type": "application/grpc-web+proto"}
        path = f"{mesh.url}/maestro.llm.v1.ChatService/Chat"
        async with asyncio.timeout(10):
            while True:
                async with mesh.client.post(path, data=b"\0\0\0\0\0", headers=headers) as response:
                    if (response.status == 200) == serving:
                        assert serving or response.headers["grpc-status"] == "14"
                        assert serving or response.headers["grpc-message"] == "no healthy upstream"
                        return
                await asyncio.sleep(0.05)

    await mesh.doubles.set_health(serving=False)
    try:
        await wait(serving=False)
        async with grpc.aio.insecure_channel(mesh.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await chat_pb2_grpc.ChatServiceStub(channel).Chat(chat_pb2.ChatRequest())
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "no healthy upstream")
    finally:
        await mesh.doubles.set_health(serving=True)
        await wait(serving=True)


async def test_grpc_web_after_its_preflight(mesh: Any) -> None:
    path = f"{mesh.url}/maestro.llm.v1.ChatService/Chat"
    asks = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-grpc-web",
    }
    async with mesh.client.options(path, headers=asks) as response:
        assert (response.status, response.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "x-grpc-web" in response.headers["access-control-allow-headers"]
    for model, grpc_status in (("", 0), ("abort", 3)):
        message = chat_pb2.ChatRequest(model=model).SerializeToString()
        headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": PAGE}
        async with mesh.client.post(
            path, data=struct.pack(">BI", 0, len(message)) + message, headers=headers
        ) as response:
            assert response.headers["content-type"] == "application/grpc-web+proto"
            shown = set(response.headers["access-control-expose-headers"].split(","))
            assert {"grpc-status-details-bin", "x-request-id", "retry-after"} <= shown
            body = await response.read()
        if grpc_status:
            assert response.headers["grpc-status"] == str(grpc_status)
            continue
        flag, length = struct.unpack(">BI", body[:5])
        assert (flag, chat_pb2.ChatResponse.FromString(body[5 : 5 + length]).response_id) == (0, "r1")
        trailer = body[5 + length :]
        assert (trailer[0], b"grpc-status:0" in trailer) == (0x80, True)


async def test_a_page_sees_what_answers_tell_in_headers(mesh: Any) -> None:
    async with mesh.client.get(f"{mesh.url}/v1/models", headers={"origin": PAGE}) as response:
        shown = set(response.headers["access-control-expose-headers"].split(","))
    for measure in ("requests", "tokens"):
        for word in ("limit", "remaining", "reset"):
            assert {f"x-ratelimit-{word}-{measure}", f"anthropic-ratelimit-{measure}-{word}"} <= shown
    assert {
        "x-maestro-cache",
        "x-maestro-degraded",
        "request-id",
        "content-disposition",
        "content-range",
        "etag",
    } <= shown


async def test_preflight_of_a_foreign_page_gets_no_permission(mesh: Any) -> None:
    asks = {"access-control-request-method": "POST"}
    async with mesh.client.options(f"{mesh.url}/v1/chat", headers={"origin": PAGE, **asks}) as response:
        assert response.headers["access-control-allow-origin"] == PAGE
    for origin in ("https://evil.example", "http://localhost.evil.example"):
        async with mesh.client.options(f"{mesh.url}/v1/chat", headers={"origin": origin, **asks}) as response:
            assert "access-control-allow-origin" not in response.headers
