"""The attempts of one request: which backend comes next, after which pause, and how each of them ended.

Backends of the plan come in its order, each once; then those that may be asked again, while the retry budget of the
route lasts. Whom the gate refuses is passed over. An attempt that began ends exactly once: it succeeds, fails, is
outrun, or is abandoned; what it took at the gate goes back then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.usage_pb2 import Cost, Headroom, RateLimit, Usage
from maestro.router.v1.router_pb2 import Outcome
from maestro_sdk.errors import (
    Cancelled,
    ContextTooLong,
    MaestroError,
    OutputInvalid,
    RateLimited,
    StreamBroken,
    Timeout,
)
from maestro_sdk.mesh.breach import find_breach, passed_on
from maestro_sdk.mesh.gate import Admission, Gate, Refusal
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.plan import Plan, plan, refusal
from maestro_sdk.mesh.recovery import PassedOver, first_retry
from maestro_sdk.mesh.retries import RetryBudget
from maestro_sdk.mesh.spend import cost_at, estimate_usage
from maestro_sdk.mesh.table import Backend, Policy, Table
from maestro_sdk.mesh.trail import Attempt, Trail, add_trail, outcome_of

if TYPE_CHECKING:
    from maestro_sdk.mesh.vectors import Spend

# Names of enums are looked up at each access.
_ANSWERED, _FAILED = AttemptFate.ATTEMPT_FATE_ANSWERED, AttemptFate.ATTEMPT_FATE_FAILED
_OUTRUN, _ABANDONED = AttemptFate.ATTEMPT_FATE_OUTRUN, AttemptFate.ATTEMPT_FATE_ABANDONED
# A backend whose time is bounded by the caller's deadline says so a little before that is over.
_HASTE = 0.02
# Errors after which the provider has worked and charges for it, though nothing was seen of the answer.
_CHARGED = (Timeout, StreamBroken, OutputInvalid)
_REASON = ErrorReason.Value
# What lies with the caller is never tried elsewhere, whatever a route says.
_CALLER_FAULTS = frozenset(
    _REASON(f"ERROR_REASON_{name}")
    for name in (
        *("INVALID_REQUEST", "UNSUPPORTED_PARAMETER", "UNAUTHENTICATED", "PERMISSION_DENIED", "TOO_LARGE", "CONFLICT"),
        *("TENANT_RATE_LIMITED", "TENANT_CONCURRENCY", "BUDGET_EXHAUSTED", "CANCELLED"),
        *("TOOL_FAILED", "TOOL_TIMEOUT", "TOOL_DENIED"),
    )
)


class TableSource(Protocol):
    """Where the dispatcher finds the table in force and this process's own state: a `RouteWatcher`."""

    table: Table
    local: LocalState

    def report(self, outcome: Outcome) -> None:
        """Takes the outcome of an attempt."""
        ...


