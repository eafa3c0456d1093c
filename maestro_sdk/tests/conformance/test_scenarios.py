"""The scenarios on an adapter of the kit: whole it meets all of them, and with one flaw it fails those that show it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from enum import Enum
from typing import Any, cast

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, FinishReason, Started
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.adapter.chat_completions import ChatCompletionsProvider
from maestro_sdk.adapter.chat_completions.dialect import Dialect
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.conformance.driving import CALLS, drive
from maestro_sdk.conformance.manners import OPENAI_CHAT, Manner
from maestro_sdk.conformance.outcome import Outcome, Verdict
from maestro_sdk.conformance.report import Report, matrix, totals
from maestro_sdk.conformance.scenarios import SCENARIOS
from maestro_sdk.errors import MaestroError, Overloaded, RateLimited, StreamBroken, UpstreamError
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.servers import serve

pytestmark = pytest.mark.timeout(120)  # the first test waits for the scenarios of a dozen adapters

MODEL = "scripted/model"
_AS_ANSWER = {"page_as_answer", "nothing_as_answer"}
_CUT = {
    *_AS_ANSWER,
    "cut_before_content",
    "cut_after_1",
    "cut_after_3",
    "silent_end_0",
    "silent_end",
    "malformed_0",
    "malformed_2",
}
_INSIDE = {"paced", "cut_after_1", "cut_after_3", "silent_end", "in_band_error_2", "malformed_2", "left_inside"}
_LOAD = {"overloaded", "nothing_instead"}
_REFUSED = {"invalid", "context_too_long", "key_refused", "quota", "model_lost", "rate_limited", "rate_limited_until"}


class Flaw(Enum):
    """What is wrong with the adapter, and the scenarios that must tell."""

    def __init__(self, number: int, scenarios: set[str]) -> None:
        self.scenarios = scenarios

    PRETENDS = 1, _CUT
    FORGETS_WAIT = 2, {"rate_limited_until"}
    ONE_ERROR = 3, {*_REFUSED, *_CUT, *_LOAD}
    LEAVES_OPEN = 4, {"left_early", "left_inside", "stall_silent", "stall_inside"}
    TRIES_AGAIN = 5, _LOAD
    LOSES_REASONING = 6, {"usage_reasoning", "usage_all"}
    HOLDS_BACK = 7, _INSIDE
    DROPS_THOUGHTS = 8, {"thinking"}
    MIXES_CALLS = 9, {"tools_interleaved"}
    INVENTS_STOP = 10, {"stop_unknown"}
    INVENTS_USAGE = 11, {"usage_none"}
    NO_STATUS = 12, {*_REFUSED, *_LOAD, "fault", "page_instead"}


class FlawedProvider:
    """A good provider of the kit, and what the flaw makes of its events and errors."""

    name = "adapter-scripted"
    providers: Sequence[str] = ("scripted",)

    def __init__(self, url: str, flaw: Flaw | None) -> None:
        kinds = ("CHAT", "STREAMING", "SYSTEM_PROMPT", "TOOLS", "PARALLEL_TOOLS", "REASONING")
        features = [
            FeatureSupport(feature=Feature.Value(f"FEATURE_{kind}"), support=Support.SUPPORT_NATIVE) for kind in kinds
        ]
        model = Model(id=MODEL, provider="scripted", name="model", features=features)
        self._inner = ChatCompletionsProvider(
            name=self.name, base_url=f"{url}/v1", dialect=Dialect("scripted"), models=[model]
        )
        self._flaw = flaw
        self._strays: set[asyncio.Task[Any]] = set()

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        held: list[ChatEvent] = []
        begun = False
        try:
            async with aclosing(self._events(request)) as batches:
                async for events in batches:
                    spoilt = [event for event in events if self._spoil(event)]
                    if self._flaw is Flaw.HOLDS_BACK:
                        held += spoilt
                        continue
                    for event in spoilt:
                        begun = True
                        yield (event,)
        except StreamBroken as error:
            if self._flaw is not Flaw.PRETENDS:
                raise self._mean(error) from error
            if not begun:
                yield (ChatEvent(started=Started(response_id="1", provider="scripted", model="model", attempt=1)),)
            yield (ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_STOP, usage=Usage())),)
        except MaestroError as error:
            raise self._mean(error) from error
        if held:
            yield held

    async def models(self) -> Sequence[Model]:
        return await self._inner.models()

    async def check(self) -> str:
        return ""

    async def close(self) -> None:
        for stray in self._strays:
            stray.cancel()
        await asyncio.gather(*self._strays, return_exceptions=True)
        await self._inner.close()

    async def _events(self, request: ChatRequest) -> AsyncGenerator[Sequence[ChatEvent]]:
        if self._flaw is Flaw.LEAVES_OPEN:
            async for events in self._elsewhere(request):
                yield events
            return
        for attempt in (1, 2):
            try:
                inner = cast("AsyncGenerator[Sequence[ChatEvent]]", self._inner.stream(request))
                async with aclosing(inner) as batches:
                    async for events in batches:
                        yield events
                return
            except Overloaded:
                if attempt == 2 or self._flaw is not Flaw.TRIES_AGAIN:
                    raise

    async def _elsewhere(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """The events by a task that nobody ends."""
        queue: asyncio.Queue[Sequence[ChatEvent] | BaseException | None] = asyncio.Queue()

        async def read() -> None:
            try:
                async for events in self._inner.stream(request):
                    queue.put_nowait(events)
                queue.put_nowait(None)
            except MaestroError as error:
                queue.put_nowait(error)

        task = asyncio.create_task(read())
        self._strays.add(task)
        while (found := await queue.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    def _spoil(self, event: ChatEvent) -> bool:
        """Changes an event; False drops it."""
        match self._flaw:
            case Flaw.LOSES_REASONING if event.HasField("finish"):
                event.finish.usage.reasoning_tokens = 0
            case Flaw.DROPS_THOUGHTS:
                return not event.HasField("reasoning")
            case Flaw.MIXES_CALLS if event.HasField("tool_call"):
                event.tool_call.index = min(event.tool_call.index, 1)
            case Flaw.INVENTS_STOP if event.finish.reason == FinishReason.FINISH_REASON_OTHER:
                event.finish.reason = FinishReason.FINISH_REASON_STOP
            case Flaw.INVENTS_USAGE if event.HasField("finish") and not event.finish.usage.input_tokens:
                event.finish.usage.input_tokens = 1
            case _:
                pass
        return True

    def _mean(self, error: MaestroError) -> MaestroError:
        match self._flaw:
            case Flaw.FORGETS_WAIT if isinstance(error, RateLimited):
                error.retry_after = None
            case Flaw.ONE_ERROR:
                return UpstreamError(error.message, metadata=error.metadata)
            case Flaw.NO_STATUS:
                error.metadata.pop("upstream_status", None)
            case _:
                pass
        return error


async def play(flaw: Flaw | None, manner: Manner = OPENAI_CHAT) -> list[Outcome]:
    async with FaultServer() as server:
        provider = FlawedProvider(server.url, flaw)
        try:
            async with serve(ChatServicer(provider), ModelServicer(provider)) as address:
                return await drive(address, server, openai_chat.WIRE, manner, model=MODEL, timeout=3)
        finally:
            await provider.close()


async def test_a_good_adapter_meets_all() -> None:
    outcomes = await play(None)
    assert [outcome.name for outcome in outcomes] == [f"{found.name} {call}" for found in SCENARIOS for call in CALLS]
    assert [outcome for outcome in outcomes if outcome.verdict is not Verdict.PROVEN] == []


@pytest.fixture(scope="module")
def played() -> dict[Flaw, list[Outcome]]:
    """The outcomes with each flaw; several at a time, since most of their time is waiting."""

    async def look(flaw: Flaw, turn: asyncio.Semaphore) -> list[Outcome]:
        async with turn:
            return await play(flaw)

    async def look_at_all() -> list[list[Outcome]]:
        turn = asyncio.Semaphore(6)
        return await asyncio.gather(*(look(flaw, turn) for flaw in Flaw))

    return dict(zip(Flaw, asyncio.run(look_at_all()), strict=True))


@pytest.mark.parametrize("flaw", list(Flaw), ids=lambda flaw: flaw.name.lower())
def test_a_flaw_fails_the_scenarios_that_show_it(flaw: Flaw, played: dict[Flaw, list[Outcome]]) -> None:
    wrong = [outcome for outcome in played[flaw] if outcome.verdict is Verdict.FAILED]
    assert {outcome.name.split()[0] for outcome in wrong} == flaw.scenarios
    assert all(outcome.seen and outcome.contract for outcome in wrong)


async def test_what_a_wire_does_not_have_is_not_declared() -> None:
    manner = replace(OPENAI_CHAT, thoughts=False, counts=frozenset({"cache_read"}), unknown_stop="")
    outcomes = await play(None, manner)
    left = {outcome.name.split()[0] for outcome in outcomes if outcome.verdict is Verdict.NOT_DECLARED}
    assert left == {"thinking", "usage_cache_write", "usage_reasoning", "stop_unknown"}


def test_the_report_counts_scenarios(played: dict[Flaw, list[Outcome]]) -> None:
    found = played[Flaw.LOSES_REASONING]
    core = replace(found[0], name="health", verdict=Verdict.PROVEN)
    report = Report("address", "server 1", (), MODEL, "now", 1.0, [core], found)
    assert not report.passed
    assert matrix([report]).splitlines()[-1].split() == ["scenarios", f"{len(found) - 4}/{len(found)}", "FAILED"]
    assert totals([report])["scenarios"]["failed"] == 4
    document = report.as_json()
    assert document["scenario_summary"]["proven"] == len(found) - 4
    wrong = [(case["name"], case["call"]) for case in document["scenarios"] if case["verdict"] == "failed"]
    assert wrong == [(name, call) for name in ("usage_reasoning", "usage_all") for call in CALLS]
    assert "FAILED usage_all Chat: usage: all at once" in report.tail()
