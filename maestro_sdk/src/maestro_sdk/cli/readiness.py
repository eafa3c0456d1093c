"""Whether a part of the mesh answers. Polls fast, so that a start takes as long as its slowest part and no longer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.rendering import reachable, split_address

PAUSE = 0.03
"""Seconds between two looks."""
_PATIENCE = {"degraded": 2.0, "down": 10.0}
"""Seconds that a health of the mesh must last to be taken as it is: an adapter may just be starting."""


async def wait_listening(address: str) -> None:
    """Returns when something accepts connections at "host:port"."""
    host, port = split_address(reachable(address))
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return
        await asyncio.sleep(PAUSE)


async def wait_serving(api: Api) -> dict[str, Any]:
    """The health of the providers, once there is nothing more to wait for: all can answer, or their troubles last.

    Raises `ApiError` at once when the answer can't change by waiting (401, 403).
    """
    # Envoy answers this itself, and would note every request that it can't forward yet.
    while True:
        with contextlib.suppress(ApiError):
            await asyncio.to_thread(api.get, "/readyz")
            break
        await asyncio.sleep(PAUSE)
    began = time.monotonic()
    while True:
        try:
            health = await asyncio.to_thread(api.get, "/v1/health/providers")
        except ApiError as error:
            if error.status in {401, 403}:
                raise
            began = time.monotonic()
        else:
            waited = time.monotonic() - began
            if waited >= _PATIENCE.get(health["status"], 0):
                return health
        await asyncio.sleep(PAUSE)
