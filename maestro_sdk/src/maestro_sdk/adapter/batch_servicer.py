"""Serves a `Batcher` as `BatchService`: names and models of items, cost of results, repetition without harm."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    CancelBatchRequest,
    CreateBatchRequest,
    GetBatchRequest,
    ListBatchesRequest,
    ListBatchesResponse,
    StreamBatchResultsRequest,
    StreamBatchResultsResponse,
)
from maestro.llm.v1.batch_pb2_grpc import BatchServiceServicer
from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.models import is_unknown, warn_unknown
from maestro_sdk.adapter.once import Once
from maestro_sdk.adapter.provider import Batcher
from maestro_sdk.errors import CapabilityUnavailable, InvalidRequest, MaestroError, NotFound, Violation
from maestro_sdk.prices import cost_of, price_of


class BatchServicer(BatchServiceServicer):
    """Hands requests to a provider's batch API. A repeated `request_id` is known to this process only."""

    def __init__(self, batcher: Batcher, catalogue: Catalogue) -> None:
        self._batcher = batcher
        self._catalogue = catalogue
        self._created = Once[Batch]()

    async def CreateBatch(self, request_iterator: AsyncIterator[CreateBatchRequest], context: Any) -> Batch:
        header = await _header(request_iterator)
        model = await self._able(header.model, Feature.FEATURE_BATCH, "header.model")
        header.model = model.id

        async def create() -> Batch:
            # Closed here and now: a call that fails leaves no reader behind.
            async with aclosing(self._items(request_iterator, model)) as items:
                return await self._batcher.create_batch(header, items)

        return await self._created.do(header.request_id, create)

    async def GetBatch(self, request: GetBatchRequest, context: Any) -> Batch:
        return await self._batcher.get_batch(request.batch_id)

    async def ListBatches(self, request: ListBatchesRequest, context: Any) -> ListBatchesResponse:
        return await self._batcher.list_batches(request)

    async def CancelBatch(self, request: CancelBatchRequest, context: Any) -> Batch:
        return await self._batcher.cancel_batch(request.batch_id)

    async def StreamBatchResults(self, request: StreamBatchResultsRequest, context: Any) -> None:
        # Looked up once per batch: to look for a model that is gone means to ask for all of them.
        models: dict[str, Model] = {}
        results = cast("Any", self._batcher.batch_results(request.batch_id))
        async with aclosing(results):
            async for some in results:
                for result in some:
                    await self._price(result, models)
                await context.write(StreamBatchResultsResponse(results=some))

    async def _items(self, requests: AsyncIterator[CreateBatchRequest], model: Model) -> AsyncGenerator[BatchItem]:
        """The items, each with a name and a model of its own. Raises `InvalidRequest` with the item's place."""
        names: set[str] = set()
        count = 0
        async for request in requests:
            if request.WhichOneof("kind") != "items":
                raise InvalidRequest("the header stands in the first message only")
            for item in request.items.items:
                place = f"items[{count}]"
                item.item_id = item.item_id or str(count)
                if item.item_id in names:
                    raise _wrong(f"{place}.item_id", f"{item.item_id!r} is the name of an earlier item")
                names.add(item.item_id)
                await self._complete(item, model, place)
                count += 1
                yield item
        if not count:
            raise InvalidRequest("the batch has no items")

    async def _complete(self, item: BatchItem, model: Model, place: str) -> None:
        kind = item.WhichOneof("request")
        if kind is None:
            raise _wrong(place, "asks for nothing")
        inner = item.chat if kind == "chat" else item.embed
        wanted = Feature.FEATURE_CHAT if kind == "chat" else Feature.FEATURE_EMBEDDINGS
        path = f"{place}.{kind}.model"
        found = await self._able(inner.model or model.id, wanted, path)
        if found.id != model.id:
            await self._able(found.id, Feature.FEATURE_BATCH, path)
        inner.model = found.id

    async def _able(self, name: str, feature: Feature.ValueType, path: str) -> Model:
        """The model of that name, when it has `feature`; errors name the place where it stands."""
        try:
            return await self._catalogue.able((await self._catalogue.resolve(name)).id, feature)
        except (NotFound, CapabilityUnavailable) as error:
            error.violations = (*error.violations, Violation(path, error.message))
            raise

    async def _price(self, result: BatchItemResult, models: dict[str, Model]) -> None:
        """Gives the result the usage and cost of its answer, as far as they are known, and the model's warning."""
        kind = result.WhichOneof("outcome")
        if kind not in {"chat", "embed"}:
            return
        answer = result.chat if kind == "chat" else result.embed
        name = f"{answer.provider}/{answer.model}"
        if name not in models:
            try:
                models[name] = await self._catalogue.find(name)
            except MaestroError:
                models[name] = Model()  # It was on offer when the batch began: the cost is unknown now.
        model = models[name]
        if is_unknown(model):
            answer.warnings.append(Warning(**warn_unknown(model)))
        if not answer.HasField("usage"):
            return
        in_force = price_of(model)
        if in_force is not None and not answer.HasField("cost"):
            answer.cost.CopyFrom(cost_of(answer.usage, in_force, batch=True))
        if not result.HasField("usage"):
            result.usage.CopyFrom(answer.usage)
        if answer.HasField("cost") and not result.HasField("cost"):
            result.cost.CopyFrom(answer.cost)


async def _header(requests: AsyncIterator[CreateBatchRequest]) -> BatchHeader:
    async for request in requests:
        if request.WhichOneof("kind") == "header":
            return request.header
        break
    raise InvalidRequest("the first message has to hold the header")


def _wrong(path: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{path} {why}", violations=[Violation(path, why)])
