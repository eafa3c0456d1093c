"""Tries the planned backends in order until one answers: the only place in the mesh that retries.

Before the first content event was handed on, anything that another backend may do better falls over invisibly. From
then on the answer belongs to one backend: a failure ends it with an error, never with a clean end or a new beginning,
unless the route says `resume: continue`; then the next backend goes on where it stopped. Once `finish` was handed on
the answer is a success, whatever its adapter still sends.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from time import monotonic
from typing import TypeVar

import grpc

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, Finish, StreamChatResponse
from maestro_sdk.errors import from_rpc_error
from maestro_sdk.mesh.addressing import address, seed_of
from maestro_sdk.mesh.attempts import Attempts, TableSource
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.course import AFTER_FINISH, ERROR_AFTER_FINISH, NO_END, TWO_FINISHES, take_headroom
from maestro_sdk.mesh.gate import Admission, Gate
from maestro_sdk.mesh.handover import Begun, Relay, mark_cut
from maestro_sdk.mesh.hedge import ENDS, HedgeBudget, Race
from maestro_sdk.mesh.legs import StreamLeg, WholeLeg
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.plan import Plan, plan, refusal
from maestro_sdk.mesh.retries import RetryBudget
from maestro_sdk.mesh.table import Backend
from maestro_sdk.mesh.trail import Attempt, Trail

__all__ = ["Dispatcher", "TableSource"]

_Asked = TypeVar("_Asked")

_NEVER = math.inf


class Dispatcher:
    """Answers requests from the backends of a table."""

    def __init__(
        self,
        source: TableSource,
        backends: Backends,
        on_failure: Callable[[Attempt], None] | None = None,
        dice: Callable[[], float] = random.random,
        last_words: float = 2.0,
        gate: Gate | None = None,
    ) -> None:
        """`on_failure` is told each failed attempt at once; `dice` gives numbers in [0, 1).

        `last_words` are the seconds after `finish` within which a call has to end; its caller does not wait for that.
        Without a `gate` backends are asked as often as there are requests.
        """
        self.gate = gate
        self._source = source
        self._backends = backends
        self._on_failure = on_failure
        self._dice = dice
        self._last_words = last_words
        self._retries = RetryBudget()
        self._hedges = HedgeBudget()
        self.endings: set[asyncio.Task[None]] = set()
        """Calls whose answer is whole and whose own end is still awaited, for a moment."""

    async def complete(
        self, request: ChatRequest, needs: Needs, trail: Trail, deadline: float | None = None
    ) -> ChatResponse:
        """The whole answer; `deadline` is of the monotonic clock. Raises the last error, with what was tried."""
        run = self._begin(needs, trail, deadline, streamed=False)

        seed = seed_of(request, needs)

        def ask(attempt: Attempt) -> WholeLeg:
            address(request, attempt.backend, seed)
            return WholeLeg(attempt, self._backends.chat(attempt.backend, request, run.timeout(attempt)))

        try:
            while (attempt := await run.next()) is not None:
                leg = ask(attempt)
                if (after := self._patience(run, attempt)) is not None:
                    won = await Race(run, leg, lambda: self._second(run, ask), WholeLeg.head).run(after)
                    if won is None:
                        continue
                    return _conclude(run, won[0].attempt, won[1])
                try:
                    response = await leg.head()
                except ENDS as error:
                    leg.cancel()
                    run.fail(attempt, leg.verdict(error))
                    continue
                return _conclude(run, attempt, response)
        finally:
            run.close()
        raise run.exhausted()

    async def stream(
        self,
        request: ChatRequest,
        needs: Needs,
        trail: Trail,
        deadline: float | None = None,
        begun: Begun | None = None,
    ) -> AsyncGenerator[StreamChatResponse]:
        """The answer piece by piece: one `started` first, one `finish` last. Closing the iterator cancels the attempt.

        With `begun` it goes on with what another process began. Raises the error of the last attempt; after content was
        handed on, its metadata says `after_content`.
        """
        run = self._begin(needs, trail, deadline, streamed=True, begun=begun)
        # Of two attempts one is cancelled; who takes up a stream must know which one stands.
        run.hedged = run.hedged or request.resumable
        relay = Relay(request, trail) if run.policy.resumes else None
        # The heir is set once another backend may go on with what the caller has.
        heir, obstacle = _inherit(run, relay, begun.told if begun is not None else ())

        seed = seed_of(request, needs)

        def ask(attempt: Attempt) -> StreamLeg:
            asked = address(request if heir is None else heir.follow(attempt), attempt.backend, seed)
            call = self._backends.stream_chat(attempt.backend, asked, run.timeout(attempt))
            return StreamLeg(attempt, call, run.policy)

        try:
            while (attempt := await run.next(heir.fits if heir is not None else None)) is not None:
                if (led := await self._lead(run, ask(attempt), ask, alone=heir is not None)) is None:
                    continue
                leg, batch = led
                course, silence, read, look = leg.course, leg.silence, leg.call.read, leg.course.look
                if not trail.first_content:
                    trail.first_content, trail.answering = leg.attempt.first_content, leg.attempt
                try:
                    while True:
                        shown = batch if relay is None and course.finish is None else _show(run, leg, relay, batch)
                        if shown is not None:
                            silence.since = _NEVER
                            yield shown
                            if course.finish is not None:
                                return
                            silence.since = monotonic()
                        while isinstance(batch := await read(), StreamChatResponse):
                            if look(batch) or batch.events:
                                break
                        else:
                            raise course.end()
                except ENDS as error:
                    failure = run.fail(leg.attempt, leg.verdict(error))
                    obstacle = relay.obstacle() if relay is not None and run.fails_over(failure) else ""
                    heir = relay if run.fails_over(failure) and not obstacle else None
                    if heir is None:
                        run.final = failure
                finally:
                    await self._leave(run, leg)
        finally:
            run.close()
        error = run.exhausted()
        if trail.first_content:
            if heir is not None and run.final is None:
                obstacle = "none is left that may be asked"
            mark_cut(error, obstacle)
        raise error

    async def _lead(
        self, run: Attempts, leg: StreamLeg, ask: Callable[[Attempt], StreamLeg], *, alone: bool
    ) -> tuple[StreamLeg, StreamChatResponse] | None:
        """The attempt that begins to answer, and all its events so far; None when all that ran failed, which is noted.

        It is that of `leg`, or a second one beside it where the route hedges; none is begun when it stays `alone`.
        """
        if not alone and (after := self._patience(run, leg.attempt)) is not None:
            return await Race(run, leg, lambda: self._second(run, ask), StreamLeg.head).run(after)
        batch = None
        try:
            batch = await leg.head()
            return leg, batch
        except ENDS as error:
            run.fail(leg.attempt, leg.verdict(error))
            return None
        finally:
            if batch is None:
                leg.cancel()

    async def _leave(self, run: Attempts, leg: StreamLeg) -> None:
        """Ends a call. When its answer is whole its own end is awaited, but nobody waits for that."""
        if leg.course.finish is None:
            leg.cancel()
            return
        leg.silence.stop()
        if leg.call.done():
            await _hear_out(run, leg)
            return
        ending = asyncio.create_task(_await_end(run, leg, self._last_words))
        self.endings.add(ending)
        ending.add_done_callback(self.endings.discard)

    def _begin(
        self, needs: Needs, trail: Trail, deadline: float | None, *, streamed: bool, begun: Begun | None = None
    ) -> Attempts:
        source, now = self._source, time.time()
        decision = trail.plan = plan(needs, source.table, source.local, now, self._dice)
        if begun is not None:
            run = self._attempts(trail, decision, deadline, streamed=streamed)
            if begun.standing is not None:
                # What was shown of it another backend can't say again, at most go on with it.
                run.take_up(begun.standing, alone=begun.shown and not run.policy.resumes)
            return run
        if not decision.kept:
            raise refusal(decision, needs, now)
        if (hedge := decision.route.policy.hedge) is not None:
            self._hedges.earn(decision.route.name, decision.kept[0].choice.backend, needs, hedge.max_extra)
        return self._attempts(trail, decision, deadline, streamed=streamed)

    def _attempts(self, trail: Trail, decision: Plan, deadline: float | None, *, streamed: bool) -> Attempts:
        return Attempts(
            self._source,
            trail,
            decision,
            deadline,
            self._retries,
            self._dice,
            self._on_failure,
            self.gate,
            streamed=streamed,
        )

    def _patience(self, run: Attempts, attempt: Attempt) -> float | None:
        """Seconds after which a second backend is asked beside that of `attempt`; None when none is."""
        hedge = run.policy.hedge
        if hedge is None or run.hedged:
            return None
        if hedge.after:
            return hedge.after
        pace = self._source.local.load.paces.get(attempt.backend.id)
        if pace is None:
            return None
        return (pace.begins if run.streamed else pace.ends).after()

    async def _second(self, run: Attempts, ask: Callable[[Attempt], _Asked]) -> _Asked | None:
        """Begins the second attempt of a race, when a backend is left that has room and the route may spend that."""
        backend = run.peek()
        if backend is None or any(found.backend.id == backend.id for found in run.trail.attempts if not found.ended):
            return None
        route, admission = run.decision.route.name, run.at_gate(backend)
        if not self._hedges.spend(route, backend, run.needs):
            return None
        if admission is not None and not await self._may_begin(run, admission, route, backend):
            # It stays in its turn: once the first one fails there may be room.
            return None
        run.hedged = True
        return ask(run.begin(backend, admission))

    async def _may_begin(self, run: Attempts, admission: Admission, route: str, backend: Backend) -> bool:
        """Whether a second attempt begins once it stood at the gate. One that does not costs nothing."""
        begins = False
        try:
            if await admission.take() is None:
                begins = run.may_begin(backend)
                if not begins:
                    admission.undo()
        finally:
            if not begins:
                self._hedges.return_spent(route, backend, run.needs)
        return begins


def _conclude(run: Attempts, attempt: Attempt, response: ChatResponse) -> ChatResponse:
    """Accounts a whole answer and makes it the caller's."""
    trail = run.trail
    response.attempt = attempt.number
    take_headroom(response, attempt)
    usage, cost = response.usage, response.cost if response.HasField("cost") else None
    run.succeed(attempt, usage, cost)
    trail.first_content, trail.answering = attempt.ended, attempt
    _expose(run.decision, response)
    trail.finish = Finish(reason=response.finish_reason, usage=usage, cost=cost)
    return response


