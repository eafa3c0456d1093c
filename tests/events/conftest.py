"""One mesh with two gateways, a provider that is slow to begin, a receiver of webhooks, and a publisher of events."""

import inspect
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

# Test folders are no packages; the modules that tests of this folder share are found beside them.
sys.path.insert(0, str(Path(__file__).parent))

from event_mesh import KEY, OTHER_KEY, READERS, SECRET, STRICT_KEY, TTFT, config

from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.testing.callers import Caller
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.receiver import Receiver


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(180 + 2 * int(TTFT) + READERS // 2))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def receiver() -> AsyncIterator[Receiver]:
    """Where the webhook delivers to."""
    async with Receiver(SECRET) as receiver:
        yield receiver


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[FaultServer]:
    """The server that stands for the provider."""
    async with FaultServer() as server:
        yield server


@pytest.fixture
def provider(server: FaultServer) -> FaultServer:
    """The provider without scripts or requests of other tests."""
    server.reset()
    return server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(
    server: FaultServer, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[MeshProcess]:
    """The running mesh."""
    environment = {
        "MAESTRO_KEY": KEY,
        "MAESTRO_OTHER_KEY": OTHER_KEY,
        "MAESTRO_STRICT_KEY": STRICT_KEY,
        "HOOK_SECRET": SECRET,
        "PROVIDERS": server.url,
        "OPENAI_API_KEY": "sk-test",
    }
    async with MeshProcess(tmp_path_factory.mktemp("mesh"), config(receiver.url), environment) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def acme(mesh: MeshProcess) -> AsyncIterator[Caller]:
    """A caller with the key of tenant acme."""
    async with Caller(mesh.url, KEY) as caller:
        yield caller


@pytest_asyncio.fixture(loop_scope="session")
async def publisher(mesh: MeshProcess, tmp_path: Path) -> AsyncIterator[EventPublisher]:
    """A publisher of events that no request made."""
    async with EventPublisher(f"nats://{mesh.address('nats')}", tmp_path / "spool") as publisher:
        yield publisher
