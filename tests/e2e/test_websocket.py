"""Conversations and lifecycle events over WebSocket, through Envoy."""

import asyncio
from typing import Any

import aiohttp
import pytest
import websockets

from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.wire import PIECES

OPENAI = "openai/gpt-6.1-terra"
Frame = dict[str, Any]


async def receive(socket: aiohttp.ClientWebSocketResponse) -> Frame:
    """The next frame."""
    return await socket.receive_json(timeout=10)


async def until_end(socket: aiohttp.ClientWebSocketResponse, name: str) -> list[Frame]:
    """The frames of one conversation up to its end."""
    frames: list[Frame] = []
    while not frames or frames[-1]["type"] not in ("finish", "error"):
        frame = await receive(socket)
        if frame.get("id") == name:
            frames.append(frame)
    return frames


def kinds(frames: list[Frame]) -> list[str]:
    return [frame["type"] for frame in frames]


async def test_a_conversation(alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.text())
    async with alpha.socket() as socket:
        await socket.send_json({"type": "chat", "id": "c1", "request": question("hello", model=OPENAI)})
        frames = await until_end(socket, "c1")
    assert (kinds(frames)[0], kinds(frames)[-1]) == ("started", "finish")
    assert "".join(frame["text"] for frame in frames if frame["type"] == "text") == "".join(PIECES)
    assert frames[-1]["finish_reason"] == "stop"


async def test_two_conversations_at_once(alpha: Caller, provider: FaultServer):
    gate = asyncio.Event()
    provider.on("POST", openai_chat.PATH, openai_chat.hold_after(1, gate))
    provider.on("POST", openai_chat.PATH, openai_chat.text("quick"))
    async with alpha.socket() as socket:
        await socket.send_json({"type": "chat", "id": "slow", "request": question("a", model=OPENAI)})
        await provider.request(0)
        await socket.send_json({"type": "chat", "id": "quick", "request": question("b", model=OPENAI)})
        quick = await until_end(socket, "quick")
        gate.set()
        slow = await until_end(socket, "slow")
    assert "".join(frame["text"] for frame in quick if frame["type"] == "text") == "quick"
    assert slow[-1]["type"] == "finish"


async def test_cancel_ends_one_conversation_and_closes_the_provider(alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.stall_after(1))
    async with alpha.socket() as socket:
        await socket.send_json({"type": "chat", "id": "c1", "request": question("hello", model=OPENAI)})
        while (await receive(socket))["type"] != "text":
            pass
        await socket.send_json({"type": "cancel", "id": "c1"})
        end = (await until_end(socket, "c1"))[-1]
        assert (end["type"], end["error"]["reason"]) == ("error", "CANCELLED")
        async with asyncio.timeout(2):
            await provider.requests[0].closed.wait()
        await socket.send_json({"type": "chat", "id": "c2", "request": question("hello", model="fast")})
        assert (await until_end(socket, "c2"))[-1]["type"] == "finish"


async def test_wrong_frames_are_told_and_the_socket_stays(alpha: Caller):
    async with alpha.socket() as socket:
        for sent, reason in [
            ("no json", "INVALID_REQUEST"),
            ('{"type":"sing"}', "INVALID_REQUEST"),
            ('{"type":"chat","id":"x","request":{"messages":[]}}', "INVALID_REQUEST"),
            (
                '{"type":"chat","id":"x","request":{"model":"nope","messages":[{"role":"user","content":"a"}]}}',
                "NOT_FOUND",
            ),
        ]:
            await socket.send_str(sent)
            frame = await receive(socket)
            assert (frame["type"], frame["error"]["reason"]) == ("error", reason), sent
        await socket.send_json({"type": "ping"})
        assert await receive(socket) == {"type": "pong"}


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/v1/events/stream"])
async def test_without_a_key(nobody: Caller, path: str):
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with nobody.socket(path):
            pass
    assert caught.value.status == 401


