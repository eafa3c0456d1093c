"""Meshes for failure drills, on free ports with their own data; one fault server stands for all providers.

All tests share one event loop, since the fault server and the callers live as long as the meshes.
"""

import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

# Test folders are no packages; the modules that tests of this folder share are found beside them.
sys.path.insert(0, str(Path(__file__).parent))

from drill_config import ENVIRONMENT, HOME_KEY, KEY, calm_config, closed_port, strict_config
from drill_doors import Stand
from drill_stage import Stage

from maestro_sdk.testing.callers import Caller
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            # The first test waits for the start of a mesh, and for the drills that run at once.
            item.add_marker(pytest.mark.timeout(240))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[FaultServer]:
    """The server that stands for all providers."""
    async with FaultServer() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage(server: FaultServer) -> Stage:
    """What the providers answer."""
    return Stage(server)


@asynccontextmanager
async def running(
    folder: Path, config: Mapping[str, Any], server: FaultServer, figures: list[str]
) -> AsyncGenerator[MeshProcess]:
    """A mesh whose providers are at `server`."""
    async with MeshProcess(folder, config, {**ENVIRONMENT, "PROVIDERS": server.url}) as mesh:
        figures.append(f"start of a mesh with {len(config['routes'])} routes: {mesh.ready_after:.1f} s")
        yield mesh


@asynccontextmanager
async def standing(mesh: MeshProcess, key: str) -> AsyncGenerator[Stand]:
    """The doors of a mesh for one tenant."""
    async with Caller(mesh.url, key) as caller, grpc.aio.insecure_channel(mesh.target) as channel:
        yield Stand(caller, channel)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def calm(
    server: FaultServer, stage: Stage, figures: list[str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[MeshProcess]:
    """A mesh in which no breaker opens by itself."""
    async with running(tmp_path_factory.mktemp("calm"), calm_config(closed_port()), server, figures) as mesh:
        yield mesh


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def calm_stand(calm: MeshProcess) -> AsyncIterator[Stand]:
    """The doors of the calm mesh."""
    async with standing(calm, KEY) as stand:
        yield stand


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def strict(
    server: FaultServer, stage: Stage, figures: list[str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[MeshProcess]:
    """A mesh whose breakers open and close soon."""
    async with running(tmp_path_factory.mktemp("strict"), strict_config(closed_port()), server, figures) as mesh:
        yield mesh


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stand(strict: MeshProcess) -> AsyncIterator[Stand]:
    """The doors of the strict mesh, for a tenant that may go anywhere."""
    async with standing(strict, KEY) as found:
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def home(strict: MeshProcess) -> AsyncIterator[Stand]:
    """The same for a tenant whose requests stay in the region "eu"."""
    async with standing(strict, HOME_KEY) as found:
        yield found
