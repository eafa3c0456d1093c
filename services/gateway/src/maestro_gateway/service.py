"""Puts the gateway together from a configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from google.protobuf.message import Message

from maestro.event.v1.event_pb2 import (
    ROUTE_DEGRADATION_ROUTER_BACK,
    ROUTE_DEGRADATION_ROUTER_LOST,
    Event,
    RouteDegraded,
)
from maestro_gateway.account import Accountant
from maestro_gateway.anthropic.service import AnthropicService
from maestro_gateway.audit.acts import Acts
from maestro_gateway.audit.refusals import refusing
from maestro_gateway.audit.service import auditing
from maestro_gateway.budgets import Budgets, budgeting, doubting, leaving_wills
from maestro_gateway.budgets.desk import BudgetDesk
from maestro_gateway.cache import caching
from maestro_gateway.chat_service import ChatService
from maestro_gateway.embedding_service import EmbeddingService
from maestro_gateway.events.service import SUBSCRIBE, subscriptions
from maestro_gateway.files import FileDoor, FileService, FilesOfJobs, keeping_files
from maestro_gateway.http_service import HttpService, Natives
from maestro_gateway.identity.door import authenticator, identities
from maestro_gateway.jobs import STREAM_RESULTS, running_jobs
from maestro_gateway.keep import keeping
from maestro_gateway.key_service import KeyService
from maestro_gateway.ledger import Ledger, Usage
from maestro_gateway.ledger.stream import KINDS
from maestro_gateway.limits import Limiter, limiting
from maestro_gateway.limits.reload import follow_limits
from maestro_gateway.mesh import Mesh
from maestro_gateway.metrics import count_decisions
from maestro_gateway.model_service import ModelService
from maestro_gateway.notes import Notes, noting
from maestro_gateway.openai.service import OpenAIService
from maestro_gateway.records import Records
from maestro_gateway.resume.service import StreamService
from maestro_gateway.resume.streams import resuming
from maestro_gateway.usage_service import UsageService
from maestro_gateway.webhooks import delivering
from maestro_gateway.webhooks.service import WebhookService
from maestro_gateway.websocket import SocketServer
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher
from maestro_sdk.mesh.watch import Patience, RouteWatcher
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.events import MESH, new_event
from maestro_sdk.service.health import Health
from maestro_sdk.service.peer import Peer
from maestro_sdk.service.replica import in_turn, process_name
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
    peer = Peer.from_config(config)
    backends = Backends(peer)
    name = process_name("gateway")
    routers = in_turn((config.router.address, *config.router.others), name)
    try:
        async with (
            noting(config) as notes,
            EventPublisher.from_config(config, "gateway", durable=KINDS) as publisher,
            doubting(config, publisher, notes) as doubts,
            EventReader.from_config(config, "gateway") as events,
            Ledger.from_config(config) as ledger,
            keeping(config) as keep,
            caching(config.nats.url) as cache,
            keeping_files(config, acts := Acts(publisher.publish)) as files,
            identities(config) as (keys, ring),
            refusing(publisher.publish) as refusals,
            auditing(config, name) as (audit, recorder),
            subscriptions(events, keys) as (feeds, event_service),
            delivering(config, events, publisher.publish) as office,
            limiting(config, lambda payload: publisher.publish(_news(payload, name)), name) as limiter,
            RouteWatcher(
                routers,
                name,
                config.data / "gateway" / "routes.binpb",
                on_change=lambda: publisher.publish(_change_of_routers(name, watcher)),
                patience=Patience(start=_ROUTER_PATIENCE),
                peer=peer,
            ) as watcher,
            budgeting(
                config,
                watcher,
                ledger,
                publisher,
                limiter.store,
                keys.ids_named,
                doubts,
                notes,
                leaving_wills(lambda: ledger.client, name, doubts),
            ) as budgets,
            resuming(config, publisher.publish) as streams,
        ):
            mesh = Mesh(
                source=watcher,
                backends=backends,
                dispatcher=Dispatcher(watcher, backends, gate=limiter.gate),
                accountant=Accountant(
                    refusals.sieve(count_decisions(publisher.publish)),
                    lambda: watcher.degraded,
                    limiter,
                    budgets,
                    notes,
                ),
                switched_off=tuple(_switched_off(config)),
                routers=watcher,
                cache=cache,
                files=files,
                recorder=recorder,
                streams=streams,
            )
            streams.mesh = mesh

            async def drain(grace: float) -> None:
                await asyncio.gather(sockets.drain(grace), streams.drain(grace))

            begun = asyncio.get_running_loop().time()

            async def ready() -> str:
                # A table of an earlier life names backends that may be gone: it counts when no router comes.
                waited = asyncio.get_running_loop().time() - begun
                if watcher.connected or (watcher.table.version and waited > _ROUTER_PATIENCE):
                    return ""
                return f"no route table yet from the router at {' or '.join(routers)}"

            records = Records(events)
            usage, desk = Usage(ledger), BudgetDesk(budgets)
            openai = OpenAIService(mesh, keep, max_body=settings.max_body, ping=settings.ping)
            anthropic = AnthropicService(mesh, max_body=settings.max_body, ping=settings.ping)
            sockets = SocketServer(
                mesh,
                keys,
                feeds,
                settings.websocket,
                max_body=settings.max_body,
                ping=settings.ping,
                refused=refusals.note,
                doors=(FileDoor(files),),
                health=(health := Health()),
            )
            tidying = asyncio.create_task(_tidy(backends, watcher, limiter))
            following = asyncio.create_task(follow_limits(config, limiter, budgets))
            for end in publisher.left:
                budgets.take_left(end)
            telling = asyncio.create_task(_tell_lost(notes, watcher, publisher, budgets))
            # One stack instead of blocks: Python nests no more than twenty.
            async with AsyncExitStack() as stack:
                stack.push_async_callback(sockets.close)
                for task in (tidying, following, telling):
                    stack.callback(task.cancel)
                await _listen(sockets, config)
                jobs = await stack.enter_async_context(
                    running_jobs(config, mesh, name, FilesOfJobs(files), publisher, limiter.most_jobs, acts)
                )
                natives = Natives(
                    jobs, KeyService(ring, acts), UsageService(usage, audit, desk), WebhookService(office)
                )
                rest = HttpService(mesh, records, usage, natives, max_body=settings.max_body, ping=settings.ping)
                yield Service(
                    address=settings.address,
                    servicers=[
                        ChatService(mesh),
                        EmbeddingService(mesh),
                        FileService(files),
                        ModelService(watcher),
                        StreamService(mesh),
                        natives.keys,
                        natives.usage,
                        event_service,
                        natives.webhooks,
                        rest,
                        openai,
                        anthropic,
                        jobs,
                    ],
                    ready=ready,
                    authenticate=authenticator(keys, refusals.note),
                    endless=(SUBSCRIBE, STREAM_RESULTS),
                    drain=drain,
                    health=health,
                )
    finally:
        await backends.close()


async def _listen(sockets: SocketServer, config: Config) -> None:
    try:
        await sockets.open()
    except OSError as error:
        reason = f"can't listen on {config.gateway.websocket}: {error.strerror}"
        raise ConfigError([config.problem_at("gateway.websocket", reason)]) from None


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


def _change_of_routers(name: str, watcher: RouteWatcher) -> Event:
    """What tells that no router renews the table any more, or that one does again."""
    payload = RouteDegraded(
        service=name,
        cause=ROUTE_DEGRADATION_ROUTER_LOST if watcher.lost else ROUTE_DEGRADATION_ROUTER_BACK,
        table_version=watcher.table.version,
    )
    payload.table_age.FromNanoseconds(int(watcher.table_age * 1e9))
    return new_event(payload, f"service/{name}", tenant=MESH)


def _news(payload: Message, name: str) -> Event:
    return new_event(payload, f"service/{name}", tenant=MESH)


async def _tell_lost(notes: Notes, watcher: RouteWatcher, publisher: EventPublisher, budgets: Budgets) -> None:
    """Tells what was under way when this gateway died."""
    async for end in notes.tell_lost(watcher, publisher.publish):
        budgets.take_left(end)


async def _tidy(backends: Backends, watcher: RouteWatcher, limiter: Limiter) -> None:
    """Closes connections to adapters that left the table, and tells of limits of what is not in it."""
    while True:
        await asyncio.sleep(_TIDY)
        await backends.forget(watcher.table)
        limiter.gate.warn(watcher.table)
