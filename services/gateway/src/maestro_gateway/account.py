"""Accounts every request: what was asked, what failed on the way, how it ended, what it cost. It takes microseconds.

All front doors (REST, server-sent events, WebSocket, gRPC) run a request inside `with accountant.open(request, …)`.
Whatever ends the block ends the account: a plain end completed the request, an error failed it, a cancellation means
that the caller left.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from maestro.event.v1.event_pb2 import (
    AttemptFailed,
    AttemptUsage,
    Event,
    RequestCompleted,
    RequestDenied,
    RequestFailed,
    RequestOperation,
    RequestStarted,
)
from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, Finish, StreamChatResponse
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro_gateway.budgets import Bill, Budgets
from maestro_gateway.endings import (
    failure_of,
    meaning_of,
    nanoseconds,
    orphan_of,
    span_of,
    under_way,
    usages_of,
)
from maestro_gateway.identity import current_caller, current_principal, permit
from maestro_gateway.limits import Limiter, Ticket
from maestro_gateway.notes import Notes
from maestro_gateway.resume.superseded import Superseded
from maestro_sdk.errors import Internal, MaestroError
from maestro_sdk.mesh.trail import Attempt, Trail
from maestro_sdk.service.events import new_event, new_event_id
from maestro_sdk.tracing import Call

if TYPE_CHECKING:
    from maestro_gateway.audit.recorder import Recording

log = logging.getLogger(__name__)

_CHAT, _EMBED = RequestOperation.REQUEST_OPERATION_CHAT, RequestOperation.REQUEST_OPERATION_EMBED


class Accountant:
    """Opens accounts; `publish` takes the events, `is_degraded` tells whether nobody renews the route table."""

    def __init__(
        self,
        publish: Callable[[Event], None],
        is_degraded: Callable[[], bool],
        limiter: Limiter | None = None,
        budgets: Budgets | None = None,
        notes: Notes | None = None,
    ) -> None:
        """Without a `limiter` nobody is limited, without `budgets` all may spend what they like.

        Without `notes` nobody tells what is under way should this gateway be killed, but where a budget holds for it.
        """
        self._publish = publish
        self._is_degraded = is_degraded
        self._limiter = limiter
        self._budgets = budgets
        self._notes = notes

    @property
    def budgets(self) -> Budgets | None:
        """The budgets that hold for requests; None when there can be none."""
        return self._budgets

    def open(self, request: ChatRequest | EmbedRequest, call: Call, *, streamed: bool, job_id: str = "") -> Account:
        """The account of one request, begun when its block is entered. One that is `counted` is admitted before.

        Raises `PermissionDenied` when the caller's key may not ask as that persona or for that skill, and `TooLarge`.
        """
        account = Account(self._publish, self._is_degraded, request, call, streamed, job_id, self._notes)
        try:
            permit(request)
            if self._limiter is not None:
                account.limit(self._limiter, request)
            if self._budgets is not None:
                account.budget(self._budgets, request)
        except MaestroError as error:
            account.deny(error)
            raise
        return account


class Account:
    """One request from its admission to its end."""

    __slots__ = (
        "_call",
        "_caller",
        "_earlier",
        "_end_id",
        "_is_degraded",
        "_job_id",
        "_key_id",
        "_metadata",
        "_noted",
        "_notes",
        "_operation",
        "_persona",
        "_publish",
        "_requested",
        "_route",
        "_sealed",
        "_skill",
        "_streamed",
        "_taken_over",
        "_told",
        "bill",
        "handed_over",
        "recording",
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
        notes: Notes | None,
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
        self._notes = notes
        # That of the event which will tell the end, where another one may stand in for it.
        self._end_id = ""
        self._route = ""
        self._earlier: ChatResponse | EmbedResponse | None = None
        self._sealed: Event | None = None
        self._taken_over = False
        self._told = False
        self.ticket: Ticket | None = None
        """What the request has to take of the limits of its caller; None when no limit holds."""
        self.bill: Bill | None = None
        """What the request has to reserve of budgets; None when no budget holds for it."""
        self.recording: Recording | None = None
        """Content that is recorded; None unless the tenant chose that."""
        self.handed_over = False
        """Whether another gateway will go on with it, and account for it, once it is cancelled here."""
        self.trail = Trail()
        """What the dispatcher tells."""

    def limit(self, limiter: Limiter, request: ChatRequest | EmbedRequest) -> None:
        """Finds the limits that the request falls under. Raises `TooLarge`."""
        principal = current_principal()
        name = principal.subject if principal is not None else ""
        self.ticket = limiter.ticket(request, self._call.tenant, self._key_id, name, self._persona)

    def budget(self, budgets: Budgets, request: ChatRequest | EmbedRequest) -> None:
        """Finds the budgets that the request falls under."""
        principal = current_principal()
        name = principal.subject if principal is not None else ""
        call = self._call
        self.bill = budgets.bill(request, call.tenant, self._key_id, name, self._persona, call.key)

    @property
    def _degraded(self) -> bool:
        return self._is_degraded() or (self.bill is not None and self.bill.degraded)

    @property
    def free(self) -> bool:
        """Whether it gets an earlier answer: nothing may be charged for it."""
        return self._earlier is not None

    @property
    def cheaper(self) -> bool:
        """Whether its budget sent it to a cheaper route: the request names that one now."""
        return self.bill is not None and self.bill.degraded

    def give_again(self, answer: ChatResponse | EmbedResponse, route: str) -> None:
        """It gets an earlier answer of a route: no backend is called. Its limits count it, but none of its tokens."""
        self._earlier, self._route, self.bill = answer, route, None
        if self.ticket is not None:
            self.ticket.leave_tokens()

    @property
    def counted(self) -> bool:
        """Whether it has to be admitted: else it is free to go on, and nobody has to be asked."""
        return self.ticket is not None or self.bill is not None

    async def admit(self) -> None:
        """Takes what limits and budgets allow; these may rewrite the model. Raises what refuses it: then it is over."""
        if self._taken_over:
            await self._admit_again()
            return
        try:
            if self.ticket is not None:
                await self.ticket.take()
            if self.bill is not None:
                await self.bill.reserve(self._orphan)
        except BaseException as error:
            if self.ticket is not None:
                self.ticket.settle(None)
            if isinstance(error, MaestroError):
                self.deny(error)
            raise

    async def _admit_again(self) -> None:
        """Reserves what is to be charged, where that may be: who asked was admitted before."""
        if self.bill is not None:
            try:
                await self.bill.reserve(self._orphan)
            except MaestroError as error:
                log.info("%s goes on without what it held of its budgets: %s", self._call.request_id, error.reason)

    def record(self, answer: ChatResponse | StreamChatResponse) -> None:
        """Takes the answer, or a piece of it, before the caller sees it."""
        if self.recording is not None:
            if isinstance(answer, StreamChatResponse):
                self.recording.note(answer)
            else:
                self.recording.take(answer)

    def deny(self, error: MaestroError) -> None:
        """Tells that it was refused before any work."""
        event = self._event(
            RequestDenied(
                failure=failure_of(error), metadata=self._metadata, caller=self._caller.message(), **self._asked()
            )
        )
        if self.bill is not None and self.bill.event_id:
            # The store may have taken a hold without saying so, which somebody finds and tells.
            event.id = self.bill.event_id
        self._publish(event)

    def take_over(self) -> None:
        """It was begun, and admitted, at a gateway that is gone: here it only ends."""
        self._taken_over = True

    def seal(self, error: MaestroError | None) -> Event:
        """What will tell how it ended, to be written down before that is told."""
        finish = self.trail.finish
        payload = self._completed(finish) if error is None and finish is not None else self._failed(meaning_of(error))
        self._sealed = self._event(payload)
        return self._sealed

    def _forsake(self) -> None:
        """Another gateway accounts for it: what it holds here is given back, and nothing is told."""
        if self.ticket is not None:
            self.ticket.settle(None)
        if self.bill is not None:
            self.bill.forsake()
        if self._notes is not None and (name := self._end_name):
            self._notes.drop(name)

    def __enter__(self) -> Self:
        if self._taken_over:
            return self
        self._send(RequestStarted(streamed=self._streamed, **self._asked()))
        if self._notes is not None and self.bill is None and not self._call.key:
            # What a budget holds for is written down already, and a standing call is taken up by another gateway.
            self.trail.on_attempt = self._note_under_way
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Who holds each other waits for a collection, with all that hangs on it.
        self.trail.on_attempt = None
        if self._told:
            return
        if isinstance(error, Superseded) or (self.handed_over and isinstance(error, asyncio.CancelledError)):
            self._forsake()
            return
        # A caller that leaves once the answer is whole has it: the provider's work is done and paid for.
        if self.trail.finish is not None and (
            error is None or isinstance(error, asyncio.CancelledError | GeneratorExit)
        ):
            self.note_attempts(over=True)
            finish = self.trail.finish
            self._end(lambda: self._completed(finish))
            return
        if self.ticket is not None:
            self.ticket.settle(self.trail.usage)
        self.note_attempts(over=True)
        self._end(lambda: self._failed(meaning_of(error)))

    def note_attempts(self, *, over: bool = False) -> None:
        """Publishes the attempts that failed since the last time, and the end before its caller sees it.

        `over` tells that nothing follows any more.
        """
        finish = self.trail.finish
        if finish is not None and self.counted:
            # Before the caller sees the end: whoever sees it may ask the next question.
            if self.ticket is not None:
                self.ticket.settle(self.trail.usage)
            if self.bill is not None and not self.bill.settled:
                # What is charged now is what will be told.
                self._sealed = self._sealed or self._event(self._completed(finish))
                self.bill.settle(self.trail, self._sealed)
        failed = self.trail.failed
        for attempt in failed[self._noted :]:
            if attempt.error is not None:
                last = over and attempt is failed[-1] and self.trail.finish is None
                self._note(attempt, attempt.error, will_continue=not last)
        self._noted = len(failed)
        if finish is not None and not over and not self._told:
            # A death of this gateway right after the caller saw the end must not take what it cost.
            self._end(lambda: self._completed(finish))

    @property
    def _end_name(self) -> str:
        """What its note is called; empty when there may be none."""
        return self.bill.event_id if self.bill is not None else self._end_id

    def _note_under_way(self, attempt: Attempt) -> None:
        """Writes down that a backend is asked, in the place of what was written before."""
        if self._notes is not None:
            self._end_id = self._end_id or new_event_id()
            asked = self._asked()
            asked["streamed"], asked["caller"] = self._streamed, self._caller.message()
            if self._metadata:
                asked["metadata"] = self._metadata
            self._notes.put(self._end_id, under_way(asked, self.trail, self._call, self._end_id))

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
        payload.latency.FromNanoseconds(nanoseconds(attempt.ended - attempt.begun))
        self._send(payload, ago=time.monotonic() - attempt.ended)

    def _completed(self, finish: Finish) -> RequestCompleted:
        trail, backend = self.trail, self.trail.backend
        payload = RequestCompleted(
            finish_reason=finish.reason,
            experiment=trail.plan.experiment if trail.plan is not None else "",
            variant=trail.plan.variant if trail.plan is not None else "",
            **self._whole(),
        )
        if backend is not None:
            payload.provider, payload.adapter = backend.provider, backend.adapter
            payload.model = backend.message.model.name
        elif self._earlier is not None:
            payload.cached, payload.route, payload.cost.usd = True, self._route, "0"
            payload.provider, payload.model = self._earlier.provider, self._earlier.model
        if self._streamed and trail.first_content:
            payload.time_to_first_content.FromNanoseconds(nanoseconds(trail.first_content - trail.begun))
        return payload

    def _failed(self, error: MaestroError) -> RequestFailed:
        trail, backend = self.trail, self.trail.backend
        payload = RequestFailed(
            failure=failure_of(error),
            after_content=bool(trail.first_content) and self._streamed,
            **self._whole(),
        )
        if backend is not None:
            payload.provider, payload.adapter = backend.provider, backend.adapter
            payload.model = backend.message.model.name
        return payload

    def _asked(self) -> dict[str, Any]:
        """What every event tells of who asked for what."""
        return {
            "request_id": self._call.request_id,
            "operation": self._operation,
            "requested_model": self._requested,
            "persona": self._persona,
            "skill": self._skill,
            "job_id": self._job_id,
            "key_id": self._key_id,
        }

    def _whole(self) -> dict[str, Any]:
        """What every end tells."""
        trail = self.trail
        return {
            **self._asked(),
            "attempts": len(trail.attempts),
            "latency": span_of(time.monotonic() - trail.begun),
            "degraded": self._degraded,
            "streamed": self._streamed,
            "route": trail.plan.route.name if trail.plan is not None else "",
            "usage": trail.usage,
            "cost": trail.cost,
            "decision": trail.plan.message() if trail.plan is not None else None,
            "attempt_usages": usages_of(trail),
            "metadata": self._metadata,
            "caller": self._caller.message(),
            "content_digest": self.recording.finish() if self.recording is not None else "",
        }

    def _orphan(self, attempts: Sequence[AttemptUsage]) -> Event:
        """What ends the request should this gateway die."""
        return self._event(orphan_of(self._failed(Internal("the gateway died")), attempts))

    def _end(self, payload: Callable[[], RequestCompleted | RequestFailed]) -> None:
        """Publishes the end, charged before."""
        self._told = True
        event = self._sealed or self._event(payload())
        if self.bill is not None:
            self.bill.settle(self.trail, event)
        elif self._end_id:
            event.id = self._end_id
        self._publish(event)
        if self.bill is not None:
            self.bill.told(event)
        if self._notes is not None and (name := self._end_name):
            self._notes.told(name)

    def _send(
        self,
        payload: RequestStarted | RequestCompleted | RequestFailed | RequestDenied | AttemptFailed,
        ago: float = 0.0,
    ) -> None:
        self._publish(self._event(payload, ago))

    def _event(
        self,
        payload: RequestStarted | RequestCompleted | RequestFailed | RequestDenied | AttemptFailed,
        ago: float = 0.0,
    ) -> Event:
        event = new_event(payload, f"request/{self._call.request_id}", tenant=self._call.tenant)
        if self._call.key and isinstance(payload, RequestCompleted):
            # Whoever takes up a call whose gateway died has the same answer of the provider: it is paid once.
            event.id = hashlib.sha256(f"{self._call.tenant}/{self._call.key}".encode()).hexdigest()[:32]
        if ago > 0.001:
            event.time.FromNanoseconds(event.time.ToNanoseconds() - nanoseconds(ago))
        return event
