"""The adapter as the mesh meets it: behind the kit's servicers, over a real gRPC socket."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.model_pb2 import GetInfoRequest, ListModelsRequest
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_adapter_claude.models import ClaudeModel
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import RateLimited, StreamBroken, from_rpc_error
from maestro_sdk.testing import anthropic_messages as wire
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.servers import serve
from maestro_sdk.testing.wire import Tokens


@pytest.fixture
async def mesh(provider_at: Any) -> Any:
    """The provider's server, and stubs for the adapter."""
    async with (
        FaultServer() as server,
        provider_at(server.url) as provider,
        serve(ChatServicer(provider), ModelServicer(provider, "maestro-adapter-claude")) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield server, ChatServiceStub(channel), ModelServiceStub(channel)


async def test_answers_and_their_cost(mesh: Any, ask: Any) -> None:
    server, chat, _ = mesh
    server.on("POST", wire.PATH, wire.text(tokens=Tokens(input=12304, cache_write_5m=12301, output=550)))
    whole = await chat.Chat(ask())
    events = [event async for message in chat.StreamChat(ask()) for event in message.events]
    assert fold(events).SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    # Dollars per million tokens: 3 at 2, 12 301 at 2.50, 550 at 10.
    assert (whole.cost.usd, whole.cost.price_date) == ("0.0362585", "2026-06-30")


async def test_errors_survive_the_way(mesh: Any, ask: Any) -> None:
    server, chat, _ = mesh
    server.on("POST", wire.PATH, wire.rate_limited(2.5))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat.Chat(ask())
    error = from_rpc_error(caught.value)
    assert (type(error), error.retry_after) == (RateLimited, 2.5)
    assert error.metadata["upstream_code"] == "rate_limit_error"
    server.reset()
    server.on("POST", wire.PATH, wire.cut_after(3))
    text = ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in chat.StreamChat(ask()):
            text += "".join(event.text.text for event in message.events)
    assert text == "Hello from the"
    assert type(from_rpc_error(caught.value)) is StreamBroken


@pytest.mark.parametrize("pieces", [0, 2])
async def test_cancelling_a_stream_reaches_the_provider(pieces: int, mesh: Any, ask: Any) -> None:
    server, chat, _ = mesh
    server.on("POST", wire.PATH, wire.stall_after(pieces))
    call = chat.StreamChat(ask())
    assert (await call.read()).events[0].HasField("started")
    begun = time.monotonic()
    call.cancel()
    seen = await server.request()
    await asyncio.wait_for(seen.closed.wait(), 5)
    assert seen.closed_at - begun < 2


async def test_cancelling_a_unary_call_reaches_the_provider(mesh: Any, ask: Any) -> None:
    server, chat, _ = mesh
    server.on("POST", wire.PATH, wire.slow_first_token(30))
    call = chat.Chat(ask())
    seen = await server.request()
    begun = time.monotonic()
    call.cancel()
    await asyncio.wait_for(seen.closed.wait(), 5)
    assert seen.closed_at - begun < 2


async def test_what_it_tells_of_itself(mesh: Any, catalogue: dict[str, ClaudeModel]) -> None:
    _, _, models = mesh
    listed = await models.ListModels(ListModelsRequest())
    assert [model.id for model in listed.models] == list(catalogue)
    info = await models.GetInfo(GetInfoRequest())
    assert (info.name, info.ready, list(info.providers)) == ("adapter-claude", True, ["anthropic"])
