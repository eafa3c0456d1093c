"""What the tests of this adapter share: models, requests, translations, and providers at a test's own server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_vertex import models
from maestro_adapter_vertex.models import VertexModel
from maestro_adapter_vertex.provider import VertexProvider
from maestro_adapter_vertex.settings import VertexSettings
from maestro_adapter_vertex.translate import Outgoing, to_wire

TOKEN = "ya29.test-token"

Ask = Callable[..., ChatRequest]
Translate = Callable[..., Outgoing]


@pytest.fixture(scope="session")
def catalogue() -> dict[str, VertexModel]:
    """All models by id."""
    return models.load()


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Makes a request from fields in the JSON form; `text` is the only turn unless `messages` are given."""

    def make(text: str = "hi", model: str = "vertex/gemini-2.5-flash", **fields: Any) -> ChatRequest:
        turn = {"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}
        return ParseDict({"model": model, "messages": [turn], **fields}, ChatRequest())

    return make


@pytest.fixture(scope="session")
def translate(catalogue: dict[str, VertexModel]) -> Translate:
    """Translates a request as the provider would."""

    def run(request: ChatRequest) -> Outgoing:
        return to_wire(request, catalogue[request.model])

    return run


@pytest.fixture(scope="session")
def provider_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Opens a provider whose API is at a base URL, as an async context manager."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)

    @asynccontextmanager
    async def opened(url: str, **settings: Any) -> AsyncGenerator[VertexProvider]:
        fields = {"project": "p1", "access_token": {"file": str(token)}, "base_url": url, **settings}
        provider = VertexProvider(VertexSettings.model_validate(fields))
        try:
            yield provider
        finally:
            await provider.close()

    return opened
