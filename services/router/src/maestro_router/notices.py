"""Changes of the catalogue and of breakers as lifecycle events. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from maestro.event.v1 import event_pb2
from maestro.router.v1 import router_pb2 as pb
from maestro_router.compile import Adapter
from maestro_sdk.mesh.breaker import Breaker, BreakerPolicy, State

_CAUSES = {
    pb.ADAPTER_STATE_DOWN: event_pb2.ADAPTER_LEAVE_CAUSE_UNREACHABLE,
    pb.ADAPTER_STATE_UNCONFIGURED: event_pb2.ADAPTER_LEAVE_CAUSE_NOT_READY,
    pb.ADAPTER_STATE_INCOMPATIBLE: event_pb2.ADAPTER_LEAVE_CAUSE_INCOMPATIBLE,
}


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


def of_breaker(
    backend_id: str, breaker: Breaker | None, state: State, open_time: float, policy: BreakerPolicy
) -> Message:
    """A breaker came into `state`; `open_time` in seconds."""
    match state:
        case State.OPEN:
            opened = event_pb2.BackendOpened(backend_id=backend_id, why=breaker.reason if breaker else "")
            if breaker is not None:
                opened.until.FromNanoseconds(int(breaker.until * 1e9))
            return opened
        case State.HALF_OPEN:
            return event_pb2.BackendHalfOpen(backend_id=backend_id, probes=policy.half_open_calls)
        case State.CLOSED:
            closed = event_pb2.BackendClosed(
                backend_id=backend_id, why="a trial call succeeded or an operator closed it"
            )
            closed.open_time.FromNanoseconds(int(open_time * 1e9))
            return closed
