"""Tries the planned backends in order until one answers: the only place in the mesh that retries.

Before the first content event was handed on, anything that another backend may do better falls over invisibly. From
then on the answer belongs to one backend: a failure ends it with an error, never with a clean end or a new beginning.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, Finish, StreamChatResponse
from maestro.llm.v1.usage_pb2 import Usage
from maestro.router.v1.router_pb2 import Outcome
from maestro_sdk.errors import (
    Cancelled,
    ContextTooLong,
    MaestroError,
    StreamBroken,
    Timeout,
    from_rpc_error,
)
from maestro_sdk.mesh.backends import Backends, ChatCall
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.plan import Plan, plan, refusal
from maestro_sdk.mesh.table import Backend, Route, Table

# Events that may be held back until content comes: showing them commits to nothing.
_PREFACE = frozenset({"started", "usage", "warning"})
_BACK_OFF = 0.05
_LONGEST_WAIT = 2.0
_RETRY_SHARE = 0.2
_RETRY_RESERVE = 10.0


@dataclass(slots=True)
class Attempt:
    """One try at one backend. Times are of the monotonic clock in seconds; `error` stays unset when it succeeds."""

    backend: Backend
    number: int
    begun: float
    first_event: float = 0.0
    ended: float = 0.0
    error: MaestroError | None = None


@dataclass(slots=True)
class Trail:
    """What happened to one request, for accounting. `usage` is the latest that the answer told, `finish` its end."""

    begun: float = field(default_factory=time.monotonic)
    plan: Plan | None = None
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    usage: Usage | None = None
    finish: Finish | None = None
    first_content: float = 0.0

    @property
    def backend(self) -> Backend | None:
        """The backend of the last attempt."""
        return self.attempts[-1].backend if self.attempts else None


class TableSource(Protocol):
    """Where the dispatcher finds the table in force and this process's own state: a `RouteWatcher`."""

    table: Table
    local: LocalState

    def report(self, outcome: Outcome) -> None:
        """Takes the outcome of an attempt."""
        ...