async def test_a_browser_gives_its_key_as_subprotocol(mesh: MeshProcess, alpha: Caller):
    address = f"{mesh.url.replace('http', 'ws')}/v1/chat/stream"
    protocols = [websockets.Subprotocol("maestro"), websockets.Subprotocol(f"bearer.{alpha.key}")]
    async with websockets.connect(address, subprotocols=protocols, proxy=None) as socket:
        assert socket.subprotocol == "maestro"
        await socket.send('{"type":"ping"}')
        assert await socket.recv() in ('{"type":"pong"}', b'{"type":"pong"}')


async def follow(socket: aiohttp.ClientWebSocketResponse, request_id: str) -> list[Frame]:
    """The events up to the end of a request."""
    events: list[Frame] = []
    while True:
        frame = await receive(socket)
        if frame["type"] != "event":
            continue
        events.append(frame)
        if frame["kind"] in ("request.completed", "request.failed") and frame["subject"] == f"request/{request_id}":
            return events


async def ready(socket: aiohttp.ClientWebSocketResponse) -> int:
    """Waits until every later event will come; returns the newest sequence."""
    frame = await receive(socket)
    assert (frame["type"], frame["kind"]) == ("notice", "ready")
    return int(frame["sequence"])


async def ask(caller: Caller, request_id: str) -> None:
    answer = await caller.post("/v1/chat", question("hello", model="fast"), {"x-request-id": request_id})
    assert answer.status == 200, answer.body


async def test_events_of_the_own_tenant_only(alpha: Caller, beta: Caller):
    async with alpha.socket("/v1/events/stream") as mine, beta.socket("/v1/events/stream") as theirs:
        await ready(mine)
        await ready(theirs)
        await ask(alpha, "of-alpha")
        await ask(beta, "of-beta")
        await ask(alpha, "of-alpha-2")
        seen_by_alpha = await follow(mine, "of-alpha-2")
        seen_by_beta = await follow(theirs, "of-beta")
    assert {event["tenant"] for event in seen_by_alpha} == {"alpha"}
    assert {event["tenant"] for event in seen_by_beta} == {"beta"}
    first = [event["kind"] for event in seen_by_alpha if event["subject"] == "request/of-alpha"]
    assert first == ["request.started", "request.completed"]
    completed = next(event for event in seen_by_alpha if event["kind"] == "request.completed")
    assert completed["request_completed"]["model"] == "offline"
    assert "hello" not in str(seen_by_alpha)


async def test_events_resume_after_a_sequence(alpha: Caller):
    async with alpha.socket("/v1/events/stream?kinds=request.*") as socket:
        await ready(socket)
        await ask(alpha, "before-the-gap")
        seen = await follow(socket, "before-the-gap")
    last = seen[-1]["sequence"]
    await ask(alpha, "in-the-gap")
    async with alpha.socket(f"/v1/events/stream?kinds=request.*&after={last}") as socket:
        missed = await follow(socket, "in-the-gap")
    mine = [event for event in missed if event["subject"] == "request/in-the-gap"]
    assert [event["kind"] for event in mine] == ["request.started", "request.completed"]
    assert all(int(event["sequence"]) > int(last) for event in missed)
    assert not any("before-the-gap" in event["subject"] for event in missed)


async def test_kinds_filter(alpha: Caller):
    async with alpha.socket("/v1/events/stream?kinds=request.completed") as socket:
        await ready(socket)
        await ask(alpha, "filtered")
        events = await follow(socket, "filtered")
    assert {event["kind"] for event in events} == {"request.completed"}


async def test_a_failed_request_is_an_event_with_its_reason(alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.error(403, message="your key sk-secret is wrong"))
    async with alpha.socket("/v1/events/stream?kinds=request.*,attempt.*") as socket:
        await ready(socket)
        # A backend of its own: a refused key closes it for everybody.
        body = question("hello", model="openai/gpt-5.5")
        answer = await alpha.post("/v1/chat", body, {"x-request-id": "failing"})
        assert answer.status == 502
        events = [event for event in await follow(socket, "failing") if event["subject"] == "request/failing"]
    assert events[-1]["kind"] == "request.failed"
    assert events[-1]["request_failed"]["failure"]["reason"].lower().endswith("provider_auth")
    assert "sk-secret" not in str(events)