class Attempts:
    """One request's way through its plan."""

    __slots__ = (
        *("_alone", "_budget", "_dice", "_gate", "_on_failure", "_passed", "_queue", "_retries", "_source"),
        "_standing",
        *("deadline", "decision", "final", "hedged", "needs", "policy", "streamed", "trail"),
    )

    def __init__(
        self,
        source: TableSource,
        trail: Trail,
        decision: Plan,
        deadline: float | None,
        budget: RetryBudget,
        dice: Callable[[], float],
        on_failure: Callable[[Attempt], None] | None,
        gate: Gate | None,
        *,
        streamed: bool,
    ) -> None:
        """`deadline` is of the monotonic clock."""
        self.needs, self.decision, self.trail, self.streamed = decision.needs, decision, trail, streamed
        self.policy: Policy = decision.route.policy
        self.deadline = deadline
        if self.policy.total_timeout:
            end = time.monotonic() + self.policy.total_timeout
            self.deadline = end if deadline is None else min(deadline, end)
        self.final: MaestroError | None = None
        """The error after which no other attempt is made."""
        self.hedged = False
        """Whether a second attempt was made beside a first one."""
        self._source, self._dice, self._on_failure = source, dice, on_failure
        self._queue = [ranked.choice.backend for ranked in decision.kept]
        # Where an answer stands that is taken up, and whether nobody else may answer.
        self._standing: Backend | None = None
        self._alone = False
        self._gate = gate
        self._passed: PassedOver | None = None
        self._retries = 0
        self._budget = budget
        budget.add(decision.route.name, self.policy.retry_share)

    def take_up(self, backend: Backend, *, alone: bool) -> None:
        """Has `backend` asked first, whatever was decided and bars it: an answer of its own stands there.

        When it stays `alone` no other one is asked, and it no second time.
        """
        self._standing, self._alone = backend, alone
        self._queue = [backend, *(each for each in self._queue if each is not backend and not alone)]
        self.hedged = True

    def timeout(self, attempt: Attempt) -> float | None:
        """Seconds that an attempt may take: its own limit and what is left to the request; None for no bound."""
        left = None if self.deadline is None else max(0.0, self.deadline - attempt.begun)
        most = self.policy.attempt_timeout
        return left if not most else most if left is None else min(most, left)

    async def next(self, fits: Callable[[Backend], bool] | None = None) -> Attempt | None:
        """Begins the next attempt worth making, a retry after its pause; None when none is left.

        With `fits` only backends that it takes are tried, and none is asked again.
        """
        while (backend := await self._choose(fits)) is not None:
            admission = self.at_gate(backend)
            if admission is None:
                return self.begin(backend)
            if (refused := await admission.take()) is not None:
                self._pass_over(backend, refused)
            elif self.may_begin(backend):
                return self.begin(backend, admission)
            else:
                admission.undo()
        return None

    def may_begin(self, backend: Backend) -> bool:
        """Whether an attempt may begin still after a wait at the gate: others did not wait meanwhile."""
        return self.final is None and self._source.local.bars(backend, time.time()) is None

    def at_gate(self, backend: Backend) -> Admission | None:
        """What an attempt at `backend` has to take before it begins; None for nothing."""
        if self._gate is None or backend is self._standing:
            # Where an answer stands, who asked for it first took what it needs.
            return None
        return self._gate.find(backend, self.needs)

    async def _choose(self, fits: Callable[[Backend], bool] | None) -> Backend | None:
        failed = self.trail.failed
        if self._standing is not None and self._queue[:1] == [self._standing]:
            return self._queue.pop(0)
        if self._alone:
            return None
        if not failed:
            return self.peek() or (await self._recover(moves_on=True) if self._passed is not None else None)
        if self.final is not None or (self.deadline is not None and time.monotonic() >= self.deadline):
            return None
        error = failed[-1].error
        moves_on = fits is not None or (error is not None and self.fails_over(error))
        backend = self.peek(fits) if moves_on else None
        return await self._recover(moves_on) if backend is None and fits is None else backend

    def _pass_over(self, backend: Backend, refusal: Refusal) -> None:
        """The gate refused a backend: another one is asked, and the decision tells why."""
        if self._queue and self._queue[0] is backend:
            del self._queue[0]
        if self._passed is None:
            self._passed = PassedOver(self.policy.longest_back_off)
        self._passed.add(backend, refusal, self.policy.back_off * (0.5 + self._dice()))
        if (plan := self.trail.plan) is not None:
            self.trail.plan = replace(plan, passed={**plan.passed, backend.id: refusal.error.message})

    def peek(self, fits: Callable[[Backend], bool] | None = None) -> Backend | None:
        """The next planned backend that may be asked now; None when there is none, or no attempt is left."""
        if len(self.trail.attempts) >= self.policy.max_attempts:
            return None
        window = -1
        if failed := self.trail.failed:
            # What was too long for one window is too long for all that are not larger.
            too_long = [found.backend.window for found in failed if isinstance(found.error, ContextTooLong)]
            window = max(too_long, default=-1)
        local, now, queue = self._source.local, time.time(), self._queue
        while queue:
            backend = queue[0]
            if backend.window > window and (fits is None or fits(backend)) and local.bars(backend, now) is None:
                return backend
            del queue[0]
        return None

    def begin(self, backend: Backend, admission: Admission | None = None) -> Attempt:
        """Begins an attempt, which took `admission` at the gate."""
        if self._queue and self._queue[0] is backend:
            del self._queue[0]
        if self._passed is not None:
            self._passed.drop(backend)
        if backend is self._standing:
            # Asked again, it begins anew as any other.
            self._standing = None
        local = self._source.local
        attempt = Attempt(backend, len(self.trail.attempts) + 1, time.monotonic(), time.time(), admission=admission)
        self.trail.attempts.append(attempt)
        if self.trail.on_attempt is not None:
            self.trail.on_attempt(attempt)
        local.load.in_flight[backend.id] = local.load.in_flight.get(backend.id, 0) + 1
        local.begin(backend, attempt.called)
        return attempt

    def succeed(self, attempt: Attempt, usage: Usage, cost: Cost | None) -> None:
        """The answer is whole. `usage` and `cost` are what the backend told."""
        backend, now = attempt.backend, time.time()
        self._end(attempt, _ANSWERED)
        attempt.usage = usage
        attempt.cost = cost if cost is not None else cost_at(backend, usage)
        _give_back(attempt)
        if not attempt.first_content:
            # The whole answer of a unary call is its first event.
            attempt.first_event = attempt.first_content = attempt.ended
        tokens = usage.output_tokens
        local, begun = self._source.local, attempt.begun
        local.succeed(backend, now, attempt.called)
        local.observe(backend.id, attempt.first_content - begun, attempt.ended - begun, tokens, now)
        if attempt.headroom is not None:
            local.note_headroom(backend.id, attempt.headroom, now)
        self._source.report(outcome_of(attempt, tokens))

    def fail(self, attempt: Attempt, error: MaestroError, spend: Spend | None = None) -> MaestroError:
        """An attempt failed; `final` is set when no other one may follow. Gives the error as it counts here.

        What it used is `spend` where that is known, else an estimate.
        """
        local, now = self._source.local, time.time()
        error = attempt.error = self._judge(attempt, error)
        self._end(attempt, _FAILED)
        if spend is not None:
            attempt.usage, attempt.cost = spend.usage, spend.cost
        elif attempt.first_event or isinstance(error, _CHARGED):
            self._estimate(attempt)
        _give_back(attempt)
        local.fail(attempt.backend, error, now, attempt.called)
        if isinstance(error, RateLimited) and error.retry_after:
            used_up = attempt.headroom = Headroom(requests=RateLimit(remaining=0))
            used_up.requests.reset.FromNanoseconds(int(error.retry_after * 1e9))
            local.note_headroom(attempt.backend.id, used_up, now)
        self._source.report(outcome_of(attempt, 0))
        self.trail.failed.append(attempt)
        if self.trail.on_failure is not None:
            self.trail.on_failure()
        if self._on_failure is not None:
            self._on_failure(attempt)
        # What an heir says of an answer that it was to go on with is not the caller's: that sent no such request.
        heir = bool(self.trail.first_content) and self.trail.answering is not attempt
        if not (self.fails_over(error) or error.retryable or (heir and not self._over())):
            self.final = error
        return error

    def outrun(self, attempt: Attempt) -> None:
        """Another attempt began to answer first. That says no more of this one than that it takes longer."""
        self._end(attempt, _OUTRUN)
        self._estimate(attempt)
        _give_back(attempt)
        local, waited = self._source.local, attempt.ended - attempt.begun
        local.abandon(attempt.backend, attempt.called)
        # A stream would have gone on after its first content; what came whole has no time after that.
        local.observe(attempt.backend.id, waited, waited + 1e-6 if self.streamed else waited, 0, time.time())

    def close(self) -> None:
        """Abandons what still runs: its caller left."""
        for attempt in self.trail.attempts:
            if not attempt.ended:
                self._end(attempt, _ABANDONED)
                self._estimate(attempt)
                _give_back(attempt)
                self._source.local.abandon(attempt.backend, attempt.called)

    def note_breach(self, attempt: Attempt, breach: str) -> None:
        """The adapter broke the contract after its answer was whole: no failure, but the router learns of it."""
        attempt.breach = breach
        reason = ErrorReason.ERROR_REASON_STREAM_BROKEN
        self._source.report(Outcome(backend_id=attempt.backend.id, reason=reason, breach=breach))

    def exhausted(self) -> MaestroError:
        """The error of the request once no attempt is left."""
        trail = self.trail
        error = self.final or (trail.failed[-1].error if trail.failed else None)
        if self.final is None and trail.answering is not None and trail.answering.error is not None:
            # Nobody went on with it: it ends with the error that broke it.
            error = trail.answering.error
        if error is None and self._passed is not None:
            error = self._passed.error()
        if error is None:
            # Every planned backend was taken by trial calls of other requests in the meantime: plan again to say why.
            now, source = time.time(), self._source
            return refusal(plan(self.needs, source.table, source.local, now, self._dice), self.needs, now)
        return add_trail(error, trail)

    def _end(self, attempt: Attempt, fate: AttemptFate.ValueType) -> None:
        attempt.ended = time.monotonic()
        attempt.fate = fate
        self._source.local.load.in_flight[attempt.backend.id] -= 1

    def _estimate(self, attempt: Attempt) -> None:
        attempt.usage = estimate_usage(attempt.told, self.needs.input_tokens, attempt.characters)
        attempt.cost = cost_at(attempt.backend, attempt.usage)

    def fails_over(self, error: MaestroError) -> bool:
        """Whether another backend may be tried after `error`: the route's word stands above the error's own."""
        policy, reason = self.policy, error.reason_value
        if reason in policy.failover_off:
            return False
        return error.failover or (reason in policy.failover_on and reason not in _CALLER_FAULTS)

    def _over(self) -> bool:
        """Whether the caller's time is over."""
        return self.deadline is not None and time.monotonic() >= self.deadline - _HASTE

    def _judge(self, attempt: Attempt, error: MaestroError) -> MaestroError:
        """The error as it counts here, with its verdicts."""
        if self._over() and isinstance(error, Timeout | Cancelled):
            # The caller's time is over: that says nothing about the backend, and nobody waits for another one.
            error = Timeout(
                error.message, metadata=error.metadata, retryable=False, failover=False, counts_against_health=False
            )
        else:
            error = passed_on(error)
            if breach := find_breach(error, attempt.backend, self.needs):
                error.metadata["breach"] = breach
                error.failover = True
        if self.trail.first_content:
            error.metadata["after_content"] = "true"
        attempt.breach = error.metadata.get("breach", "")
        error.metadata.setdefault("provider", attempt.backend.provider)
        error.metadata.setdefault("model", attempt.backend.model)
        return error

    async def _recover(self, moves_on: bool) -> Backend | None:
        """A backend that is worth asking again, once it may be; only the last one unless the error `moves_on`."""
        failed, policy, passed = self.trail.failed, self.policy, self._passed
        if len(self.trail.attempts) >= policy.max_attempts:
            return None
        latest = {attempt.backend.id: attempt for attempt in (failed if moves_on else failed[-1:])}.values()
        back_off = min(policy.longest_back_off, policy.back_off * 2**self._retries * (0.5 + self._dice()))
        local = self._source.local
        retry = waited = None
        if passed is None:
            retry = first_retry(latest, local, policy, back_off)
        else:
            # Whom the gate refused it is asked about again first.
            retry = first_retry((each for each in latest if each.backend not in passed), local, policy, back_off)
            waited = passed.first(None if moves_on else failed[-1].backend)
        first = waited if retry is None or (waited is not None and waited.pause < retry.pause) else retry
        if first is None or (self.deadline is not None and time.monotonic() + first.pause >= self.deadline):
            return None
        # Waiting for the gate asks no provider for more, so that it is no retry.
        if first is retry:
            if not self._budget.take(self.decision.route.name):
                return None
            self._retries += 1
        await asyncio.sleep(first.pause)
        return first.backend if local.bars(first.backend, time.time()) is None else None


def _give_back(attempt: Attempt) -> None:
    """What an attempt took at the gate goes back, now that is known what it used."""
    if attempt.admission is not None:
        attempt.admission.settle(attempt.usage)
