"""Whether a part of the mesh answers. Polls fast, so that a start takes as long as its slowest part and no longer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
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
    return await _wait_healthy(lambda: asyncio.to_thread(api.get, "/v1/health/providers"))


async def wait_each_serving(gateways: Sequence[str], key: str | None) -> None:
    """The same of each gateway by itself: through Envoy any of them may have answered. `gateways` are addresses."""
    # A single gateway needs none of this, and a start of one no time for the import.
    import grpc

    from maestro.gateway.v1.http_pb2 import GetProviderHealthRequest
    from maestro.gateway.v1.http_pb2_grpc import HttpServiceStub
    from maestro_sdk.service.channel import open_channel

    metadata = (("authorization", f"Bearer {key}"),) if key else ()

    async def wait(address: str) -> None:
        async with open_channel(reachable(address)) as channel:
            gateway = HttpServiceStub(channel)

            async def ask() -> dict[str, Any]:
                try:
                    answer = await gateway.GetProviderHealth(GetProviderHealthRequest(), metadata=metadata, timeout=5)
                except grpc.aio.AioRpcError as error:
                    raise ApiError(error.details() or error.code().name) from None
                found: dict[str, Any] = json.loads(answer.data)
                if "status" not in found:
                    raise ApiError(f"{address} answers {found}")
                return found

            await _wait_healthy(ask)

    await asyncio.gather(*(wait(address) for address in gateways))


async def _wait_healthy(ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """The health that `ask` gives, once it is good or lasts."""
    began = time.monotonic()
    while True:
        try:
            health = await ask()
        except ApiError as error:
            if error.status in {401, 403}:
                raise
            began = time.monotonic()
        else:
            waited = time.monotonic() - began
            if waited >= _PATIENCE.get(health["status"], 0):
                return health
        await asyncio.sleep(PAUSE)
