"""Bounds the silence of a stream with one timer instead of one per event."""

from __future__ import annotations

import asyncio
import time

from maestro_sdk.errors import Timeout
from maestro_sdk.mesh.backends import ChatCall


class Silence:
    """Cancels a call that begins too late or stops for too long. While nobody reads from it no time runs."""

    __slots__ = ("_call", "_first", "_handle", "_idle", "_loop", "_seen", "fired", "since")

    def __init__(self, call: ChatCall, first: float, idle: float) -> None:
        """`first` bounds the time to the first event, `idle` that between two; in seconds, 0 for no bound."""
        self._call, self._first, self._idle = call, first, idle
        self._loop = asyncio.get_running_loop()
        self.since = time.monotonic()
        """When the wait for the next event began; infinite while the reader is busy elsewhere."""
        self._seen = False
        self.fired = ""
        """Why the call was cancelled; empty when it was not."""
        self._handle: asyncio.TimerHandle | None = None
        if first or idle:
            self._handle = self._loop.call_later(first or idle, self._check)

    def touch(self) -> float:
        """Events came; gives the time."""
        self._seen = True
        self.since = now = time.monotonic()
        return now

    def timeout(self) -> Timeout | None:
        """The error when the call was cancelled here."""
        return Timeout(self.fired) if self.fired else None

    def stop(self) -> None:
        """Ends the watch."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _check(self) -> None:
        limit = self._idle if self._seen else self._first
        self._handle = None
        if not limit:
            # Only the other limit is set: look again when it may matter.
            self._handle = self._loop.call_later(self._idle or self._first, self._check)
            return
        left = self.since + limit - time.monotonic()
        if left > 0.001:
            self._handle = self._loop.call_later(min(left, limit), self._check)
            return
        what = "sent nothing for" if self._seen else "did not begin within"
        self.fired = f"the backend {what} {limit:g} s"
        self._call.cancel()
