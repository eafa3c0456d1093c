"""Conversations over a real WebSocket: several at once, cancellation, slow readers, keys, drain."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro_gateway.conversations import MOST
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer

from .conftest import KEY, Start, question


def chat(name: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"type": "chat", "id": name, "request": question(text, **more)}


async def until_over(socket: Any, *names: str) -> dict[str, list[dict[str, Any]]]:
    """The frames of some conversations until each of them is over."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    running = set(names)
    async with asyncio.timeout(10):
        while running:
            frame = await socket.receive_json()
            found[frame["id"]].append(frame)
            if frame["type"] in ("finish", "error"):
                running.remove(frame["id"])
    return found


async def test_one_conversation(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer("Hello", " there", calls=[("c", "f", "{}")])))
    async with gateway.socket() as socket:
        await socket.send_json(chat("c1", colour="blue"))
        frames = (await until_over(socket, "c1"))["c1"]
    assert [frame["type"] for frame in frames] == ["started", "warning", "text", "text", "tool_call", "finish"]
    assert frames[0]["route"] == "default"
    assert frames[1]["field"] == "colour"
    assert frames[2] == {"id": "c1", "type": "text", "index": 0, "text": "Hello"}
    assert frames[4] == {
        "id": "c1",
        "type": "tool_call",
        "index": 1,
        "call_id": "c",
        "name": "f",
        "arguments_json": "{}",
    }
    assert frames[5]["finish_reason"] == "tool_calls"
    assert gateway.kinds() == ["request.started", "request.completed"]
    assert gateway.events[1].request_completed.streamed


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/events/stream"])
async def test_another_method_is_refused_in_our_shape(start: Start, path: str) -> None:
    gateway = await start(ScriptedProvider(answer("Hello")))
    async with gateway.http.post(path, data=b"{}", headers={"authorization": f"Bearer {KEY}"}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["reason"]) == (404, 404, "NOT_FOUND")
    assert error["message"] == f"nothing is served at POST {path}"


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/events/stream"])
async def test_a_key_is_quoted_neither_in_an_answer_nor_in_the_log(
    start: Start, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start(ScriptedProvider(answer("Hello")))
    # As long as Envoy lets through, both as a path and as a header.
    long, secret = "x" * 50_000, "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0"
    for address, headers in (
        (f"{path}?access_token={secret}&kinds={long}", {}),
        (path, {"authorization": f"Bearer {secret}{long}"}),
    ):
        async with gateway.http.get(address, headers=headers) as response:
            text = await response.text()
        assert (response.status, json.loads(text)["error"]["reason"]) == (401, "UNAUTHENTICATED")
        assert secret not in text
    assert [record.getMessage() for record in caplog.records if record.levelname in {"ERROR", "WARNING"}] == []


async def test_a_cancel_right_behind_its_chat_ends_it_once_and_frees_its_name(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer("a", "b"), pace=5.0))
    names = [f"c{number}" for number in range(MOST)]
    async with gateway.socket() as socket:
        for _ in range(2):
            # Nothing yields between the frames, so the gateway reads them at once.
            for name in names:
                await socket.send_json(chat(name))
                await socket.send_json({"type": "cancel", "id": name})
            found = await until_over(socket, *names)
            assert {frames[-1]["type"] for frames in found.values()} == {"error"}
            assert {frames[-1]["error"]["reason"] for frames in found.values()} == {"CANCELLED"}
        await socket.send_json({"type": "ping"})
        assert await socket.receive_json(timeout=5) == {"type": "pong"}


async def test_several_conversations_at_once_and_a_name_used_again(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer("a", "b", "c"), pace=0.02))
    async with gateway.socket() as socket:
        names = [f"c{number}" for number in range(5)]
        for name in names:
            await socket.send_json(chat(name))
        found = await until_over(socket, *names)
        assert all([f["type"] for f in found[n]] == ["started", "text", "text", "text", "finish"] for n in names)
        await socket.send_json(chat("c0"))
        assert (await until_over(socket, "c0"))["c0"][-1]["type"] == "finish"
    ids = {event.subject for event in gateway.events}
    assert len(ids) == 6


