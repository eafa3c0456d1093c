"""Cases of batches: items by name, counts that add up, results once each, and an end when it is asked for.

A provider may take hours for a batch. One that is not over within `PATIENCE` is cancelled: then it is proven that it is
started, told about and cancelled, and the report says that its results were not seen.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import grpc

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    BatchItems,
    BatchState,
    CancelBatchRequest,
    CreateBatchRequest,
    GetBatchRequest,
    ListBatchesRequest,
    StreamBatchResultsRequest,
)
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.adapter.models import cost_of
from maestro_sdk.conformance import prompts
from maestro_sdk.conformance.case import Subject, feature
from maestro_sdk.conformance.outcome import Broken, NotApplicable, expect
from maestro_sdk.conformance.serving import listed_services
from maestro_sdk.conformance.target import Refusal, Target, expect_refused
from maestro_sdk.types import text_of

PATIENCE = 20.0
"""Seconds to wait for the end of a batch."""
_FIRST_LOOK, _LONGEST_LOOK = 0.05, 2.0
"""Seconds between two looks at a batch, growing."""
_PAGES = 5
_GATEWAY = "maestro.gateway.v1.HttpService"
_OVER = frozenset(
    {
        BatchState.BATCH_STATE_COMPLETED,
        BatchState.BATCH_STATE_FAILED,
        BatchState.BATCH_STATE_CANCELLED,
        BatchState.BATCH_STATE_EXPIRED,
    }
)
_STOPPED = frozenset({BatchState.BATCH_STATE_CANCELLING, *_OVER})
_COUNTED = ("pending", "succeeded", "failed", "cancelled", "expired")
_NEEDS = ("batch",)
_NOT_FOUND = {grpc.StatusCode.NOT_FOUND}
_INVALID = {grpc.StatusCode.INVALID_ARGUMENT}
_UNDER_WAY = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED}
_WORDS = {"one": "marigold", "two": "bluebell", "three": "snowdrop"}
"""Items by name, and the word that each has to answer."""


async def create(target: Target, items: Sequence[BatchItem], **fields: Any) -> Batch | Refusal:
    """Starts a batch; its items go in two messages."""
    told: dict[str, Any] = {"model": target.asked.id, "display_name": "maestro conformance", **fields}
    messages = [BatchItems(items=some) for some in (items[:1], items[1:]) if some]
    requests = [CreateBatchRequest(items=some) for some in messages]
    return await target.send(target.batches.CreateBatch, [CreateBatchRequest(header=BatchHeader(**told)), *requests])


def _items(target: Target) -> list[BatchItem]:
    """Small questions, or texts to embed where the model does not chat."""
    if target.claims(Feature.FEATURE_CHAT):
        return [BatchItem(item_id=name, chat=prompts.say(word, max_tokens=2048)) for name, word in _WORDS.items()]
    return [
        BatchItem(item_id=name, embed=EmbedRequest(inputs=[EmbedInput(text=word)])) for name, word in _WORDS.items()
    ]


async def _look(target: Target, batch_id: str) -> Batch | Refusal:
    request = GetBatchRequest(batch_id=batch_id)
    return await target.attempt(target.batches.GetBatch(request, timeout=target.timeout, metadata=target.metadata))


async def _cancel(target: Target, batch_id: str) -> Batch | Refusal:
    request = CancelBatchRequest(batch_id=batch_id)
    return await target.attempt(target.batches.CancelBatch(request, timeout=target.timeout, metadata=target.metadata))


async def _results(target: Target, batch_id: str) -> tuple[list[BatchItemResult], Refusal | None]:
    request = StreamBatchResultsRequest(batch_id=batch_id)
    messages, refusal = await target.receive(target.batches.StreamBatchResults, request)
    return [result for message in messages for result in message.results], refusal


def _told(batch: Batch | Refusal, where: str) -> Batch:
    """A batch that tells what it has to. Raises `Broken`."""
    if isinstance(batch, Refusal):
        raise Broken(f"ended with {batch}", where)
    expect(batch.batch_id, "batch_id is empty", where)
    known = batch.state in BatchState.values() and batch.state != BatchState.BATCH_STATE_UNSPECIFIED
    expect(known, f"state {batch.state}", where)
    counts = {name: getattr(batch.counts, name) for name in _COUNTED}
    said = ", ".join(f"{number} {name}" for name, number in counts.items())
    total = batch.counts.total
    expect(total == sum(counts.values()), f"total is {total}, the others are {said}", f"{where}, counts")
    over = batch.state in _OVER
    expect(not over or not batch.counts.pending, f"{_name(batch)} with {said}", f"{where}, counts")
    return batch


def _name(batch: Batch) -> str:
    return BatchState.Name(batch.state).removeprefix("BATCH_STATE_")


@asynccontextmanager
async def _started(target: Target, **fields: Any) -> AsyncGenerator[Batch]:
    """A batch that is cancelled after the case, unless it is over."""
    batch = _told(await create(target, _items(target), **fields), "CreateBatch")
    try:
        yield batch
    finally:
        found = await _look(target, batch.batch_id)
        if isinstance(found, Batch) and found.state not in _STOPPED:
            await _cancel(target, batch.batch_id)


async def _await_end(target: Target, batch_id: str) -> Batch:
    """The batch at its end, or after `PATIENCE`; each look on the way is checked."""
    until = time.monotonic() + min(PATIENCE, target.timeout)
    pause, done = _FIRST_LOOK, 0
    while True:
        batch = _told(await _look(target, batch_id), "GetBatch")
        ended = batch.counts.total - batch.counts.pending
        expect(ended >= done, f"{ended} items have ended, {done} had before", "GetBatch, counts")
        done = ended
        if batch.state in _OVER or time.monotonic() >= until:
            return batch
        await asyncio.sleep(pause)
        pause = min(_LONGEST_LOOK, pause * 1.5)


async def _refuse_gateway(target: Target) -> None:
    """Raises `NotApplicable` at a gateway, whose callers start jobs instead."""
    try:
        services = await listed_services(target, "v1alpha")
    except grpc.aio.AioRpcError:
        return
    if _GATEWAY in services:
        raise NotApplicable("a gateway takes batches as jobs; ask the adapter itself")


@feature(
    Feature.FEATURE_BATCH,
    "a batch answers each item once",
    "batch.proto BatchService: items keep their names, counts.total is the sum of the others, results come when the "
    "batch is over, in any order, each item once; before, FAILED_PRECONDITION or CONFLICT",
    needs=("models",),
    subject=Subject.MODEL,
)
async def batch(target: Target) -> str:
    """From the start to the results, or to the cancellation of one that takes too long."""
    await _refuse_gateway(target)
    async with _started(target, metadata={"suite": "conformance"}) as begun:
        named = f"{begun.provider}/{begun.model}"
        expect(named == target.asked.id, f"names {named}", "CreateBatch")
        await _expect_held_back(target, begun)
        await _expect_listed(target, begun.batch_id)
        ended = await _await_end(target, begun.batch_id)
        if ended.state not in _OVER:
            stopped = _told(await _cancel(target, begun.batch_id), "CancelBatch")
            expect(stopped.state in _STOPPED, f"state {_name(stopped)}", "CancelBatch")
            return f"started, {_name(ended)} after {PATIENCE:g} s, then {_name(stopped)}: its results were not seen"
        expect(ended.state == BatchState.BATCH_STATE_COMPLETED, f"{_name(ended)}: {ended.error.message}", "GetBatch")
        expect(ended.counts.total == len(_WORDS), f"{ended.counts.total} items of {len(_WORDS)}", "GetBatch, counts")
        results, refusal = await _results(target, begun.batch_id)
        expect(refusal is None, f"ended with {refusal}", "StreamBatchResults")
        ids = sorted(result.item_id for result in results)
        expect(ids == sorted(_WORDS), f"results for {', '.join(ids) or 'nothing'}", "StreamBatchResults")
        for result in results:
            _check_result(target, result)
        succeeded = ended.counts.succeeded
        expect(succeeded == len(results), f"{succeeded} succeeded, {len(results)} answers", "GetBatch, counts")
    return f"{len(results)} items, {_name(ended)}"


async def _expect_held_back(target: Target, begun: Batch) -> None:
    """Results of a batch that is under way are refused; one that is over by now has them."""
    _, refusal = await _results(target, begun.batch_id)
    after = _told(await _look(target, begun.batch_id), "GetBatch")
    if after.state in _OVER:
        return
    where = f"StreamBatchResults while {_name(after)}"
    expect_refused(refusal, where, _UNDER_WAY)


async def _expect_listed(target: Target, batch_id: str) -> None:
    token, last = "", None
    for _ in range(_PAGES):
        request = ListBatchesRequest(page_size=100, page_token=token)
        call = target.batches.ListBatches(request, timeout=target.timeout, metadata=target.metadata)
        page = await target.attempt(call)
        if isinstance(page, Refusal):
            raise Broken(f"ended with {page}", "ListBatches")
        for found in page.batches:
            if last is not None and last.provider == found.provider and found.HasField("create_time"):
                ordered = found.create_time.ToNanoseconds() <= last.create_time.ToNanoseconds()
                expect(ordered, f"{found.batch_id} is newer than {last.batch_id} before it", "ListBatches")
            last = found
        if any(found.batch_id == batch_id for found in page.batches):
            return
        token = page.next_page_token
        if not token:
            break
    raise Broken("the batch is not listed", "ListBatches")


def _check_result(target: Target, result: BatchItemResult) -> None:
    where = f"the result of {result.item_id!r}"
    match result.WhichOneof("outcome"):
        case "chat":
            said = text_of(result.chat).lower()
            expect(_WORDS[result.item_id] in said, f"answered {prompts.said(result.chat)}", where)
            used, named = result.chat.usage, result.chat.provider
            expect(used.input_tokens and used.output_tokens, "no usage", where)
        case "embed":
            vectors = result.embed.embeddings
            expect(len(vectors) == 1 and vectors[0].values, f"{len(vectors)} vectors for one text", where)
            used, named = result.embed.usage, result.embed.provider
        case "error":
            raise Broken(f"{ErrorReason.Name(result.error.reason)}: {result.error.message}", where)
        case _:
            raise Broken("it has no outcome", where)
    expect(named == target.asked.provider, f"names the provider {named!r}", where)
    if target.asked.HasField("price") and used.ByteSize():
        wanted = cost_of(used, target.asked.price, batch=True).usd
        got = result.cost.usd or "0"
        close = abs(Decimal(got) - Decimal(wanted)) <= Decimal("1e-9")
        expect(close, f"{got} instead of {wanted} US dollars, as batches cost", where)


@feature(
    Feature.FEATURE_BATCH,
    "a batch can be cancelled",
    "batch.proto CancelBatch: the provider is asked to stop; a batch that is over is returned unchanged; "
    "BatchItemResult: no item has two results, CANCELLED for items that were cancelled",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def batch_cancel(target: Target) -> str:
    """Twice: the second time it changes nothing."""
    await _refuse_gateway(target)
    async with _started(target) as begun:
        stopped = _told(await _cancel(target, begun.batch_id), "CancelBatch")
        expect(stopped.batch_id == begun.batch_id, f"tells of {stopped.batch_id}", "CancelBatch")
        expect(stopped.state in _STOPPED, f"state {_name(stopped)}", "CancelBatch")
        ended = await _await_end(target, begun.batch_id)
        if ended.state not in _OVER:
            return f"{_name(ended)} after {PATIENCE:g} s"
        again = _told(await _cancel(target, begun.batch_id), "CancelBatch of a batch that is over")
        expect(
            again.state == ended.state, f"{_name(again)} after {_name(ended)}", "CancelBatch of a batch that is over"
        )
        results, refusal = await _results(target, begun.batch_id)
        expect(refusal is None, f"ended with {refusal}", f"StreamBatchResults when {_name(ended)}")
        ids = [result.item_id for result in results]
        once = len(set(ids)) == len(ids) and set(ids) <= set(_WORDS)
        expect(once, f"results for {', '.join(ids)}", "StreamBatchResults")
        reasons = {result.error.reason for result in results if result.HasField("error")}
        strange = reasons - {ErrorReason.ERROR_REASON_CANCELLED, ErrorReason.ERROR_REASON_TIMEOUT}
        expect(not strange, f"errors {[ErrorReason.Name(reason) for reason in strange]}", "StreamBatchResults")
    return f"{_name(stopped)}, then {_name(ended)} with {len(ids)} results"


@feature(
    Feature.FEATURE_BATCH,
    "a repeated start makes one batch",
    "batch.proto BatchHeader.request_id: a repeated call returns the first batch",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def batch_repetition(target: Target) -> str:
    """A batch that was started twice is paid twice."""
    await _refuse_gateway(target)
    key = f"conformance-{uuid.uuid4().hex}"
    async with _started(target, request_id=key) as one, _started(target, request_id=key) as other:
        expect(one.batch_id == other.batch_id, "two batches", "the same CreateBatch twice")
    return "one batch"


@feature(
    Feature.FEATURE_BATCH,
    "a broken or unknown batch is refused",
    "batch.proto: item_id is distinct within the batch; the first message holds the header; errors name the path; "
    "error.proto NOT_FOUND: the batch or model does not exist",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def batch_refusals(target: Target) -> str:
    """Before anything is started."""
    await _refuse_gateway(target)
    items = _items(target)
    double = _items(target)
    double[1].item_id = double[0].item_id
    await _expect_none(target, await create(target, double), "two items of one name", "items[1].item_id")
    await _expect_none(target, await create(target, ()), "a batch without items", "")
    headless = [CreateBatchRequest(items=BatchItems(items=items))]
    await _expect_none(target, await target.send(target.batches.CreateBatch, headless), "no header", "")
    unknown = f"{target.asked.provider}/no-such-model-0"
    found = await create(target, items, model=unknown)
    expect_refused(found, f"model {unknown}", _NOT_FOUND, reasons={"NOT_FOUND"}, path="header.model")
    async with _started(target) as begun:
        lost = f"{begun.batch_id[:-4]}0000" if not begun.batch_id.endswith("0000") else f"{begun.batch_id[:-4]}1111"
    for where, found in (
        ("GetBatch", await _look(target, lost)),
        ("CancelBatch", await _cancel(target, lost)),
        ("StreamBatchResults", (await _results(target, lost))[1]),
    ):
        expect_refused(found, f"{where} of an unknown batch", _NOT_FOUND, reasons={"NOT_FOUND"})
    return "items[1].item_id, no items, no header, header.model, unknown batch"


async def _expect_none(target: Target, found: Any, where: str, path: str) -> None:
    if isinstance(found, Batch):
        await _cancel(target, found.batch_id)
    expect_refused(found, where, _INVALID, path=path)
