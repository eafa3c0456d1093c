"""Accounts every request: what was asked, what failed on the way, how it ended, what it cost. It takes microseconds.

All front doors (REST, server-sent events, WebSocket, gRPC) run a request inside `with accountant.open(request, …)`.
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
    AttemptUsage,
    Event,
    Failure,
    RequestCompleted,
    RequestDenied,
    RequestFailed,
    RequestOperation,
    RequestStarted,
)
from maestro.llm.v1.chat_pb2 import ChatRequest, Finish
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_gateway.identity import current_caller, current_principal, permit
from maestro_gateway.limits import Limiter, Ticket
from maestro_sdk.errors import Cancelled, Internal, MaestroError
from maestro_sdk.mesh.trail import Attempt, Trail
from maestro_sdk.service.events import new_event
from maestro_sdk.tracing import Call

log = logging.getLogger(__name__)

_CHAT, _EMBED = RequestOperation.REQUEST_OPERATION_CHAT, RequestOperation.REQUEST_OPERATION_EMBED
_LONGEST_CODE = 128


class Accountant:
    """Opens accounts; `publish` takes the events, `is_degraded` tells whether nobody renews the route table."""

    def __init__(
        self, publish: Callable[[Event], None], is_degraded: Callable[[], bool], limiter: Limiter | None = None
    ) -> None:
        """Without a `limiter` nobody is limited."""
        self._publish = publish
        self._is_degraded = is_degraded
        self._limiter = limiter

    def open(self, request: ChatRequest | EmbedRequest, call: Call, *, streamed: bool, job_id: str = "") -> Account:
        """The account of one request, begun when its block is entered. One that is `counted` is admitted before.

        Raises `PermissionDenied` when the caller's key may not ask as that persona or for that skill, and `TooLarge`.
        """
        account = Account(self._publish, self._is_degraded, request, call, streamed, job_id)
        try:
            permit(request)
            if self._limiter is not None:
                account.limit(self._limiter, request)
        except MaestroError as error:
            account.deny(error)
            raise
        return account


class Account:
    """One request from its admission to its end."""

    __slots__ = (
        "_call",
        "_caller",
        "_is_degraded",
        "_job_id",
        "_key_id",
        "_metadata",
        "_noted",
        "_operation",
        "_persona",
        "_publish",
        "_requested",
        "_skill",
        "_streamed",
        "ticket",
        "trail",
    )

    def __init__(
        self,
        publish: Callable[[Event], None],
        is_degraded: Callable[[], bool],
        request: ChatRequest | EmbedRequest,
        call: Call,
        streamed: bool,
        job_id: str,
    ) -> None:
        self._publish = publish
        self._is_degraded = is_degraded
        self._call = call
        principal = current_principal()
        self._key_id = principal.key_id if principal is not None else ""
        self._streamed = streamed
        self._job_id = job_id
        self._caller = current_caller()
        self._metadata = request.metadata
        # The dispatcher writes the backend's model into the request.
        self._requested = request.model
        self._persona = self._skill = ""
        if request.HasField("routing"):
            self._persona, self._skill = request.routing.persona, request.routing.skill
        self._operation = _CHAT if isinstance(request, ChatRequest) else _EMBED
        self._noted = 0
        self.ticket: Ticket | None = None
        """What the request has to take of the limits of its caller; None when no limit holds."""
        self.trail = Trail()
        """What the dispatcher tells."""

    def limit(self, limiter: Limiter, request: ChatRequest | EmbedRequest) -> None:
        """Finds the limits that the request falls under. Raises `TooLarge`."""
        principal = current_principal()
        name = principal.subject if principal is not None else ""
        self.ticket = limiter.ticket(request, self._call.tenant, self._key_id, name, self._persona)

    @property
    def counted(self) -> bool:
        """Whether it has to be admitted: else it is free to go on, and nobody has to be asked."""
        return self.ticket is not None

    async def admit(self) -> None:
        """Takes what the limits of the caller allow. Raises what refuses it: then its account is over."""
        try:
            if self.ticket is not None:
                await self.ticket.take()
        except MaestroError as error:
            self.deny(error)
            raise

    def deny(self, error: MaestroError) -> None:
        """Tells that it was refused before any work."""
        self._send(
            RequestDenied(
                request_id=self._call.request_id,
                operation=self._operation,
                requested_model=self._requested,
                failure=failure_of(error),
                persona=self._persona,
                skill=self._skill,
                job_id=self._job_id,
                key_id=self._key_id,
                metadata=self._metadata,
                caller=self._caller.message(),
            )
        )

    def __enter__(self) -> Self:
        self._send(
            RequestStarted(
                request_id=self._call.request_id,
                operation=self._operation,
                requested_model=self._requested,
                streamed=self._streamed,
                persona=self._persona,
                skill=self._skill,
                job_id=self._job_id,
                key_id=self._key_id,
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
        if self.ticket is not None:
            self.ticket.settle(self.trail.usage)
        self.note_attempts(over=True)
        self._fail(_meaning(error))

    def note_attempts(self, *, over: bool = False) -> None:
        """Publishes the attempts that failed since the last time; `over` tells that none follows any more."""
        if self.ticket is not None and self.trail.finish is not None:
            # Before the caller sees the end: whoever sees it may ask the next question.
            self.ticket.settle(self.trail.usage)
        failed = self.trail.failed
        if len(failed) == self._noted:
            return
        for attempt in failed[self._noted :]:
            if attempt.error is not None:
                last = over and attempt is failed[-1] and self.trail.finish is None
                self._note(attempt, attempt.error, will_continue=not last)
        self._noted = len(failed)

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
            operation=self._operation,
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
            job_id=self._job_id,
            key_id=self._key_id,
            usage=trail.usage,
            cost=trail.cost,
            decision=trail.plan.message() if trail.plan is not None else None,
            attempt_usages=_usages(trail),
            metadata=self._metadata,
            caller=self._caller.message(),
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
        payload = RequestFailed(
            request_id=self._call.request_id,
            operation=self._operation,
            requested_model=self._requested,
            failure=failure_of(error),
            attempts=len(trail.attempts),
            after_content=bool(trail.first_content) and self._streamed,
            degraded=self._is_degraded(),
            streamed=self._streamed,
            route=trail.plan.route.name if trail.plan is not None else "",
            persona=self._persona,
            skill=self._skill,
            job_id=self._job_id,
            key_id=self._key_id,
            usage=trail.usage,
            cost=trail.cost,
            decision=trail.plan.message() if trail.plan is not None else None,
            attempt_usages=_usages(trail),
            metadata=self._metadata,
            caller=self._caller.message(),
        )
        if backend is not None:
            payload.provider, payload.adapter = backend.provider, backend.adapter
            payload.model = backend.message.model.name
        payload.latency.FromNanoseconds(_nanoseconds(time.monotonic() - trail.begun))
        self._send(payload)

    def _send(
        self,
        payload: RequestStarted | RequestCompleted | RequestFailed | RequestDenied | AttemptFailed,
        ago: float = 0.0,
    ) -> None:
        event = new_event(payload, f"request/{self._call.request_id}", tenant=self._call.tenant)
        if ago > 0.001:
            event.time.FromNanoseconds(event.time.ToNanoseconds() - _nanoseconds(ago))
        self._publish(event)


def _usages(trail: Trail) -> list[AttemptUsage]:
    """What each attempt used, in the order in which they began; their sum is that of the request."""
    return [
        AttemptUsage(
            attempt=attempt.number,
            adapter=attempt.backend.adapter,
            provider=attempt.backend.provider,
            model=attempt.backend.message.model.name,
            fate=attempt.fate,
            usage=attempt.usage,
            cost=attempt.cost,
        )
        for attempt in trail.attempts
    ]


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
