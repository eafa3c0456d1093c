"""The dispatcher against real adapters (scripted providers behind gRPC sockets), with every fault at every moment."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import (
    ContextTooLong,
    InvalidRequest,
    MaestroError,
    NoBackend,
    Overloaded,
    ProviderAuth,
    RateLimited,
    StreamBroken,
    Timeout,
    UpstreamError,
)
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.mesh.trail import Trail
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.servers import free_port
from maestro_sdk.testing.tables import backend, message, model

from .dispatching import ask, kinds, mesh, named, text


async def test_the_first_backend_answers() -> None:
    async with mesh(named(1), named(2)) as m:
        events = await m.stream()
        assert kinds(events) == ["started", "text", "text", "finish"]
        assert text(events) == "I am 1."
        assert not m.providers[1].requests
        assert m.providers[0].requests[0].model == "p1/m"
        assert m.trail.finish is not None
        assert m.trail.finish.usage.output_tokens == 2
        assert [outcome.reason for outcome in m.source.outcomes] == [ErrorReason.ERROR_REASON_UNSPECIFIED]
        assert m.source.local.load.in_flight == {"p1:p1/m": 0}


async def test_unary_equals_the_fold_of_the_stream() -> None:
    async with mesh(named(1)) as m:
        folded = fold(await m.stream())
        assert (await m.complete()).SerializeToString(deterministic=True) == folded.SerializeToString(
            deterministic=True
        )


@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE_CONTENT, Fault.NO_STARTED, Fault.STALL_BEFORE_CONTENT])
async def test_before_content_it_falls_over_with_one_started(fault: Fault) -> None:
    async with mesh(named(1, fault=fault), named(2), first_event_timeout=0.3, idle_timeout=0.3) as m:
        events = await m.stream()
        assert kinds(events) == ["started", "text", "text", "finish"]
        assert text(events) == "I am 2."
        assert (events[0].started.provider, events[0].started.attempt) == ("p2", 2)
        assert [attempt.backend.provider for attempt in m.failures] == ["p1"]


async def test_a_missing_finish_before_content_falls_over() -> None:
    empty = ScriptedProvider(answer("x", model="p1/m")[:1], models=[model("p1/m")])
    async with mesh(empty, named(2)) as m:
        assert text(await m.stream()) == "I am 2."


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.ERROR_AFTER_CONTENT, Overloaded),
        (Fault.NO_FINISH, StreamBroken),
        (Fault.STALL_AFTER_CONTENT, Timeout),
    ],
)
async def test_after_content_it_ends_with_an_error_and_never_begins_again(
    fault: Fault, error: type[MaestroError]
) -> None:
    async with mesh(named(1, fault=fault), named(2), idle_timeout=0.3) as m:
        request = ask()
        seen: list[ChatEvent] = []
        with pytest.raises(error) as caught:
            async for batch in m.dispatcher.stream(request, needs_of(request), m.trail):
                seen += batch.events
        assert kinds(seen)[:2] == ["started", "text"]
        assert "finish" not in kinds(seen)
        assert caught.value.metadata["after_content"] == "true"
        assert not caught.value.retryable
        assert not caught.value.failover
        assert not m.providers[1].requests


@pytest.mark.parametrize("fault", [Fault.TWO_FINISHES, Fault.EVENTS_AFTER_FINISH])
async def test_nothing_follows_a_finish(fault: Fault) -> None:
    async with mesh(named(1, fault=fault)) as m:
        assert kinds(await m.stream()) == ["started", "text", "text", "finish"]


@pytest.mark.parametrize("unary", [True, False])
@pytest.mark.parametrize("error", [InvalidRequest("bad"), ContextTooLong("long")])
async def test_a_fault_of_the_caller_is_not_tried_elsewhere(error: MaestroError, unary: bool) -> None:
    async with mesh(named(1, fault=Fault.ERROR_BEFORE_CONTENT, error=error), named(2)) as m:
        with pytest.raises(type(error)):
            await (m.complete() if unary else m.stream())
        assert not m.providers[1].requests
        assert not any(outcome.counts_against_health for outcome in m.source.outcomes)


async def test_a_larger_window_takes_what_was_too_long() -> None:
    small = named(1, window=1000, fault=Fault.ERROR_BEFORE_CONTENT, error=ContextTooLong("long"))
    async with mesh(small, named(2, window=500), named(3, window=2000)) as m:
        assert text(await m.stream()) == "I am 3."
        assert not m.providers[1].requests


@pytest.mark.parametrize("unary", [True, False])
async def test_when_all_fail_the_last_error_tells_what_was_tried(unary: bool) -> None:
    fault = Fault.ERROR_BEFORE_CONTENT
    async with mesh(
        named(1, fault=fault, error=ProviderAuth("key refused")), named(2, fault=fault), max_attempts=2
    ) as m:
        with pytest.raises(Overloaded) as caught:
            await (m.complete() if unary else m.stream())
        assert caught.value.metadata["tried"] == "p1:p1/m: PROVIDER_AUTH; p2:p2/m: OVERLOADED"
        assert caught.value.metadata["attempts"] == "2"
        # Refused credentials open the breaker at once: the next plan leaves that backend out.
        with pytest.raises(Overloaded):
            await m.stream()
        assert len(m.providers[0].requests) == 1


async def test_a_lone_backend_is_retried_after_a_pause() -> None:
    provider = named(1, fault=Fault.ERROR_BEFORE_CONTENT, error=RateLimited("slow down", retry_after=0.2))
    async with mesh(provider, max_attempts=3) as m:
        begun = time.monotonic()
        task = asyncio.create_task(m.stream())
        while not provider.requests:
            await asyncio.sleep(0.01)
        provider.fault = None
        assert text(await task) == "I am 1."
        assert time.monotonic() - begun >= 0.2
        assert m.trail.attempts[-1].number == 2


async def test_a_long_retry_after_is_told_instead_of_waited_for() -> None:
    error = RateLimited("slow down", retry_after=30.0)
    async with mesh(named(1, fault=Fault.ERROR_BEFORE_CONTENT, error=error)) as m:
        begun = time.monotonic()
        with pytest.raises(RateLimited) as caught:
            await m.stream()
        assert caught.value.retry_after == 30.0
        assert time.monotonic() - begun < 10
        with pytest.raises(NoBackend) as held:
            await m.stream()
        assert 25 < (held.value.retry_after or 0) <= 30


async def test_an_experiment_is_told_in_the_answer() -> None:
    async with mesh(named(1), named(2)) as m:
        made = message([b.message for b in m.source.table.backends.values()], {"default": [("p1/m", 1)]})
        side = pb.Variant(name="new", share=100, targets=[pb.Target(model="p2/m", weight=1)])
        made.routes[0].experiment.CopyFrom(pb.Experiment(name="trial", label="user", variants=[side]))
        m.source.table = compile_table(made)
        request = ask()
        request.metadata["user"] = "u"
        needs = needs_of(request, streaming=True)
        streamed = [e async for batch in m.dispatcher.stream(request, needs, m.trail) for e in batch.events]
        assert text(streamed) == "I am 2."
        assert dict(streamed[-1].finish.provider_metadata["maestro"]) == {"experiment": "trial", "variant": "new"}
        whole = await m.dispatcher.complete(request, needs, Trail())
        assert whole.SerializeToString(deterministic=True) == fold(streamed).SerializeToString(deterministic=True)


async def test_a_dead_adapter_is_passed_over() -> None:
    async with mesh(named(2)) as m:
        dead = backend("p1", model("p1/m"), f"127.0.0.1:{free_port()}")
        alive = m.source.table.backends["p2:p2/m"].message
        m.source.table = compile_table(message([dead, alive], {"default": [("p1/m", 1), ("p2/m", 1)]}))
        assert text(await m.stream()) == "I am 2."
        assert isinstance(m.failures[0].error, UpstreamError)
        assert (await m.complete()).attempt == 2


async def test_closing_the_stream_cancels_the_adapter() -> None:
    async with mesh(named(1, *"abcdefgh", pace=0.05)) as m:
        request = ask()
        async with aclosing(m.dispatcher.stream(request, needs_of(request), m.trail)) as batches:
            async for _ in batches:
                break
        await asyncio.wait_for(m.providers[0].abandoned.wait(), 5)
        assert m.source.local.load.in_flight == {"p1:p1/m": 0}


@pytest.mark.parametrize("unary", [True, False])
async def test_cancelling_the_task_cancels_the_adapter(unary: bool) -> None:
    async with mesh(named(1, fault=Fault.STALL_BEFORE_CONTENT)) as m:
        task = asyncio.create_task(m.complete() if unary else m.stream())
        while not m.providers[0].requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(m.providers[0].abandoned.wait(), 5)
        assert m.source.local.load.in_flight == {"p1:p1/m": 0}


@pytest.mark.parametrize("unary", [True, False])
async def test_the_callers_deadline_ends_it_and_blames_nobody(unary: bool) -> None:
    async with mesh(named(1, fault=Fault.STALL_BEFORE_CONTENT), named(2)) as m:
        deadline = time.monotonic() + 0.2
        with pytest.raises(Timeout) as caught:
            await (m.complete(deadline=deadline) if unary else m.stream(deadline=deadline))
        assert not caught.value.retryable
        assert not m.providers[1].requests
        assert not any(outcome.counts_against_health for outcome in m.source.outcomes)


async def test_failures_open_the_breaker_and_a_trial_call_closes_it() -> None:
    first = named(1, fault=Fault.ERROR_BEFORE_CONTENT)
    breaker = {"consecutive_failures": 2, "open_time": 1.0}
    async with mesh(first, named(2), breaker=breaker) as m:
        for _ in range(5):
            assert text(await m.stream()) == "I am 2."
        assert len(first.requests) == 2
        first.fault = None
        async with asyncio.timeout(10):
            while text(await m.stream()) != "I am 1.":
                await asyncio.sleep(0.1)
        assert text(await m.stream()) == "I am 1."
