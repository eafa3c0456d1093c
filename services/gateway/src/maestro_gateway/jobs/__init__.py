"""Jobs: many requests in the background, each answered once and paid once, across the death of any process."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from maestro_gateway.audit.acts import Acts
from maestro_gateway.jobs.asides import Asides
from maestro_gateway.jobs.economy import Economist
from maestro_gateway.jobs.files import JobFiles
from maestro_gateway.jobs.holdings import Holdings
from maestro_gateway.jobs.keeper import Keeper
from maestro_gateway.jobs.ledger import Ledger
from maestro_gateway.jobs.output import Output
from maestro_gateway.jobs.places import Places
from maestro_gateway.jobs.provider_batches import ProviderBatches
from maestro_gateway.jobs.rest import JobRest
from maestro_gateway.jobs.service import JobService
from maestro_gateway.jobs.states import Board, States
from maestro_gateway.jobs.streams import Streams
from maestro_gateway.jobs.worker import Worker
from maestro_gateway.mesh import Mesh
from maestro_sdk.service.settings import Config

__all__ = ["STREAM_RESULTS", "JobFiles", "JobRest", "JobService", "running_jobs"]

STREAM_RESULTS = "/maestro.job.v1.JobService/StreamJobResults"
"""Ends with its job only: a gateway that stops ends it, and the caller goes on at another one."""
_log = logging.getLogger(__name__)


@asynccontextmanager
async def running_jobs(
    config: Config,
    mesh: Mesh,
    name: str,
    files: JobFiles | None = None,
    ledger: Ledger | None = None,
    most_jobs: Callable[[str], int | None] | None = None,
    acts: Acts | None = None,
) -> AsyncGenerator[JobService]:
    """Runs jobs while its block runs, and serves those who ask for them. `name` is that of this gateway process.

    `ledger` publishes the ends of requests: no item gets its result before they are safe. `most_jobs` gives the jobs
    of a tenant that may be under way at a time; without it the configuration says that. `acts` are told of every job
    that is made or cancelled.
    """

    def configured(tenant: str) -> int | None:
        return config.limits.tenants.get(tenant, config.limits.every_tenant).jobs

    async with Streams(config.nats.url, ledger) as streams:
        states = States(streams)
        board = Board(streams, states)
        places = Places(streams, states, board, most_jobs or configured)
        asides = Asides(streams)
        output = Output(streams, files) if files is not None else None
        worker = Worker(mesh, streams, states, board, places, asides, config.jobs)
        # A gateway that was started anew is another one.
        keeper = Keeper(f"{name}-{os.urandom(4).hex()}", streams, states, board, output, config.jobs.lease, asides)
        economist = Economist(
            f"{name}-{os.urandom(4).hex()}",
            mesh,
            streams,
            states,
            board,
            places,
            ProviderBatches(mesh.backends),
            config.jobs.lease,
            Holdings(mesh),
        )
        tasks = [
            asyncio.create_task(work(), name=what)
            for work, what in (
                (board.follow, "follow the jobs"),
                (worker.run, "run items of jobs"),
                (keeper.run, "keep the books of jobs"),
                (economist.run, "follow the batches of jobs"),
            )
        ]
        for task in tasks:
            task.add_done_callback(_tell_end)
        try:
            yield JobService(mesh, streams, states, board, places, config.jobs, files, acts)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _tell_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("the task to %s ended; restart this gateway", task.get_name(), exc_info=error)
