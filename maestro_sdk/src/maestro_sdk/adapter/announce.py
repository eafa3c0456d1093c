"""An adapter tells the mesh that it is there, so that no configuration of the mesh has to name it.

The wire is plain protobuf on NATS, for adapters in any language: docs/write-an-adapter.md has it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import nats.errors

from maestro.router.v1.router_pb2 import AdapterAnnouncement
from maestro_sdk.service.bus import Client, Link, heed_cancellation
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.service.settings import AdapterConfig, Config

ANNOUNCE = "maestro.adapters.announce"
"""Subject of announcements."""
WHO = "maestro.adapters.who"
"""Subject on which somebody asks all adapters to announce themselves."""
BEAT = 2.0
"""Seconds between two announcements."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""What an adapter may be called."""

_log = logging.getLogger(__name__)
_JITTER = 0.05
"""Longest pause in seconds before an answer: a question is not answered by all adapters in one moment."""
_GOODBYE = 1.0
"""Most seconds that a goodbye may hold up the drain."""
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_PORT = re.compile(r"[0-9]{1,5}")
_EVERYWHERE = frozenset({"0.0.0.0", "[::]"})


def announcement_of(config: Config, name: str, entry: AdapterConfig) -> AdapterAnnouncement | None:
    """What the adapter `name` of this configuration announces, for one life of its process; None when nothing.

    Raises `ConfigError` when nobody could reach it under that address, or call it so.
    """
    if entry.announce is None:
        return None
    called, address = entry.announce.name or name, entry.announce.address or entry.address
    path = f"adapters.{name}.announce"
    if not NAME.fullmatch(called):
        message = f"{called!r} is not a name to announce: letters, digits, - _ and ., 63 at most"
        raise ConfigError([config.problem_at(f"{path}.name", message)])
    if wrong := unreachable(address):
        message = f"{address} {wrong}: give the address under which the mesh reaches it"
        raise ConfigError([config.problem_at(f"{path}.address", message)])
    return AdapterAnnouncement(name=called, address=address, instance=uuid.uuid4().hex, regions=entry.regions)


def unreachable(address: str) -> str:
    """Why nobody elsewhere can reach an address, "" when it has the form that somebody can."""
    host, _, port = address.rpartition(":")
    if not _HOST.fullmatch(host) or not _PORT.fullmatch(port) or not 0 < int(port) <= 65535:
        return "is not host:port"
    if host in _EVERYWHERE:
        return "stands for a whole machine, not for a place in a network"
    return ""


@asynccontextmanager
async def announcing(announcement: AdapterAnnouncement, url: str, beat: float = BEAT) -> AsyncGenerator[None]:
    """Announces at the NATS server `url` every `beat` seconds and when asked, and says goodbye at the end.

    While NATS is away it tries again without a word and hinders nobody.
    """
    announcer = _Announcer(announcement, url)
    running = asyncio.create_task(announcer.run(beat), name="announce the adapter")
    try:
        yield
    finally:
        await announcer.leave()
        running.cancel()
        await asyncio.wait((running,))


class _Announcer:
    def __init__(self, announcement: AdapterAnnouncement, url: str) -> None:
        self._announcement = announcement
        self._link = Link(url, f"announcement of {announcement.name}", lambda: None)
        self._listening: Client | None = None
        """The client that listens for questions: it goes on doing so when its connection comes back."""
        self._asked = asyncio.Event()
        self._leaving = False

    async def run(self, beat: float) -> None:
        """Announces until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.keep(self._prepare))
            while True:
                heed_cancellation()
                try:
                    async with asyncio.timeout(beat):
                        await self._asked.wait()
                except TimeoutError:
                    pass
                else:
                    await asyncio.sleep(random.random() * _JITTER)  # noqa: S311 - chance, not a secret
                self._asked.clear()
                if not self._leaving:
                    await self._say(self._announcement)

    async def leave(self) -> None:
        """Says goodbye where NATS is there to hear it, and nothing after that."""
        self._leaving = True
        farewell = AdapterAnnouncement(leaving=True)
        farewell.MergeFrom(self._announcement)
        await self._say(farewell, flush=True)

    async def _prepare(self, client: Client) -> None:
        if client is not self._listening:
            await client.subscribe(WHO, cb=self._on_question)
            self._listening = client
        if self._leaving:
            return
        await client.publish(ANNOUNCE, self._announcement.SerializeToString())
        _log.info("announced as %s at %s", self._announcement.name, self._announcement.address)

    async def _on_question(self, message: object) -> None:
        del message
        self._asked.set()

    async def _say(self, announcement: AdapterAnnouncement, *, flush: bool = False) -> None:
        client = self._link.client
        if client is None or not self._link.up:
            return
        try:
            async with asyncio.timeout(_GOODBYE):
                await client.publish(ANNOUNCE, announcement.SerializeToString())
                if flush:
                    await client.flush()
        except (nats.errors.Error, TimeoutError, OSError) as error:
            _log.debug("the announcement was not sent: %s", error)
