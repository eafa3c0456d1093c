"""How requests end, as events tell it: what attempts used, what failed. Pure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration

from maestro.event.v1.event_pb2 import AttemptFate, AttemptUsage, Event, Failure, RequestFailed
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_sdk.errors import Cancelled, Internal, MaestroError
from maestro_sdk.mesh.spend import sum_costs, sum_usages
from maestro_sdk.mesh.trail import Attempt, Trail
from maestro_sdk.tracing import Call

_NO_REASON = ErrorReason.ERROR_REASON_UNSPECIFIED
_LONGEST_CODE = 128
_ABANDONED = AttemptFate.ATTEMPT_FATE_ABANDONED


def usages_of(trail: Trail, attempts: Sequence[Attempt] | None = None) -> list[AttemptUsage]:
    """What each attempt used, in the order in which they began; their sum is that of the request.

    With `attempts` only those.
    """
    return [
        AttemptUsage(
            attempt=attempt.number,
            adapter=attempt.backend.adapter,
            provider=attempt.backend.provider,
            model=attempt.backend.message.model.name,
            fate=attempt.fate,
            usage=attempt.usage,
            cost=attempt.cost,
            reason=attempt.error.reason_value if attempt.error is not None else _NO_REASON,
            latency=span_of(attempt.ended - attempt.begun) if attempt.ended else None,
        )
        for attempt in (trail.attempts if attempts is None else attempts)
    ]


def under_way(asked: Mapping[str, Any], trail: Trail, call: Call, true_end: str) -> bytes:
    """The end of a request whose gateway dies now: of attempts that run it is known what they read, by estimate."""
    event = Event(
        id=f"{true_end}-estimate",
        tenant=call.tenant,
        kind="request.failed",
        subject=f"request/{call.request_id}",
        trace_id=call.trace_id,
        request_failed=RequestFailed(failure=_DIED, attempts=len(trail.attempts), estimate_of=true_end, **asked),
    )
    event.time.seconds, event.time.nanos = divmod(time.time_ns(), 1_000_000_000)
    failed = event.request_failed
    read = trail.plan.needs.input_tokens if trail.plan is not None else 0
    for attempt in trail.attempts:
        backend = attempt.backend
        used = failed.attempt_usages.add(
            attempt=attempt.number,
            adapter=backend.adapter,
            provider=backend.provider,
            model=backend.message.model.name,
            fate=attempt.fate or _ABANDONED,
        )
        if not attempt.ended:
            used.usage.input_tokens, used.usage.estimated = read, True
        elif attempt.usage is not None:
            used.usage.CopyFrom(attempt.usage)
            if attempt.cost is not None:
                used.cost.CopyFrom(attempt.cost)
    return event.SerializeToString()


def orphan_of(failed: RequestFailed, attempts: Sequence[AttemptUsage]) -> RequestFailed:
    """The end of a request whose gateway died: it may have used as much as it reserved."""
    failed.attempts = len(attempts)
    failed.attempt_usages.extend(attempts)
    add_up(failed)
    return failed


def add_up(failed: RequestFailed) -> None:
    """Adds what all attempts used and cost, and who was asked last."""
    attempts = failed.attempt_usages
    if not attempts:
        return
    usage = sum_usages(each.usage for each in attempts)
    if usage is not None:
        failed.usage.CopyFrom(usage)
    cost = sum_costs(each.cost if each.HasField("cost") else None for each in attempts)
    if cost is not None:
        failed.cost.CopyFrom(cost)
    last = attempts[-1]
    failed.provider, failed.model, failed.adapter = last.provider, last.model, last.adapter


def mark_estimate(event: Event, true_end: str) -> None:
    """Makes an event stand in for the one called `true_end`: it counts as long as that does not come."""
    event.id = f"{true_end}-estimate"
    event.request_failed.estimate_of = true_end


def failure_of(error: MaestroError) -> Failure:
    """An error without its text, which may quote the prompt."""
    upstream = error.metadata.get("upstream_status", "")
    failure = Failure(
        reason=error.reason_value,
        retryable=error.retryable,
        failover=error.failover,
        counts_against_health=error.counts_against_health,
        http_status=error.http_status,
        upstream_status=int(upstream) if upstream.isdecimal() else None,
        upstream_code=error.metadata.get("upstream_code", "")[:_LONGEST_CODE],
    )
    if error.retry_after is not None:
        failure.retry_after.FromNanoseconds(nanoseconds(error.retry_after))
    return failure


def meaning_of(error: BaseException | None) -> MaestroError:
    """What ended a request, as the contract knows it; nothing is a missing end."""
    match error:
        case MaestroError():
            return error
        case asyncio.CancelledError() | GeneratorExit():
            return Cancelled("the caller went away")
        case None:
            return Internal("the answer ended without a finish event")
        case _:
            return Internal(type(error).__name__)


def span_of(seconds: float) -> Duration:
    """Seconds as the contract has them."""
    whole, rest = divmod(nanoseconds(seconds), 1_000_000_000)
    return Duration(seconds=whole, nanos=rest)


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds, never below 0."""
    # Clocks of the event loop are rounded to milliseconds, so a difference may come out below zero.
    return max(0, int(seconds * 1e9))


_DIED = failure_of(Internal("the gateway died"))
