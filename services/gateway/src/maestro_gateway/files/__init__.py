"""Files of tenants: uploaded, listed, downloaded, deleted, expired. `keeping_files` gives the `Files` of a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from maestro_gateway.audit.acts import Acts
from maestro_gateway.files.depot import Depot
from maestro_gateway.files.door import FileDoor
from maestro_gateway.files.files import Files
from maestro_gateway.files.for_jobs import FilesOfJobs
from maestro_gateway.files.service import FileService
from maestro_gateway.files.sweep import Sweeper
from maestro_sdk.service.settings import Config

__all__ = ["FileDoor", "FileService", "Files", "FilesOfJobs", "keeping_files"]


@asynccontextmanager
async def keeping_files(config: Config, acts: Acts) -> AsyncGenerator[Files]:
    """The files of a gateway while the block runs; swept meanwhile. `acts` are told what callers did."""
    depot = Depot(config.nats.url)
    async with depot.connected():
        files = Files(depot, config.files, acts=acts)
        sweeping = asyncio.create_task(Sweeper(depot, files).run(), name="sweep files")
        try:
            yield files
        finally:
            sweeping.cancel()
            await asyncio.wait((sweeping,))
            await files.close()
