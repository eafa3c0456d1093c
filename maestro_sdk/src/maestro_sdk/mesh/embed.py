"""Vectors from the mesh: planned, tried and retried as chats are, but only where vectors are comparable.

A list that is too long for one message goes to adapters in several calls, one after the other. What was answered stays:
a backend that takes over makes the calls that are left.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

import grpc

from maestro.llm.v1.chat_pb2 import Finish
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import MaestroError, NotFound, OutputInvalid, StreamBroken, Timeout, from_rpc_error
from maestro_sdk.mesh.attempts import Attempts, TableSource
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.gate import Gate
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.plan import Plan, choose_route, plan, refusal
from maestro_sdk.mesh.retries import RetryBudget
from maestro_sdk.mesh.table import DEFAULT_ROUTE, Table
from maestro_sdk.mesh.trail import Attempt, Trail
from maestro_sdk.mesh.vectors import MOST_NUMBERS, Assembly, Spend, keep_comparable, refuse_too_many

EMBEDDINGS_ROUTE = "embeddings"
"""The route of requests that name no model, where there is one of that name; else the default route's is asked."""
# Errors after which the provider may have worked on the call, and charges for it.
_CHARGED = (Timeout, StreamBroken, OutputInvalid)


class EmbedDispatcher:
    """Embeds with the backends of a table."""

    def __init__(
        self,
        source: TableSource,
        backends: Backends,
        on_failure: Callable[[Attempt], None] | None = None,
        dice: Callable[[], float] = random.random,
        gate: Gate | None = None,
    ) -> None:
        """Parameters as for `Dispatcher`."""
        self._source = source
        self._backends = backends
        self._on_failure = on_failure
        self._dice = dice
        self._gate = gate
        self._retries = RetryBudget()

    async def embed(
        self,
        request: EmbedRequest,
        needs: Needs,
        trail: Trail,
        deadline: float | None = None,
        most: int = MOST_NUMBERS,
    ) -> EmbedResponse:
        """A vector for each input, in their order; `deadline` is of the monotonic clock.

        Raises `TooLarge` for an answer of more than `most` numbers, before anything is sent where `dimensions` are
        given or the model's vectors are no longer than usual; else the last error, with what was tried.
        """
        refuse_too_many(len(request.inputs), request.dimensions, most)
        run = self._begin(needs, trail, deadline)
        work = Assembly(request)
        try:
            while (attempt := await run.next()) is not None:
                spend = Spend()
                try:
                    await self._go_on(run, attempt, work, spend, most)
                except (grpc.aio.AioRpcError, MaestroError) as error:
                    _fail(run, attempt, error, work, spend)
                    continue
                run.succeed(attempt, spend.usage or Usage(), spend.cost)
                return _conclude(attempt, trail, work)
        finally:
            run.close()
        raise run.exhausted()

    def _begin(self, needs: Needs, trail: Trail, deadline: float | None) -> Attempts:
        source, now = self._source, time.time()
        decision = trail.plan = plan_embedding(needs, source, now, self._dice)
        needs = decision.needs
        if not decision.kept:
            raise refusal(decision, needs, now)
        return Attempts(
            source, trail, decision, deadline, self._retries, self._dice, self._on_failure, self._gate, streamed=False
        )

    async def _go_on(self, run: Attempts, attempt: Attempt, work: Assembly, spend: Spend, most: int) -> None:
        """Makes the calls that are left, at one backend."""
        backend = attempt.backend
        while work.done < len(work.calls):
            estimated = work.estimate()
            # Should the call be cut, the provider has worked on it all the same.
            attempt.told = (_plus(spend.usage, estimated),)
            answer = await self._backends.embed(backend, work.ask(backend.model), _patience(run), work.done)
            spend.add(backend, answer, estimated)
            attempt.first_event = attempt.first_event or time.monotonic()
            work.add(answer)
            work.spend.add(backend, answer, estimated)
            if work.done < len(work.calls):
                refuse_too_many(work.count, work.length, most)


def plan_embedding(needs: Needs, source: TableSource, now: float, dice: Callable[[], float]) -> Plan:
    """The decision on a request for vectors. Raises as `plan`."""
    return keep_comparable(plan(_with_route(needs, source.table), source.table, source.local, now, dice))


def _with_route(needs: Needs, table: Table) -> Needs:
    if needs.model or EMBEDDINGS_ROUTE not in table.routes:
        return needs
    try:
        if choose_route(needs, table).name != DEFAULT_ROUTE:
            # One that takes such requests without being named.
            return needs
    except NotFound:
        pass
    return replace(needs, model=EMBEDDINGS_ROUTE)


def _patience(run: Attempts) -> float | None:
    """Seconds for the next call: the route's limit holds for each, the caller's for all."""
    left = None if run.deadline is None else max(0.0, run.deadline - time.monotonic())
    most = run.policy.attempt_timeout
    return left if not most else most if left is None else min(most, left)


def _plus(usage: Usage | None, estimated: int) -> Usage:
    return Usage(input_tokens=(usage.input_tokens if usage is not None else 0) + estimated, estimated=True)


def _fail(
    run: Attempts, attempt: Attempt, raised: grpc.aio.AioRpcError | MaestroError, work: Assembly, spend: Spend
) -> None:
    error = work.place(from_rpc_error(raised)) if isinstance(raised, grpc.aio.AioRpcError) else raised
    # Either its answer came, or the call was refused and cost nothing: what the others used is known.
    known = error is raised or not isinstance(error, _CHARGED)
    run.fail(attempt, error, spend if known else None)


def _conclude(attempt: Attempt, trail: Trail, work: Assembly) -> EmbedResponse:
    response, cost = work.response, work.spend.cost
    response.usage.CopyFrom(work.spend.usage or Usage())
    response.ClearField("cost")
    if cost is not None:
        response.cost.CopyFrom(cost)
    response.attempt = attempt.number
    trail.first_content, trail.answering = attempt.ended, attempt
    trail.finish = Finish(usage=response.usage, cost=cost)
    return response
