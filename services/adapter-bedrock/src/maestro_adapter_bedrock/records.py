"""A batch's files: requests as records of JSON lines, and the records that come back as results. Pure.

Each request is one line `{"recordId", "modelInput"}`, with the body of Converse; each result is that line with
`modelOutput` or `error`. What the way back needs and the records can't hold stands in a file of its own, one line per
item.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict, ParseDict

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.batch_pb2 import Batch, BatchItemResult, BatchState
from maestro_adapter_bedrock.answer import to_events
from maestro_adapter_bedrock.failure import UNREADABLE, to_error, unreadable
from maestro_adapter_bedrock.models import PROVIDER, BedrockModel
from maestro_adapter_bedrock.request import Outgoing
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import Cancelled, MaestroError, StreamBroken, Timeout, UpstreamError, to_detail

STATES: Mapping[str, BatchState.ValueType] = {
    "Submitted": BatchState.BATCH_STATE_VALIDATING,
    "Validating": BatchState.BATCH_STATE_VALIDATING,
    "Scheduled": BatchState.BATCH_STATE_RUNNING,
    "InProgress": BatchState.BATCH_STATE_RUNNING,
    "Stopping": BatchState.BATCH_STATE_CANCELLING,
    "Completed": BatchState.BATCH_STATE_COMPLETED,
    "PartiallyCompleted": BatchState.BATCH_STATE_COMPLETED,
    "Failed": BatchState.BATCH_STATE_FAILED,
    "Stopped": BatchState.BATCH_STATE_CANCELLED,
    "Expired": BatchState.BATCH_STATE_EXPIRED,
}
OVER = frozenset(
    {
        BatchState.BATCH_STATE_COMPLETED,
        BatchState.BATCH_STATE_FAILED,
        BatchState.BATCH_STATE_CANCELLED,
        BatchState.BATCH_STATE_EXPIRED,
    }
)


def to_record(item_id: str, outgoing: Outgoing) -> bytes:
    """The line of a request."""
    return orjson.dumps({"recordId": item_id, "modelInput": outgoing.body}) + b"\n"


def to_context(item_id: str, outgoing: Outgoing) -> bytes:
    """The line with what the way back needs, empty when it needs nothing."""
    context: dict[str, Any] = {}
    if outgoing.warnings:
        context["warnings"] = [MessageToDict(warning) for warning in outgoing.warnings]
    if outgoing.tool_names:
        context["tool_names"] = outgoing.tool_names
    if outgoing.stops:
        context["stops"] = outgoing.stops
    return orjson.dumps({"recordId": item_id, **context}) + b"\n" if context else b""


def from_context(context: Mapping[str, Any], model: BedrockModel) -> Outgoing:
    """What `to_context` kept of a request, an empty mapping for nothing."""
    return Outgoing(
        {},
        model.name,
        model.path,
        model.lineage,
        [ParseDict(warning, chat_pb2.Warning()) for warning in context.get("warnings", ())],
        context.get("tool_names", {}),
        stops=context.get("stops", ()),
    )


def to_result(record: Mapping[str, Any], outgoing: Outgoing, batch_id: str) -> BatchItemResult:
    """The result that a line of the output holds."""
    item_id = name_of(record)
    try:
        answer = _answer(record, outgoing, f"{batch_id.rpartition('/')[2]}-{item_id}")
        return BatchItemResult(item_id=item_id, chat=answer)
    except MaestroError as error:
        return to_failed(item_id, error)


def name_of(record: Mapping[str, Any]) -> str:
    """The item that a line is about. Raises `StreamBroken` for a line that does not tell."""
    name = record.get("recordId")
    if not isinstance(name, str):
        raise StreamBroken("a line of the batch's files has no recordId")
    return name


def _answer(record: Mapping[str, Any], outgoing: Outgoing, response_id: str) -> chat_pb2.ChatResponse:
    output: Any = record.get("modelOutput")
    if not isinstance(output, dict):
        raise _failure(record.get("error"))
    try:
        return fold(to_events(orjson.dumps(output), outgoing, response_id))
    except UNREADABLE as error:
        # orjson reads values that are nested deeper than it writes them.
        raise unreadable("result", error) from error


def _failure(error: Any) -> MaestroError:
    match error:
        case {"errorCode": int(status), "errorMessage": str(text)}:
            return to_error(status, orjson.dumps({"message": text}), {})
        case {"errorMessage": str(text)}:
            return UpstreamError(f"Bedrock: {text}")
        case _:
            return StreamBroken("the record has neither an answer nor an error")


def to_failed(item_id: str, error: MaestroError) -> BatchItemResult:
    """The result of an item without answer."""
    error.metadata.setdefault("provider", PROVIDER)
    return BatchItemResult(item_id=item_id, error=to_detail(error))


def unreached(state: BatchState.ValueType) -> MaestroError:
    """Why an item has no line in the output of a batch that is over."""
    match state:
        case BatchState.BATCH_STATE_CANCELLED:
            return Cancelled("the batch was cancelled before it came to this item")
        case BatchState.BATCH_STATE_EXPIRED:
            return Timeout("the batch's time was over before it came to this item")
        case _:
            return UpstreamError("Bedrock ended the batch without a result for this item")


def to_batch(job: Mapping[str, Any], model: str) -> Batch:
    """A job, as `GetModelInvocationJob` and `ListModelInvocationJobs` tell it. Raises `StreamBroken`."""
    try:
        return _batch(job, model)
    except UNREADABLE as error:
        raise unreadable("batch", error) from error


def _batch(job: Mapping[str, Any], model: str) -> Batch:
    status = str(job.get("status") or "")
    state = STATES.get(status, BatchState.BATCH_STATE_UNSPECIFIED)
    batch = Batch(
        batch_id=job["jobArn"],
        # The name has an ending that makes it the only one.
        display_name=str(job.get("jobName") or "").rpartition("-")[0],
        provider=PROVIDER,
        model=model,
        state=state,
        raw_state=status,
    )
    total, good, bad = (int(job.get(f"{name}RecordCount") or 0) for name in ("total", "success", "error"))
    counts, left = batch.counts, max(0, total - good - bad)
    counts.total, counts.succeeded, counts.failed = total, good, bad
    match state:
        case BatchState.BATCH_STATE_CANCELLED:
            counts.cancelled = left
        case BatchState.BATCH_STATE_EXPIRED:
            counts.expired = left
        case BatchState.BATCH_STATE_FAILED | BatchState.BATCH_STATE_COMPLETED:
            counts.failed += left
        case _:
            counts.pending = left
    for field, name in (("create_time", "submitTime"), ("end_time", "endTime"), ("expire_time", "jobExpirationTime")):
        if (moment := job.get(name)) is not None:
            getattr(batch, field).FromDatetime(moment)
    if state == BatchState.BATCH_STATE_FAILED:
        text = str(job.get("message") or "Bedrock does not say why")
        batch.error.CopyFrom(to_detail(to_error(400, orjson.dumps({"message": text}), {})))
    return batch
