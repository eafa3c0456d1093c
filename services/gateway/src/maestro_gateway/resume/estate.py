"""What a gateway that died left of an answer: where that stands, what it cost so far, and who may go on with it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from maestro.event.v1.event_pb2 import AttemptFate, AttemptUsage
from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Model
from maestro.router.v1 import router_pb2 as pb
from maestro_gateway.endings import usages_of
from maestro_gateway.resume.known import Known
from maestro_sdk.errors import MaestroError, StreamBroken, UpstreamError
from maestro_sdk.mesh.handover import Begun
from maestro_sdk.mesh.spend import cost_at, estimate_usage
from maestro_sdk.mesh.table import Backend, Table, compile_table
from maestro_sdk.mesh.trail import Attempt, Trail

GONE = "the gateway of this stream died, and its answer is not to be had a second time"
_NO_REASON = ErrorReason.ERROR_REASON_UNSPECIFIED


class Failures:
    """Attempts that failed at the owner, on their way to the journal: the next owner charges them."""

    def __init__(self) -> None:
        self.waiting: list[AttemptUsage] = []
        """Those that are to be written."""
        self._noted: set[int] = set()

    def note(self, trail: Trail, *, again: bool) -> bool:
        """Whether more are to be written now. `again` tells that what readers have is still being read again.

        The one that gave what readers have waits until another one goes on with that: the next owner makes its cost of
        these events, and would charge it twice.
        """
        if len(trail.failed) == len(self._noted):
            return False
        gave = trail.failed[0] if again else trail.answering
        found = [each for each in trail.failed if each is not gave and each.number not in self._noted]
        self._noted.update(each.number for each in found)
        self.waiting += usages_of(trail, found)
        return bool(found)


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
    told = sorted(known.attempts, key=lambda each: each.attempt)
    earlier = [_restore(each, table) for each in told]
    for number, attempt in enumerate(earlier, 1):
        attempt.number = number
    if standing is not None:
        return Estate(Begun(standing, bool(known.count)), earlier)
    if not known.count or not known.backend_id:
        return Estate(earlier=earlier)
    backend = table.backends.get(known.backend_id) or _gone(known.backend_id)
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


def _gone(backend_id: str) -> Backend:
    """A backend that left the table: no more than its name, and its price is unknown."""
    adapter, _, model = backend_id.partition(":")
    provider, _, name = model.partition("/")
    message = pb.Backend(id=backend_id, adapter=adapter, model=Model(id=model, provider=provider, name=name))
    return compile_table(pb.RouteTable(backends=[message])).backends[backend_id]


def _restore(told: AttemptUsage, table: Table) -> Attempt:
    """An attempt that another gateway made, with what that one told of its cost."""
    for backend in table.backends.values():
        if (backend.adapter, backend.provider, backend.message.model.name) == (told.adapter, told.provider, told.model):
            break
    else:
        backend = _gone(f"{told.adapter}:{told.provider}/{told.model}")
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
