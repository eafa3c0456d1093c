"""The record of a request as JSON: the decision as it was made, and what then happened."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from google.protobuf.message import Message

from maestro.event.v1.event_pb2 import (
    AttemptFailed,
    AttemptFate,
    AttemptUsage,
    Event,
    Failure,
    RequestCompleted,
    RequestFailed,
    RequestOperation,
)
from maestro.llm.v1.chat_pb2 import FinishReason
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_gateway.json_codec.decoder import short_names
from maestro_gateway.json_codec.encoder import plain
from maestro_gateway.json_codec.mesh import decision_data
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.tracing import is_request_id

_FATES = short_names(AttemptFate.DESCRIPTOR)
_OPERATIONS = short_names(RequestOperation.DESCRIPTOR)
_FINISH_REASONS = short_names(FinishReason.DESCRIPTOR)


def read_record_query(document: Mapping[str, Any]) -> tuple[str, float | None]:
    """The id that is asked for, and as Unix time the moment behind which to look. Raises `InvalidRequest`."""
    for name in document:
        if name not in ("request_id", "after"):
            raise InvalidRequest.at(name[:64], "does not go with `request_id`: a record is found by its id alone")
    request_id = document["request_id"]
    if not isinstance(request_id, str) or not is_request_id(request_id):
        raise InvalidRequest.at("request_id", "must be the id of a request, as its answer's header x-request-id told")
    after = document.get("after")
    if after is None:
        return request_id, None
    try:
        moment = datetime.datetime.fromisoformat(after)
        if moment.tzinfo is not None:
            return request_id, max(0.0, moment.timestamp())
    except (TypeError, ValueError, OverflowError):
        pass
    raise InvalidRequest.at("after", 'must be a time with its zone, such as "2026-05-01T12:00:00Z"')


def encode_record(end: Event, failures: Iterable[AttemptFailed]) -> bytes:
    """A request that ended with the event `end`; `failures` are its attempts that failed."""
    payload = end.request_failed if end.HasField("request_failed") else end.request_completed
    failed = payload if isinstance(payload, RequestFailed) else None
    return orjson.dumps(
        {
            "request_id": payload.request_id,
            **decision_data(payload.decision),
            # An answer that was given again has a route, and no decision.
            "route": payload.decision.route or payload.route or None,
            "request": _request_data(end, payload),
            "attempts": _attempts_data(payload, failures),
            "error": _failure_data(failed.failure) if failed is not None else None,
        }
    )


def _request_data(end: Event, payload: RequestCompleted | RequestFailed) -> dict[str, Any]:
    data = {
        "operation": _OPERATIONS.get(payload.operation),
        "model": payload.requested_model or None,
        "persona": payload.persona or None,
        "skill": payload.skill or None,
        "job_id": payload.job_id or None,
        "degraded": payload.degraded,
        "ended": end.time.ToJsonString(),
        "latency": _seconds(payload, "latency"),
        "usage": plain(payload.usage) if payload.HasField("usage") else None,
        "cost_usd": payload.cost.usd if payload.HasField("cost") else None,
    }
    match payload:
        case RequestCompleted():
            return {
                "outcome": "completed",
                **data,
                "streamed": payload.streamed,
                "cached": payload.cached,
                "finish_reason": _FINISH_REASONS.get(payload.finish_reason),
                "time_to_first_content": _seconds(payload, "time_to_first_content"),
            }
        case RequestFailed():
            return {"outcome": "failed", **data, "after_content": payload.after_content}


def _attempts_data(
    payload: RequestCompleted | RequestFailed, failures: Iterable[AttemptFailed]
) -> list[dict[str, Any]]:
    """The attempts in order, each with what its own event and the end of the request tell of it."""
    used = {usage.attempt: usage for usage in payload.attempt_usages}
    failed = {failure.attempt: failure for failure in failures}
    found = [_attempt_data(number, used.get(number), failed.get(number)) for number in sorted({*used, *failed})]
    if isinstance(payload, RequestCompleted) and payload.attempts and payload.attempts not in {*used, *failed}:
        # Recorded by a gateway that did not tell what each attempt used.
        last = AttemptUsage(
            attempt=payload.attempts,
            adapter=payload.adapter,
            provider=payload.provider,
            model=payload.model,
            fate=AttemptFate.ATTEMPT_FATE_ANSWERED,
        )
        found.append(_attempt_data(last.attempt, last, None))
    return found


def _attempt_data(number: int, used: AttemptUsage | None, failed: AttemptFailed | None) -> dict[str, Any]:
    known = used if used is not None else failed
    fate = used.fate if used is not None else AttemptFate.ATTEMPT_FATE_FAILED
    return {
        "attempt": number,
        "backend_id": f"{known.adapter}:{known.provider}/{known.model}" if known is not None else None,
        "fate": _FATES.get(fate),
        "after_content": failed.after_content if failed is not None else None,
        "latency": _seconds(failed, "latency") if failed is not None else None,
        "usage": plain(used.usage) if used is not None and used.HasField("usage") else None,
        "cost_usd": used.cost.usd if used is not None and used.HasField("cost") else None,
        "error": _failure_data(failed.failure) if failed is not None else None,
    }


def _failure_data(failure: Failure) -> dict[str, Any]:
    """An error in the shape of all errors, without their text: events hold none, as it may quote the prompt."""
    return {
        "code": failure.http_status,
        "reason": ErrorReason.Name(failure.reason).removeprefix("ERROR_REASON_")
        if failure.reason in ErrorReason.values()
        else "OTHER",
        "retryable": failure.retryable,
        "failover": failure.failover,
        "counts_against_health": failure.counts_against_health,
        "retry_after": _seconds(failure, "retry_after"),
        "upstream_status": failure.upstream_status if failure.HasField("upstream_status") else None,
        "upstream_code": failure.upstream_code or None,
    }


def _seconds(message: Message, name: str) -> float | None:
    return getattr(message, name).ToNanoseconds() / 1e9 if message.HasField(name) else None
