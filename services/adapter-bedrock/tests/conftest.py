"""What the tests of this adapter share: models, requests, translations, and providers at a test's own server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_bedrock import models
from maestro_adapter_bedrock.models import BedrockModel
from maestro_adapter_bedrock.provider import BedrockProvider
from maestro_adapter_bedrock.settings import BedrockSettings
from maestro_adapter_bedrock.translate import Outgoing, to_wire

SONNET = "bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0"

Ask = Callable[..., ChatRequest]
Translate = Callable[..., Outgoing]


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds the developer's own credentials, or asks a machine's metadata service."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture(scope="session")
def catalogue() -> dict[str, BedrockModel]:
    """All models by id, and one of which only the name is known."""
    return models.load([{"name": "mine"}])


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Makes a request from fields in the JSON form; `text` is the only turn unless `messages` are given."""

    def make(text: str = "hi", model: str = SONNET, **fields: Any) -> ChatRequest:
        turn = {"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}
        return ParseDict({"model": model, "messages": [turn], **fields}, ChatRequest())

    return make


@pytest.fixture(scope="session")
def translate(catalogue: dict[str, BedrockModel]) -> Translate:
    """Translates a request as the provider would."""
    return lambda request: to_wire(request, catalogue[request.model])


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings with keys of no account."""
    folder = tmp_path_factory.mktemp("keys")
    values = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "a/secret+key", "session_token": "a-session-token"}
    for name, value in values.items():
        (folder / name).write_text(value)
    return {name: {"file": str(folder / name)} for name in values}


@pytest.fixture(scope="session")
def provider_at(keys: dict[str, Any]) -> Callable[..., Any]:
    """Opens a provider whose API is at a base URL, as an async context manager."""

    @asynccontextmanager
    async def opened(url: str, **settings: Any) -> AsyncGenerator[BedrockProvider]:
        provider = BedrockProvider(
            BedrockSettings.model_validate({"region": "us-east-1", "base_url": url, **keys, **settings})
        )
        try:
            yield provider
        finally:
            await provider.close()

    return opened
