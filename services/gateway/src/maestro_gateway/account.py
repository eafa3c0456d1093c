"""Accounts every chat: what was asked, what failed on the way, how it ended, what it cost. It takes microseconds.

All front doors (REST, server-sent events, WebSocket, gRPC) run a chat inside `with accountant.open(request, …)`.
Whatever ends the block ends the account: a plain end completed the request, an error failed it, a cancellation means
that the caller left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from maestro.event.v1.event_pb2 import (
    AttemptFailed,
    Event,
    Failure,
    RequestCompleted,
    RequestFailed,
    RequestOperation,
    RequestStarted,
)
from maestro.llm.v1.chat_pb2 import ChatRequest, Finish
from maestro_sdk.errors import Cancelled, Internal, MaestroError
from maestro_sdk.mesh.dispatch import Attempt, Trail
from maestro_sdk.service.events import new_event
from maestro_sdk.tracing import Call

log = logging.getLogger(__name__)

_CHAT = RequestOperation.REQUEST_OPERATION_CHAT
_LONGEST_CODE = 128


class Accountant:
    """Opens accounts; `publish` takes the events, `is_degraded` tells whether nobody renews the route table."""

    def __init__(self, publish: Callable[[Event], None], is_degraded: Callable[[], bool]) -> None:
        self._publish = publish
        self._is_degraded = is_degraded

    def open(self, request: ChatRequest, call: Call, *, streamed: bool) -> Account:
        """The account of one request, begun when its block is entered."""
        return Account(self._publish, self._is_degraded, request, call, streamed)


class Account:
    """One request from its admission to its end."""

    __slots__ = (
        "_call",
        "_is_degraded",
        "_noted",
        "_persona",
        "_publish",
        "_requested",
        "_skill",
        "_streamed",
        "trail",
    )

    def __init__(
        self,
        publish: Callable[[Event], None],
        is_degraded: Callable[[], bool],
        request: ChatRequest,
        call: Call,
        streamed: bool,
    ) -> None:
        self._publish = publish
        self._is_degraded = is_degraded
        self._call = call
        self._streamed = streamed
        # The dispatcher writes the backend's model into the request.
        self._requested = request.model
        self._persona = self._skill = ""
        if request.HasField("routing"):
            self._persona, self._skill = request.routing.persona, request.routing.skill
        self._noted = 0
        self.trail = Trail()
        """What the dispatcher tells."""

    def __enter__(self) -> Self:
        self._send(
            RequestStarted(
                request_id=self._call.request_id,
                operation=_CHAT,
                requested_model=self._requested,
                streamed=self._streamed,
                persona=self._persona,
                skill=self._skill,
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A caller that leaves once the answer is whole has it: the provider's work is done and paid for.
        if self.trail.finish is not None and (
            error is None or isinstance(error, asyncio.CancelledError | GeneratorExit)
        ):
            self.note_attempts(over=True)
            self._complete(self.trail.finish)
            return
        failure = _meaning(error)
        if isinstance(failure, Cancelled) and self.trail.attempts and self.trail.attempts[-1].error is None:
            self.trail.attempts[-1].ended = self.trail.attempts[-1].ended or time.monotonic()
        self.note_attempts(over=True)
        self._fail(failure)

    def note_attempts(self, *, over: bool = False) -> None:
        """Publishes the attempts that failed since the last time; `over` tells that none follows any more."""
        attempts = self.trail.attempts
        for attempt in attempts[self._noted :]:
            if attempt.error is not None:
                self._note(attempt, attempt.error, will_continue=not over or attempt is not attempts[-1])
        self._noted = len(attempts)

    def _note(self, attempt: Attempt, error: MaestroError, *, will_continue: bool) -> None:
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
        payload.latency.FromNanoseconds(_nanoseconds(attempt.ended - attempt.begun))
        self._send(payload, ago=time.monotonic() - attempt.ended)

    def _complete(self, finish: Finish) -> None:
        trail, backend = self.trail, self.trail.backend
        payload = RequestCompleted(
            request_id=self._call.request_id,
            operation=_CHAT,
            requested_model=self._requested,
            attempts=len(trail.attempts),
            finish_reason=finish.reason,
            degraded=self._is_degraded(),
            streamed=self._streamed,
            route=trail.plan.route.name if trail.plan is not None else "",
            experiment=trail.plan.experiment if trail.plan is not None else "",
            variant=trail.plan.variant if trail.plan is not None else "",
            persona=self._persona,
            skill=self._skill,
            usage=trail.usage,
            cost=finish.cost if finish.HasField("cost") else None,
        )
        if backend is not None:
            payload.provider, payload.adapter = backend.provider, backend.adapter
            payload.model = backend.message.model.name
        payload.latency.FromNanoseconds(_nanoseconds(time.monotonic() - trail.begun))
        if self._streamed and trail.first_content:
            payload.time_to_first_content.FromNanoseconds(_nanoseconds(trail.first_content - trail.begun))
        self._send(payload)

    def _fail(self, error: MaestroError) -> None:
        trail, backend = self.trail, self.trail.backend
        finish = trail.finish
        payload = RequestFailed(
            request_id=self._call.request_id,
            operation=_CHAT,
            requested_model=self._requested,
            failure=failure_of(error),
            attempts=len(trail.attempts),
            after_content=bool(trail.first_content) and self._streamed,
            degraded=self._is_degraded(),
            persona=self._persona,
            skill=self._skill,
            usage=trail.usage,
            cost=finish.cost if finish is not None and finish.HasField("cost") else None,
        )
        if backend is not None:
            payload.provider, payload.adapter = backend.provider, backend.adapter
            payload.model = backend.message.model.name
        payload.latency.FromNanoseconds(_nanoseconds(time.monotonic() - trail.begun))
        self._send(payload)

    def _send(
        self, payload: RequestStarted | RequestCompleted | RequestFailed | AttemptFailed, ago: float = 0.0
    ) -> None:
        event = new_event(payload, f"request/{self._call.request_id}", tenant=self._call.tenant)
        if ago > 0.001:
            event.time.FromNanoseconds(event.time.ToNanoseconds() - _nanoseconds(ago))
        self._publish(event)


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
        failure.retry_after.FromNanoseconds(_nanoseconds(error.retry_after))
    return failure


def _meaning(error: BaseException | None) -> MaestroError:
    match error:
        case MaestroError():
            return error
        case asyncio.CancelledError() | GeneratorExit():
            return Cancelled("the caller went away")
        case None:
            return Internal("the answer ended without a finish event")
        case _:
            return Internal(type(error).__name__)


def _nanoseconds(seconds: float) -> int:
    # Clocks of the event loop are rounded to milliseconds, so a difference may come out below zero.
    return max(0, int(seconds * 1e9))
