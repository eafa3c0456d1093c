"""Core cases: deadlines, cancellation, calls side by side."""

from __future__ import annotations

import asyncio
import time

import grpc

from maestro_sdk.conformance import prompts
from maestro_sdk.conformance.case import ANSWERS, core
from maestro_sdk.conformance.outcome import Broken, expect
from maestro_sdk.conformance.target import Refusal, Target, refusal_of
from maestro_sdk.types import text_of

STREAMS = 8
"""Streams that run side by side."""
_SLACK = 1.0
"""Seconds after a deadline within which the call must have ended."""
_ENDED = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


async def _expect_next_call(target: Target, after: str) -> None:
    """The server answers as if nothing had happened."""
    answer = await target.ask(prompts.say(prompts.WORD), f"the call after {after}")
    expect(prompts.WORD in text_of(answer).lower(), f"answered {prompts.said(answer)}", f"the call after {after}")


@core(
    "a deadline is obeyed",
    "deadlines travel as gRPC deadlines: a call ends in time, or with DEADLINE_EXCEEDED (CANCELLED) at its deadline",
    needs=ANSWERS,
)
async def deadline(target: Target) -> str:
    """Several deadlines, so that fast servers meet one inside an answer too."""
    seen: list[str] = []
    for seconds in (0.002, 0.02, 0.2):
        begun = time.monotonic()
        answer = await target.whole(prompts.count(), timeout=seconds)
        took = time.monotonic() - begun
        where = f"Chat with a deadline of {seconds * 1000:g} ms"
        expect(took <= seconds + _SLACK, f"ended after {took:.2f} s", where)
        if isinstance(answer, Refusal):
            expect(answer.code in _ENDED, str(answer), where)
            seen.append(answer.code.name)
        else:
            seen.append("OK")
    await _expect_next_call(target, "deadlines")
    return ", ".join(seen)


@core(
    "a cancelled call leaves nothing behind",
    "the caller's going away is the normal end of a stream: everything is released, the next call works",
    needs=ANSWERS,
)
async def cancellation(target: Target) -> str:
    """Cancels before, and inside, an answer; several at once."""
    request = prompts.count(model=target.asked.id)
    inside = 0
    for messages in (0, 1, 1, 1):
        call = target.chat.StreamChat(request, timeout=target.timeout, metadata=target.metadata)
        try:
            for _ in range(messages):
                await call.read()
                inside += 1
        except grpc.aio.AioRpcError as error:
            raise Broken(f"ended with {refusal_of(error)}", "StreamChat, to be cancelled") from error
        call.cancel()
    try:
        async with asyncio.timeout(min(target.timeout, 10.0)):
            await _expect_next_call(target, "a cancelled one")
    except TimeoutError as error:
        raise Broken("it never ends", "the call after a cancelled one") from error
    return f"4 cancelled, {inside} of them after content"


@core("streams side by side don't mix", "each call is its own conversation", needs=ANSWERS)
async def concurrency(target: Target) -> str:
    """Each stream is asked for its own word."""
    words = [f"{prompts.WORD}-{chr(97 + number) * 3}" for number in range(STREAMS)]
    answered = await asyncio.gather(*(target.stream(prompts.say(word), word) for word in words))
    for word, exchange in zip(words, answered, strict=True):
        text = text_of(exchange.answer()).lower()
        strange = [other for other in words if other != word and other in text]
        expect(not strange, f"got the words of {', '.join(strange)}", exchange.label)
        expect(word in text, f"answered “{text[:120]}”", exchange.label)
    return f"{STREAMS} streams"
