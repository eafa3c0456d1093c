"""A caller who leaves, or whose time is over, takes every attempt along: none is left running, and none follows."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio
from drill_doors import DOORS, STREAMED, Stand, as_message, ask
from drill_stage import Stage, chosen, prompt, run_all
from drill_table import WIRES

from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro_sdk.errors import from_rpc_error
from maestro_sdk.testing.callers import question
from maestro_sdk.testing.faults import Reply, Seen

AT_ONCE = 8
LIMIT = 2.0
"""Seconds within which every socket has to be closed, on a machine that is busy otherwise."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a request stands when its caller leaves: its route, what the providers do, and how many calls run."""

    route: str
    first: Callable[[], Reply]
    second: Callable[[], Reply]
    calls: int
    streamed: bool = False


OPENAI, ANTHROPIC = WIRES["openai"], WIRES["anthropic"]
MOMENTS = {
    "two race": Moment("race", OPENAI.stall_before_headers, ANTHROPIC.stall_before_headers, 2),
    "two race, both have begun": Moment("race", lambda: OPENAI.stall_after(0), lambda: ANTHROPIC.stall_after(0), 2),
    "after a failure": Moment("race", lambda: OPENAI.error(500), ANTHROPIC.stall_before_headers, 2),
    "another one goes on": Moment(
        "to-prefill", lambda: OPENAI.cut_after(2), lambda: ANTHROPIC.stall_after(0), 2, streamed=True
    ),
    "another one has gone on": Moment(
        "to-prefill", lambda: OPENAI.cut_after(2), lambda: ANTHROPIC.stall_after(1), 2, streamed=True
    ),
}
CASES = {
    f"{name}, {door}": (name, door)
    for name, moment in MOMENTS.items()
    for door in (STREAMED if moment.streamed else DOORS)
}


def begin(stage: Stage, name: str, case: str) -> Moment:
    """Scripts the providers."""
    moment = MOMENTS[name]
    stage.script(case, "openai", moment.first())
    stage.script(case, "anthropic", moment.second())
    return moment


async def underway(stage: Stage, case: str, calls: int) -> list[Seen]:
    """The calls of a case, once there are so many."""
    async with asyncio.timeout(10):
        while len(found := stage.seen(case, "openai") + stage.seen(case, "anthropic")) < calls:
            await asyncio.sleep(0.01)
    return found


async def all_closed(calls: list[Seen], name: str) -> None:
    """Waits until the sockets are closed that the providers hold; what a provider ended itself, nobody has to close."""
    held = calls if name.startswith("two race") else calls[-1:]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(seen.closed.wait() for seen in held))


async def drill(key: str, stage: Stage, stand: Stand) -> None:
    """One case. Raises `AssertionError`."""
    (name, door), case = CASES[key], f"leaving, {key}"
    moment = begin(stage, name, case)
    call = asyncio.create_task(ask(stand, door, prompt(case), model=moment.route))
    calls = await underway(stage, case, moment.calls)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await all_closed(calls, name)
    # Nobody begins anything any more.
    await asyncio.sleep(0.2)
    assert len(await underway(stage, case, moment.calls)) == moment.calls
    stage.forget(case)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(request: pytest.FixtureRequest, stage: Stage, calm_stand: Stand) -> Mapping[str, str]:
    """What was wrong with each case that was asked for, by name."""
    names = chosen(request, test_who_leaves_takes_all_along)
    return await run_all(names, lambda name: drill(name, stage, calm_stand), AT_ONCE)


@pytest.mark.parametrize("name", CASES)
async def test_who_leaves_takes_all_along(outcomes: Mapping[str, str], name: str):
    assert not outcomes[name], outcomes[name]


@pytest.mark.parametrize("name", [name for name, moment in MOMENTS.items() if not moment.streamed])
@pytest.mark.parametrize("unary", [True, False], ids=["unary", "stream"])
async def test_a_deadline_ends_all(stage: Stage, calm_stand: Stand, name: str, unary: bool):
    case = f"deadline, {name}, {unary}"
    moment = begin(stage, name, case)
    stub = ChatServiceStub(calm_stand.channel)
    request = as_message(question(prompt(case), model=moment.route))
    begun = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if unary:
            await stub.Chat(request, metadata=calm_stand.caller.metadata, timeout=0.8)
        else:
            async for _ in stub.StreamChat(request, metadata=calm_stand.caller.metadata, timeout=0.8):
                pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert from_rpc_error(caught.value).reason == "TIMEOUT"
    assert 0.7 < time.monotonic() - begun < 3
    calls = await underway(stage, case, moment.calls)
    await all_closed(calls, name)
    assert len(await underway(stage, case, moment.calls)) == moment.calls
    stage.forget(case)


async def test_nobody_is_blamed_for_a_caller_who_left(stage: Stage, stand: Stand):
    """More callers leave than failures would open the breaker; the backend answers the next one all the same."""
    case = "leaving, blame"
    stage.script(case, "openai", OPENAI.stall_after(1))
    for number in range(1, 8):
        call = asyncio.create_task(ask(stand, "sse", prompt(case), model="openai/mixed"))
        seen = (await underway(stage, case, number))[-1]
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(LIMIT):
            await seen.closed.wait()
    stage.script(case, "openai", OPENAI.text("all is well"))
    got = await ask(stand, "rest", prompt(case), model="openai/mixed")
    stage.forget(case)
    assert (got.text, got.error) == ("all is well", {})
