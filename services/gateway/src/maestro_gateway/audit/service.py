"""Puts the audit of a gateway together from a configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from maestro_gateway.audit.desk import AuditDesk
from maestro_gateway.audit.recorder import Recorder, recording
from maestro_gateway.audit.sealer import Sealer
from maestro_gateway.audit.wire import Wire
from maestro_sdk.service.settings import Config

log = logging.getLogger(__name__)


@asynccontextmanager
async def auditing(config: Config, name: str) -> AsyncGenerator[tuple[AuditDesk, Recorder | None]]:
    """Seals the ledger meanwhile, as one of the gateways. Starts and goes on without NATS, too.

    Gives what answers those who ask, and what records content; None when no tenant chose that.
    """
    wire = Wire(config.nats.url)
    sealer = Sealer(wire, name, retention_of(config))
    # In the order in which they end: the last words of the sealer need the connection.
    running = [
        asyncio.create_task(sealer.run(), name="seal the ledger"),
        asyncio.create_task(wire.keep(), name="keep the connection of the audit"),
    ]
    for task in running:
        task.add_done_callback(_tell_end)
    try:
        async with recording(config, wire) as recorder:
            yield AuditDesk(wire), recorder
    finally:
        for task in running:
            task.cancel()
            await asyncio.wait((task,))


def retention_of(config: Config) -> Callable[[str], float]:
    """The seconds for which records of a tenant are kept."""
    usual = config.audit.retention
    own = {name: kept for name, tenant in config.tenants.items() if (kept := tenant.audit.retention) is not None}
    return lambda tenant: own.get(tenant, usual)


def _tell_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the task to %s ended; restart this gateway", task.get_name(), exc_info=error)
