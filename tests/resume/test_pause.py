"""A gateway is stopped in the middle of a stream and comes back: another one has gone on, and it says nothing more."""

import asyncio
import os
import signal
import time
from typing import Any, cast

import nats
import pytest

from maestro.gateway.v1.journal_pb2 import StreamRecord
from maestro.gateway.v1.stream_pb2 import ResumeChatRequest
from maestro.gateway.v1.stream_pb2_grpc import StreamServiceStub
from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_gateway.resume.journal import STREAM, subject_of
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.callers import Caller
from maestro_sdk.testing.chaos.provider import Providers, Weather, text_of
from maestro_sdk.testing.chaos.record import read_events
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.tracing import new_request_id

from .conftest import GATEWAYS, KEY


@pytest.mark.skipif(
    "RESUME_RUNS" not in os.environ, reason="8 s; test_resume.py of the gateway shows it in one process"
)
async def test_a_gateway_that_was_stopped_is_shut_out(mesh: MeshProcess, providers: Providers, figures: list[str]):
    begun, name = time.time(), new_request_id()
    providers.weather["openai"] = Weather(pace=0.25)
    body = {"messages": [{"role": "user", "content": "[r1]"}], "stream": True, "resumable": True}
    async with Caller(mesh.url, KEY) as caller:
        async with caller.session.post("/v1/chat", json=body, headers={"x-request-id": name}) as answer:
            for _ in range(3):
                await answer.content.readuntil(b"\n\n")
        pid = await _owner(mesh, name)
        other = next(mesh.address(each) for each in GATEWAYS if mesh.members()[each].pid != pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            events = await _read(other, name)
            figures.append(
                f"a gateway is stopped: its stream was whole elsewhere {time.monotonic() - stopped:.1f} s later"
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        assert "".join(event.text.text for event in events) == text_of("r1")
        # Whatever it had to say, it has by now.
        async with asyncio.timeout(10):
            while (await caller.get("/v1/models")).status != 200:
                await asyncio.sleep(0.05)
    found = [event for event in await read_events(mesh.address("nats")) if event.time.ToNanoseconds() / 1e9 >= begun]
    assert [event.kind for event in found if event.subject == f"request/{name}"] == [
        "request.started",
        "request.completed",
    ]
    assert len(providers.of("r1")) == 1


async def _owner(mesh: MeshProcess, name: str) -> int:
    """The process that runs a stream, by the journal."""
    client = await cast("Any", nats).connect(f"nats://{mesh.address('nats')}")
    try:
        message = await client.jetstream().get_last_msg(STREAM, subject_of("resume", name))
    finally:
        await client.close()
    return int(StreamRecord.FromString(message.data).owner.partition("-")[0], 16)


async def _read(address: str, name: str) -> list[ChatEvent]:
    channel = open_channel(address)
    try:
        call: Any = StreamServiceStub(channel).ResumeChat(
            ResumeChatRequest(stream=name), metadata=(("authorization", f"Bearer {KEY}"),), timeout=20
        )
        return [event async for message in call for event in message.events]
    finally:
        await channel.close()
