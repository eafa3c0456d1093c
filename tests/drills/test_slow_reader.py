"""A caller that reads slowly holds up its provider, and nothing else: no memory grows, no other stream waits."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from drill_doors import STREAMED, Stand, as_message, ask
from drill_stage import Stage, prompt
from drill_table import WIRES

from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro_sdk.testing.callers import question
from maestro_sdk.testing.faults import Seen
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.wire import Answer

MIB = 2**20
PIECE = "0123456789abcdef" * 1024
PIECES = 6400
"""Pieces of 16 KiB: 100 MiB in all."""
MOST_SENT = 80 * MIB
"""Bytes that may be under way. The buffers of the system hold nearly all of them: four sockets lie between provider and
caller, and a system may let each one grow to tens of megabytes. What the mesh itself holds is bounded below."""
MOST_GROWTH = 32 * MIB
"""Bytes by which gateway and adapter may grow."""
PAUSE = 1.5
"""Seconds without a read: longer than the route allows a provider to be silent."""


def resident(pid: int | None) -> int:
    """Bytes of memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} tells no VmRSS")


@asynccontextmanager
async def reading(stand: Stand, door: str, case: str) -> AsyncGenerator[AsyncIterator[str]]:
    """The texts of a streamed answer, read no faster than the test asks for them."""
    body = question(prompt(case), model="flood")
    match door:
        case "sse":
            headers = {"content-type": "application/json"}
            sent = json.dumps({**body, "stream": True}).encode()
            async with stand.caller.session.post("/v1/chat", data=sent, headers=headers, read_bufsize=MIB) as response:
                yield _sse(response.content)
                response.close()
        case "socket":
            async with stand.caller.socket() as socket:
                await socket.send_json({"type": "chat", "id": "c", "request": body})
                yield _frames(socket.receive_json)
        case _:
            call = ChatServiceStub(stand.channel).StreamChat(as_message(body), metadata=stand.caller.metadata)
            yield _messages(call)
            call.cancel()


async def settled(seen: Seen, timeout: float = 20.0) -> int:
    """The bytes that the provider has sent, once they grow no more."""
    async with asyncio.timeout(timeout):
        last, since = -1, time.monotonic()
        while time.monotonic() - since < 0.7:
            if seen.sent != last:
                last, since = seen.sent, time.monotonic()
            await asyncio.sleep(0.02)
    return last


@pytest.mark.parametrize("door", STREAMED)
async def test_a_slow_reader_holds_up_its_provider(
    strict: MeshProcess, stage: Stage, stand: Stand, figures: list[str], door: str
):
    case, other = f"flood, {door}", f"beside the flood, {door}"
    answer = Answer(pieces=(PIECE,) * PIECES)
    stage.script(case, "openai", WIRES["openai"].answer(answer))
    stage.script(other, "anthropic", WIRES["anthropic"].text())
    members = strict.members()
    pids = [members[name].pid for name in ("gateway", "adapter-openai")]
    before = [resident(pid) for pid in pids]
    async with reading(stand, door, case) as texts:
        length = len(await anext(texts))
        [seen] = stage.seen(case, "openai")
        sent = await settled(seen)
        stopped = time.monotonic()
        growth = [resident(pid) - was for pid, was in zip(pids, before, strict=True)]
        slowest = 0.0
        while time.monotonic() - stopped < PAUSE:
            begun = time.monotonic()
            got = await ask(stand, door, prompt(other), model="anthropic/mixed")
            slowest = max(slowest, time.monotonic() - begun)
            assert (got.finish, got.error) == ("stop", {})
        # A system under load may have filled a last buffer late.
        assert seen.sent - sent <= 8 * MIB
        sent = seen.sent
        async for text in texts:
            length += len(text)
    after = [resident(pid) - was for pid, was in zip(pids, before, strict=True)]
    figures.append(
        f"slow reader, {door}: of {PIECES * len(PIECE) / MIB:.0f} MiB the provider could send {sent / MIB:.1f} MiB; "
        f"gateway +{growth[0] / MIB:.0f} MiB, adapter +{growth[1] / MIB:.0f} MiB; others answered in {slowest:.2f} s"
    )
    stage.forget(case)
    stage.forget(other)
    assert length == PIECES * len(PIECE)
    assert sent <= MOST_SENT
    assert max(*growth, *after) <= MOST_GROWTH
    assert slowest < 1.0


async def _sse(content: aiohttp.StreamReader) -> AsyncIterator[str]:
    name, ends = "", 0
    async for line in content:
        kind, _, value = line.decode().rstrip("\n").partition(": ")
        if kind == "event":
            name = value
        elif kind == "data" and name == "text":
            yield str(json.loads(value)["text"])
        elif kind == "data" and name == "finish":
            ends += 1
            name = ""
        elif kind == "data":
            assert name in ("", "started", "usage"), line
    assert ends == 1


async def _frames(receive: Callable[[], Awaitable[Any]]) -> AsyncIterator[str]:
    while (frame := await receive())["type"] != "finish":
        assert frame["type"] in ("started", "usage", "text"), frame
        if frame["type"] == "text":
            yield frame["text"]


async def _messages(call: Any) -> AsyncIterator[str]:
    ends = 0
    async for message in call:
        for event in message.events:
            ends += event.HasField("finish")
            if event.HasField("text"):
                yield event.text.text
    assert ends == 1
