"""Runs the scenarios: an adapter at its address, with a scripted server as its provider."""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, FinishReason
from maestro.llm.v1.message_pb2 import Part
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.conformance.manners import Manner
from maestro_sdk.conformance.outcome import Broken, Outcome, Verdict, expect
from maestro_sdk.conformance.scenarios import (
    DEADLINE,
    SCENARIOS,
    Failed,
    Released,
    Scenario,
    Turn,
    Wanted,
    Whole,
    arguments,
)
from maestro_sdk.conformance.target import Exchange, Refusal, Target, open_target, refusal_of
from maestro_sdk.errors import BY_REASON, DOMAIN
from maestro_sdk.testing.faults import FaultServer, Seen
from maestro_sdk.testing.wire import Tokens, Wire
from maestro_sdk.types import reasoning_of, text_of

CALLS = ("StreamChat", "Chat")
RELEASE = 0.5
"""Seconds after the caller's leaving within which the provider's socket has to be closed."""
TIMEOUT = 10.0
"""Seconds that an answer may take, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Stage:
    """An adapter of ours with `server` as its provider, which speaks `wire` in its `manner` at `paths`."""

    target: Target
    server: FaultServer
    wire: Wire
    manner: Manner
    paths: Sequence[str] = ()

    @property
    def scripted(self) -> Sequence[str]:
        """The paths of chat at the provider."""
        return self.paths or (self.wire.path,)


async def drive(
    address: str,
    server: FaultServer,
    wire: Wire,
    manner: Manner,
    *,
    model: str,
    paths: Sequence[str] = (),
    scenarios: Sequence[Scenario] = SCENARIOS,
    timeout: float = TIMEOUT,
    watch: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """The outcomes of all scenarios at "host:port", each by `StreamChat` and by `Chat`.

    The adapter there calls `server`; `paths` are the provider's paths of chat where it has several. `timeout` in
    seconds per answer.
    """
    outcomes: list[Outcome] = []
    async with open_target(address, model=model, timeout=timeout) as target:
        stage = Stage(target, server, wire, manner, paths)
        for scenario in scenarios:
            for call in CALLS:
                outcome = await _judge(stage, scenario, call)
                outcomes.append(outcome)
                if watch is not None:
                    watch(outcome)
    return outcomes


async def _judge(stage: Stage, scenario: Scenario, call: str) -> Outcome:
    begun = time.monotonic()
    verdict, seen, where = Verdict.PROVEN, "", ""
    turns = scenario.turns(stage.wire, stage.manner)
    wanted = "; ".join(_say(_wanted(turn, call)) for turn in turns)
    if stage.target.model is None:
        verdict, seen = Verdict.BLOCKED, stage.target.trouble
    elif not stage.target.claims(scenario.needs):
        verdict, seen = Verdict.NOT_DECLARED, f"the model has no {Feature.Name(scenario.needs)}"
    elif not turns:
        verdict, seen = Verdict.NOT_DECLARED, "the wire has no such thing"
    else:
        try:
            seen = "; ".join([await _play(stage, scenario.request(), turn, call) for turn in turns])
        except Broken as error:
            verdict, seen, where = Verdict.FAILED, error.seen, error.where
        except TimeoutError:
            verdict, seen = Verdict.FAILED, "it never ends"
    name = f"{scenario.name} {call}"
    return Outcome(name, scenario.title, "", "", verdict, seen, wanted, where, time.monotonic() - begun)


def _wanted(turn: Turn, call: str) -> Wanted:
    return turn.whole if call == "Chat" and turn.whole is not None else turn.wanted


async def _play(stage: Stage, request: ChatRequest, turn: Turn, call: str) -> str:
    """One answer of the provider, and what was seen of it. Raises `Broken` unless the caller sees what is wanted."""
    stage.server.requests.clear()
    for path in stage.scripted:
        stage.server.replace("POST", path, turn.reply)
    wanted = _wanted(turn, call)
    seen = _say(wanted)
    match wanted:
        case Released():
            seen = f"the provider's socket was closed after {await _leave(stage, request, wanted, call) * 1000:.0f} ms"
        case Failed() if call == "Chat":
            _expect_failed(await stage.target.whole(request), wanted)
        case Whole() if call == "Chat":
            answer = await stage.target.whole(request)
            expect(isinstance(answer, ChatResponse), f"ended with {answer}", "Chat")
            if isinstance(answer, ChatResponse):
                _expect_whole(answer, wanted, stage)
        case Failed():
            exchange = await stage.target.stream(request, "scenario")
            expect("finish" not in exchange.kinds, "`finish` before an error", exchange.label)
            said = _said(exchange)
            expect(said == wanted.before, f"“{said}” before the error", exchange.label)
            _expect_failed(exchange.refusal, wanted)
        case Whole():
            began, ended, exchange = await _timed(stage.target, request)
            _expect_order(exchange)
            _expect_whole(exchange.answer(), wanted, stage)
            late = f"the first piece came {ended - began:.3f} s before the end"
            expect(ended - began >= wanted.spread, late, exchange.label)
    asked = sum(_is_chat(request, stage) for request in stage.server.requests)
    expect(asked == 1, f"the provider was asked {asked} times", call)
    return seen


def _is_chat(seen: Seen, stage: Stage) -> bool:
    return seen.method == "POST" and any(fnmatch.fnmatchcase(seen.path, path) for path in stage.scripted)


async def _timed(target: Target, request: ChatRequest) -> tuple[float, float, Exchange]:
    """The exchange, and when its first text and its end came."""
    exchange = Exchange("StreamChat", ChatRequest())
    exchange.request.CopyFrom(request)
    exchange.request.model = target.asked.id
    first = 0.0
    try:
        async for message in target.chat.StreamChat(exchange.request, timeout=target.timeout):
            exchange.messages.append(list(message.events))
            if not first and any(event.HasField("text") for event in message.events):
                first = time.monotonic()
    except grpc.aio.AioRpcError as error:
        exchange.refusal = refusal_of(error)
    ended = time.monotonic()
    return first or ended, ended, exchange


def _said(exchange: Exchange) -> str:
    return "".join(event.text.text for event in exchange.events)


def _expect_order(exchange: Exchange) -> None:
    kinds = exchange.kinds
    expect(exchange.refusal is None, f"ended with {exchange.refusal}", exchange.label)
    expect(kinds[:1] == ["started"] and kinds.count("started") == 1, f"begins with {kinds[:2]}", exchange.label)
    expect(kinds[-1:] == ["finish"] and kinds.count("finish") == 1, f"ends with {kinds[-2:]}", exchange.label)


def _expect_whole(answer: ChatResponse, wanted: Whole, stage: Stage) -> None:
    expect(text_of(answer) == wanted.text, f"“{text_of(answer)}”", "text")
    expect(reasoning_of(answer) == wanted.thoughts, f"“{reasoning_of(answer)}”", "reasoning")
    _expect_calls(answer, wanted, stage.manner)
    name = FinishReason.Name(answer.finish_reason)
    expect(answer.finish_reason == wanted.reason, f"{name} ({answer.raw_reason})", "finish_reason")
    if wanted.raw_reason:
        expect(answer.raw_reason.lower() == wanted.raw_reason.lower(), answer.raw_reason, "raw_reason")
    if wanted.signature:
        state = any(part.provider_state and part.origin.provider for part in answer.parts)
        expect(state, "no part has the provider's state and its origin", "provider_state")
    _expect_usage(answer.usage if answer.HasField("usage") else None, wanted.tokens)
    if wanted.tokens is None:
        expect(not answer.HasField("cost") or answer.cost.estimated, f"{answer.cost.usd} of unknown usage", "cost")
    model = stage.target.asked
    expect(
        (answer.provider, answer.model) == (model.provider, model.name), f"{answer.provider}/{answer.model}", "names"
    )


def _expect_calls(answer: ChatResponse, wanted: Whole, manner: Manner) -> None:
    made: list[Part] = [part for part in answer.parts if part.HasField("tool_call")]
    names = [part.tool_call.name for part in made]
    expect(names == [call.name for call in wanted.calls], f"{names}", "calls")
    ids = [part.tool_call.call_id for part in made]
    expect(all(ids) and len(set(ids)) == len(ids), f"{ids}", "call_id")
    if manner.call_ids:
        expect(ids == [call.call_id for call in wanted.calls], f"{ids}", "call_id")
    for part, call in zip(made, wanted.calls, strict=True):
        told = part.tool_call.arguments_json
        try:
            same = arguments(call) == arguments(type(call)(call.call_id, call.name, told))
        except ValueError as error:
            raise Broken(f"no JSON: {told}", "arguments_json") from error
        expect(same, told, "arguments_json")


def _expect_usage(used: Usage | None, tokens: Tokens | None) -> None:
    if tokens is None:
        unknown = used is None or used.estimated or not used.ByteSize()
        expect(unknown, f"counts from nowhere: {used}", "usage")
        return
    expect(used is not None, "none", "usage")
    if used is None:
        return
    for field, wanted in (
        ("input_tokens", tokens.input),
        ("output_tokens", tokens.output),
        ("cache_read_tokens", tokens.cache_read),
        ("cache_write_5m_tokens", tokens.cache_write_5m),
        ("cache_write_1h_tokens", tokens.cache_write_1h),
        ("reasoning_tokens", tokens.reasoning),
    ):
        expect(getattr(used, field) == wanted, f"{getattr(used, field)}, not {wanted}", f"usage.{field}")


def _expect_failed(found: ChatResponse | Refusal | None, wanted: Failed) -> None:
    """The error of the contract, with the verdicts that its reason has."""
    if not isinstance(found, Refusal):
        raise Broken("it succeeded", "status")
    expect(found.info is not None, str(found), "ErrorInfo")
    if found.info is None:
        return
    meaning, told = BY_REASON[wanted.reason], found.info.metadata
    expect((found.info.domain, found.info.reason) == (DOMAIN, wanted.reason), str(found), "ErrorInfo.reason")
    expect(found.code == meaning.code, str(found), "status")
    for name in ("retryable", "failover", "counts_against_health"):
        verdict = "true" if getattr(meaning, name) else "false"
        expect(told.get(name) == verdict, f"{name} is {told.get(name)!r}", f"{wanted.reason}, ErrorInfo.metadata")
    expect(found.retry_after == wanted.retry_after, f"{found.retry_after}", "RetryInfo")
    if wanted.upstream_status:
        status = told.get("upstream_status")
        expect(status == str(wanted.upstream_status), f"upstream_status is {status!r}", "ErrorInfo.metadata")
        expect(told.get("provider"), "no provider", "ErrorInfo.metadata")
    expect(found.message, "the message is empty", "status")


async def _leave(stage: Stage, request: ChatRequest, wanted: Released, call: str) -> float:
    """Ends the call from the caller's side; the seconds until the provider's socket was closed."""
    timeout = DEADLINE if wanted.deadline else stage.target.timeout
    asked = ChatRequest()
    asked.CopyFrom(request)
    asked.model = stage.target.asked.id
    started = time.monotonic()
    chat = stage.target.chat
    running = chat.StreamChat(asked, timeout=timeout) if call == "StreamChat" else chat.Chat(asked, timeout=timeout)
    reading = asyncio.ensure_future(_read(running, wanted.after if call == "StreamChat" else ""))
    try:
        seen = await stage.server.request(0)
    except TimeoutError:
        reading.cancel()
        raise Broken("never asked", "the provider") from None
    if wanted.deadline:
        left = started + DEADLINE
        refusal = await reading
        code = refusal.code.name if isinstance(refusal, Refusal) else "OK"
        expect(code == "DEADLINE_EXCEEDED", code, "status at the deadline")
    else:
        if call == "StreamChat" and wanted.after:
            expect(await reading == wanted.after, "other text", "before leaving")
        left = time.monotonic()
        running.cancel()
    try:
        await asyncio.wait_for(seen.closed.wait(), RELEASE * 2)
    except TimeoutError:
        raise Broken("still open", "the provider's socket") from None
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    took = (seen.closed_at or 0.0) - left
    expect(took < RELEASE, f"closed after {took * 1000:.0f} ms", "the provider's socket")
    return max(0.0, took)


async def _read(running: Any, until: str) -> str | Refusal:
    """What is read of a call until it has said `until`, or how it failed."""
    said = ""
    try:
        if isinstance(running, grpc.aio.UnaryUnaryCall):
            await cast("Any", running)
            return said
        async for message in running:
            said += "".join(event.text.text for event in message.events)
            if until and said == until:
                break
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    return said


def _say(wanted: Wanted) -> str:
    match wanted:
        case Whole():
            calls = f", {len(wanted.calls)} calls" if wanted.calls else ""
            return f"{FinishReason.Name(wanted.reason).removeprefix('FINISH_REASON_')}{calls}"
        case Failed():
            after = f" after “{wanted.before}”" if wanted.before else ""
            wait = "" if wanted.retry_after is None else f", retry after {wanted.retry_after:g} s"
            return f"{wanted.reason}{after}{wait}"
        case Released():
            return f"the provider's socket is closed within {RELEASE * 1000:g} ms"
