"""What a gateway that died left of an answer: where that stands, what it cost so far, and who may go on with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from maestro.event.v1.event_pb2 import AttemptFate, AttemptUsage
from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_gateway.resume.known import Known
from maestro_sdk.errors import MaestroError, StreamBroken, UpstreamError
from maestro_sdk.mesh.handover import Begun
from maestro_sdk.mesh.spend import cost_at, estimate_usage
from maestro_sdk.mesh.table import Backend, Table
from maestro_sdk.mesh.trail import Attempt, Trail

log = logging.getLogger(__name__)

GONE = "the gateway of this stream died, and its answer is not to be had a second time"
_NO_REASON = ErrorReason.ERROR_REASON_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Estate:
    """What the next owner takes over. `lost` is the attempt whose answer nobody can read any more; None without one."""

    begun: Begun | None = None
    earlier: list[Attempt] = field(default_factory=list[Attempt])
    """Attempts that failed before."""
    lost: Attempt | None = None

    @property
    def told(self) -> bool:
        """Whether only what follows is answered: else the answer is read again from its beginning."""
        return self.begun is not None and bool(self.begun.told)

    def enter(self, trail: Trail) -> None:
        """Puts the attempts that were made into the trail of the request."""
        trail.attempts += self.earlier
        lost = self.lost
        if lost is None:
            return
        trail.attempts.append(lost)
        trail.answering, trail.first_content = lost, lost.first_content
        if lost.error is not None:
            trail.failed.append(lost)


def take_stock(known: Known, table: Table, input_tokens: int, *, standing: Backend | None, cancelled: bool) -> Estate:
    """The estate of a stream of which the journal has `known`, with its events where its answer stands nowhere.

    `cancelled` tells that nobody goes on with it.
    """
    earlier = [attempt for each in known.attempts if (attempt := _restore(each, table)) is not None]
    for number, attempt in enumerate(earlier, 1):
        attempt.number = number
    if standing is not None:
        return Estate(Begun(standing, bool(known.count)), earlier)
    backend = table.backends.get(known.backend_id)
    if not known.count or backend is None:
        return Estate(earlier=earlier)
    lost = _lose(backend, len(earlier) + 1, known.events[known.since :], input_tokens, cancelled=cancelled)
    return Estate(None if cancelled else Begun(None, shown=True, told=known.events), earlier, lost)


def _lose(backend: Backend, number: int, events: Sequence[ChatEvent], input_tokens: int, *, cancelled: bool) -> Attempt:
    """The attempt that gave `events`, and of which no more is known."""
    now = time.monotonic()
    attempt = Attempt(backend, number, now, first_event=now, first_content=now, ended=now)
    attempt.fate = AttemptFate.ATTEMPT_FATE_ABANDONED if cancelled else AttemptFate.ATTEMPT_FATE_FAILED
    if not cancelled:
        attempt.error = StreamBroken(GONE, metadata={"after_content": "true"})
    attempt.characters = _characters(events)
    attempt.told = tuple(event.usage for event in events if event.HasField("usage"))
    attempt.usage = estimate_usage(attempt.told, input_tokens, attempt.characters)
    attempt.cost = cost_at(backend, attempt.usage)
    return attempt


def _restore(told: AttemptUsage, table: Table) -> Attempt | None:
    """An attempt that another gateway made; None when its backend is in the table no more."""
    for backend in table.backends.values():
        if (backend.adapter, backend.provider, backend.message.model.name) == (told.adapter, told.provider, told.model):
            break
    else:
        log.warning("what %s/%s used before its gateway died is not told: it is gone", told.provider, told.model)
        return None
    now = time.monotonic()
    begun = now - told.latency.ToNanoseconds() / 1e9
    attempt = Attempt(backend, told.attempt, begun, ended=now, fate=told.fate)
    if told.reason != _NO_REASON:
        attempt.error = _kinds().get(told.reason, UpstreamError)("it failed at the gateway that died")
    attempt.usage = told.usage if told.HasField("usage") else None
    attempt.cost = told.cost if told.HasField("cost") else None
    return attempt


def _characters(events: Iterable[ChatEvent]) -> int:
    return sum(
        len(event.text.text) + len(event.reasoning.text) + len(event.tool_call.arguments_json) for event in events
    )


@cache
def _kinds() -> dict[int, type[MaestroError]]:
    """The kinds of errors by their reasons."""
    found: dict[int, type[MaestroError]] = {}
    left = MaestroError.__subclasses__()
    while left:
        kind = left.pop()
        # A narrower kind may share the reason of its base.
        found.setdefault(ErrorReason.Value(f"ERROR_REASON_{kind.reason}"), kind)
        left += kind.__subclasses__()
    return found
