"""Batches on the wire, pure: lines of requests and of results, states and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from maestro.llm.v1.batch_pb2 import Batch, BatchCounts, BatchItem, BatchItemResult, BatchState
from maestro.llm.v1.chat_pb2 import ChatResponse
from maestro_adapter_vertex.answer import to_events
from maestro_adapter_vertex.failure import UNREADABLE, to_error, unreadable
from maestro_adapter_vertex.models import PROVIDER, VertexModel
from maestro_adapter_vertex.request import Outgoing, to_wire
from maestro_sdk.adapter.facts import to_struct
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import (
    Cancelled,
    InvalidRequest,
    MaestroError,
    StreamBroken,
    Timeout,
    UpstreamError,
    to_detail,
)

ITEMS_LABEL = "maestro-items"
"""The label of a job that tells how many items it has: the provider counts them at the end only."""

_STATES: Mapping[str, BatchState.ValueType] = {
    "JOB_STATE_QUEUED": BatchState.BATCH_STATE_VALIDATING,
    "JOB_STATE_PENDING": BatchState.BATCH_STATE_VALIDATING,
    "JOB_STATE_RUNNING": BatchState.BATCH_STATE_RUNNING,
    "JOB_STATE_UPDATING": BatchState.BATCH_STATE_RUNNING,
    "JOB_STATE_PAUSED": BatchState.BATCH_STATE_RUNNING,
    "JOB_STATE_SUCCEEDED": BatchState.BATCH_STATE_COMPLETED,
    "JOB_STATE_PARTIALLY_SUCCEEDED": BatchState.BATCH_STATE_COMPLETED,
    "JOB_STATE_FAILED": BatchState.BATCH_STATE_FAILED,
    "JOB_STATE_CANCELLING": BatchState.BATCH_STATE_CANCELLING,
    "JOB_STATE_CANCELLED": BatchState.BATCH_STATE_CANCELLED,
    "JOB_STATE_EXPIRED": BatchState.BATCH_STATE_EXPIRED,
}
OVER = frozenset(
    {
        BatchState.BATCH_STATE_COMPLETED,
        BatchState.BATCH_STATE_FAILED,
        BatchState.BATCH_STATE_CANCELLED,
        BatchState.BATCH_STATE_EXPIRED,
    }
)
# What becomes of the items that have no result when a batch is over.
_LEFT: Mapping[int, tuple[str, type[MaestroError], str]] = {
    BatchState.BATCH_STATE_COMPLETED: ("failed", UpstreamError, "the provider returned nothing for this item"),
    BatchState.BATCH_STATE_FAILED: ("failed", UpstreamError, "the batch failed before this item was answered"),
    BatchState.BATCH_STATE_CANCELLED: ("cancelled", Cancelled, "the batch was cancelled before this item was answered"),
    BatchState.BATCH_STATE_EXPIRED: ("expired", Timeout, "the batch ended before this item was answered"),
}

Json = Mapping[str, Any]


def to_line(item: BatchItem, model: VertexModel, number: int) -> bytes:
    """One item as a line of the input. Raises `InvalidRequest` for what this wire's batches can't hold."""
    if item.WhichOneof("request") != "chat":
        raise InvalidRequest.at(f"items[{number}].embed", "batches of this provider hold conversations only")
    if item.chat.model != model.model.id:
        message = f"is {item.chat.model!r}; all items of a batch are for one model, {model.model.id!r}"
        raise InvalidRequest.at(f"items[{number}].chat.model", message)
    return orjson.dumps({"key": item.item_id, "request": to_wire(item.chat, model).body}) + b"\n"


def keys_of(content: bytes) -> list[str]:
    """The names of the items of an input, in order."""
    return [str(_object(line).get("key") or "") for line in content.splitlines() if line.strip()]


def to_batch(job: Json) -> Batch:
    """The contract's form of a job. Raises `StreamBroken` for one that can't be read."""
    try:
        return _batch(job)
    except UNREADABLE as error:
        raise unreadable("batch", error) from error


def _batch(job: Json) -> Batch:
    raw = str(job.get("state") or "")
    state = _STATES.get(raw, BatchState.BATCH_STATE_RUNNING)
    labels: Mapping[str, str] = job.get("labels") or {}
    batch = Batch(
        batch_id=str(job["name"]).rpartition("/")[2],
        display_name=str(job.get("displayName") or ""),
        provider=PROVIDER,
        model=str(job.get("model") or "").rpartition("/")[2],
        state=state,
        raw_state=raw,
        counts=_counts(job.get("completionStats") or {}, state, _items(labels)),
        metadata={name: text for name, text in labels.items() if name != ITEMS_LABEL},
    )
    if created := job.get("createTime"):
        batch.create_time.FromJsonString(created)
    if state in OVER and (ended := job.get("endTime") or job.get("updateTime")):
        batch.end_time.FromJsonString(ended)
    if state == BatchState.BATCH_STATE_FAILED:
        error: Json = job.get("error") or {}
        message = str(error.get("message") or "the batch failed as a whole")
        batch.error.CopyFrom(to_detail(UpstreamError(f"Vertex AI: {message}", metadata={"provider": PROVIDER})))
    places = {name: job[name] for name in ("inputConfig", "outputInfo") if name in job}
    if places:
        batch.provider_metadata[PROVIDER].CopyFrom(to_struct(places))
    return batch


def _items(labels: Mapping[str, str]) -> int:
    """How many items a job has, 0 for one that others made: what its label says is theirs."""
    told = labels.get(ITEMS_LABEL, "")
    return int(told) if told.isdecimal() and len(told) < 10 else 0


def _counts(stats: Json, state: BatchState.ValueType, items: int) -> BatchCounts:
    done, failed = (max(0, int(stats.get(name) or 0)) for name in ("successfulCount", "failedCount"))
    total = max(items, done + failed)
    counts = BatchCounts(total=total, succeeded=done, failed=failed)
    if left := total - done - failed:
        name = _LEFT[state][0] if state in _LEFT else "pending"
        setattr(counts, name, getattr(counts, name) + left)
    return counts


def read_results(content: bytes, model: str) -> list[BatchItemResult]:
    """The results in one file of the output. Raises `StreamBroken` for a line that can't be read."""
    results: list[BatchItemResult] = []
    for line in content.splitlines():
        if not line.strip():
            continue
        document = _object(line)
        key = document.get("key")
        if not key:
            raise StreamBroken("the provider's results have a line without the name of its item")
        results.append(_result(str(key), document, model))
    return results


