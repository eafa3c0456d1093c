"""The connection to NATS that everything of the audit shares."""

from __future__ import annotations

import asyncio

from maestro_gateway.audit.chain import ensure_audit
from maestro_sdk.errors import NoBackend
from maestro_sdk.service.bus import Client, Link

_PATIENCE = 1.0
"""Seconds to wait for a connection: when none stands, another one hardly comes in time."""


class Wire:
    """Is kept up while `keep` runs."""

    def __init__(self, url: str) -> None:
        self._link = Link(url, "audit", self._on_link)
        self._up = asyncio.Event()

    async def keep(self) -> None:
        """Connects, and makes the stream where it is missing, until cancelled."""

        async def prepare(client: Client) -> None:
            await ensure_audit(client)

        await self._link.keep(prepare)

    async def connected(self) -> tuple[Client, int]:
        """The connection and its number, as soon as there is one."""
        while not self._link.up or self._link.client is None:
            await self._up.wait()
        return self._link.client, self._link.generation

    async def client(self) -> Client:
        """The connection. Raises `NoBackend` when there is none within a second."""
        try:
            async with asyncio.timeout(_PATIENCE):
                client, _ = await self.connected()
        except TimeoutError:
            raise NoBackend(f"the audit can't be read now: {self._link.trouble}", retry_after=1.0) from None
        return client

    def is_current(self, generation: int) -> bool:
        """Whether a connection is still the one in use."""
        return self._link.up and self._link.generation == generation

    def _on_link(self) -> None:
        if self._link.up:
            self._up.set()
        else:
            self._up.clear()
