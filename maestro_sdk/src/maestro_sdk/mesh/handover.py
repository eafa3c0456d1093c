"""Hands an answer that broke after content was shown to the next backend, on routes that say `resume: continue`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, StreamChatResponse, Switched
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.continuation import Continuation
from maestro_sdk.mesh.spend import sum_costs, sum_usages
from maestro_sdk.mesh.table import Backend
from maestro_sdk.mesh.trail import Attempt, Trail


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer that another process began, and that this one goes on with."""

    standing: Backend | None
    """Where it stands, to be read again from its beginning; None when nowhere."""
    shown: bool
    """Whether the caller has some of it."""
    told: Sequence[ChatEvent] = ()
    """What the caller has, where it stands nowhere; the attempt that gave the last of it is in the trail, as failed."""


class Relay:
    """One answer on its way through several backends."""

    __slots__ = ("_continuation", "_given", "_switched", "_trail")

    def __init__(self, request: ChatRequest, trail: Trail) -> None:
        self._continuation = Continuation(request)
        self._trail = trail
        self._given: Attempt | None = None
        # Set while another backend than the first one answers.
        self._switched: Switched | None = None

    def obstacle(self) -> str:
        """Why no other backend can go on, for a person; empty when one can."""
        return self._continuation.refusal()

    def recall(self, told: Iterable[ChatEvent]) -> str:
        """Takes what the caller has from another process; why nobody can go on with it, as `obstacle`."""
        self._continuation.note(told)
        return self.obstacle()

    def fits(self, backend: Backend) -> bool:
        """Whether `backend` can go on from here."""
        return self._continuation.fits(backend)

    def follow(self, attempt: Attempt) -> ChatRequest:
        """The request with which `attempt` goes on."""
        broken = self._trail.answering
        why = broken.error.reason if broken is not None and broken.error is not None else ""
        self._given = broken
        self._switched = Switched(
            from_model=broken.backend.model if broken is not None else "", to_model=attempt.backend.model, why=why
        )
        if broken is None:
            return self._continuation.follow(attempt.backend)
        return self._continuation.follow(attempt.backend, broken.cost, broken.usage)

    def show(self, batch: StreamChatResponse, attempt: Attempt) -> StreamChatResponse | None:
        """What the caller sees of the events of `attempt`; None when nothing of it is certain yet."""
        if self._switched is None:
            self._continuation.note(batch.events)
            return batch
        events = self._continuation.join(batch.events, self._switched)
        self._continuation.note(events)
        if self._given is not None:
            self._given.fate = AttemptFate.ATTEMPT_FATE_HANDED_OVER
            self._given = None
            self._trail.answering = attempt
        return StreamChatResponse(events=events) if events else None

    def settle(self, finish: Finish, attempt: Attempt) -> None:
        """Makes the tokens and the cost of the answer the sum of those who gave parts of it."""
        if self._switched is None:
            return
        parts = [
            part
            for part in self._trail.attempts
            if part is attempt or part.fate == AttemptFate.ATTEMPT_FATE_HANDED_OVER
        ]
        if (usage := sum_usages(part.usage for part in parts)) is not None:
            finish.usage.CopyFrom(usage)
        if (cost := sum_costs(part.cost for part in parts)) is not None:
            finish.cost.CopyFrom(cost)
        else:
            finish.ClearField("cost")


def mark_cut(error: MaestroError, obstacle: str) -> MaestroError:
    """The error of an answer that ends after content: nobody may begin it again. `obstacle` is empty without resume."""
    error.retryable = error.failover = False
    error.metadata["after_content"] = "true"
    if obstacle:
        error.message = f"{error.message}; no other backend went on with the answer: {obstacle}"
    return error
