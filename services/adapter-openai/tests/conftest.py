"""What the tests of this adapter share: a server of their own, and providers that lead there."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from maestro_adapter_openai.azure import AzureProvider
from maestro_adapter_openai.provider import OpenAIProvider
from maestro_adapter_openai.settings import OpenAISettings
from maestro_sdk.testing.faults import FaultServer

KEY = {"env": "ADAPTER_TEST_KEY"}
DEPLOYMENTS = {"gpt-4.1": "my 41", "gpt-5.1": "my-51", "text-embedding-3-small": "vectors", "mystery": "mystery-1"}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_TEST_KEY", "sk-test")


@pytest.fixture
async def openai(server: FaultServer) -> AsyncIterator[OpenAIProvider]:
    fields = {"api_key": KEY, "base_url": f"{server.url}/v1", "connect_timeout": 2, "read_timeout": 0.5}
    made = OpenAIProvider.from_settings(OpenAISettings.model_validate(fields))
    yield made
    await made.close()


def _azure_at(url: str, **fields: Any) -> AzureProvider:
    azure = {
        "endpoint": url,
        "api_key": KEY,
        "api_version": "2025-04-01-preview",
        "deployments": DEPLOYMENTS,
        "batch_deployments": {"gpt-4.1": "my-41-batch"},
        **fields,
    }
    settings = OpenAISettings.model_validate({"azure": azure, "connect_timeout": 2, "read_timeout": 0.5})
    return AzureProvider.from_settings(settings)


@pytest.fixture
def azure_at(server: FaultServer) -> Callable[..., AzureProvider]:
    """Makes a provider at the server, with further settings of Azure; the test closes it."""
    return functools.partial(_azure_at, server.url)


@pytest.fixture
async def azure(server: FaultServer) -> AsyncIterator[AzureProvider]:
    made = _azure_at(server.url)
    yield made
    await made.close()
