"""A receiver of webhooks on loopback, which checks what it gets by itself, and fails as it is told.

    async with Receiver(secret) as receiver:
        receiver.answer = lambda message: Say(500)          # everything from now on
        message = (await receiver.messages(3))[0]           # id, type, data, attempt, at

Its check of signatures is written from the specification of Standard Webhooks, and shares no code with what signs.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web

_TOLERANCE = 300


@dataclass(frozen=True, slots=True)
class Say:
    """An answer: `after` are the seconds before it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Received:
    """One message that was delivered. `attempt` counts those of the same id, from 1; `at` is monotonic."""

    message_id: str
    kind: str
    data: Any
    attempt: int
    at: float
    headers: Mapping[str, str]


class Receiver:
    """Takes messages while its `async with` block runs; `taken` are those that it answered with 2xx."""

    def __init__(self, *secrets: str, port: int = 0) -> None:
        """`secrets` as receivers have them, `whsec_…`: each has to have signed. `port` 0 is any."""
        self.seen: list[Received] = []
        self.taken: list[Received] = []
        self.faults: list[str] = []
        """What was wrong with messages: empty when every one was good."""
        self.answer: Callable[[Received], Say] = lambda _: Say()
        self.port = port
        self._secrets = secrets
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook"

    async def start(self) -> None:
        """Listens; after `stop` again at the same address."""
        application = web.Application()
        application.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Dies: whoever was being answered gets no answer."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def messages(self, count: int, *, taken: bool = True, timeout: float = 15.0) -> list[Received]:
        """The first messages (those that were taken, or all), as soon as there are so many. Raises `TimeoutError`."""
        found = self.taken if taken else self.seen
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: len(found) >= count)
        return found[:count]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.faults += faults(self._secrets, headers, body, time.time())
        document = json.loads(body)
        message_id = headers.get("webhook-id", "")
        attempt = 1 + sum(each.message_id == message_id for each in self.seen)
        message = Received(message_id, document["type"], document["data"], attempt, time.monotonic(), headers)
        said = self.answer(message)
        async with self._changed:
            self.seen.append(message)
            self._changed.notify_all()
        if said.after:
            await asyncio.sleep(said.after)
        if 200 <= said.status < 300:
            async with self._changed:
                self.taken.append(message)
                self._changed.notify_all()
        return web.Response(status=said.status, headers=said.headers)


def faults(secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> list[str]:
    """What is wrong with a message, by the specification: identifier, time within five minutes, a signature by each."""
    missing = [name for name in ("webhook-id", "webhook-timestamp", "webhook-signature") if not headers.get(name)]
    if missing:
        return [f"no {name}" for name in missing]
    message_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
    found: list[str] = []
    if not timestamp.isdigit() or abs(int(timestamp) - now) > _TOLERANCE:
        found.append(f"its time is {timestamp}")
    given = dict[str, list[str]]()
    for part in headers["webhook-signature"].split(" "):
        version, _, signature = part.partition(",")
        given.setdefault(version, []).append(signature)
    for number, secret in enumerate(secrets):
        key = base64.b64decode(secret.split("_", 1)[1])
        mac = hmac.new(key, digestmod=hashlib.sha256)
        for piece in (message_id.encode(), b".", timestamp.encode(), b".", body):
            mac.update(piece)
        if base64.b64encode(mac.digest()).decode() not in given.get("v1", []):
            found.append(f"secret {number} did not sign it")
    return found
