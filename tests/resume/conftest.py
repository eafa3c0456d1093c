"""One mesh with three gateways, and a slow provider that counts its calls."""

import inspect
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from maestro_sdk.testing.chaos.provider import Providers, Weather
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess

SEED = int(os.environ.get("RESUME_SEED", "11"))
KEY = "mk-resume-0123456789"
OTHER_KEY = "mk-stranger-0123456789"
MODEL = "openai/gpt-6.1-terra"
GATEWAYS = ("gateway", "gateway-2", "gateway-3")
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {
        "replicas": 3,
        "keys": [
            {"tenant": "resume", "key": {"env": "MAESTRO_KEY"}},
            {"tenant": "stranger", "key": {"env": "MAESTRO_OTHER_KEY"}},
        ],
        "ping": "1s",
    },
    "adapters": {
        "openai": {
            "module": "maestro_adapter_openai",
            "address": "127.0.0.1:50062",
            "settings": {"api_key": {"env": "OPENAI_API_KEY"}, "base_url": "${PROVIDERS}/v1"},
        },
    },
    "routes": {"default": {"targets": [MODEL]}},
    "aliases": {},
    "resume": {"window": "3s"},
    "grace": "5s",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(120 + 2 * int(os.environ.get("RESUME_RUNS", "0"))))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[FaultServer]:
    """The server that stands for the provider."""
    async with FaultServer() as running:
        yield running


@pytest.fixture
def providers(server: FaultServer) -> Providers:
    """A slow provider, with an empty record of calls."""
    providers = Providers(server, SEED)
    providers.weather["openai"] = Weather(pace=0.04)
    return providers


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(
    server: FaultServer, figures: list[str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[MeshProcess]:
    """The running mesh."""
    environment = {
        "MAESTRO_KEY": KEY,
        "MAESTRO_OTHER_KEY": OTHER_KEY,
        "PROVIDERS": server.url,
        "OPENAI_API_KEY": "sk-test",
    }
    async with MeshProcess(tmp_path_factory.mktemp("resume"), CONFIG, environment) as running:
        figures.append(f"start with 3 gateways: {running.ready_after:.1f} s")
        yield running
