"""One mesh whose providers do what they are asked, for official clients that only change their base URL."""

import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.obliging_anthropic import oblige_anthropic_account
from maestro_sdk.testing.obliging_bedrock import oblige_bedrock
from maestro_sdk.testing.obliging_gemini import oblige_gemini
from maestro_sdk.testing.obliging_ollama import oblige_ollama
from maestro_sdk.testing.obliging_wires import oblige_openai

KEY = "mk-ingress-0123456789"
MODELS = (
    "openai/gpt-4.1",
    "anthropic/claude-sonnet-5",
    "vertex/gemini-2.5-flash",
    "bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0",
    "local/able:8b",
)
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {"replicas": 2, "keys": [{"tenant": "alpha", "key": {"env": "MAESTRO_KEY"}}]},
    # Tests break providers on purpose: no breaker may carry that over to the next test.
    "router": {"refresh": "1h", "breaker": {"consecutive_failures": 1_000_000, "minimum_calls": 1_000_000}},
    "adapters": {
        "claude": {
            "module": "maestro_adapter_claude",
            "address": "127.0.0.1:50061",
            "settings": {"api_key": {"env": "PROVIDER_KEY"}, "base_url": "${PROVIDERS}"},
        },
        "openai": {
            "module": "maestro_adapter_openai",
            "address": "127.0.0.1:50062",
            "settings": {
                "api_key": {"env": "PROVIDER_KEY"},
                "base_url": "${PROVIDERS}/v1",
                "azure": {
                    "endpoint": "${PROVIDERS}",
                    "api_key": {"env": "PROVIDER_KEY"},
                    "deployments": {"text-embedding-3-small": "small"},
                },
            },
        },
        "vertex": {
            "module": "maestro_adapter_vertex",
            "address": "127.0.0.1:50063",
            "settings": {"project": "test", "access_token": {"env": "PROVIDER_KEY"}, "base_url": "${PROVIDERS}"},
        },
        "bedrock": {
            "module": "maestro_adapter_bedrock",
            "address": "127.0.0.1:50064",
            "settings": {
                "region": "us-east-1",
                "access_key_id": {"env": "PROVIDER_KEY"},
                "secret_access_key": {"env": "PROVIDER_KEY"},
                "base_url": "${PROVIDERS}",
            },
        },
        "local": {
            "module": "maestro_adapter_local",
            "address": "127.0.0.1:50065",
            "settings": {"servers": [{"name": "ollama", "api": "ollama", "base_url": "${PROVIDERS}"}]},
        },
    },
    "routes": {
        "default": {"targets": ["openai/gpt-4.1"], "max_attempts": 1},
        "second": {"targets": ["openai/gpt-4.1", "anthropic/claude-sonnet-5"]},
        "embeddings": {
            "targets": [
                "openai/text-embedding-3-small",
                "azure/text-embedding-3-small",
                "vertex/gemini-embedding-001",
            ],
        },
    },
    "aliases": {"sonnet": "anthropic/claude-sonnet-5", "usual": "default"},
    "grace": "5s",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            # The first test waits for the start of the mesh.
            item.add_marker(pytest.mark.timeout(120))


def oblige(server: FaultServer) -> None:
    """Lets every provider do what it is asked."""
    server.reset()
    for one in (oblige_openai, oblige_anthropic_account, oblige_gemini, oblige_bedrock, oblige_ollama):
        one(server)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def providers() -> AsyncIterator[FaultServer]:
    """The server that stands for all providers."""
    async with FaultServer() as server:
        oblige(server)
        yield server


@pytest.fixture
def provider(providers: FaultServer) -> FaultServer:
    """The providers' server without what other tests did to it."""
    oblige(providers)
    return providers


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(providers: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeshProcess]:
    """The running mesh."""
    environment = {
        "MAESTRO_KEY": KEY,
        "PROVIDERS": providers.url,
        "PROVIDER_KEY": "sk-test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    async with MeshProcess(tmp_path_factory.mktemp("ingress"), CONFIG, environment) as running:
        yield running
