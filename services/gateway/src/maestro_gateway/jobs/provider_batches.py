"""Batches at providers, by the `BatchService` of their adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc

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
from maestro_gateway.jobs.bundle import Bundle, is_named, labels_of, may_be
from maestro_sdk.errors import UpstreamError, from_rpc_error
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.table import Backend
from maestro_sdk.service.bus import heed_cancellation

_ANSWER = 60.0
_CREATION = 600.0
"""Seconds that a provider has to take a batch, with all its items."""
_PAGES = 20
_PAGE = 100
_ITEMS = 500
_BYTES = 8 * 2**20
"""Of items in one message."""


class ProviderBatches:
    """Asks the adapters of backends. Every method raises what the adapter says."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def create(self, backend: Backend, held: Bundle, items: AsyncIterator[BatchItem]) -> Batch:
        """Starts a batch of `items`."""
        header = BatchHeader(
            model=held.model, display_name=held.name, metadata=labels_of(held.name), request_id=held.name
        )
        try:
            return await self._stub(backend).CreateBatch(_requests(header, items), timeout=_CREATION)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            heed_cancellation()
            # gRPC cancels a call whose requests can't be read: nothing of it is started.
            raise UpstreamError("the items could not be read", counts_against_health=False) from None

    async def get(self, backend: Backend, batch_id: str) -> Batch:
        """How far a batch is."""
        try:
            return await self._stub(backend).GetBatch(GetBatchRequest(batch_id=batch_id), timeout=_ANSWER)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def cancel(self, backend: Backend, batch_id: str) -> Batch:
        """Asks to stop a batch."""
        try:
            return await self._stub(backend).CancelBatch(CancelBatchRequest(batch_id=batch_id), timeout=_ANSWER)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def results(self, backend: Backend, batch_id: str) -> AsyncGenerator[BatchItemResult]:
        """The results of a batch that is over."""
        call = self._stub(backend).StreamBatchResults(StreamBatchResultsRequest(batch_id=batch_id))
        try:
            async for message in call:
                for result in message.results:
                    yield result
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()

    async def find(self, backend: Backend, held: Bundle) -> tuple[Batch | None, list[Batch]]:
        """The batch of that name, and those without a name that may be it."""
        maybe: list[Batch] = []
        token = ""
        for _ in range(_PAGES):
            request = ListBatchesRequest(page_size=_PAGE, page_token=token)
            try:
                page = await self._stub(backend).ListBatches(request, timeout=_ANSWER)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None
            for batch in page.batches:
                if is_named(batch, held.name):
                    return batch, []
                if may_be(batch, held):
                    maybe.append(batch)
            token = page.next_page_token
            if not token:
                break
        return None, maybe

    def _stub(self, backend: Backend) -> Any:
        return BatchServiceStub(self._backends.channel(backend.address))


async def _requests(header: BatchHeader, items: AsyncIterator[BatchItem]) -> AsyncIterator[CreateBatchRequest]:
    yield CreateBatchRequest(header=header)
    some, size = BatchItems(), 0
    async for item in items:
        length = item.ByteSize()
        if some.items and (len(some.items) >= _ITEMS or size + length > _BYTES):
            yield CreateBatchRequest(items=some)
            some, size = BatchItems(), 0
        some.items.append(item)
        size += length
    if some.items:
        yield CreateBatchRequest(items=some)
