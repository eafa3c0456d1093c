"""An embedder behind the kit's servicer on a real socket: right vectors in order, or an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from maestro.llm.v1.embedding_pb2 import Embedding, EmbedInput, EmbedRequest, EmbedResponse
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceStub
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.embedding_servicer import EmbeddingServicer
from maestro_sdk.adapter.standing import StandingCalls
from maestro_sdk.errors import (
    CapabilityUnavailable,
    Conflict,
    InvalidRequest,
    MaestroError,
    NotFound,
    StreamBroken,
    from_rpc_error,
)
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import serve
from maestro_sdk.tracing import Call

if TYPE_CHECKING:
    from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceAsyncStub

NATIVE = FeatureSupport(feature=Feature.FEATURE_EMBEDDINGS, support=Support.SUPPORT_NATIVE)
PRICED = Model(
    id="memory/priced",
    provider="memory",
    name="priced",
    features=[NATIVE],
    price=Price(effective_date="2026-01-01", input="0.02", output="0"),
)
UNKNOWN = Model(id="memory/new", provider="memory", name="new", features=[NATIVE], tags=["unknown"])
CHATS = Model(id="memory/chats", provider="memory", name="chats")
USAGE = Usage(input_tokens=1000)


def vectors(*values: Sequence[float], **fields: Any) -> EmbedResponse:
    made = [Embedding(index=place, values=vector) for place, vector in enumerate(values)]
    return EmbedResponse(embeddings=made, **fields)


class Memory(ScriptedProvider):
    """Returns the given answer, whatever it is asked."""

    answer: EmbedResponse = vectors([1.0, 0.0], [0.0, 1.0], usage=USAGE)

    async def models(self) -> Sequence[Model]:
        return [PRICED, UNKNOWN, CHATS]

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        copy = EmbedResponse()
        copy.CopyFrom(self.answer)
        return copy


@pytest.fixture
async def provider() -> Memory:
    return Memory()


@pytest.fixture
async def stub(provider: Memory) -> AsyncIterator[EmbeddingServiceAsyncStub]:
    async with (
        serve(EmbeddingServicer(provider, Catalogue(provider))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub: EmbeddingServiceAsyncStub = EmbeddingServiceStub(channel)
        yield stub


def ask(model: str = "memory/priced", count: int = 2) -> EmbedRequest:
    return EmbedRequest(model=model, inputs=[EmbedInput(text=f"text {number}") for number in range(count)])


async def fail(stub: EmbeddingServiceAsyncStub, request: EmbedRequest) -> MaestroError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Embed(request)
    return from_rpc_error(caught.value)


async def test_names_attempt_and_cost_are_added(stub: EmbeddingServiceAsyncStub) -> None:
    answer = await stub.Embed(ask())
    assert (answer.provider, answer.model, answer.attempt) == ("memory", "priced", 1)
    assert (answer.cost.usd, answer.cost.price_date) == ("0.000020", "2026-01-01")
    assert not answer.warnings


async def test_what_nobody_knows_stays_unknown(stub: EmbeddingServiceAsyncStub, provider: Memory) -> None:
    answer = await stub.Embed(ask("memory/new"))
    assert not answer.HasField("cost")
    assert [(warning.code, warning.field) for warning in answer.warnings] == [("unknown_model", "model")]
    provider.answer = vectors([1.0], [2.0])
    assert not (await stub.Embed(ask())).HasField("cost")


@pytest.mark.parametrize(
    "wrong",
    [
        vectors(),
        vectors([1.0]),
        vectors([1.0], [1.0], [1.0]),
        vectors([1.0], [1.0, 2.0]),
        vectors([], []),
        vectors([1.0, float("nan")], [1.0, 2.0]),
        vectors([1.0, 2.0], [float("-inf"), float("inf")]),
        EmbedResponse(embeddings=[Embedding(index=1, values=[1.0]), Embedding(index=0, values=[1.0])]),
        EmbedResponse(embeddings=[Embedding(index=0, values=[1.0]), Embedding(index=0, values=[1.0])]),
    ],
)
async def test_wrong_vectors_are_never_returned(
    stub: EmbeddingServiceAsyncStub, provider: Memory, wrong: EmbedResponse
) -> None:
    provider.answer = wrong
    assert isinstance(await fail(stub, ask()), StreamBroken)


async def test_refusals(stub: EmbeddingServiceAsyncStub) -> None:
    assert isinstance(await fail(stub, ask("memory/gone")), NotFound)
    assert isinstance(await fail(stub, ask("memory/chats")), CapabilityUnavailable)
    empty = await fail(stub, ask(count=0))
    assert isinstance(empty, InvalidRequest)
    assert [violation.field for violation in empty.violations] == ["inputs"]


async def test_streams_beside_a_large_answer_do_not_wait(stub: EmbeddingServiceAsyncStub, provider: Memory) -> None:
    provider.answer = vectors(*([0.5] * 1536 for _ in range(500)))
    assert len((await stub.Embed(ask(count=500))).embeddings) == 500


class SlowMemory(Memory):
    """Answers when it is told to, and counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.asked = 0

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        self.asked += 1
        await self.open.wait()
        return await super().embed(request)


async def test_a_call_with_a_key_outlives_its_caller():
    """Whoever calls again with that key gets the same vectors; the provider is asked once. Without a key it ends."""
    provider, standing = SlowMemory(), StandingCalls(5.0)
    servicer = EmbeddingServicer(provider, Catalogue(provider), standing)
    async with (
        serve(servicer, interceptors=[MeshInterceptor()]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub: EmbeddingServiceAsyncStub = EmbeddingServiceStub(channel)

        async def left(key: str) -> None:
            asked = provider.asked
            call = asyncio.ensure_future(stub.Embed(ask(), metadata=named(key)))
            await until(lambda: provider.asked > asked)
            call.cancel()

        await left("k")
        await until(lambda: len(standing) == 1)
        again = asyncio.ensure_future(stub.Embed(ask(), metadata=named("k")))
        provider.open.set()
        response = await again
        assert [list(vector.values) for vector in response.embeddings] == [[1.0, 0.0], [0.0, 1.0]]
        assert (response.cost.usd, provider.asked) == ((await stub.Embed(ask(), metadata=named("k"))).cost.usd, 1)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Embed(ask(count=1), metadata=named("k"))
        assert isinstance(from_rpc_error(raised.value), Conflict)
        await stub.Embed(ask(), metadata=named(""))
        assert provider.asked == 2
    await standing.close()


def named(key: str) -> tuple[tuple[str, str], ...]:
    return Call("req-1", "acme", "00-" + "1" * 32 + "-" + "2" * 16 + "-01", key).metadata()


async def until(fits: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not fits():
            await asyncio.sleep(0.01)
