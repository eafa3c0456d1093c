"""Every door of a resumable stream: server-sent events, WebSocket, gRPC and the SDK; and whom it is shut to."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from maestro_sdk.errors import Cancelled, NotFound
from maestro_sdk.llm_client import LLMClient
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.callers import Caller
from maestro_sdk.testing.chaos.provider import PIECES, Providers, text_of
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshMember, MeshProcess
from maestro_sdk.tracing import new_request_id

from .conftest import GATEWAYS, KEY, OTHER_KEY


def body(mark: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"[{mark}]"}], "resumable": True}


def never_ends(server: FaultServer) -> int:
    """From now on an answer has two pieces and no end but the one that callers make; the number of the next request."""
    server.replace("POST", openai_chat.PATH, openai_chat.stall_after(2))
    return len(server.requests)


async def frames_until(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, Any]]:
    """The next frames, at most so many, up to the end of the conversation."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        found.append(json.loads((await asyncio.wait_for(socket.receive(), 10)).data))
        if found[-1]["type"] in ("finish", "error"):
            break
    return found


async def test_a_socket_takes_up_what_another_one_began(mesh: MeshProcess, providers: Providers):
    async with Caller(mesh.url, KEY) as caller:
        name = new_request_id()
        async with caller.session.ws_connect("/v1/chat/stream") as socket:
            await socket.send_json({"type": "chat", "id": "c1", "stream": name, "request": body("r1")})
            heard = await frames_until(socket, 4)
        assert heard[0]["type"] == "started"
        assert heard[0]["stream"] == name
        async with caller.session.ws_connect("/v1/chat/stream") as socket:
            await socket.send_json({"type": "resume", "id": "c9", "stream": name, "after": heard[-1]["seq"]})
            rest = await frames_until(socket, 100)
    assert [frame["seq"] for frame in [*heard, *rest]] == list(range(1, len(heard) + len(rest) + 1))
    assert "".join(frame.get("text", "") for frame in [*heard, *rest]) == text_of("r1")
    assert rest[-1]["type"] == "finish"
    assert len(providers.of("r1")) == 1


async def test_cancel_ends_it_at_the_provider(mesh: MeshProcess, server: FaultServer):
    number = never_ends(server)
    async with Caller(mesh.url, KEY) as caller, caller.session.ws_connect("/v1/chat/stream") as socket:
        await socket.send_json({"type": "chat", "id": "c1", "request": body("r1")})
        heard = await frames_until(socket, 3)
        await socket.send_json({"type": "cancel", "id": "c1"})
        rest = await frames_until(socket, 100)
        assert rest[-1]["error"]["reason"] == "CANCELLED"
        answer = await caller.get(f"/v1/chat/{heard[0]['stream']}/events")
        assert "CANCELLED" in answer.body.decode()
    await asyncio.wait_for(server.requests[number].closed.wait(), 10)


async def test_delete_ends_it_and_strangers_find_nothing(mesh: MeshProcess, server: FaultServer):
    number, name = never_ends(server), new_request_id()
    async with Caller(mesh.url, KEY) as caller, Caller(mesh.url, OTHER_KEY) as stranger:
        headers = {"x-request-id": name}
        async with caller.session.post("/v1/chat", json={**body("r2"), "stream": True}, headers=headers) as answer:
            await answer.content.readuntil(b"\n\n")
        async with stranger.session.get(f"/v1/chat/{name}/events") as refused:
            assert refused.status == 404
        async with stranger.session.delete(f"/v1/chat/{name}") as refused:
            assert (refused.status, (await refused.json())["error"]["reason"]) == (404, "NOT_FOUND")
        async with caller.session.delete(f"/v1/chat/{name}") as ended:
            assert ended.status == 200
        async with caller.session.delete(f"/v1/chat/{name}") as ended:
            assert ended.status == 200
        for wrong in ("x", "-1", "9" * 30):
            async with caller.session.get(f"/v1/chat/{name}/events", headers={"last-event-id": wrong}) as refused:
                assert refused.status == 400
    async with LLMClient(mesh.url, OTHER_KEY) as client:
        with pytest.raises(NotFound):
            async for _ in client.stream("anything", model="no/such", resumable=True, request_id=name):
                pass
    await asyncio.wait_for(server.requests[number].closed.wait(), 10)


async def test_the_client_goes_on_by_itself_when_gateways_die(mesh: MeshProcess, providers: Providers):
    async with LLMClient(mesh.url, KEY) as client:
        stream = client.stream("[r3]", resumable=True)
        heard, before = 0, list[MeshMember]()
        async for event in stream:
            heard += bool(event.text.text)
            if heard == PIECES // 3:
                # One of them has it.
                before = [mesh.kill(name) for name in GATEWAYS[:2]]
                heard += 1
        response = await stream.response()
        assert "".join(part.text.text for part in response.parts) == text_of("r3")
        assert len(providers.of("r3")) == 1
        for member in before:
            await mesh.wait_restarted(member)


async def test_a_stream_that_was_cancelled_is_no_lost_connection_to_the_client(mesh: MeshProcess, server: FaultServer):
    never_ends(server)
    async with LLMClient(mesh.url, KEY) as client, Caller(mesh.url, KEY) as caller:
        stream = client.stream("[r4]", resumable=True)
        async for event in stream:
            if event.text.text:
                break
        async with caller.session.delete(f"/v1/chat/{stream.request_id}") as ended:
            assert ended.status == 200
        with pytest.raises(Cancelled):
            await stream.response()
