"""What happened to one request: its attempts, what each of them used and how it ended. Written by the dispatcher."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.chat_pb2 import Finish
from maestro.llm.v1.usage_pb2 import Cost, Headroom, Usage
from maestro.router.v1.router_pb2 import Outcome
from maestro_sdk.errors import Cancelled, MaestroError
from maestro_sdk.mesh.gate import Admission
from maestro_sdk.mesh.plan import Plan
from maestro_sdk.mesh.spend import sum_costs, sum_usages
from maestro_sdk.mesh.table import Backend

_MOST_TOLD = 16
"""Backends that an error names: it has to fit into the trailers of a call."""


@dataclass(slots=True)
class Attempt:
    """One try at one backend. Times are of the monotonic clock in seconds; `error` stays unset unless it fails."""

    backend: Backend
    number: int
    begun: float
    called: float = 0.0
    """Unix time at which its breakers were told of it."""
    first_event: float = 0.0
    first_content: float = 0.0
    ended: float = 0.0
    error: MaestroError | None = None
    fate: AttemptFate.ValueType = AttemptFate.ATTEMPT_FATE_UNSPECIFIED
    """What came of it; unspecified while it runs."""
    usage: Usage | None = None
    """Tokens used, estimated where it was cut before the provider counted; None when the provider charges nothing."""
    cost: Cost | None = None
    """None when it is unknown, or when nothing was used."""
    characters: int = 0
    """Length of the content that it sent."""
    told: tuple[Usage, ...] = ()
    """The first and the latest usage that it told before its end."""
    headroom: Headroom | None = None
    breach: str = ""
    """How the adapter broke the contract; empty when it did not."""
    admission: Admission | None = None
    """What it took at the gate; None for nothing."""


@dataclass(slots=True)
class Trail:
    """What happened to one request, for accounting. `finish` is the end of the answer, as the caller sees it."""

    begun: float = field(default_factory=time.monotonic)
    plan: Plan | None = None
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    """In the order in which they began."""
    on_attempt: Callable[[Attempt], None] | None = None
    """Told of each attempt as it begins."""
    on_failure: Callable[[], None] | None = None
    """Told when another one is in `failed`."""
    failed: list[Attempt] = field(default_factory=list[Attempt])
    """In the order in which they failed."""
    answering: Attempt | None = None
    """The attempt whose content the caller sees, the latest one where several gave parts of the answer."""
    finish: Finish | None = None
    first_content: float = 0.0

    @property
    def backend(self) -> Backend | None:
        """The backend that answers, else that of the last attempt."""
        if self.answering is not None:
            return self.answering.backend
        return self.attempts[-1].backend if self.attempts else None

    @property
    def usage(self) -> Usage | None:
        """Tokens that all attempts used so far; None when none did."""
        return sum_usages(attempt.usage for attempt in self.attempts)

    @property
    def cost(self) -> Cost | None:
        """Cost of all attempts that used tokens; None when it is unknown."""
        return sum_costs(attempt.cost for attempt in self.attempts if attempt.usage is not None)


def outcome_of(attempt: Attempt, output_tokens: int) -> Outcome:
    """What the router learns of an attempt."""
    outcome = Outcome(backend_id=attempt.backend.id, output_tokens=output_tokens, breach=attempt.breach)
    outcome.duration.FromNanoseconds(max(0, int((attempt.ended - attempt.begun) * 1e9)))
    if attempt.first_event:
        outcome.first_event.FromNanoseconds(max(0, int((attempt.first_event - attempt.begun) * 1e9)))
    if attempt.headroom is not None:
        outcome.headroom.CopyFrom(attempt.headroom)
    if (error := attempt.error) is not None:
        outcome.reason = error.reason_value
        outcome.counts_against_health = error.counts_against_health
        if error.retry_after is not None:
            outcome.retry_after.FromNanoseconds(int(error.retry_after * 1e9))
    return outcome


def add_trail(error: MaestroError, trail: Trail) -> MaestroError:
    """Adds what was tried, so that the message of a failure tells the whole story."""
    tried = [f"{attempt.backend.id}: {attempt.error.reason}" for attempt in trail.failed if attempt.error is not None]
    told = list(tried)
    if trail.plan is not None:
        told += [f"{name}: passed over: {why}" for name, why in trail.plan.passed.items()]
    error.metadata["attempts"] = str(len(tried))
    error.metadata["tried"] = "; ".join(told[:_MOST_TOLD])
    if isinstance(error, Cancelled):
        return error
    if len(tried) > 1 and not error.message.startswith("all "):
        error.message = f"all {len(tried)} attempts failed; the last: {error.message} (tried {error.metadata['tried']})"
    return error
