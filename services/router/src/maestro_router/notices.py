"""Changes of the catalogue and of breakers as lifecycle events. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from maestro.event.v1 import event_pb2
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.router.v1 import router_pb2 as pb
from maestro_router.compile import Adapter
from maestro_router.conditions import Change
from maestro_router.marks import Mark
from maestro_sdk.mesh.breaker import BreakerPolicy, State

_CAUSES = {
    pb.ADAPTER_STATE_DOWN: event_pb2.ADAPTER_LEAVE_CAUSE_UNREACHABLE,
    pb.ADAPTER_STATE_UNCONFIGURED: event_pb2.ADAPTER_LEAVE_CAUSE_NOT_READY,
    pb.ADAPTER_STATE_INCOMPATIBLE: event_pb2.ADAPTER_LEAVE_CAUSE_INCOMPATIBLE,
    pb.ADAPTER_STATE_VERIFYING: event_pb2.ADAPTER_LEAVE_CAUSE_NOT_READY,
    pb.ADAPTER_STATE_REFUSED: event_pb2.ADAPTER_LEAVE_CAUSE_QUARANTINED,
}

_REASONS = {value: name.removeprefix("ERROR_REASON_") for name, value in ErrorReason.items()} | {0: ""}


def of_adapter(before: Adapter | None, after: Adapter) -> Iterator[Message]:
    """What changed between two views of an adapter."""
    was_serving = before is not None and before.state == pb.ADAPTER_STATE_SERVING
    if after.state == pb.ADAPTER_STATE_SERVING:
        if not was_serving:
            yield event_pb2.AdapterJoined(
                adapter=after.name, version=after.version, providers=after.providers, models=len(after.models)
            )
    elif was_serving:
        cause = event_pb2.ADAPTER_LEAVE_CAUSE_DRAINED if after.reason == "draining" else _CAUSES[after.state]
        yield event_pb2.AdapterLeft(adapter=after.name, cause=cause, why=after.reason)


def of_condition(change: Change | Mark, policy: BreakerPolicy) -> Message:
    """A breaker came into another state, or a backend into quarantine."""
    if isinstance(change, Mark):
        quarantined = event_pb2.BackendQuarantined(backend_id=change.scope, breach=change.reason, breaches=change.count)
        quarantined.until.FromNanoseconds(round(change.until * 1e9))
        return quarantined
    match change.state:
        case State.OPEN:
            opened = event_pb2.BackendOpened(backend_id=change.scope, why=change.why)
            opened.until.FromNanoseconds(round(change.until * 1e9))
            return opened
        case State.HALF_OPEN:
            return event_pb2.BackendHalfOpen(backend_id=change.scope, probes=policy.half_open_calls)
        case State.CLOSED:
            closed = event_pb2.BackendClosed(backend_id=change.scope, why=change.why)
            closed.open_time.FromNanoseconds(int(change.open_time * 1e9))
            return closed


def reason_name(reason: ErrorReason.ValueType) -> str:
    """The name of a reason as the contract's errors have it, such as "OVERLOADED"; "" for none."""
    return _REASONS.get(reason, str(reason))
