"""The adapter as the mesh meets it: behind the kit's servicers, over a real gRPC socket."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from maestro.llm.v1.chat_pb2 import CountTokensRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceStub
from maestro.llm.v1.model_pb2 import GetInfoRequest, ListModelsRequest
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_adapter_vertex.models import VertexModel
from maestro_adapter_vertex.provider import VertexProvider
from maestro_adapter_vertex.settings import VertexSettings
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.embedding_servicer import EmbeddingServicer
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import ProviderAuth, RateLimited, StreamBroken, from_rpc_error
from maestro_sdk.testing import gemini_content as wire
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.obliging_gemini import oblige_gemini
from maestro_sdk.testing.servers import serve
from maestro_sdk.testing.wire import Tokens

if TYPE_CHECKING:
    from maestro.llm.v1.chat_pb2_grpc import ChatServiceAsyncStub
    from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceAsyncStub
    from maestro.llm.v1.model_pb2_grpc import ModelServiceAsyncStub


def chat_at(channel: grpc.aio.Channel) -> ChatServiceAsyncStub:
    stub: ChatServiceAsyncStub = ChatServiceStub(channel)
    return stub


def models_at(channel: grpc.aio.Channel) -> ModelServiceAsyncStub:
    stub: ModelServiceAsyncStub = ModelServiceStub(channel)
    return stub


def embedding_at(channel: grpc.aio.Channel) -> EmbeddingServiceAsyncStub:
    stub: EmbeddingServiceAsyncStub = EmbeddingServiceStub(channel)
    return stub


@pytest.fixture
async def mesh(provider_at: Any) -> Any:
    """The provider's server, and a channel to the adapter."""
    async with FaultServer() as server, provider_at(server.url) as provider:
        catalogue = Catalogue(provider)
        servicers = (
            ChatServicer(provider, catalogue),
            ModelServicer(provider, "maestro-adapter-vertex"),
            EmbeddingServicer(provider, catalogue),
        )
        async with serve(*servicers) as address, grpc.aio.insecure_channel(address) as channel:
            yield server, channel


async def test_answers_and_their_cost(mesh: Any, ask: Any) -> None:
    server, channel = mesh
    chat = chat_at(channel)
    used = Tokens(input=20_000, cache_read=16_000, output=900, reasoning=700)
    server.on("POST", wire.PATH, wire.text(tokens=used))
    request = ask(model="vertex/gemini-3.5-flash")
    whole = await chat.Chat(request)
    events = [event async for message in chat.StreamChat(request) for event in message.events]
    assert fold(events).SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    # Dollars per million tokens: 4 000 at 1.50, 16 000 at 0.15, 900 at 9, thoughts among them.
    assert (whole.cost.usd, whole.cost.price_date) == ("0.016500", "2026-05-19")
    assert (whole.usage.output_tokens, whole.usage.reasoning_tokens) == (900, 700)


async def test_tokens_and_vectors(mesh: Any, ask: Any) -> None:
    server, channel = mesh
    oblige_gemini(server)
    counted = await chat_at(channel).CountTokens(CountTokensRequest(request=ask("a" * 40)))
    assert (counted.input_tokens, counted.estimated) == (11, False)
    request = EmbedRequest(model="vertex/text-embedding-005", inputs=[EmbedInput(text="x" * 1000)])
    vectors = await embedding_at(channel).Embed(request)
    assert len(vectors.embeddings[0].values) == 768
    assert vectors.cost.usd == "0.000025"


async def test_errors_survive_the_way(mesh: Any, ask: Any) -> None:
    server, channel = mesh
    chat = chat_at(channel)
    server.on("POST", wire.PATH, wire.exhausted("2.5s"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat.Chat(ask())
    error = from_rpc_error(caught.value)
    assert (type(error), error.retry_after) == (RateLimited, 2.5)
    assert error.metadata["upstream_code"] == "RESOURCE_EXHAUSTED"
    server.reset()
    server.on("POST", wire.PATH, wire.cut_after(3))
    text = ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in chat.StreamChat(ask()):
            text += "".join(event.text.text for event in message.events)
    assert text == "Hello from the"
    assert type(from_rpc_error(caught.value)) is StreamBroken


async def test_a_key_that_the_provider_quotes_is_not_told(mesh: Any, ask: Any) -> None:
    server, channel = mesh
    server.on("POST", wire.PATH, wire.error(403, message="the token ya29.test-token may not do this"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat_at(channel).Chat(ask())
    assert "the token *** may not do this" in from_rpc_error(caught.value).message
    assert "ya29" not in str(caught.value)


@pytest.mark.parametrize("pieces", [0, 2])
async def test_cancelling_a_stream_reaches_the_provider(pieces: int, mesh: Any, ask: Any) -> None:
    server, channel = mesh
    server.on("POST", wire.PATH, wire.stall_after(pieces))
    call = chat_at(channel).StreamChat(ask())
    first = await anext(aiter(call))
    assert first.events[0].HasField("started")
    begun = time.monotonic()
    call.cancel()
    seen = await server.request()
    await asyncio.wait_for(seen.closed.wait(), 5)
    assert seen.closed_at - begun < 2


async def test_cancelling_a_unary_call_reaches_the_provider(mesh: Any, ask: Any) -> None:
    server, channel = mesh
    server.on("POST", wire.PATH, wire.slow_first_token(30))
    call = chat_at(channel).Chat(ask())
    seen = await server.request()
    begun = time.monotonic()
    call.cancel()
    await asyncio.wait_for(seen.closed.wait(), 5)
    assert seen.closed_at - begun < 2


async def test_what_it_tells_of_itself(mesh: Any, catalogue: dict[str, VertexModel]) -> None:
    _, channel = mesh
    models = models_at(channel)
    listed = await models.ListModels(ListModelsRequest())
    assert [model.id for model in listed.models] == sorted(catalogue)
    info = await models.GetInfo(GetInfoRequest())
    assert (info.name, info.ready, list(info.providers)) == ("adapter-vertex", True, ["vertex"])


async def test_unconfigured_it_serves_and_says_so(ask: Any) -> None:
    provider = VertexProvider(VertexSettings())
    async with (
        serve(ChatServicer(provider), ModelServicer(provider, "maestro-adapter-vertex")) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        info = await models_at(channel).GetInfo(GetInfoRequest())
        assert not info.ready
        assert "set GOOGLE_CLOUD_PROJECT" in info.not_ready_reason
        assert (await models_at(channel).ListModels(ListModelsRequest())).models
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chat_at(channel).Chat(ask())
        assert type(from_rpc_error(caught.value)) is ProviderAuth
    await provider.close()