async def test_errors_end_only_their_conversation(start: Start) -> None:
    gateway = await start(ScriptedProvider(fault=Fault.ERROR_AFTER_CONTENT))
    async with gateway.socket() as socket:
        await socket.send_json(chat("cut"))
        frames = (await until_over(socket, "cut"))["cut"]
        assert [frame["type"] for frame in frames] == ["started", "text", "error"]
        assert frames[-1]["error"]["reason"] == "OVERLOADED"
        await socket.send_json(chat("bad", temperature=9))
        wrong = (await until_over(socket, "bad"))["bad"][0]["error"]
        assert (wrong["code"], wrong["details"][0]["field"]) == (400, "temperature")
        await socket.send_json(chat("unknown", model="nothing"))
        assert (await until_over(socket, "unknown"))["unknown"][0]["error"]["reason"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ("{", "body"),
        ('{"type":"dance"}', "type"),
        ('{"type":"chat","request":{}}', "id"),
        ('{"type":"chat","id":7,"request":{}}', "id"),
        ('{"type":"chat","id":"c","request":"hello"}', "request"),
        ('{"type":"cancel"}', "id"),
    ],
)
async def test_a_wrong_frame_is_told_and_the_socket_goes_on(start: Start, frame: str, field: str) -> None:
    gateway = await start(ScriptedProvider(answer("fine")))
    async with gateway.socket() as socket:
        await socket.send_str(frame)
        told = await socket.receive_json(timeout=5)
        assert told["type"] == "error"
        assert told["error"]["details"][0]["field"] == field
        await socket.send_json({"type": "ping"})
        assert await socket.receive_json(timeout=5) == {"type": "pong"}
        await socket.send_json(chat("c1"))
        assert (await until_over(socket, "c1"))["c1"][-1]["type"] == "finish"


@pytest.mark.parametrize("fault", [Fault.STALL_BEFORE_CONTENT, Fault.STALL_AFTER_CONTENT])
async def test_cancel_ends_one_conversation_at_once(start: Start, fault: Fault) -> None:
    provider = ScriptedProvider(answer("Hello", " there"), fault=fault)
    gateway = await start(provider)
    async with gateway.socket() as socket:
        await socket.send_json(chat("c1"))
        await _has_begun(socket, provider, content=fault is Fault.STALL_AFTER_CONTENT)
        begun = time.monotonic()
        await socket.send_json({"type": "cancel", "id": "c1"})
        last = (await until_over(socket, "c1"))["c1"][-1]
        assert last["error"]["reason"] == "CANCELLED"
        async with asyncio.timeout(5):
            await provider.abandoned.wait()
        assert time.monotonic() - begun < 2
        await socket.send_json({"type": "cancel", "id": "c1"})
        provider.fault = None
        await socket.send_json(chat("c2"))
        assert (await until_over(socket, "c2"))["c2"][-1]["type"] == "finish"
    failed = (await gateway.event("request.failed")).request_failed
    assert failed.failure.http_status == 499


@pytest.mark.parametrize("fault", [Fault.STALL_BEFORE_CONTENT, Fault.STALL_AFTER_CONTENT])
@pytest.mark.parametrize("clean", [True, False])
async def test_a_client_that_leaves_cancels_the_adapter(start: Start, fault: Fault, *, clean: bool) -> None:
    provider = ScriptedProvider(answer("Hello", " there"), fault=fault)
    gateway = await start(provider)
    async with gateway.socket() as socket:
        await socket.send_json(chat("c1"))
        await _has_begun(socket, provider, content=fault is Fault.STALL_AFTER_CONTENT)
        begun = time.monotonic()
        if clean:
            await socket.close()
        else:
            socket._response.connection.transport.abort()
        async with asyncio.timeout(5):
            await provider.abandoned.wait()
        assert time.monotonic() - begun < 2
    failed = (await gateway.event("request.failed")).request_failed
    assert (failed.failure.http_status, failed.after_content) == (499, fault is Fault.STALL_AFTER_CONTENT)
    assert gateway.source.local.load.in_flight == {"adapter-p0:p0/model": 0}


async def test_the_number_of_conversations_is_bounded(start: Start) -> None:
    gateway = await start(ScriptedProvider(fault=Fault.STALL_BEFORE_CONTENT))
    async with gateway.socket() as socket:
        for number in range(MOST + 1):
            await socket.send_json(chat(f"c{number}"))
        told = await socket.receive_json(timeout=5)
        assert told["id"] == f"c{MOST}"
        assert told["error"]["reason"] == "TENANT_CONCURRENCY"
        await socket.send_json(chat("c0"))
        told = await socket.receive_json(timeout=5)
        assert told["id"] is None, "under its own id it would look like the end of the conversation"
        assert "'c0' names a conversation that still runs" in told["error"]["message"]


class Counted(ScriptedProvider):
    """Counts what was taken from it."""

    sent = 0

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        async for events in super().stream(request):
            self.sent += len(events)
            yield events


