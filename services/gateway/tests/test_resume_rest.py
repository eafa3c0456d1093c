"""What is left of resumable streams once they are over: nothing, and without waiting for a collection of garbage.

What holds each other lives until the next full collection, which comes after millions of objects: a gateway whose
streams end like that grows by tens of megabytes in between.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from maestro_gateway.account import Account
from maestro_gateway.chats import Chat
from maestro_gateway.resume.generation import Generation
from maestro_gateway.resume.reading import Reading
from maestro_gateway.resume.tail import Piece, Tail
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.legs import StreamLeg
from maestro_sdk.mesh.trail import Attempt, Trail
from maestro_sdk.testing.scripted import Fault, answer

from .posts import Post, Stage, SteppedProvider, read, staged, text_of, until

STREAMS = int(os.environ.get("RESUME_RUNS", "5"))
PIECES = [f"piece {number} " for number in range(30)]
KINDS = (Account, Attempt, Chat, Generation, Piece, Reading, StreamLeg, Tail, Trail)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path, SteppedProvider(answer(*PIECES))) as found:
        yield found


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is freed but what nobody holds."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> Counter[str]:
    """What of streams is in memory, and the calls that adapters keep."""
    kinds = {kind.__name__ for kind in KINDS} | {"_Standing"}
    return Counter(name for each in gc.get_objects() if (name := type(each).__name__) in kinds)


End = Callable[[Post, Post, Stage, str], Awaitable[None]]


async def _read_whole(one: Post, two: Post, stage: Stage, name: str) -> None:
    stage.provider.permit(40)
    assert text_of(await read(await one.begin(stream=name))) == "".join(PIECES)
    assert text_of(await read(two.resume(stream=name))) == "".join(PIECES)


async def _leave(one: Post, two: Post, stage: Stage, name: str) -> None:
    stage.provider.permit(4)
    await read(await one.begin(stream=name), 4)
    await until(lambda: not one.streams.running)


async def _cancel(one: Post, two: Post, stage: Stage, name: str) -> None:
    stage.provider.permit(4)
    await read(await one.begin(stream=name), 4)
    await two.streams.cancel("acme", name)
    for post in (one, two):
        with pytest.raises(MaestroError):
            await read(post.resume(stream=name))


async def _fail(one: Post, two: Post, stage: Stage, name: str) -> None:
    stage.provider.fault = Fault.ERROR_AFTER_CONTENT
    stage.provider.permit(40)
    for reading in (await one.begin(stream=name), one.resume(stream=name), two.resume(stream=name)):
        with pytest.raises(MaestroError):
            await read(reading)


async def _move(one: Post, two: Post, stage: Stage, name: str) -> None:
    stage.provider.permit(4)
    heard = await read(await one.begin(stream=name), 4)
    for generation in list(one.streams.running.values()):
        generation.hand_over()
    stage.provider.permit(40)
    assert text_of([*heard, *await read(two.resume(len(heard), stream=name))]) == "".join(PIECES)


@pytest.mark.parametrize("end", [_read_whole, _leave, _cancel, _fail, _move])
@pytest.mark.usefixtures("uncollected")
async def test_nothing_is_left_of_streams_that_are_over(stage: Stage, end: End):
    # Other tests of this process may have left something that still lives.
    before = alive()
    one, two = await stage.gateway(window=0.1), await stage.gateway(window=0.1)
    tasks = 0
    for number in range(STREAMS + 1):
        stage.provider.permits = asyncio.Semaphore(0)
        await end(one, two, stage, f"stream-{number}")
        await until(lambda: not one.streams.running and not two.streams.running)
        # Connections are made once.
        tasks = tasks or len(asyncio.all_tasks())
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    # Calls that are whole can still be taken up, and gRPC holds the last error.
    kept = Counter(_Standing=len(stage.standing) + 1)
    await until(lambda: not alive() - before - kept)
    assert len(one.ends() + two.ends()) == STREAMS + 1
