"""The last piece of a stream goes out with the end of its call: every ending at each door of HTTP, whole and once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import orjson
import pytest
from google.api.httpbody_pb2 import HttpBody

from maestro.llm.v1.chat_pb2 import ChatEvent, StreamChatResponse, TextDelta
from maestro_gateway.facade import Facade
from maestro_gateway.json_codec.answer import Frames, encode_error
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.tracing import Call, enter_call

from .conftest import KEY, Gateway, Start, metadata, question

BODIES: dict[str, dict[str, Any]] = {
    "own": question(model="p0/model", stream=True),
    "openai": question(model="p0/model", stream=True, stream_options={"include_usage": True}),
    "anthropic": question(model="p0/model", stream=True, max_tokens=9),
}
BODIES["openai"]["messages"] = BODIES["anthropic"]["messages"] = [{"role": "user", "content": "hello"}]
GOOD = {
    "own": b"data: [DONE]\n\n",
    "openai": b"data: [DONE]\n\n",
    "anthropic": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
}


def call(gateway: Gateway, door: str) -> Any:
    """A running stream at one of the doors."""
    method = {
        "own": gateway.rest.Chat,
        "openai": gateway.openai.CreateChatCompletion,
        "anthropic": gateway.anthropic.CreateMessage,
    }[door]
    return method(HttpBody(data=orjson.dumps(BODIES[door])), metadata=metadata(KEY), timeout=10)


@pytest.mark.parametrize("door", list(BODIES))
@pytest.mark.parametrize(
    ("fault", "good"),
    [
        (None, True),
        (Fault.EVENTS_AFTER_FINISH, True),
        (Fault.TWO_FINISHES, True),
        (Fault.ERROR_AFTER_CONTENT, False),
        (Fault.NO_FINISH, False),
    ],
)
async def test_every_end_is_told_once(start: Start, door: str, fault: Fault | None, good: bool) -> None:
    gateway = await start(ScriptedProvider(answer("Hello", " there"), fault=fault), ping=0.05)
    running = call(gateway, door)
    pieces = [message async for message in running]
    data = b"".join(message.data for message in pieces)
    assert data.count(b"Hello") == 1
    assert data.count(GOOD[door]) == good
    assert data.endswith(GOOD[door]) is good
    assert (b"error" in data) is not good
    assert [message.content_type for message in pieces] == ["text/event-stream", *[""] * (len(pieces) - 1)]
    names = [name for name, _ in await running.initial_metadata()]
    assert len(names) == len(set(names))
    await gateway.event("request.completed" if good else "request.failed")
    assert len(gateway.events) == 2 + len([event for event in gateway.events if event.kind.startswith("attempt")])


async def test_a_write_to_a_reader_who_has_just_gone_is_told_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """gRPC says so when a connection breaks between the start of a write and the news of that."""

    class Gone:
        async def send_initial_metadata(self, metadata: Any) -> None: ...

        async def write(self, message: bytes) -> None:
            raise grpc.aio.InternalError("Failed grpc_call_start_batch")

    class Source:
        route, finished = "default", False

    async def batches() -> AsyncGenerator[StreamChatResponse]:
        yield StreamChatResponse(events=[ChatEvent(text=TextDelta(text="Hello"))])

    routers = SimpleNamespace(degraded=False)
    facade = Facade(cast("Any", SimpleNamespace(routers=routers)), encode_error, max_body=9, ping=1.0)
    enter_call(Call("req_1", "acme", ""))
    with pytest.raises(grpc.aio.InternalError):
        await facade.send(Source(), batches(), Frames([], 0), Gone())
    assert caplog.records == []


@pytest.mark.parametrize("door", list(BODIES))
async def test_a_reader_that_leaves_at_the_last_piece_is_accounted_once(start: Start, door: str) -> None:
    gateway = await start(ScriptedProvider(answer("Hello", " there"), pace=0.01))
    running = call(gateway, door)
    seen = b""
    async for message in running:
        seen += message.data
        if b" there" in seen:
            break
    running.cancel()
    async with asyncio.timeout(5):
        while {"request.completed", "request.failed"}.isdisjoint(gateway.kinds()):
            await asyncio.sleep(0.005)
    ends = [kind for kind in gateway.kinds() if kind in ("request.completed", "request.failed")]
    assert len(ends) == 1
