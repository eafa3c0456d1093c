"""The event loop behind the synchronous clients: one daemon thread per process, started with the first call, stopped at
exit.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from maestro_sdk.errors import Cancelled

T = TypeVar("T")

_PATIENCE = 5.0
"""Seconds that the end of the program waits for calls to be cancelled."""


class Closing(Protocol):
    """What has to be closed in the loop that it lives in."""

    def close(self) -> Coroutine[Any, Any, None]:
        """Closes it; a second close does nothing."""
        ...


class BackgroundLoop:
    """A running event loop that other threads hand work to. The caller's own event loop, if there is one, is never
    touched.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._owned: weakref.WeakSet[Closing] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._serve, name="maestro-sdk", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which sees the caller's context variables. Whatever interrupts the wait, Ctrl-C too,
        cancels it.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a synchronous client can't serve its own event loop; use the asynchronous one there")
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise Cancelled("the program is ending") from None
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Cancelled("the call was cancelled") from None
        finally:
            # Nothing when it is done.
            future.cancel()

    def post(self, callback: Callable[[], object]) -> None:
        """Runs `callback` in the loop soon; after the end of the loop there is nothing left to run it for."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    def own(self, thing: Closing) -> None:
        """Closes `thing` at the end of the program, unless it is gone by then."""
        self._owned.add(thing)

    def stop(self) -> None:
        """Cancels what runs, closes what is owned, and ends the thread."""
        future = asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            future.result(_PATIENCE)
        self.post(self._loop.stop)
        self._thread.join(_PATIENCE)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _finish(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for thing in list(self._owned):
            await thing.close()
        await self._loop.shutdown_asyncgens()


_lock = threading.Lock()
_background: BackgroundLoop | None = None


def background() -> BackgroundLoop:
    """The loop of this process."""
    global _background  # noqa: PLW0603 - one per process is the point
    with _lock:
        if _background is None:
            _background = BackgroundLoop()
            atexit.register(_stop)
        return _background


def _stop() -> None:
    loop = _background
    if loop is not None:
        loop.stop()


def _forget() -> None:
    """A child process has the object, but not the thread."""
    global _background, _lock
    _background, _lock = None, threading.Lock()
    atexit.unregister(_stop)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
