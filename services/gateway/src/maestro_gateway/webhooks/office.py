"""The webhooks of the configuration, each with its worker; changes of the file take effect while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import nats.js.errors

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.webhooks import letters
from maestro_gateway.webhooks.courier import Courier
from maestro_gateway.webhooks.hook import PREFIX, Hook
from maestro_gateway.webhooks.worker import FAILURES, Worker
from maestro_sdk.service.bus import STREAM, heed_cancellation
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.hot_reload import changes, merge
from maestro_sdk.service.settings import Config, ConfigError, load

log = logging.getLogger(__name__)

FORGOTTEN = 30.0
"""Seconds that a webhook is left alone by every gateway before its place in the stream is forgotten.

Another gateway may have a newer configuration than this one.
"""


class Office:
    """Keeps a worker for each webhook. `hooks` are those in force, by tenant and name."""

    def __init__(self, reader: EventReader, publish: Callable[[Event], None], *, forgotten: float, look: float) -> None:
        """`look` are the seconds between two looks at whether a webhook that can't deliver now can again."""
        self.reader = reader
        self.courier = Courier()
        self.hooks: dict[tuple[str, str], Hook] = {}
        self._publish = publish
        self._forgotten = forgotten
        self._look_after = look
        self._workers: dict[Hook, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._seen: dict[str, Any] = {}

    def adopt(self, config: Config) -> None:
        """Takes the webhooks of a configuration in the place of those before. Those that are the same go on."""
        self.hooks = {
            (tenant, name): Hook(tenant, name, webhook)
            for tenant, policy in config.tenants.items()
            for name, webhook in policy.webhooks.items()
        }
        wanted = set(self.hooks.values())
        for hook in [hook for hook in self._workers if hook not in wanted]:
            task = self._workers.pop(hook)
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        for hook in wanted - self._workers.keys():
            worker = Worker(hook, self.reader, self.courier, self._publish, look=self._look_after)
            self._workers[hook] = asyncio.create_task(worker.run(), name=hook.consumer)

    async def close(self) -> None:
        """Ends all workers."""
        tasks = [*self._workers.values(), *self._ending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def tidy(self) -> None:
        """Forgets, until cancelled, the places of webhooks that no gateway's configuration has any more."""
        while True:
            heed_cancellation()
            try:
                await self._look()
            except FAILURES as error:
                log.debug("consumers of webhooks can't be listed: %r", error)
            await asyncio.sleep(self._forgotten)

    async def _look(self) -> None:
        client, _ = await self.reader.connection()
        js = client.jetstream(timeout=5)
        known = {hook.consumer for hook in self.hooks.values()}
        seen: dict[str, Any] = {}
        infos: list[Any] = []
        while page := await js.consumers_info(STREAM, offset=len(infos)):
            infos += page
        for info in infos:
            name = str(info.name)
            if not name.startswith(PREFIX) or name in known or info.num_waiting:
                continue
            state = (info.delivered, info.ack_floor, info.num_ack_pending)
            if self._seen.get(name) != state:
                seen[name] = state
                continue
            with suppress(nats.js.errors.NotFoundError):
                await js.delete_consumer(STREAM, name)
                tenant, _, webhook = name.removeprefix(PREFIX).partition("=")
                await letters.forget_gone(client, tenant, webhook)
                log.info("webhook %s of %s is in no configuration any more and was forgotten", webhook, tenant)
        self._seen = seen


@asynccontextmanager
async def delivering(
    config: Config,
    reader: EventReader,
    publish: Callable[[Event], None],
    *,
    forgotten: float = FORGOTTEN,
    look: float = 1.0,
) -> AsyncGenerator[Office]:
    """The webhooks of a configuration, delivered while the block runs."""
    office = Office(reader, publish, forgotten=forgotten, look=look)
    async with office.courier:
        office.adopt(config)
        beside = [
            asyncio.create_task(_follow(config, office), name="follow the webhooks"),
            asyncio.create_task(office.tidy(), name="forget old webhooks"),
        ]
        try:
            yield office
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await office.close()


async def _follow(config: Config, office: Office) -> None:
    async for _ in changes(config.file, asyncio.Event()):
        try:
            config = merge(config, load(config.file))
        except ConfigError as error:
            log.error("webhooks stay as they are: %s", error.problems[0])
            continue
        office.adopt(config)
