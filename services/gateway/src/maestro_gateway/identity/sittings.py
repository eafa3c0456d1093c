"""Calls that outlive the check of their key: each is ended once that key is not in force any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Self

from maestro_gateway.identity.keys import Keys
from maestro_gateway.identity.principal import Principal

log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks for keys that have expired; those that were revoked are known at once."""
_FAREWELL = 5.0
"""Seconds that the end of a call may take."""
_Dismiss = Callable[[], Awaitable[None] | None]


class Sittings:
    """Watches over long calls while its `async with` block runs."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._held: dict[object, tuple[Principal, _Dismiss]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._keys.changed.append(self._changed.set)
        self._task = asyncio.create_task(self._watch(), name="end calls of keys that are over")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keys.changed.remove(self._changed.set)
        tasks = {self._task, *self._ending} if self._task is not None else self._ending
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextmanager
    def hold(self, principal: Principal, dismiss: _Dismiss) -> Generator[None]:
        """Lets a call run on until `dismiss` is called, once, because the key of `principal` is over."""
        place = object()
        self._held[place] = (principal, dismiss)
        try:
            yield
        finally:
            self._held.pop(place, None)

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._changed.wait()
            self._changed.clear()
            over = [place for place, (principal, _) in self._held.items() if not self._keys.is_good(principal)]
            for place in over:
                # Each by itself: a peer that reads nothing must not hold up the end of others.
                task = asyncio.create_task(_end(self._held.pop(place)[1]), name="end a call with its key")
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)


async def _end(dismiss: _Dismiss) -> None:
    try:
        ending = dismiss()
        if ending is not None:
            async with asyncio.timeout(_FAREWELL):
                await ending
    except Exception:
        log.exception("a call could not be ended with its key")
