"""A caller may leave at any await: every call that is open ends, and no counter keeps a trace of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, StreamChatResponse
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.backends import Backends, ChatCall
from maestro_sdk.mesh.dispatch import Dispatcher
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.table import Backend, compile_table
from maestro_sdk.mesh.trail import Trail
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.tables import backend, message, model

from .dispatching import Source, ask, mesh, named, text, until

RUNNING = AttemptFate.ATTEMPT_FATE_UNSPECIFIED
FAULTS = [None, None, Fault.ERROR_BEFORE_CONTENT, Fault.ERROR_AFTER_CONTENT, Fault.STALL_BEFORE_CONTENT,
          Fault.STALL_AFTER_CONTENT, Fault.NO_FINISH, Fault.NO_STARTED, Fault.SLOW]  # fmt: skip


class Counting(ScriptedProvider):
    """A scripted provider that knows how many of its calls run."""

    running = 0

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Sequence[ChatEvent]]:
        self.running += 1
        try:
            async for batch in super().stream(request):
                yield batch
        finally:
            self.running -= 1


def counting(number: int) -> Counting:
    name = f"p{number}/m"
    return Counting(answer("a ", "b ", "c", model=name), models=[model(name)], pace=0.002)


@pytest.mark.parametrize("seed", range(3))
async def test_a_caller_may_leave_at_any_moment(seed: int) -> None:
    chance = random.Random(seed)
    providers = [counting(number) for number in (1, 2, 3)]
    limits = {"idle_timeout": 0.03, "first_event_timeout": 0.03, "back_off": 0.01, "breaker": {"open_time": 0.02}}
    async with mesh(*providers, **limits, hedge_after=0.01, max_extra=1.0, resume=True, max_attempts=4) as m:
        for _ in range(40):
            for provider in providers:
                provider.fault = chance.choice(FAULTS)
            trail, request = Trail(), ask()
            seen: list[str | None] = []

            async def drink(trail: Trail, request: ChatRequest, seen: list[str | None]) -> None:
                async with aclosing(m.dispatcher.stream(request, needs_of(request), trail)) as batches:
                    async for batch in batches:
                        seen += [event.WhichOneof("kind") for event in batch.events]

            async def swallow(trail: Trail, request: ChatRequest) -> None:
                await m.dispatcher.complete(request, needs_of(request), trail)

            unary = chance.random() < 0.3
            task = asyncio.create_task(swallow(trail, request) if unary else drink(trail, request, seen))
            await asyncio.sleep(chance.uniform(0.0, 0.06))
            task.cancel()
            with_error = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(with_error[0], asyncio.CancelledError | MaestroError | None)
            assert m.idle()
            assert all(attempt.ended and attempt.fate != RUNNING for attempt in trail.attempts)
            assert seen.count("started") <= 1
            assert seen.count("finish") <= 1
            assert "finish" not in seen or seen[-1] == "finish"
        await until(lambda: not any(provider.running for provider in providers))
        await asyncio.gather(*m.dispatcher.endings, return_exceptions=True)
        # No trial call is thought to be still under way: once the breakers' time is over everybody may be asked.
        for provider in providers:
            provider.fault = None
        await until(lambda: all(not m.source.local.bars(b, 1e12) for b in m.source.table.backends.values()))
        assert text(await m.stream()) == "a b c"


async def test_leaving_during_a_pause_ends_it() -> None:
    failing = named(1, fault=Fault.ERROR_BEFORE_CONTENT)
    async with mesh(failing, back_off=1.9, longest_back_off=2.0) as m:
        task = asyncio.create_task(m.stream())
        await until(lambda: bool(m.failures))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(failing.requests) == 1
        assert m.idle()


async def test_leaving_once_the_answer_is_whole_is_no_failure() -> None:
    async with mesh(named(1)) as m:
        request, trail = ask(), Trail()
        async with aclosing(m.dispatcher.stream(request, needs_of(request), trail)) as batches:
            async for batch in batches:
                if batch.events[-1].HasField("finish"):
                    break
        assert trail.finish is not None
        assert trail.attempts[0].fate == AttemptFate.ATTEMPT_FATE_ANSWERED
        assert not m.providers[0].abandoned.is_set()
        assert len(m.source.outcomes) == 1


class SteppedCall:
    """A call whose reader waits one turn of the loop for each message."""

    def __init__(self, pieces: list[StreamChatResponse], opened: set[SteppedCall]) -> None:
        self._pieces, self._opened = pieces, opened
        opened.add(self)

    async def read(self) -> StreamChatResponse | object:
        await asyncio.sleep(0)
        if self not in self._opened:
            raise asyncio.CancelledError
        if self._pieces:
            return self._pieces.pop(0)
        self._opened.discard(self)
        return None

    def cancel(self) -> bool:
        self._opened.discard(self)
        return True

    def done(self) -> bool:
        return self not in self._opened


class SteppedBackends(Backends):
    """Backends in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: set[SteppedCall] = set()

    def stream_chat(self, backend: Backend, request: ChatRequest, timeout: float | None) -> ChatCall:
        return SteppedCall([StreamChatResponse(events=[event]) for event in answer("a", "b")], self.opened)


async def test_every_single_await_of_a_stream_may_be_the_last() -> None:
    described = backend("p1", model("p1/m"))
    source = Source(compile_table(message([described], {"default": [("p1/m", 1.0)]})))
    backends = SteppedBackends()
    dispatcher = Dispatcher(source, backends)
    ended = 0
    for turns in range(12):
        request, trail = ask(), Trail()

        async def drink(trail: Trail, request: ChatRequest) -> int:
            return sum([len(batch.events) async for batch in dispatcher.stream(request, needs_of(request), trail)])

        task = asyncio.create_task(drink(trail, request))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        ended += result == 4
        await asyncio.gather(*dispatcher.endings)
        assert not backends.opened
        assert source.local.load.in_flight.get("p1:p1/m", 0) == 0
        assert all(attempt.fate != RUNNING for attempt in trail.attempts)
    assert 0 < ended < 12
