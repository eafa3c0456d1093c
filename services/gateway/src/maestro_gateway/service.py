"""Puts the gateway together from a configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

from maestro_gateway.account import Accountant
from maestro_gateway.chat_service import ChatService
from maestro_gateway.http_service import SERVICE, HttpService
from maestro_gateway.identity import Keys
from maestro_gateway.mesh import Mesh
from maestro_gateway.model_service import ModelService
from maestro_gateway.websocket import SocketServer
from maestro_sdk.errors import Unauthenticated
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher
from maestro_sdk.mesh.watch import RouteWatcher
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.events import EventPublisher, EventReader
from maestro_sdk.service.interceptors import Authenticate, Metadata
from maestro_sdk.service.run import Service
from maestro_sdk.service.settings import Config, ConfigError, EnvironmentSwitch

log = logging.getLogger(__name__)

_TIDY = 60.0
_ROUTER_PATIENCE = 3.0
"""Seconds that a starting gateway waits for a router before it goes on with the table of its last life."""


@asynccontextmanager
async def gateway(config: Config) -> AsyncGenerator[Service]:
    """The gateway as a service: ready with the router's table, or with that of its last life when no router comes."""
    settings = config.gateway
    keys = Keys(_known_keys(config))
    backends = Backends()
    router = open_channel(config.router.address)
    try:
        async with (
            EventPublisher.from_config(config, "gateway") as publisher,
            EventReader.from_config(config, "gateway") as events,
            RouteWatcher(config.router.address, "gateway", config.data / "gateway" / "routes.binpb") as watcher,
        ):
            mesh = Mesh(
                source=watcher,
                backends=backends,
                dispatcher=Dispatcher(watcher, backends),
                accountant=Accountant(publisher.publish, lambda: not watcher.connected),
                switched_off=tuple(_switched_off(config)),
            )

            begun = asyncio.get_running_loop().time()

            async def ready() -> str:
                # A table of an earlier life names backends that may be gone: it counts when no router comes.
                waited = asyncio.get_running_loop().time() - begun
                if watcher.connected or (watcher.table.version and waited > _ROUTER_PATIENCE):
                    return ""
                return f"no route table yet from the router at {config.router.address}"

            rest = HttpService(mesh, keys, router, max_body=settings.max_body, ping=settings.ping)
            sockets = SocketServer(
                mesh, keys, events, settings.websocket, max_body=settings.max_body, ping=settings.ping
            )
            tidying = asyncio.create_task(_tidy(backends, watcher))
            try:
                await _listen(sockets, config)
                yield Service(
                    address=settings.address,
                    servicers=[ChatService(mesh), ModelService(watcher), rest],
                    ready=ready,
                    authenticate=authenticator(keys),
                    drain=sockets.drain,
                )
            finally:
                tidying.cancel()
                await sockets.close()
    finally:
        await backends.close()
        await router.close()


async def _listen(sockets: SocketServer, config: Config) -> None:
    try:
        await sockets.open()
    except OSError as error:
        reason = f"can't listen on {config.gateway.websocket}: {error.strerror}"
        raise ConfigError([config.problem_at("gateway.websocket", reason)]) from None


def authenticator(keys: Keys) -> Authenticate:
    """What finds the tenant of a gRPC call. REST calls pass without one: `HttpService` refuses them in JSON."""

    def authenticate(metadata: Metadata, method: str) -> str:
        headers = {name: value for name, value in metadata if isinstance(value, str)}
        try:
            return keys.authenticate(headers)
        except Unauthenticated:
            if method.startswith(SERVICE):
                return ""
            raise

    return authenticate


def _known_keys(config: Config) -> Iterator[tuple[str, str]]:
    for index, entry in enumerate(config.gateway.keys):
        key = entry.key.get()
        if key is None:
            source = entry.key.env or entry.key.file
            log.warning("gateway.keys[%d]: %s is not set, so tenant %s has no key", index, source, entry.tenant)
        else:
            yield entry.tenant, key


def _switched_off(config: Config) -> Iterator[tuple[str, str]]:
    on = config.enabled_adapters()
    for name, adapter in config.adapters.items():
        if name not in on:
            switch = adapter.enabled
            yield (
                name,
                f"{' or '.join(switch.names)} is not set"
                if isinstance(switch, EnvironmentSwitch)
                else "`enabled` is false",
            )


async def _tidy(backends: Backends, watcher: RouteWatcher) -> None:
    """Closes connections to adapters that left the table."""
    while True:
        await asyncio.sleep(_TIDY)
        await backends.forget(watcher.table)
