"""One mesh for all tests of this folder, on free ports with its own data; one fault server stands for the providers.

All tests share one event loop, since the fault server and the callers live as long as the mesh.
"""

import inspect
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.faults import FaultServer, SendJson
from maestro_sdk.testing.mesh import MeshProcess

KEYS = {"MAESTRO_KEY": "mk-alpha-0123456789", "MAESTRO_BETA_KEY": "mk-beta-0123456789"}
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {
        "keys": [
            {"tenant": "alpha", "key": {"env": "MAESTRO_KEY"}},
            {"tenant": "beta", "key": {"env": "MAESTRO_BETA_KEY"}},
        ],
        "max_body": 65536,
        "ping": "1s",
    },
    # Tests break the providers on purpose, in any order: no breaker may carry that over to the next test. They count
    # the requests at the providers: nobody may ask for models meanwhile.
    "router": {"refresh": "1h", "breaker": {"consecutive_failures": 1_000_000, "minimum_calls": 1_000_000}},
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
        "vertex": {
            "module": "maestro_adapter_vertex",
            "address": "127.0.0.1:50063",
            "settings": {"project": "test", "access_token": {"env": "VERTEX_TOKEN"}, "base_url": "${PROVIDERS}"},
        },
        "bedrock": {
            "module": "maestro_adapter_bedrock",
            "address": "127.0.0.1:50064",
            "settings": {
                "region": "us-east-1",
                "access_key_id": {"env": "AWS_ACCESS_KEY_ID"},
                "secret_access_key": {"env": "AWS_SECRET_ACCESS_KEY"},
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
        "default": {"targets": ["local/offline"]},
        "openai-first": {
            "targets": ["openai/gpt-6.1-terra", "anthropic/claude-sonnet-5-5"],
            "first_event_timeout": "1s",
            "idle_timeout": "1s",
        },
        # Backends of their own, for tests that close one for a while.
        "refused-first": {"targets": ["openai/gpt-6-luna", "anthropic/claude-sonnet-5-5"]},
        "limited-first": {"targets": ["openai/gpt-5.6-sol", "anthropic/claude-sonnet-5-5"]},
        "anthropic-first": {"targets": ["anthropic/claude-sonnet-5-5", "openai/gpt-6.1-terra"]},
    },
    "aliases": {"fast": "local/offline"},
    "grace": "15s",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            # The first test waits for the start of the mesh.
            item.add_marker(pytest.mark.timeout(120))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def providers() -> AsyncIterator[FaultServer]:
    """The server that stands for all providers."""
    async with FaultServer() as server:
        describe_llama(server)
        yield server


def describe_llama(server: FaultServer) -> None:
    """Lets the server answer what the adapter of local servers asks before it offers a model."""
    names = ("llama", "llama-limited", "llama-locked")
    server.on("GET", "/api/tags", SendJson({"models": [{"name": name, "model": name} for name in names]}))
    facts = {"capabilities": ["completion", "tools"], "model_info": {"llama.context_length": 8192}}
    server.on("POST", "/api/show", SendJson(facts))


@pytest.fixture
def provider(providers: FaultServer) -> Iterator[FaultServer]:
    """The providers' server without scripts or requests of other tests."""
    providers.reset()
    describe_llama(providers)
    yield providers
    providers.reset()
    describe_llama(providers)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(
    providers: FaultServer, figures: list[str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[MeshProcess]:
    """The running mesh."""
    environment = {
        **KEYS,
        "PROVIDERS": providers.url,
        "ANTHROPIC_API_KEY": "sk-ant-test",
        "OPENAI_API_KEY": "sk-test",
        "VERTEX_TOKEN": "ya29.test",
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "secret-test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    async with MeshProcess(tmp_path_factory.mktemp("mesh"), CONFIG, environment) as running:
        figures.append(f"start of the mesh to its first answer: {running.ready_after:.1f} s")
        async with Caller(running.url, KEYS["MAESTRO_KEY"]) as caller:
            # The adapter of local servers looks for their models when it is first asked, and not during a test.
            await caller.chat(question(model="local/offline"))
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def alpha(mesh: MeshProcess) -> AsyncIterator[Caller]:
    """A caller with the key of tenant alpha."""
    async with Caller(mesh.url, KEYS["MAESTRO_KEY"]) as caller:
        yield caller


@pytest_asyncio.fixture(loop_scope="session")
async def beta(mesh: MeshProcess) -> AsyncIterator[Caller]:
    """A caller with the key of tenant beta."""
    async with Caller(mesh.url, KEYS["MAESTRO_BETA_KEY"]) as caller:
        yield caller


@pytest_asyncio.fixture(loop_scope="session")
async def nobody(mesh: MeshProcess) -> AsyncIterator[Caller]:
    """A caller without a key."""
    async with Caller(mesh.url, None) as caller:
        yield caller