async def test_a_slow_reader_holds_up_the_provider(start: Start) -> None:
    piece, pieces = "x" * 16_000, 2_000
    provider = Counted(answer(*[piece] * pieces))
    gateway = await start(provider)
    async with gateway.socket() as socket:
        await socket.send_json(chat("c1"))
        # The client reads nothing: what was produced settles far below the whole answer of 32 MB.
        before = -1
        async with asyncio.timeout(20):
            while before != provider.sent or not provider.sent:
                before = provider.sent
                await asyncio.sleep(0.5)
        assert provider.sent < pieces * 0.8
        frames = (await until_over(socket, "c1"))["c1"]
    assert sum(len(frame.get("text", "")) for frame in frames) == len(piece) * pieces
    assert frames[-1]["type"] == "finish"


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/events/stream"])
async def test_keys(start: Start, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    gateway = await start(ScriptedProvider())
    for attempt in (
        gateway.socket("", path),
        gateway.socket("mk-wrong", path),
        gateway.socket("", f"{path}?access_token=mk-wrong"),
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with attempt:
                pass
        assert caught.value.status == 401
    assert "mk-wrong" not in caplog.text


async def test_keys_of_browsers(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer("fine")))
    async with gateway.http.ws_connect("/v1/chat/stream", protocols=["maestro", f"bearer.{KEY}"]) as socket:
        assert socket.protocol == "maestro"
        await socket.send_json(chat("c1"))
        await until_over(socket, "c1")
    async with gateway.http.ws_connect(f"/v1/chat/stream?access_token={KEY}") as socket:
        await socket.send_json(chat("c2"))
        await until_over(socket, "c2")
    assert [event.tenant for event in gateway.events] == ["acme"] * 4


async def test_what_is_no_websocket(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine"}
    async with gateway.http.get("/v1/chat/stream", headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["reason"] == "INVALID_REQUEST"
        assert response.headers["x-request-id"] == "mine"
    async with gateway.http.get("/v1/nothing", headers=headers) as response:
        assert response.status == 404
        assert (await response.json())["error"]["reason"] == "NOT_FOUND"


async def test_a_drain_lets_conversations_end(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer(*"abcde"), pace=0.05))
    async with gateway.socket() as socket, gateway.socket() as idle:
        await idle.send_json(chat("done"))
        await until_over(idle, "done")
        await socket.send_json(chat("c1"))
        assert (await socket.receive_json(timeout=5))["type"] == "started"
        draining = asyncio.create_task(gateway.sockets.drain(5))
        assert (await idle.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
        assert idle.close_code == 1001
        await socket.send_json(chat("late"))
        found = await until_over(socket, "c1", "late")
        assert found["late"][0]["error"]["reason"] == "NO_BACKEND"
        assert [frame["type"] for frame in found["c1"]] == ["text"] * 5 + ["finish"]
        assert (await socket.receive(timeout=5)).data == 1001
        await draining
    with pytest.raises(aiohttp.ClientConnectionError):
        async with gateway.socket():
            pass


async def test_who_has_just_come_is_served_by_a_gateway_that_drains(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer(*"abc"), pace=0.01))
    async with gateway.socket() as socket, gateway.socket() as left, gateway.socket() as silent:
        port, draining = gateway.sockets.port, asyncio.create_task(gateway.sockets.drain(5))
        # Nobody is let in any more: the drain has begun.
        async with asyncio.timeout(5):
            while await _listens(port):
                await asyncio.sleep(0.005)
        await left.close()
        await socket.send_json(chat("c1"))
        found = await until_over(socket, "c1")
        assert [frame["type"] for frame in found["c1"]] == ["started", *["text"] * 3, "finish"]
        assert (await socket.receive(timeout=5)).data == 1001
        # One that asks nothing does not hold it up for the whole grace.
        assert (await silent.receive(timeout=4)).data == 1001
        await draining


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_proxies_are_told_whether_the_gateway_takes_requests(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    health, told = gateway.sockets.health, []
    for change in (lambda: None, lambda: setattr(health, "reason", ""), health.stop):
        change()
        async with gateway.http.get("/readyz") as response:
            told.append((response.status, (await response.json())["status"]))
    assert told == [(503, "it is starting"), (200, "ok"), (503, "it is stopping")]


async def test_a_drain_cuts_what_outlasts_the_grace(start: Start) -> None:
    provider = ScriptedProvider(fault=Fault.STALL_AFTER_CONTENT)
    gateway = await start(provider)
    async with gateway.socket() as socket:
        await socket.send_json(chat("c1"))
        await _has_begun(socket, provider, content=True)
        draining = asyncio.create_task(gateway.sockets.drain(0.2))
        last = (await until_over(socket, "c1"))["c1"][-1]
        assert (last["type"], last["error"]["reason"]) == ("error", "UPSTREAM_ERROR")
        assert (await socket.receive(timeout=5)).data == 1001
        await draining
    async with asyncio.timeout(2):
        await provider.abandoned.wait()


async def _has_begun(socket: Any, provider: ScriptedProvider, *, content: bool) -> None:
    """Waits until the adapter has the request, and with `content` until the first text arrived."""
    async with asyncio.timeout(5):
        while not provider.requests:
            await asyncio.sleep(0.005)
        while content and (await socket.receive_json())["type"] != "text":
            pass