def _inherit(run: Attempts, relay: Relay | None, told: Sequence[ChatEvent]) -> tuple[Relay | None, str]:
    """Who goes on with what the caller has from another process, and what keeps others from it."""
    if not told:
        return None, ""
    obstacle = relay.recall(told) if relay is not None else ""
    if relay is None or obstacle:
        run.final = run.trail.failed[-1].error
        return None, obstacle
    return relay, ""


def _show(run: Attempts, leg: StreamLeg, relay: Relay | None, batch: StreamChatResponse) -> StreamChatResponse | None:
    """What the caller sees of a piece; at `finish` the attempt is accounted.

    From there on it is a success, whatever follows and whether or not the caller stays.
    """
    attempt, told = leg.attempt, leg.course.finish
    if told is not None:
        take_headroom(told, attempt)
    shown = batch if relay is None else relay.show(batch, attempt)
    if told is not None and shown is not None:
        run.succeed(attempt, told.usage, told.cost if told.HasField("cost") else None)
        finish = run.trail.finish = shown.events[-1].finish
        if relay is not None:
            relay.settle(finish, attempt)
        _expose(run.decision, finish)
    return shown


async def _await_end(run: Attempts, leg: StreamLeg, limit: float) -> None:
    try:
        async with asyncio.timeout(limit):
            await _hear_out(run, leg)
    except TimeoutError:
        run.note_breach(leg.attempt, NO_END)
    finally:
        leg.call.cancel()


async def _hear_out(run: Attempts, leg: StreamLeg) -> None:
    """Listens to the end of a call whose answer is whole: anything but a plain end is a breach, and changes nothing."""
    try:
        while isinstance(message := await leg.call.read(), StreamChatResponse):
            if kinds := [event.WhichOneof("kind") for event in message.events]:
                run.note_breach(leg.attempt, TWO_FINISHES if "finish" in kinds else AFTER_FINISH)
                leg.call.cancel()
                return
    except grpc.aio.AioRpcError as error:
        # A status that nobody of the mesh made is that of a connection, not the adapter's word. And whose standing call
        # was taken up is told so.
        facts = from_rpc_error(error).metadata
        if "origin" not in facts and "standing" not in facts:
            run.note_breach(leg.attempt, ERROR_AFTER_FINISH)


def _expose(decision: Plan, answer: ChatResponse | Finish) -> None:
    """Tells the caller which side of an experiment answered."""
    if decision.experiment:
        answer.provider_metadata["maestro"].update({"experiment": decision.experiment, "variant": decision.variant})