class Dispatcher:
    """Answers requests from the backends of a table."""

    def __init__(
        self,
        source: TableSource,
        backends: Backends,
        on_failure: Callable[[Attempt], None] | None = None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        """`on_failure` is told each failed attempt at once; `dice` gives numbers in [0, 1)."""
        self._source = source
        self._backends = backends
        self._on_failure = on_failure
        self._dice = dice
        self._retries = _RETRY_RESERVE

    async def complete(
        self, request: ChatRequest, needs: Needs, trail: Trail, deadline: float | None = None
    ) -> ChatResponse:
        """The whole answer; `deadline` is of the monotonic clock. Raises the last error, with what was tried."""
        route, deadline = self._begin(needs, trail, deadline)
        async for attempt in self._attempts(route, trail, deadline):
            try:
                request.model = attempt.backend.model
                # The whole answer of a unary call is its first event.
                timeout = _least(deadline, attempt.begun, 0.0)
                response = await self._backends.chat(attempt.backend, request, timeout)
            except grpc.aio.AioRpcError as error:
                self._fail(attempt, trail, from_rpc_error(error), deadline)
                continue
            finally:
                self._end(attempt)
            response.attempt = attempt.number
            _expose(trail.plan, response)
            attempt.first_event = trail.first_content = attempt.ended
            trail.usage = response.usage
            trail.finish = Finish(reason=response.finish_reason, usage=response.usage)
            if response.HasField("cost"):
                trail.finish.cost.CopyFrom(response.cost)
            self._succeed(attempt, response.usage.output_tokens)
            return response
        raise self._exhausted(needs, trail)

    async def stream(
        self, request: ChatRequest, needs: Needs, trail: Trail, deadline: float | None = None
    ) -> AsyncGenerator[StreamChatResponse]:
        """The answer piece by piece: one `started` first, one `finish` last. Closing the iterator cancels the attempt.

        Raises the error of the last attempt; after content was handed on, its metadata says `after_content`.
        """
        route, deadline = self._begin(needs, trail, deadline)
        async for attempt in self._attempts(route, trail, deadline):
            request.model = attempt.backend.model
            call = self._backends.stream_chat(attempt.backend, request, _least(deadline, attempt.begun, 0.0))
            watch = _Watch(call, route.policy.first_event_timeout, route.policy.idle_timeout)
            course = _Course(attempt, trail)
            try:
                while isinstance(message := await call.read(), StreamChatResponse):
                    if message.events:
                        watch.touch()
                        if batch := course.take(message, watch.last):
                            yield batch
                course.close()
            except (grpc.aio.AioRpcError, StreamBroken, asyncio.CancelledError) as error:
                self._fail(attempt, trail, _verdict(error, watch), deadline, committed=course.committed)
                continue
            finally:
                watch.stop()
                if not course.finished:
                    call.cancel()
                self._end(attempt)
            self._succeed(attempt, trail.usage.output_tokens if trail.usage else 0)
            return
        raise self._exhausted(needs, trail)

    def _begin(self, needs: Needs, trail: Trail, deadline: float | None) -> tuple[Route, float | None]:
        source, now = self._source, time.time()
        trail.plan = plan(needs, source.table, source.local, now, self._dice)
        if not trail.plan.kept:
            raise refusal(trail.plan, needs, now)
        self._retries = min(_RETRY_RESERVE, self._retries + _RETRY_SHARE)
        route = trail.plan.route
        if route.policy.total_timeout:
            end = time.monotonic() + route.policy.total_timeout
            deadline = end if deadline is None else min(deadline, end)
        return route, deadline

    async def _attempts(self, route: Route, trail: Trail, deadline: float | None) -> AsyncIterator[Attempt]:
        """The attempts worth making, each begun when it is taken: planned backends in order, then retries."""
        local, most = self._source.local, route.policy.max_attempts
        queue = [ranked.choice.backend for ranked in trail.plan.kept] if trail.plan else []
        number = 0
        while queue and number < most:
            backend = queue.pop(0)
            error = trail.attempts[-1].error if trail.attempts else None
            if isinstance(error, ContextTooLong) and backend.window <= trail.attempts[-1].backend.window:
                continue
            if local.bars(backend, time.time()):
                continue
            number += 1
            attempt = Attempt(backend, number, time.monotonic())
            trail.attempts.append(attempt)
            local.load.in_flight[backend.id] = local.load.in_flight.get(backend.id, 0) + 1
            local.begin(backend, time.time())
            yield attempt
            # Still here: the attempt failed in a way that allows another one.
            if not queue and number < most and (again := self._recoverable(trail.attempts)):
                pause = self._pause(number, trail.attempts[-1].error)
                if deadline is not None and time.monotonic() + pause >= deadline:
                    return
                await asyncio.sleep(pause)
                queue = again

    def _recoverable(self, attempts: Sequence[Attempt]) -> list[Backend]:
        """The backends worth another try, when the retry budget allows one."""
        again = [
            attempt.backend
            for attempt in attempts
            if attempt.error is not None
            and attempt.error.retryable
            and (attempt.error.retry_after or 0.0) <= _LONGEST_WAIT
        ]
        if not again or self._retries < 1.0:
            return []
        self._retries -= 1.0
        # One at a time, the one that failed longest ago first.
        seen: dict[str, Backend] = {}
        for backend in again:
            seen.setdefault(backend.id, backend)
        return list(seen.values())[:1]

    def _pause(self, number: int, error: MaestroError | None) -> float:
        back_off = _BACK_OFF * 2 ** (number - 1) * (0.5 + self._dice())
        return max(back_off, error.retry_after or 0.0) if error is not None else back_off

    def _succeed(self, attempt: Attempt, output_tokens: int) -> None:
        local, now = self._source.local, time.time()
        local.succeed(attempt.backend, now)
        begun = attempt.begun
        local.observe(attempt.backend.id, attempt.first_event - begun, attempt.ended - begun, output_tokens, now)
        self._source.report(_outcome(attempt, output_tokens))

    def _fail(
        self, attempt: Attempt, trail: Trail, error: MaestroError, deadline: float | None, *, committed: bool = False
    ) -> None:
        """Notes the failure; raises it when no other attempt may follow."""
        if isinstance(error, Timeout) and deadline is not None and time.monotonic() >= deadline - 0.005:
            # The caller's time is over: that says nothing about the backend, and nobody waits for another one.
            error = Timeout(
                error.message, metadata=error.metadata, retryable=False, failover=False, counts_against_health=False
            )
        attempt.error = error
        error.metadata.setdefault("provider", attempt.backend.provider)
        error.metadata.setdefault("model", attempt.backend.model)
        attempt.ended = time.monotonic()
        self._source.local.fail(attempt.backend, error, time.time())
        self._source.report(_outcome(attempt, 0))
        if self._on_failure is not None:
            self._on_failure(attempt)
        if committed:
            error.retryable = error.failover = False
            error.metadata["after_content"] = "true"
        if committed or not (error.failover or error.retryable):
            raise _with_trail(error, trail)

    def _end(self, attempt: Attempt) -> None:
        local = self._source.local
        local.load.in_flight[attempt.backend.id] -= 1
        if not attempt.ended:
            attempt.ended = time.monotonic()
            if attempt.error is None:
                # The caller left, or success is being noted next: either way no trial call stays open.
                local.abandon(attempt.backend)

    def _exhausted(self, needs: Needs, trail: Trail) -> MaestroError:
        error = trail.attempts[-1].error if trail.attempts else None
        if error is not None:
            return _with_trail(error, trail)
        # Every planned backend was taken by trial calls of other requests in the meantime: plan again to say why.
        fresh = plan(needs, self._source.table, self._source.local, time.time(), self._dice)
        return refusal(fresh, needs, time.time())


class _Course:
    """One attempt's stream as it goes: what is held back, whether content was handed on, and whether it ended."""

    __slots__ = ("_attempt", "_held", "_trail", "committed", "finished")

    def __init__(self, attempt: Attempt, trail: Trail) -> None:
        self._attempt, self._trail = attempt, trail
        self._held: list[ChatEvent] = []
        self.committed = False
        self.finished = False

    def take(self, message: StreamChatResponse, now: float) -> StreamChatResponse | None:
        """What to hand on now. Raises `StreamBroken` when the adapter breaks the order of events."""
        attempt, trail, events = self._attempt, self._trail, message.events
        if not attempt.first_event:
            attempt.first_event = now
        if self.finished:
            raise StreamBroken("the adapter went on after its finish event")
        if not self.committed:
            if not any(event.WhichOneof("kind") not in _PREFACE for event in events):
                self._held.extend(events)
                return None
            message = self._commit(message)
            trail.first_content = now
        last = message.events[-1]
        kind = last.WhichOneof("kind")
        if kind == "finish":
            self.finished = True
            _expose(trail.plan, last.finish)
            trail.finish, trail.usage = last.finish, last.finish.usage
        elif kind == "usage":
            trail.usage = last.usage
        return message

    def close(self) -> None:
        """The stream ended without an error. Raises `StreamBroken` unless `finish` came."""
        if not self.finished:
            raise StreamBroken("the adapter's stream ended without a finish event")

    def _commit(self, message: StreamChatResponse) -> StreamChatResponse:
        if self._held:
            message = StreamChatResponse(events=[*self._held, *message.events])
            self._held.clear()
        first = message.events[0]
        if first.WhichOneof("kind") != "started":
            raise StreamBroken("the adapter's first event is not `started`")
        first.started.attempt = self._attempt.number
        self.committed = True
        return message


class _Watch:
    """Bounds the silence of a stream with one timer instead of one per event."""

    __slots__ = ("_call", "_first", "_handle", "_idle", "_loop", "_seen", "fired", "last")

    def __init__(self, call: ChatCall, first: float, idle: float) -> None:
        self._call, self._first, self._idle = call, first, idle
        self._loop = asyncio.get_running_loop()
        self.last = self._loop.time()
        self._seen = False
        self.fired = ""
        self._handle: asyncio.TimerHandle | None = None
        if first or idle:
            self._handle = self._loop.call_at(self.last + (first or idle), self._check)

    def touch(self) -> None:
        """Events came."""
        self.last = self._loop.time()
        self._seen = True

    def verdict(self) -> MaestroError | None:
        """The error when the watch ended the call."""
        return Timeout(self.fired) if self.fired else None

    def stop(self) -> None:
        """Ends the watch."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _check(self) -> None:
        limit = self._idle if self._seen else self._first
        self._handle = None
        if not limit:
            # Only the other limit is set: look again when it may matter.
            limit = self._idle or self._first
            self._handle = self._loop.call_later(limit, self._check)
            return
        left = self.last + limit - self._loop.time()
        if left > 0.001:
            self._handle = self._loop.call_later(left, self._check)
            return
        what = "sent nothing for" if self._seen else "did not begin within"
        self.fired = f"the backend {what} {limit:g} s"
        self._call.cancel()


def _expose(plan: Plan | None, answer: ChatResponse | Finish) -> None:
    """Tells the caller which side of an experiment answered."""
    if plan is not None and plan.experiment:
        answer.provider_metadata["maestro"].update({"experiment": plan.experiment, "variant": plan.variant})


def _verdict(error: BaseException, watch: _Watch) -> MaestroError:
    """What ended a stream. Raises `error` when it was the caller who left."""
    if (timeout := watch.verdict()) is not None:
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            return timeout
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    if isinstance(error, MaestroError):
        return error
    # A call that this side cancelled reads like a cancelled task; without a verdict it is the task that was.
    raise error


def _outcome(attempt: Attempt, output_tokens: int) -> Outcome:
    outcome = Outcome(backend_id=attempt.backend.id, output_tokens=output_tokens)
    outcome.duration.FromNanoseconds(int((attempt.ended - attempt.begun) * 1e9))
    if attempt.first_event:
        outcome.first_event.FromNanoseconds(int((attempt.first_event - attempt.begun) * 1e9))
    if (error := attempt.error) is not None:
        outcome.reason = error.reason_value
        outcome.counts_against_health = error.counts_against_health
        if error.retry_after is not None:
            outcome.retry_after.FromNanoseconds(int(error.retry_after * 1e9))
    return outcome


def _with_trail(error: MaestroError, trail: Trail) -> MaestroError:
    """Adds what was tried, so that the message of a failure tells the whole story."""
    tried = [f"{attempt.backend.id}: {attempt.error.reason}" for attempt in trail.attempts if attempt.error is not None]
    error.metadata["attempts"] = str(len(tried))
    error.metadata["tried"] = "; ".join(tried)
    if isinstance(error, Cancelled):
        return error
    if len(tried) > 1 and not error.message.startswith("all "):
        error.message = f"all {len(tried)} attempts failed; the last: {error.message} (tried {error.metadata['tried']})"
    return error


def _least(deadline: float | None, now: float, floor: float) -> float | None:
    return None if deadline is None else max(floor, deadline - now)
