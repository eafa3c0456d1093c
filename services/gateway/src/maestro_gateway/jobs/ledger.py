"""What jobs need of whoever publishes the ends of requests: to know when these are safe."""

from __future__ import annotations

import asyncio
from typing import Protocol

from maestro_sdk.service.bus import heed_cancellation

_PATIENCE = 5.0
_TICK = 0.005


class Ledger(Protocol):
    """What publishes the ends of requests: an `EventPublisher`."""

    @property
    def accepted(self) -> int:
        """How many events were taken."""
        ...

    @property
    def secured(self) -> int:
        """How many of them, from the first, outlive this process."""
        ...


async def secure(ledger: Ledger) -> None:
    """Waits until what was published so far outlives this process; five seconds at most."""
    mark, end = ledger.accepted, asyncio.get_running_loop().time() + _PATIENCE
    while ledger.secured < mark and asyncio.get_running_loop().time() < end:
        heed_cancellation()
        await asyncio.sleep(_TICK)
