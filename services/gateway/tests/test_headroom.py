"""What a provider's limits leave is the mesh's own business: it is reported to the router, and no caller sees it."""

from __future__ import annotations

import pytest

from maestro.llm.v1.usage_pb2 import Headroom, RateLimit
from maestro_sdk.adapter.fold import fold
from maestro_sdk.testing.scripted import ScriptedProvider, answer

from .conftest import KEY, Gateway, Start, metadata, question
from .test_grpc import request
from .test_rest import frames
from .test_websocket import chat, until_over

LEFT = Headroom(requests=RateLimit(remaining=41, limit=500), tokens=RateLimit(remaining=424242))


@pytest.fixture
async def gateway(start: Start) -> Gateway:
    events = answer("Hello", " there")
    events[-1].finish.headroom.CopyFrom(LEFT)
    return await start(ScriptedProvider(events))


async def test_no_caller_sees_it_and_the_router_does(gateway: Gateway) -> None:
    whole = await gateway.chats.Chat(request(), metadata=metadata(KEY))
    batches = [batch async for batch in gateway.chats.StreamChat(request(), metadata=metadata(KEY))]
    streamed = fold(event for batch in batches for event in batch.events)
    for told in (whole, streamed):
        assert (told.parts[0].text.text, told.HasField("headroom")) == ("Hello there", False)
    answered = await gateway.post(question())
    events = await gateway.post(question(stream=True))
    assert frames(events.data)[-2][0] == "finish"
    async with gateway.socket() as socket:
        await socket.send_json(chat("c1"))
        frame = (await until_over(socket, "c1"))["c1"][-1]
    assert frame["type"] == "finish"
    for text in (answered.data.decode(), events.data.decode(), str(frame)):
        assert "headroom" not in text
        assert "424242" not in text
    assert [outcome.headroom for outcome in gateway.source.outcomes] == [LEFT] * 5
    assert gateway.source.local.load.headrooms
