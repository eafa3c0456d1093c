"""Carries one message to one receiver, once."""

from __future__ import annotations

import time
import uuid
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.events.entry import without_caller
from maestro_gateway.json_codec.encoder import plain
from maestro_gateway.webhooks.hook import Hook
from maestro_gateway.webhooks.outcome import Failed, Outcome, judge
from maestro_gateway.webhooks.signature import signed

_HEADERS = {"content-type": "application/json", "user-agent": "maestro-webhooks/1"}


class Courier:
    """Holds the connections to receivers. An async context manager."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def carry(self, hook: Hook, event: Event) -> Outcome:
        """Delivers an event. Never raises for what a receiver or the network does."""
        body = {"type": event.kind, "timestamp": event.time.ToJsonString(), "data": plain(without_caller(event))}
        return await self._send(hook, event.id, body)

    async def try_out(self, hook: Hook) -> Outcome:
        """Delivers a message of the type "webhook.test", which is no event."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        data = {"tenant": hook.tenant, "webhook": hook.name}
        return await self._send(
            hook, f"test_{uuid.uuid4().hex}", {"type": "webhook.test", "timestamp": now, "data": data}
        )

    async def _send(self, hook: Hook, message_id: str, body: Any) -> Outcome:
        if self._session is None:
            raise RuntimeError("the courier is not open")
        data = orjson.dumps(body)
        try:
            headers = _HEADERS | signed(hook.secrets(), message_id, int(time.time()), data)
        except ValueError as error:
            return Failed(str(error))
        timeout = aiohttp.ClientTimeout(total=hook.config.timeout)
        try:
            async with self._session.post(
                hook.config.url, data=data, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                # What it says beside the status matters to nobody, so it is not read.
                found = {name.lower(): value for name, value in response.headers.items()}
                return judge(response.status, found, time.time())
        except TimeoutError:
            return Failed(f"it did not answer within {hook.config.timeout:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # By its kind: the text of some of them holds the whole address.
            return Failed(f"it can't be reached ({type(error).__name__})")

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=128)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
