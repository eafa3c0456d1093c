"""A batcher behind the kit's servicer on a real socket: names, models, money, and repetition."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    BatchItems,
    CancelBatchRequest,
    CreateBatchRequest,
    GetBatchRequest,
    ListBatchesRequest,
    StreamBatchResultsRequest,
)
from maestro.llm.v1.batch_pb2_grpc import BatchServiceStub
from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest, EmbedResponse
from maestro.llm.v1.error_pb2 import ErrorDetail, ErrorReason
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.adapter.batch_servicer import BatchServicer
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.errors import (
    CapabilityUnavailable,
    Conflict,
    InvalidRequest,
    MaestroError,
    NotFound,
    from_rpc_error,
)
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import serve

CHAT, EMBEDDINGS, BATCH = Feature.FEATURE_CHAT, Feature.FEATURE_EMBEDDINGS, Feature.FEATURE_BATCH
PRICE = Price(effective_date="2026-01-01", input="2.00", output="10.00", batch_factor="0.5")
USAGE = Usage(input_tokens=1000, output_tokens=100)


def model(model_id: str, *features: Feature.ValueType, price: Price | None = None, tags: Sequence[str] = ()) -> Model:
    provider, _, name = model_id.partition("/")
    told = [FeatureSupport(feature=feature, support=Support.SUPPORT_NATIVE) for feature in features]
    return Model(id=model_id, provider=provider, name=name, features=told, price=price, tags=tags)


MODELS = [
    model("memory/big", CHAT, BATCH, price=PRICE),
    model("memory/new", CHAT, BATCH, tags=["unknown"]),
    model("memory/slow", CHAT),
    model("memory/vectors", EMBEDDINGS, BATCH),
]


class Memory(ScriptedProvider):
    """Remembers what it was given; its results are those of `results`."""

    def __init__(self) -> None:
        super().__init__()
        self.created: list[tuple[BatchHeader, list[BatchItem]]] = []
        self.results: Sequence[BatchItemResult] = ()

    async def models(self) -> Sequence[Model]:
        return MODELS

    async def create_batch(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        given = [item async for item in items]
        await asyncio.sleep(0.05)
        self.created.append((header, given))
        return Batch(batch_id=f"batch-{len(self.created)}", provider="memory")

    async def get_batch(self, batch_id: str) -> Batch:
        if batch_id != "batch-1":
            raise NotFound(f"there is no batch {batch_id!r}")
        return Batch(batch_id=batch_id)

    async def list_batches(self, request: ListBatchesRequest) -> Any:
        raise Conflict("not now")

    async def cancel_batch(self, batch_id: str) -> Batch:
        return await self.get_batch(batch_id)

    async def batch_results(self, batch_id: str) -> AsyncIterator[Sequence[BatchItemResult]]:
        await self.get_batch(batch_id)
        for result in self.results:
            yield [result]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
async def stub(memory: Memory) -> AsyncIterator[Any]:
    servicer = BatchServicer(memory, Catalogue(memory))
    async with serve(servicer) as address, grpc.aio.insecure_channel(address) as channel:
        yield BatchServiceStub(channel)


def header(name: str = "memory/big", **fields: Any) -> CreateBatchRequest:
    return CreateBatchRequest(header=BatchHeader(model=name, **fields))


def items(*given: BatchItem) -> CreateBatchRequest:
    return CreateBatchRequest(items=BatchItems(items=given))


def chat(item_id: str = "", name: str = "") -> BatchItem:
    turn = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
    return BatchItem(item_id=item_id, chat=ChatRequest(model=name, messages=[turn]))


def embed(item_id: str = "", name: str = "") -> BatchItem:
    return BatchItem(item_id=item_id, embed=EmbedRequest(model=name, inputs=[EmbedInput(text="x")]))


async def create(stub: Any, *requests: CreateBatchRequest) -> Batch:
    batch: Batch = await stub.CreateBatch(iter(requests))
    return batch


async def refusal(call: Any) -> MaestroError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_items_get_names_and_models(stub: Any, memory: Memory) -> None:
    await create(stub, header("big"), items(chat(), chat("x")), items(chat(name="new"), chat(name="memory/new")))
    head, given = memory.created[0]
    assert head.model == "memory/big"
    assert [(item.item_id, item.chat.model) for item in given] == [
        ("0", "memory/big"),
        ("x", "memory/big"),
        ("2", "memory/new"),
        ("3", "memory/new"),
    ]


@pytest.mark.parametrize(
    ("requests", "expected", "path"),
    [
        ([], InvalidRequest, ""),
        ([items(chat())], InvalidRequest, ""),
        ([header()], InvalidRequest, ""),
        ([header(), items(chat()), header()], InvalidRequest, ""),
        ([header(), items(chat("a"), chat("b")), items(chat("a"))], InvalidRequest, "items[2].item_id"),
        ([header(), items(chat("1"), chat())], InvalidRequest, "items[1].item_id"),
        ([header("gone"), items(chat())], NotFound, "header.model"),
        ([header("slow"), items(chat())], CapabilityUnavailable, "header.model"),
        ([header(), items(chat(), chat(name="gone"))], NotFound, "items[1].chat.model"),
        ([header(), items(chat(name="slow"))], CapabilityUnavailable, "items[0].chat.model"),
        ([header(), items(embed())], CapabilityUnavailable, "items[0].embed.model"),
        ([header("vectors"), items(chat())], CapabilityUnavailable, "items[0].chat.model"),
    ],
)
async def test_nothing_is_started_when_something_is_wrong(
    stub: Any, memory: Memory, requests: list[CreateBatchRequest], expected: type[MaestroError], path: str
) -> None:
    error = await refusal(stub.CreateBatch(iter(requests)))
    assert type(error) is expected
    assert [violation.field for violation in error.violations] == ([path] if path else [])
    assert not memory.created


async def test_nothing_is_started_when_the_caller_leaves(stub: Any, memory: Memory) -> None:
    reached, never = asyncio.Event(), asyncio.Event()

    async def begun() -> AsyncIterator[CreateBatchRequest]:
        yield header()
        yield items(chat())
        reached.set()
        await never.wait()

    call = stub.CreateBatch(begun())
    await asyncio.wait_for(reached.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await create(stub, header(), items(chat()))).batch_id == "batch-1"


async def test_a_repeated_start_makes_one_batch(stub: Any, memory: Memory) -> None:
    made = await asyncio.gather(*(create(stub, header(request_id="k"), items(chat())) for _ in range(4)))
    assert [batch.batch_id for batch in made] == ["batch-1"] * 4
    assert (await create(stub, header(request_id="other"), items(chat()))).batch_id == "batch-2"
    # One that failed may be repeated.
    assert isinstance(await refusal(create(stub, header(request_id="late"))), InvalidRequest)
    assert (await create(stub, header(request_id="late"), items(chat()))).batch_id == "batch-3"


async def test_results_cost_what_batches_cost(stub: Any, memory: Memory) -> None:
    answer = ChatResponse(provider="memory", model="big", usage=USAGE)
    memory.results = [BatchItemResult(item_id="a", chat=answer)]
    told = await results(stub)
    # 1000 at $2 and 100 at $10 per million, halved.
    assert (told[0].cost.usd, told[0].chat.cost.usd) == ("0.001500", "0.001500")
    assert told[0].usage == USAGE


async def test_what_is_not_known_stays_unknown(stub: Any, memory: Memory) -> None:
    failed = ErrorDetail(reason=ErrorReason.ERROR_REASON_TIMEOUT, message="late")
    memory.results = [
        BatchItemResult(item_id="unpriced", embed=EmbedResponse(provider="memory", model="vectors", usage=USAGE)),
        BatchItemResult(item_id="gone", chat=ChatResponse(provider="memory", model="gone", usage=USAGE)),
        BatchItemResult(item_id="uncounted", chat=ChatResponse(provider="memory", model="big")),
        BatchItemResult(item_id="new", chat=ChatResponse(provider="memory", model="new", usage=USAGE)),
        BatchItemResult(item_id="failed", error=failed),
    ]
    told = {result.item_id: result for result in await results(stub)}
    assert not any(result.HasField("cost") for result in told.values())
    assert {name for name, result in told.items() if result.HasField("usage")} == {"unpriced", "gone", "new"}
    assert [warning.code for warning in told["new"].chat.warnings] == ["unknown_model"]
    assert told["failed"].error == failed


async def test_a_model_that_is_gone_is_looked_for_once(stub: Any, memory: Memory, monkeypatch: Any) -> None:
    looks: list[str] = []
    models = memory.models

    async def look() -> Sequence[Model]:
        looks.append("")
        return await models()

    monkeypatch.setattr(memory, "models", look)
    answer = ChatResponse(provider="memory", model="gone", usage=USAGE)
    memory.results = [BatchItemResult(item_id=str(number), chat=answer) for number in range(50)]
    assert len(await results(stub)) == 50
    assert len(looks) == 1


async def test_what_the_provider_says_itself_stays(stub: Any, memory: Memory) -> None:
    answer = ChatResponse(provider="memory", model="big", usage=USAGE)
    answer.cost.usd = "7"
    memory.results = [BatchItemResult(item_id="a", chat=answer)]
    assert (await results(stub))[0].cost.usd == "7"


async def test_errors_of_the_provider_pass(stub: Any) -> None:
    for call in (
        stub.GetBatch(GetBatchRequest(batch_id="b")),
        stub.CancelBatch(CancelBatchRequest(batch_id="b")),
        stub.StreamBatchResults(StreamBatchResultsRequest(batch_id="b")).read(),
    ):
        assert isinstance(await refusal(call), NotFound)
    assert isinstance(await refusal(stub.ListBatches(ListBatchesRequest())), Conflict)


async def results(stub: Any) -> list[BatchItemResult]:
    call = stub.StreamBatchResults(StreamBatchResultsRequest(batch_id="batch-1"))
    return [result async for message in call for result in message.results]