def _result(key: str, document: Json, model: str) -> BatchItemResult:
    result = BatchItemResult(item_id=key)
    try:
        result.chat.CopyFrom(_answer(key, document, model))
    except MaestroError as error:
        error.metadata.setdefault("provider", PROVIDER)
        result.error.CopyFrom(to_detail(error))
    return result


def _answer(key: str, document: Json, model: str) -> ChatResponse:
    status = document.get("status")
    response = document.get("response")
    try:
        if status or not response:
            raise _refusal(status)
        return fold(to_events(orjson.dumps(response), Outgoing({}, model), key))
    except UNREADABLE as error:
        # orjson reads values that are nested deeper than it writes them.
        raise unreadable("result", error) from error


def _refusal(status: object) -> MaestroError:
    """The error of an item: an object of `google.rpc`, or a text that may hold one."""
    if isinstance(status, dict):
        return to_error(200, orjson.dumps({"error": status}), {})
    text = str(status or "")
    start = text.find("{")
    if start >= 0 and "error" in _object(text[start:].encode(), strict=False):
        return to_error(200, text[start:].encode(), {})
    return UpstreamError(f"Vertex AI: {text or 'the item has neither answer nor error'}")


def left_over(keys: Sequence[str], batch: Batch) -> list[BatchItemResult]:
    """The results of the items that the output does not have."""
    _, cls, message = _LEFT[batch.state]
    detail = to_detail(cls(message, metadata={"provider": PROVIDER}))
    return [BatchItemResult(item_id=key, error=detail) for key in keys]


def _object(line: bytes, *, strict: bool = True) -> Json:
    try:
        document: Any = orjson.loads(line)
    except ValueError as error:
        if not strict:
            return {}
        raise StreamBroken(f"a line of the batch's files can't be read: {error}") from error
    return cast("Json", document) if isinstance(document, dict) else {}
