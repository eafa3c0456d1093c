"""Batches of the obliging model: under way until a moment after somebody looked, then answered all at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchCounts,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    BatchState,
    ListBatchesRequest,
    ListBatchesResponse,
)
from maestro.llm.v1.error_pb2 import ErrorDetail, ErrorReason
from maestro_sdk.errors import Conflict, NotFound

TAKES = 0.15
"""Seconds that a batch is under way after the first look, unless told otherwise."""

Answer = Callable[[BatchItem], Awaitable[BatchItemResult]]


@dataclass(slots=True)
class _Running:
    header: BatchHeader
    items: list[BatchItem]
    looked: float | None = None
    """When somebody asked for it first."""
    begun_at: int = field(default_factory=time.time_ns)
    cancelled: bool = False


class ObligingBatcher:
    """A `Batcher`; `answer` answers an item.

    Who looks at a batch for the first time finds it under way, however late, unless it takes no time at all.
    """

    def __init__(self, answer: Answer, takes: float = TAKES) -> None:
        self._answer = answer
        self._takes = takes
        self._batches: dict[str, _Running] = {}

    async def create_batch(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """Starts a batch."""
        running = _Running(header, [item async for item in items])
        batch_id = f"batch-{len(self._batches) + 1:06d}"
        self._batches[batch_id] = running
        return self._tell(batch_id, running)

    async def get_batch(self, batch_id: str) -> Batch:
        """A batch."""
        running = self._batch(batch_id)
        told = self._tell(batch_id, running)
        running.looked = running.looked or time.monotonic()
        return told

    async def list_batches(self, request: ListBatchesRequest) -> ListBatchesResponse:
        """Batches, newest first; the token is the id of the last one told."""
        found = sorted(self._batches, reverse=True)
        if request.page_token:
            found = [batch_id for batch_id in found if batch_id < request.page_token]
        size = request.page_size or 100
        told = [self._tell(batch_id, self._batches[batch_id]) for batch_id in found[:size]]
        return ListBatchesResponse(batches=told, next_page_token=found[size - 1] if len(found) > size else "")

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Stops a batch that is not over: all its items at once."""
        running = self._batch(batch_id)
        if self._state(running) == BatchState.BATCH_STATE_RUNNING:
            running.cancelled = True
        return self._tell(batch_id, running)

    async def batch_results(self, batch_id: str) -> AsyncIterator[Sequence[BatchItemResult]]:
        """The results, the last item's first."""
        running = self._batch(batch_id)
        state = self._state(running)
        if state == BatchState.BATCH_STATE_RUNNING:
            raise Conflict(f"the batch {batch_id} is under way")
        for item in reversed(running.items):
            if state == BatchState.BATCH_STATE_CANCELLED:
                error = ErrorDetail(reason=ErrorReason.ERROR_REASON_CANCELLED, message="the batch was cancelled")
                yield (BatchItemResult(item_id=item.item_id, error=error),)
            else:
                yield (await self._answer(item),)

    def _batch(self, batch_id: str) -> _Running:
        if batch_id not in self._batches:
            raise NotFound(f"there is no batch {batch_id!r}")
        return self._batches[batch_id]

    def _state(self, running: _Running) -> BatchState.ValueType:
        if running.cancelled:
            return BatchState.BATCH_STATE_CANCELLED
        looked = running.looked
        over = not self._takes or (looked is not None and time.monotonic() - looked >= self._takes)
        return BatchState.BATCH_STATE_COMPLETED if over else BatchState.BATCH_STATE_RUNNING

    def _tell(self, batch_id: str, running: _Running) -> Batch:
        provider, _, model = running.header.model.partition("/")
        state, total = self._state(running), len(running.items)
        counts = BatchCounts(total=total)
        match state:
            case BatchState.BATCH_STATE_COMPLETED:
                counts.succeeded = total
            case BatchState.BATCH_STATE_CANCELLED:
                counts.cancelled = total
            case _:
                counts.pending = total
        told = Batch(
            batch_id=batch_id,
            display_name=running.header.display_name,
            provider=provider,
            model=model,
            state=state,
            counts=counts,
            metadata=running.header.metadata,
        )
        told.create_time.FromNanoseconds(running.begun_at)
        return told
