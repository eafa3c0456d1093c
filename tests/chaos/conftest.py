"""One mesh with two of what can be had twice, and providers under weather."""

import inspect
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from maestro_sdk.testing.chaos.provider import Providers
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess

SEED = int(os.environ.get("CHAOS_SEED", "7"))
_LONGER = float(os.environ.get("CHAOS_SECONDS", "0")) + 5 * float(os.environ.get("OUTAGE_SECONDS", "0"))
"""Seconds that a test has beside those of its short form: one of outages has three of them, each with its aftermath."""
KEY = "mk-chaos-0123456789"
OPEN_TIME = 2.0
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {"replicas": 2, "keys": [{"tenant": "chaos", "key": {"env": "MAESTRO_KEY"}}], "ping": "1s"},
    "router": {"replicas": 2, "breaker": {"open_time": f"{OPEN_TIME:g}s"}},
    "adapters": {
        "claude": {
            "module": "maestro_adapter_claude",
            "address": "127.0.0.1:50061",
            "settings": {"api_key": {"env": "ANTHROPIC_API_KEY"}, "base_url": "${PROVIDERS}"},
        },
        "openai": {
            "module": "maestro_adapter_openai",
            "address": "127.0.0.1:50062",
            "settings": {"api_key": {"env": "OPENAI_API_KEY"}, "base_url": "${PROVIDERS}/v1"},
        },
        "local": {"module": "maestro_adapter_local", "address": "127.0.0.1:50065"},
    },
    "routes": {
        "default": {"targets": ["local/offline"]},
        # Both providers give the same answer to a question, so that nobody can tell who gave it.
        "both": {
            "targets": ["openai/gpt-6.1-terra", "anthropic/claude-sonnet-5-5"],
            "first_event_timeout": "5s",
            "idle_timeout": "5s",
            "max_attempts": 4,
        },
    },
    "aliases": {"fast": "local/offline"},
    "grace": "5s",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(180 + _LONGER))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[FaultServer]:
    """The server that stands for all providers."""
    async with FaultServer() as running:
        yield running


@pytest.fixture
def providers(server: FaultServer) -> Providers:
    """The providers in fair weather, with an empty record of calls."""
    return Providers(server, SEED)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeshProcess]:
    """The running mesh."""
    environment = {
        "MAESTRO_KEY": KEY,
        "PROVIDERS": server.url,
        "ANTHROPIC_API_KEY": "sk-ant-test",
        "OPENAI_API_KEY": "sk-test",
    }
    async with MeshProcess(tmp_path_factory.mktemp("chaos"), CONFIG, environment) as running:
        yield running
