"""Ways to ask a provider and to leave it, the same for the tests of every adapter.

Each way to leave returns the seconds until the provider's own server saw its socket close: less than `CLOSE`, whatever
the adapter was doing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, cast

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.provider import Completer, Provider
from maestro_sdk.testing.faults import FaultServer

CLOSE = 2.0
"""Seconds within which a caller's going away has to reach the provider's socket."""
_PATIENCE = 10.0


class Complete(Provider, Completer, Protocol):
    """A provider that can be asked both ways."""


Way = Callable[[Complete, ChatRequest], Awaitable[ChatResponse]]
Leave = Callable[[FaultServer, Provider, ChatRequest, str], Awaitable[float]]


async def streamed(provider: Provider, request: ChatRequest) -> ChatResponse:
    """The answer that the stream folds to."""
    return fold([event async for events in provider.stream(request) for event in events])


async def completed(provider: Completer, request: ChatRequest) -> ChatResponse:
    """The answer of the unary call."""
    return fold(await provider.complete(request))


async def close_stream(server: FaultServer, provider: Provider, request: ChatRequest, text: str) -> float:
    """Closes a stream that has said `text` so far."""
    batches = cast("AsyncGenerator[Sequence[ChatEvent]]", provider.stream(request))
    async with asyncio.timeout(_PATIENCE):
        await _hear(batches, text)
    begun = time.monotonic()
    await batches.aclose()
    return await _closed(server, begun)


async def cancel_stream(server: FaultServer, provider: Provider, request: ChatRequest, text: str) -> float:
    """Cancels the task that waits for more of a stream that has said `text` so far."""
    reached = asyncio.Event()

    async def read() -> None:
        batches = provider.stream(request)
        await _hear(batches, text)
        reached.set()
        async for events in batches:
            raise AssertionError(f"more came: {events}")

    task = asyncio.create_task(read())
    async with asyncio.timeout(_PATIENCE):
        await reached.wait()
    return await _cancel(server, task)


async def cancel_call(server: FaultServer, call: Coroutine[Any, Any, object]) -> float:
    """Cancels a call that the provider's server has read."""
    task = asyncio.create_task(call)
    await server.request()
    return await _cancel(server, task)


async def _hear(batches: AsyncIterator[Sequence[ChatEvent]], text: str) -> None:
    said = ""
    async for events in batches:
        said += "".join(event.text.text for event in events)
        if said == text:
            return
    raise AssertionError(f"the stream ended after {said!r}")


async def _cancel(server: FaultServer, task: asyncio.Task[Any]) -> float:
    begun = time.monotonic()
    task.cancel()
    await asyncio.wait((task,), timeout=_PATIENCE)
    if not task.cancelled():
        raise AssertionError(f"it was cancelled, and came to {task}")
    return await _closed(server, begun)


async def _closed(server: FaultServer, begun: float) -> float:
    seen = await server.request()
    await asyncio.wait_for(seen.closed.wait(), _PATIENCE)
    return time.monotonic() - begun
