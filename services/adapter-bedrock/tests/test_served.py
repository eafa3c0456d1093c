"""The adapter as the mesh meets it: behind the kit's servicers, over a real gRPC socket."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from maestro.llm.v1.chat_pb2 import CountTokensRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.model_pb2 import GetInfoRequest, ListModelsRequest
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_adapter_bedrock.provider import BedrockProvider
from maestro_adapter_bedrock.settings import BedrockSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import ProviderAuth, RateLimited, StreamBroken, from_rpc_error
from maestro_sdk.testing import bedrock_converse as wire
from maestro_sdk.testing.faults import FaultServer, SendJson
from maestro_sdk.testing.servers import serve
from maestro_sdk.testing.wire import Tokens

PRICED = "bedrock/global.anthropic.claude-sonnet-4-5-20250929-v1:0"


@pytest.fixture
async def mesh(provider_at: Any) -> Any:
    """The provider's server, and stubs for the adapter."""
    async with (
        FaultServer() as server,
        provider_at(server.url) as provider,
        serve(ChatServicer(provider), ModelServicer(provider, "maestro-adapter-bedrock")) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield server, ChatServiceStub(channel), ModelServiceStub(channel)


async def test_answers_and_their_cost(mesh: Any, ask: Any) -> None:
    server, chat, _ = mesh
    tokens = Tokens(input=13307, cache_read=1000, cache_write_5m=12000, cache_write_1h=304, output=550)
    server.on("POST", wire.PATH, wire.text(tokens=tokens))
    whole = await chat.Chat(ask(model=PRICED))
    events = [event async for message in chat.StreamChat(ask(model=PRICED)) for event in message.events]
    streamed = fold(events)
    streamed.response_id = whole.response_id
    assert streamed.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    # Dollars per million tokens: 3 at 3, 1000 at 0.30, 12 000 at 3.75, 304 at 6, 550 at 15.
    assert (whole.cost.usd, whole.cost.price_date) == ("0.055383", "2026-02-17")
    assert not (await chat.Chat(ask())).HasField("cost"), "the price depends on the region"


async def test_errors_survive_the_way(mesh: Any, ask: Any) -> None:
    server, chat, _ = mesh
    server.on("POST", wire.PATH, wire.rate_limited(2.5))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat.Chat(ask())
    error = from_rpc_error(caught.value)
    assert (type(error), error.retry_after) == (RateLimited, 2.5)
    assert error.metadata["upstream_code"] == "ThrottlingException"
    server.reset()
    server.on("POST", wire.PATH, wire.cut_after(3))
    text = ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in chat.StreamChat(ask()):
            text += "".join(event.text.text for event in message.events)
    assert text == "Hello from the"
    assert type(from_rpc_error(caught.value)) is StreamBroken


async def test_cancelling_a_stream_reaches_the_provider(mesh: Any, ask: Any) -> None:
    server, chat, _ = mesh
    server.on("POST", wire.PATH, wire.stall_after(2))
    call = chat.StreamChat(ask())
    assert (await call.read()).events[0].HasField("started")
    begun = time.monotonic()
    call.cancel()
    seen = await server.request()
    await asyncio.wait_for(seen.closed.wait(), 5)
    assert seen.closed_at - begun < 2


async def test_counting(mesh: Any, ask: Any) -> None:
    server, chat, _ = mesh
    server.on("POST", "/model/*/count-tokens", SendJson({"inputTokens": 31}))
    counted = await chat.CountTokens(CountTokensRequest(request=ask()))
    assert (counted.input_tokens, counted.estimated, counted.provider) == (31, False, "bedrock")


async def test_a_model_of_which_only_the_name_is_known(ask: Any, provider_at: Any) -> None:
    async with (
        FaultServer() as server,
        provider_at(server.url, models=[{"name": "mine"}]) as provider,
        serve(ChatServicer(provider)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        server.on("POST", wire.PATH, wire.text())
        chat: Any = ChatServiceStub(channel)
        answer = await chat.Chat(ask(model="bedrock/mine"))
    assert answer.parts[0].text.text == "Hello from the other side."
    assert [warning.code for warning in answer.warnings] == ["unknown_model"]
    assert not answer.HasField("cost")


async def test_what_it_tells_of_itself(mesh: Any) -> None:
    _, _, models = mesh
    listed = await models.ListModels(ListModelsRequest())
    assert "bedrock/us.amazon.nova-pro-v1:0" in [model.id for model in listed.models]
    info = await models.GetInfo(GetInfoRequest())
    assert (info.name, info.ready, list(info.providers)) == ("adapter-bedrock", True, ["bedrock"])


async def test_unconfigured(ask: Any) -> None:
    """It starts, tells why it is not ready, and refuses calls with the same reason."""
    provider = BedrockProvider(BedrockSettings(region="us-east-1"))
    async with (
        serve(ChatServicer(provider), ModelServicer(provider)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        models: Any = ModelServiceStub(channel)
        info = await models.GetInfo(GetInfoRequest())
        assert not info.ready
        assert "AWS_BEARER_TOKEN_BEDROCK" in info.not_ready_reason
        chat: Any = ChatServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chat.Chat(ask())
    error = from_rpc_error(caught.value)
    assert type(error) is ProviderAuth
    assert (error.failover, error.retryable) == (True, False)
    await provider.close()
