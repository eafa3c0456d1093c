"""Accounts every request: what was asked, what failed on the way, how it ended, what it cost. It takes microseconds.

All front doors (REST, server-sent events, WebSocket, gRPC) run a request inside `with accountant.open(request, …)`.
Whatever ends the block ends the account: a plain end completed the request, an error failed it, a cancellation means
that the caller left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from maestro.event.v1.event_pb2 import AttemptUsage, Event
from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, Finish, StreamChatResponse
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro_gateway.budgets import Bill, Budgets
from maestro_gateway.endings import meaning_of, orphan_of
from maestro_gateway.identity import current_principal, permit
from maestro_gateway.limits import Limiter, Ticket
from maestro_gateway.notes import Notes
from maestro_gateway.resume.superseded import Superseded
from maestro_gateway.statement import Circumstances, Statement
from maestro_sdk.errors import Internal, MaestroError
from maestro_sdk.mesh.trail import Attempt, Trail
from maestro_sdk.service.events import new_event_id
from maestro_sdk.tracing import Call

if TYPE_CHECKING:
    from maestro_gateway.audit.recorder import Recording

log = logging.getLogger(__name__)


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
        "_earlier",
        "_end_id",
        "_is_degraded",
        "_noted",
        "_notes",
        "_publish",
        "_route",
        "_sealed",
        "_statement",
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
        self._statement = Statement(request, call, streamed=streamed, job_id=job_id)
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
        told = self._statement
        self.ticket = limiter.ticket(request, self._call.tenant, told.key_id, name, told.persona)

    def budget(self, budgets: Budgets, request: ChatRequest | EmbedRequest) -> None:
        """Finds the budgets that the request falls under."""
        principal = current_principal()
        name = principal.subject if principal is not None else ""
        call, told = self._call, self._statement
        self.bill = budgets.bill(request, call.tenant, told.key_id, name, told.persona, call.key)

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
        event = self._statement.denied(error)
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
        whole = self._completed(finish) if error is None and finish is not None else None
        self._sealed = whole or self._failed(meaning_of(error))
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
        self._publish(self._statement.started())
        if self._notes is not None and self.bill is None and not self._call.key:
            # What a budget holds for is written down already, and a standing call is taken up by another gateway.
            self.trail.on_attempt = self._note_under_way
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Who holds each other waits for a collection, with all that hangs on it.
        self.trail.on_attempt = self.trail.on_failure = None
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
                self._sealed = self._sealed or self._completed(finish)
                self.bill.settle(self.trail, self._sealed)
        failed = self.trail.failed
        for attempt in failed[self._noted :]:
            if attempt.error is not None:
                last = over and attempt is failed[-1] and self.trail.finish is None
                self._publish(self._statement.attempt_failed(attempt, attempt.error, will_continue=not last))
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
            self._notes.put(self._end_id, self._statement.under_way(self.trail, self._end_id))

    def _completed(self, finish: Finish) -> Event:
        return self._statement.completed(self.trail, finish, self._circumstances(), self._earlier)

    def _failed(self, error: MaestroError) -> Event:
        return self._statement.failed(self.trail, error, self._circumstances())

    def _circumstances(self) -> Circumstances:
        return Circumstances(
            degraded=self._degraded,
            route=self._route,
            content_digest=self.recording.finish() if self.recording is not None else "",
        )

    def _orphan(self, attempts: Sequence[AttemptUsage]) -> Event:
        """What ends the request should this gateway die."""
        event = self._failed(Internal("the gateway died"))
        orphan_of(event.request_failed, attempts)
        return event

    def _end(self, tell: Callable[[], Event]) -> None:
        """Publishes the end, charged before."""
        self._told = True
        event = self._sealed or tell()
        if self.bill is not None:
            self.bill.settle(self.trail, event)
        elif self._end_id:
            event.id = self._end_id
        self._publish(event)
        if self.bill is not None:
            self.bill.told(event)
        if self._notes is not None and (name := self._end_name):
            self._notes.told(name)
