"""What the tests of this adapter share: models, requests, translations, and providers at a test's own server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_claude import models
from maestro_adapter_claude.models import ClaudeModel
from maestro_adapter_claude.provider import ClaudeProvider
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_adapter_claude.translate import Outgoing, to_wire

API_KEY = "sk-ant-test-key"

Ask = Callable[..., ChatRequest]
Translate = Callable[..., Outgoing]


@pytest.fixture(scope="session")
def catalogue() -> dict[str, ClaudeModel]:
    """All models by id."""
    return models.load()


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Makes a request from fields in the JSON form; `text` is the only turn unless `messages` are given."""

    def make(text: str = "hi", model: str = "anthropic/claude-sonnet-5", **fields: Any) -> ChatRequest:
        turn = {"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}
        return ParseDict({"model": model, "messages": [turn], **fields}, ChatRequest())

    return make


@pytest.fixture(scope="session")
def translate(catalogue: dict[str, ClaudeModel]) -> Translate:
    """Translates a request as the provider would."""

    def run(request: ChatRequest, default_max_tokens: int = 16384) -> Outgoing:
        return to_wire(request, catalogue[request.model], default_max_tokens)

    return run


@pytest.fixture(scope="session")
def provider_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Opens a provider whose API is at a base URL, as an async context manager."""
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text(API_KEY)

    @asynccontextmanager
    async def opened(url: str, **settings: Any) -> AsyncGenerator[ClaudeProvider]:
        fields = {"api_key": {"file": str(key)}, "base_url": url, **settings}
        provider = ClaudeProvider(ClaudeSettings.model_validate(fields))
        try:
            yield provider
        finally:
            await provider.close()

    return opened
