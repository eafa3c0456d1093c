"""Servers in a thread of their own, for synchronous clients: those block the loop that they are called in."""

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from maestro_sdk.testing.servers import serve


@contextmanager
def serve_in_thread(*servicers: object) -> Generator[str]:
    """Serves in a loop of its own; gives the address."""
    started: list[str] = []
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def run() -> None:
        async with serve(*servicers) as address:
            started.append(address)
            ready.set()
            await stop.wait()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())
        ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(10)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@pytest.fixture
def threaded() -> Iterator[Callable[..., str]]:
    """Call it with servicers: they are served in a thread until the test ends; gives the address."""
    with ExitStack() as stack:
        yield lambda *servicers: stack.enter_context(serve_in_thread(*servicers))


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests decides nothing."""
    monkeypatch.delenv("MAESTRO_KEY", raising=False)
    monkeypatch.delenv("MAESTRO_URL", raising=False)
