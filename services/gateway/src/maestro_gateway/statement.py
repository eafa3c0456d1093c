"""What the events of one request tell: who asked for what, what failed on the way, how it ended, what it cost."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from maestro.event.v1.event_pb2 import (
    AttemptFailed,
    Event,
    RequestCompleted,
    RequestDenied,
    RequestFailed,
    RequestOperation,
    RequestStarted,
)
from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, Finish
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro_gateway.endings import failure_of, nanoseconds, span_of, under_way, usages_of
from maestro_gateway.identity import current_caller, current_principal
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.trail import Attempt, Trail
from maestro_sdk.service.events import new_event
from maestro_sdk.tracing import Call

_CHAT, _EMBED = RequestOperation.REQUEST_OPERATION_CHAT, RequestOperation.REQUEST_OPERATION_EMBED


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What an end tells beside what the dispatcher knows. `route` is that of an earlier answer which is given again."""

    degraded: bool
    route: str
    content_digest: str


class Statement:
    """Makes the events of one request; it publishes none of them."""

    __slots__ = (
        *("_call", "_caller", "_job_id", "_metadata", "_operation", "_requested", "_skill", "_streamed"),
        *("key_id", "persona"),
    )

    def __init__(self, request: ChatRequest | EmbedRequest, call: Call, *, streamed: bool, job_id: str) -> None:
        """Reads what is told of a request and its caller: the request itself may be rewritten later."""
        self._call = call
        principal = current_principal()
        self.key_id = principal.key_id if principal is not None else ""
        """Of the caller's key."""
        self._streamed = streamed
        self._job_id = job_id
        self._caller = current_caller().message()
        self._metadata = request.metadata
        # The dispatcher writes the backend's model into the request.
        self._requested = request.model
        self.persona = self._skill = ""
        if request.HasField("routing"):
            self.persona, self._skill = request.routing.persona, request.routing.skill
        self._operation = _CHAT if isinstance(request, ChatRequest) else _EMBED

    def started(self) -> Event:
        """It was admitted."""
        return self._event(RequestStarted(streamed=self._streamed, **self._asked()))

    def denied(self, error: MaestroError) -> Event:
        """It was refused before any work."""
        return self._event(
            RequestDenied(failure=failure_of(error), metadata=self._metadata, caller=self._caller, **self._asked())
        )

    def attempt_failed(self, attempt: Attempt, error: MaestroError, *, will_continue: bool) -> Event:
        """An attempt failed, when it did."""
        backend = attempt.backend
        payload = AttemptFailed(
            request_id=self._call.request_id,
            attempt=attempt.number,
            provider=backend.provider,
            model=backend.message.model.name,
            adapter=backend.adapter,
            failure=failure_of(error),
            after_content=error.metadata.get("after_content") == "true",
            will_continue=will_continue,
        )
        payload.latency.FromNanoseconds(nanoseconds(attempt.ended - attempt.begun))
        event, ago = self._event(payload), time.monotonic() - attempt.ended
        if ago > 0.001:
            event.time.FromNanoseconds(event.time.ToNanoseconds() - nanoseconds(ago))
        return event

    def completed(
        self, trail: Trail, finish: Finish, found: Circumstances, earlier: ChatResponse | EmbedResponse | None
    ) -> Event:
        """The answer is whole; `earlier` is one that is given again."""
        backend = trail.backend
        payload = RequestCompleted(
            finish_reason=finish.reason,
            experiment=trail.plan.experiment if trail.plan is not None else "",
            variant=trail.plan.variant if trail.plan is not None else "",
            **self._whole(trail, found),
        )
        if backend is not None:
            payload.provider, payload.adapter = backend.provider, backend.adapter
            payload.model = backend.message.model.name
        elif earlier is not None:
            payload.cached, payload.route, payload.cost.usd = True, found.route, "0"
            payload.provider, payload.model = earlier.provider, earlier.model
        if self._streamed and trail.first_content:
            payload.time_to_first_content.FromNanoseconds(nanoseconds(trail.first_content - trail.begun))
        event = self._event(payload)
        if self._call.key:
            # Whoever takes up a call whose gateway died has the same answer of the provider: it is paid once.
            event.id = hashlib.sha256(f"{self._call.tenant}/{self._call.key}".encode()).hexdigest()[:32]
        return event

    def failed(self, trail: Trail, error: MaestroError, found: Circumstances) -> Event:
        """It ended without a whole answer."""
        backend = trail.backend
        payload = RequestFailed(
            failure=failure_of(error),
            after_content=bool(trail.first_content) and self._streamed,
            **self._whole(trail, found),
        )
        if backend is not None:
            payload.provider, payload.adapter = backend.provider, backend.adapter
            payload.model = backend.message.model.name
        return self._event(payload)

    def under_way(self, trail: Trail, true_end: str) -> bytes:
        """An event that stands in for the one called `true_end`, should its gateway die now."""
        asked = self._asked()
        asked["streamed"], asked["caller"] = self._streamed, self._caller
        if self._metadata:
            asked["metadata"] = self._metadata
        return under_way(asked, trail, self._call, true_end)

    def _asked(self) -> dict[str, Any]:
        """What every event tells of who asked for what."""
        return {
            "request_id": self._call.request_id,
            "operation": self._operation,
            "requested_model": self._requested,
            "persona": self.persona,
            "skill": self._skill,
            "job_id": self._job_id,
            "key_id": self.key_id,
        }

    def _whole(self, trail: Trail, found: Circumstances) -> dict[str, Any]:
        """What every end tells."""
        return {
            **self._asked(),
            "attempts": len(trail.attempts),
            "latency": span_of(time.monotonic() - trail.begun),
            "degraded": found.degraded,
            "streamed": self._streamed,
            "route": trail.plan.route.name if trail.plan is not None else "",
            "usage": trail.usage,
            "cost": trail.cost,
            "decision": trail.plan.message() if trail.plan is not None else None,
            "attempt_usages": usages_of(trail),
            "metadata": self._metadata,
            "caller": self._caller,
            "content_digest": found.content_digest,
        }

    def _event(
        self, payload: RequestStarted | RequestCompleted | RequestFailed | RequestDenied | AttemptFailed
    ) -> Event:
        return new_event(payload, f"request/{self._call.request_id}", tenant=self._call.tenant)
