"""The router as a service: watches the adapters, hears of those that join, keeps the board, answers from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from google.protobuf.message import Message

from maestro_router.admission import Admission
from maestro_router.board import Board
from maestro_router.catalogue import AdapterWatch, settle
from maestro_router.compile import Adapter
from maestro_router.metrics import export
from maestro_router.reload import Reload
from maestro_router.servicer import RouterServicer
from maestro_router.shared import Shared
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.events import MESH, new_event
from maestro_sdk.service.peer import Peer
from maestro_sdk.service.run import Service
from maestro_sdk.service.settings import Config

_PATIENCE = 2.0
"""Seconds that a starting router waits for what the others know."""


@asynccontextmanager
async def router(config: Config) -> AsyncGenerator[Service]:
    """Serves `RouterService`. What it does not know yet it says so in the table; what others know it reads first."""
    peer = Peer.from_config(config)
    async with EventPublisher.from_config(config, "router") as events:

        def publish(subject: str, payload: Message) -> None:
            events.publish(new_event(payload, subject, tenant=MESH))

        board = Board(config, publish)
        export(board)
        watches = [
            AdapterWatch(
                Adapter(name, adapter.address, regions=adapter.regions), config.router.refresh, board.see, peer
            )
            for name, adapter in config.enabled_adapters().items()
        ]
        for watch in watches:
            board.see(watch.view)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(watch.run(), name=f"watch {watch.view.name}") for watch in watches]
            reload = Reload(config, board.configure, publish)
            running.append(group.create_task(reload.run(), name="watch the configuration"))
            shared = Shared(config, board)
            running.append(group.create_task(shared.run(), name="share the state"))
            admission = Admission(config, board, peer=peer)
            running.append(group.create_task(admission.run(), name="hear announcements"))
            try:
                # A table without the breakers that are open would close them at every gateway, and one without the
                # adapters that serve would take them away.
                await asyncio.gather(shared.settle(_PATIENCE), settle(watches, _PATIENCE), admission.settle(_PATIENCE))
                yield Service(
                    address=config.router.address,
                    servicers=[RouterServicer(board)],
                    endless=RouterServicer.ENDLESS,
                )
            finally:
                for task in running:
                    task.cancel()
                board.close()
